//! The roots of every trust domain that the agent knows, kept as they change.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ambit_observe::metrics::{Descriptor, Kind, Registry};
use ambit_proto::spire::delegated::delegated_identity_client::DelegatedIdentityClient;
use ambit_proto::spire::delegated::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
};
use ambit_runtime::backoff::Backoff;
use ambit_tls::TrustBundles;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{AgentChannel, AgentError, MAX_MESSAGE, SCHEME};

/// Pauses before the subscription is opened anew. Certificates wait for the first roots, so the first comes soon; one stream
/// of one node every half minute is no burden to an agent.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Longest wait for the first answer; the same as for a certificate.
const FIRST: Duration = Duration::from_secs(10);
/// After so long a silence it is asked anew: roots change once in weeks, and an agent that hangs says nothing either.
const SILENCE: Duration = Duration::from_secs(600);

/// Keeps the roots up to date. Run it once, on the control runtime.
pub struct BundleKeeper<C> {
    channel: C,
    known: watch::Sender<Option<Arc<TrustBundles>>>,
    /// The agent has answered somebody.
    answers: Arc<Notify>,
    current: Arc<AtomicBool>,
}

impl<C> fmt::Debug for BundleKeeper<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleKeeper").finish_non_exhaustive()
    }
}

impl<C: AgentChannel> BundleKeeper<C> {
    pub(super) fn new(
        channel: C,
        answers: Arc<Notify>,
    ) -> (Self, watch::Receiver<Option<Arc<TrustBundles>>>) {
        let (known, bundles) = watch::channel(None);
        let keeper = Self {
            channel,
            known,
            answers,
            current: Arc::default(),
        };
        (keeper, bundles)
    }

    /// Adds it to what the program counts.
    pub fn register(&self, registry: &Registry) {
        let current = Arc::clone(&self.current);
        let descriptor = Descriptor {
            name: "ambit_spire_bundles_current",
            help: "1 while the SPIRE agent tells of the roots of trust domains (unstable).",
            kind: Kind::Gauge,
        };
        registry.computed(descriptor, move || {
            Some(f64::from(u8::from(current.load(Relaxed))))
        });
    }

    /// Subscribes for ever. Dropping the future ends it; what is known stays known.
    pub async fn run(self) -> Infallible {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            match self.session(&mut backoff).await {
                Ok(()) => {}
                Err(error) => {
                    self.current.store(false, Relaxed);
                    tracing::warn!(%error, "roots of trust domains are not kept up to date");
                    // An agent that answers others is back: certificates wait for nothing but roots then.
                    let pause = timeout(backoff.next(fastrand::u64(..)), self.answers.notified());
                    let _ = pause.await;
                }
            }
        }
    }

    /// One subscription, until it fails or was silent for long.
    async fn session(&self, backoff: &mut Backoff) -> Result<(), AgentError> {
        let late =
            |_elapsed| AgentError::Unavailable(Status::deadline_exceeded("no answer in time"));
        let mut answers = timeout(FIRST, self.open()).await.map_err(late)??;
        let first = timeout(FIRST, answers.message()).await.map_err(late)?;
        let mut answer = first.map_err(AgentError::of)?;
        loop {
            self.put(answer.ok_or(AgentError::Ended)?);
            backoff.reset();
            answer = match timeout(SILENCE, answers.message()).await {
                Err(_silent) => return Ok(()),
                Ok(answer) => answer.map_err(AgentError::of)?,
            };
        }
    }

    async fn open(&self) -> Result<Streaming<SubscribeToX509BundlesResponse>, AgentError> {
        let client = DelegatedIdentityClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(MAX_MESSAGE);
        let answers = client
            .subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {})
            .await;
        Ok(answers.map_err(AgentError::of)?.into_inner())
    }

    fn put(&self, answer: SubscribeToX509BundlesResponse) {
        let before = self.known.borrow().clone();
        let read = Arc::new(read(answer, before.as_deref()));
        self.current.store(true, Relaxed);
        self.known.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&read);
            *known = Some(read);
            changed
        });
    }
}

/// Roots by trust domain. A domain whose roots cannot be read keeps those it had.
fn read(answer: SubscribeToX509BundlesResponse, before: Option<&TrustBundles>) -> TrustBundles {
    let mut bundles = TrustBundles::default();
    for (id, roots) in answer.ca_certificates {
        let domain = id.strip_prefix(SCHEME).unwrap_or(&id);
        if let Err(error) = bundles.insert(domain, &roots) {
            let kept = before.is_some_and(|before| bundles.keep(before, domain));
            tracing::warn!(domain, %error, kept, "roots of a trust domain cannot be used");
        }
    }
    bundles
}
