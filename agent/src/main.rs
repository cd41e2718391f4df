//! The node agent's entry point.

use std::process::ExitCode;

use ambit_agent::app;
use ambit_agent::config::{Arguments, Command};
use clap::Parser;

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "answers of a command line"
)]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (arguments.command, arguments.run) {
        (Some(Command::Unenrol(command)), _) => app::unenrol(&command)
            .map(|removed| println!("redirection removed from {removed} pods")),
        (None, Some(run)) => runtime().and_then(|runtime| runtime.block_on(app::run(run))),
        (None, None) => unreachable_arguments(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread for everything but the kernel's answers: the agent waits most of the time.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// The parser does not let this happen.
fn unreachable_arguments() -> anyhow::Result<()> {
    anyhow::bail!("nothing to do; see --help")
}
