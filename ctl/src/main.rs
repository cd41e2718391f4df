//! The entry point of `ambitctl`.

use std::io::Write;
use std::process::ExitCode;

use ambit_ctl::cli::{self, Arguments};
use clap::Parser;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let answer = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(&arguments)),
        Err(error) => Err(error.into()),
    };
    match answer {
        // A reader that went away (`| head`) is no failure.
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ambitctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
