//! The outside of a program whose settings come from the environment: what its first argument asks
//! for, what is said on a terminal, and how it ends.

use std::fmt::Display;
use std::process::ExitCode;

/// What a program is called and says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name, in front of complaints.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The text of `help`.
    pub help: &'static str,
}

impl Program {
    /// Does what the process's arguments ask for: `proxy` (or nothing) runs, `version` and `help` say.
    ///
    /// To run: `settings` reads them, given the arguments behind `proxy`; what is wrong with them is
    /// said, all at once. Then `serve`, on a single-threaded runtime.
    pub fn main<S, P, F, E>(
        &self,
        settings: impl FnOnce(&[String]) -> Result<S, Vec<P>>,
        serve: impl FnOnce(S) -> F,
    ) -> ExitCode
    where
        P: Display,
        E: Display + From<std::io::Error>,
        F: Future<Output = Result<(), E>>,
    {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let (first, rest) = match arguments.split_first() {
            Some((first, rest)) => (first.as_str(), rest),
            None => ("proxy", &[][..]),
        };
        match first {
            "proxy" => return self.proxy(settings(rest), serve),
            "version" | "--version" | "-V" => say(&format!("{} {}\n", self.name, self.version)),
            "help" | "--help" | "-h" => say(self.help),
            other => {
                let name = self.name;
                self.complain(&format!("unknown command `{other}`; try `{name} help`"));
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }

    fn proxy<S, P, F, E>(&self, settings: Result<S, Vec<P>>, serve: impl FnOnce(S) -> F) -> ExitCode
    where
        P: Display,
        E: Display + From<std::io::Error>,
        F: Future<Output = Result<(), E>>,
    {
        let settings = match settings {
            Ok(settings) => settings,
            Err(problems) => {
                for problem in problems {
                    self.complain(&problem.to_string());
                }
                return ExitCode::FAILURE;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let ran = match runtime {
            Ok(runtime) => runtime.block_on(Box::pin(serve(settings))),
            Err(error) => Err(error.into()),
        };
        match ran {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                self.complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        }
    }

    #[expect(
        clippy::print_stderr,
        reason = "logging is not set up, or is the problem"
    )]
    fn complain(&self, text: &str) {
        eprintln!("{}: {text}", self.name);
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the answer to a question on the command line"
)]
fn say(text: &str) {
    print!("{text}");
}
