//! Which clients' addresses could not be kept towards which applications lately.
//!
//! When all source ports of a client's address towards one application are taken, the kernel looks at
//! each of them before it says so, which takes milliseconds of a thread that serves everybody. So the
//! answer is believed for a moment.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

/// How long the answer is believed: one search a second costs a thread less than a hundredth of it,
/// and a client whose connections have ended waits no longer than this to be seen again as itself.
const BELIEVED: Duration = Duration::from_secs(1);

/// Answers kept. Each took a search, so a thread can learn no more than some hundred in that time.
const MOST: usize = 256;

/// What one thread has learned.
#[derive(Debug, Default)]
pub struct Unkept(RefCell<HashMap<(IpAddr, SocketAddr), Instant>>);

impl Unkept {
    /// Whether `client`'s address could not be kept towards `to` a moment ago.
    #[must_use]
    pub fn lately(&self, client: IpAddr, to: SocketAddr) -> bool {
        let known = self.0.borrow();
        known
            .get(&(client, to))
            .is_some_and(|since| since.elapsed() < BELIEVED)
    }

    /// It could not be kept now.
    pub fn note(&self, client: IpAddr, to: SocketAddr) {
        let mut known = self.0.borrow_mut();
        if known.len() >= MOST {
            known.retain(|_, since| since.elapsed() < BELIEVED);
        }
        if known.len() < MOST {
            known.insert((client, to), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use tokio::time::advance;

    use super::{BELIEVED, MOST, Unkept};

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_a_moment_and_for_that_pair_alone() {
        let client: IpAddr = "10.0.0.1".parse().unwrap();
        let to: SocketAddr = "10.0.0.9:80".parse().unwrap();
        let unkept = Unkept::default();
        assert!(!unkept.lately(client, to));
        unkept.note(client, to);
        assert!(unkept.lately(client, to));
        assert!(!unkept.lately(client, "10.0.0.9:81".parse().unwrap()));
        assert!(!unkept.lately(to.ip(), to));
        advance(BELIEVED).await;
        assert!(!unkept.lately(client, to));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_makes_room_by_itself() {
        let client: IpAddr = "10.0.0.1".parse().unwrap();
        let unkept = Unkept::default();
        let to = |n: usize| SocketAddr::from(([10, 0, 0, 9], u16::try_from(n).unwrap()));
        for n in 0..2 * MOST {
            unkept.note(client, to(n));
        }
        assert_eq!(unkept.0.borrow().len(), MOST);
        advance(BELIEVED).await;
        unkept.note(client, to(9999));
        assert_eq!(unkept.0.borrow().len(), 1);
    }
}
