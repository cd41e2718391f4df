//! A pod's certificate, from the control thread to the data threads.
//!
//! The control thread puts the newest certificate here; a handshake takes it with one atomic load.
//! Only a handshake that comes before the first certificate waits.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_tls::Svid;
use arc_swap::ArcSwap;
use tokio::sync::watch;

/// What the control thread knows of a pod's certificate.
#[derive(Debug, Default)]
struct State {
    svid: Option<Arc<Svid>>,
    /// Why there is none, once an attempt has failed.
    problem: Option<Arc<str>>,
}

/// Where a pod's certificate is found.
#[derive(Debug)]
pub struct Credential {
    state: ArcSwap<State>,
    changed: watch::Sender<()>,
}

impl Default for Credential {
    fn default() -> Self {
        Self {
            state: ArcSwap::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Credential {
    /// Puts a certificate in force.
    pub fn put(&self, svid: Arc<Svid>) {
        self.set(State {
            svid: Some(svid),
            problem: None,
        });
    }

    /// Says that there is none and why. Whoever waits for one is told at once.
    pub fn fail(&self, problem: &str) {
        self.set(State {
            svid: None,
            problem: Some(problem.into()),
        });
    }

    fn set(&self, state: State) {
        self.state.store(Arc::new(state));
        self.changed.send_replace(());
    }

    /// The certificate in force, if it is one that a peer will take.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Svid>> {
        let state = self.state.load();
        state
            .svid
            .as_ref()
            .filter(|svid| SystemTime::now() < svid.not_after())
            .cloned()
    }

    /// The certificate in force, waiting for the first one no longer than `limit`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn wait(&self, limit: Duration) -> Result<Arc<Svid>, Arc<str>> {
        let mut changed = self.changed.subscribe();
        let later = async {
            loop {
                if let Some(svid) = self.current() {
                    return Ok(svid);
                }
                if let Some(problem) = self.state.load().problem.clone() {
                    return Err(problem);
                }
                if changed.changed().await.is_err() {
                    return Err("the pod is no longer served".into());
                }
            }
        };
        let answered = tokio::time::timeout(limit, later).await;
        answered.unwrap_or_else(|_elapsed| Err("not issued yet".into()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ambit_tls::Svid;
    use ambit_tls::authority::{Request, Root};
    use ambit_tls::csr::KeyAndCsr;

    use super::Credential;

    fn svid(life: Duration) -> std::sync::Arc<Svid> {
        let identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let now = SystemTime::now();
        let root = Root::generate("test", now, Duration::from_secs(3600)).unwrap();
        let asked = KeyAndCsr::generate(&identity).unwrap();
        let request = Request::from_pem(&asked.csr_pem).unwrap();
        let chain = root.issue(&request, &identity, now, life).unwrap();
        Svid::from_chain(&asked.key, &chain).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_first_certificate_and_not_for_ever() {
        let credential = Credential::default();
        assert!(credential.wait(Duration::from_secs(5)).await.is_err());
        let (found, ()) = tokio::join!(credential.wait(Duration::from_secs(5)), async {
            tokio::task::yield_now().await;
            credential.put(svid(Duration::from_secs(60)));
        });
        assert!(found.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_the_authority_is_told_at_once() {
        let credential = Credential::default();
        credential.fail("the authority says no");
        let start = tokio::time::Instant::now();
        let told = credential.wait(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(
            (&*told, start.elapsed()),
            ("the authority says no", Duration::ZERO)
        );
    }

    #[test]
    fn an_expired_certificate_is_none() {
        let credential = Credential::default();
        credential.put(svid(Duration::ZERO));
        assert!(credential.current().is_none());
    }
}
