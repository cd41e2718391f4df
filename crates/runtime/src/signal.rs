//! Signals that ask the process to end.

use std::future::Future;
use std::io;
use std::pin::pin;

use futures_util::future::{Either, select};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Which signal asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// `SIGTERM`: the supervisor's request.
    Terminate,
    /// `SIGINT`: somebody at the terminal.
    Interrupt,
}

/// Watches for `SIGTERM` and `SIGINT` from the moment it is made; neither then ends the process
/// by itself.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Starts to watch. Needs a runtime with its signal driver on.
    ///
    /// # Errors
    ///
    /// The system refuses the handlers.
    pub fn watch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next request to end. Cancel safe.
    pub async fn requested(&mut self) -> Cause {
        match select(pin!(self.terminate.recv()), pin!(self.interrupt.recv())).await {
            Either::Left(_) => Cause::Terminate,
            Either::Right(_) => Cause::Interrupt,
        }
    }

    /// Waits for the end of `work`, unless somebody interrupts again: a person who presses
    /// Ctrl-C twice means now. `None` then. Further `SIGTERM`s change nothing.
    pub async fn unless_interrupted<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        match select(pin!(work), pin!(self.interrupt.recv())).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }
}

/// Waits for the first request to end; for programs that watch for nothing else.
///
/// # Errors
///
/// The system refuses the handlers.
pub async fn terminate() -> io::Result<Cause> {
    Ok(Termination::watch()?.requested().await)
}

#[cfg(test)]
mod tests {
    use super::{Cause, Termination};

    fn send_self(signal: &str) {
        let me = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", signal, &me])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    // One test, because signals reach the whole process.
    #[tokio::test]
    async fn tells_which_signal_came_and_that_a_second_interrupt_means_now() {
        let mut termination = Termination::watch().unwrap();
        send_self("TERM");
        assert_eq!(termination.requested().await, Cause::Terminate);
        send_self("INT");
        assert_eq!(termination.requested().await, Cause::Interrupt);
        assert_eq!(termination.unless_interrupted(async { 3 }).await, Some(3));
        send_self("INT");
        let never = std::future::pending::<()>();
        assert_eq!(termination.unless_interrupted(never).await, None);
    }
}
