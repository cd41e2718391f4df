//! Certificates from the SPIRE agent of this machine.
//!
//! # Theory of operation
//! The agent is reached over two sockets. At its admin socket it serves the Delegated Identity API: for each identity of a
//! pod there is one subscription (`delegated`), and one more keeps the roots of all trust domains ([`BundleKeeper`]). At
//! its workload socket it serves SPIFFE's Workload API, from which this program has its own certificate (`workload`). A
//! subscription is a stream of everything there is for a workload, sent at once and again with each change; [`crate::Renewer`]
//! follows it, and opens it anew with its own backoff when it ends.
//!
//! The agent makes the keys. They come over a socket of this machine and go no further.
//!
//! # Whom the agent is asked for
//! By selectors: `k8s:ns`, `k8s:sa`, and `k8s:pod-uid` of each of the identity's pods here. A registration is found if all of
//! its own selectors are among these, so both those made by hand for a service account and those that SPIRE's controller
//! makes for each pod. Of what the agent offers only the very identity that was asked for is taken.
//!
//! # Failure modes
//! Without the agent everything in use stays in use until it ends. A workload that is not registered yet is served as soon as
//! the agent tells of it, through the stream that is open for that. Roots of a federated domain that cannot be read leave
//! those in force that it had; a certificate of our own domain is never used without roots of it.

mod bundles;
mod delegated;
mod workload;

pub use bundles::BundleKeeper;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use ambit_model::identity::Identity;
use ambit_tls::{Terms, TlsError, TrustBundles};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;

use crate::issuer::{IssueError, Issued, Issuer, Subject, describe, is_refusal};

/// Largest message of an agent: tens of certificates with their roots take some ten KiB, and 256 trust domains of two RSA
/// roots each 1 MiB.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Names of other identities that an error shows: enough to see what was registered instead.
const MAX_SHOWN: usize = 3;

/// How a SPIFFE ID begins; what follows is the trust domain.
const SCHEME: &str = "spiffe://";

/// Why the agent brought no certificate.
#[derive(Debug, Error)]
pub enum AgentError {
    /// Environment or peer: it could not be asked.
    #[error("SPIRE agent cannot be asked: {}", describe(.0))]
    Unavailable(Status),
    /// Configuration: it says no. This program must be registered, and be one of the agent's `authorized_delegates`.
    #[error("SPIRE agent refuses: {}", describe(.0))]
    Refused(Status),
    /// Peer: it ended a subscription.
    #[error("SPIRE agent ended the subscription")]
    Ended,
    /// Configuration: no registration fits, or only those of others.
    #[error("SPIRE agent has no certificate of {wanted}{}", instead(.offered))]
    NotRegistered {
        /// Who was asked for.
        wanted: Identity,
        /// Whose certificates it offered.
        offered: Vec<String>,
    },
    /// Peer: no roots of the certificate's own trust domain.
    #[error("SPIRE agent knows no roots of trust domain {0}")]
    NoBundle(String),
    /// Peer: the answer is no usable certificate, or its key is another.
    #[error("SPIRE agent's answer is unusable: {0}")]
    Answer(TlsError),
}

impl AgentError {
    fn of(status: Status) -> Self {
        match is_refusal(&status) {
            true => Self::Refused(status),
            false => Self::Unavailable(status),
        }
    }

    fn not_registered(wanted: &Identity, offered: impl Iterator<Item = String>) -> Self {
        Self::NotRegistered {
            wanted: wanted.clone(),
            offered: offered.take(MAX_SHOWN).map(|id| shown(&id)).collect(),
        }
    }
}

fn instead(offered: &[String]) -> String {
    match offered {
        [] => String::new(),
        some => format!(", but of {}", some.join(", ")),
    }
}

/// A registration may hold any text: it goes into a log line cut short and with nothing unprintable.
fn shown(id: &str) -> String {
    id.chars()
        .take(128)
        .flat_map(char::escape_default)
        .collect()
}

/// What an agent is asked over: a channel to one of its sockets.
pub trait AgentChannel:
    GrpcService<
        Body,
        Future: Send,
        Error: Into<Box<dyn StdError + Send + Sync>>,
        ResponseBody: tonic::codegen::Body<
            Data = Bytes,
            Error: Into<Box<dyn StdError + Send + Sync>> + Send,
        > + Send
                          + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<C> AgentChannel for C where
    C: GrpcService<
            Body,
            Future: Send,
            Error: Into<Box<dyn StdError + Send + Sync>>,
            ResponseBody: tonic::codegen::Body<
                Data = Bytes,
                Error: Into<Box<dyn StdError + Send + Sync>> + Send,
            > + Send
                              + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// Where the agent is.
#[derive(Debug, Clone)]
pub struct AgentSockets<C> {
    /// Its admin socket.
    pub admin: C,
    /// Its workload socket and who this program is there; without, it gets its own certificate as it gets those of the pods.
    pub workload: Option<(C, Identity)>,
}

/// The issuer that is SPIRE's agent.
#[derive(Clone)]
pub struct SpireIssuer<C> {
    sockets: AgentSockets<C>,
    bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    /// Says that the agent answers: who waits for roots need not wait on.
    answers: Arc<Notify>,
    terms: Terms,
}

impl<C> fmt::Debug for SpireIssuer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpireIssuer").finish_non_exhaustive()
    }
}

impl<C: AgentChannel> SpireIssuer<C> {
    /// One that asks over these sockets. The second is a task of the control runtime without which it has no roots. Handshakes
    /// with its certificates keep to `terms`.
    pub fn new(sockets: AgentSockets<C>, terms: Terms) -> (Self, BundleKeeper<C>) {
        let answers = Arc::new(Notify::new());
        let (keeper, bundles) = BundleKeeper::new(sockets.admin.clone(), Arc::clone(&answers));
        let issuer = Self {
            sockets,
            bundles,
            answers,
            terms,
        };
        (issuer, keeper)
    }
}

impl<C: AgentChannel> Issuer for SpireIssuer<C> {
    async fn issue(&self, subject: &Subject) -> Result<Issued, IssueError> {
        let terms = self.terms.clone();
        let successors = match &self.sockets.workload {
            Some((channel, own)) if *own == subject.identity => {
                workload::fetch(channel.clone(), own, terms).await?
            }
            _ => {
                let admin = self.sockets.admin.clone();
                let bundles = self.bundles.clone();
                let successors = delegated::subscribe(admin, subject, bundles, terms).await?;
                self.answers.notify_one();
                successors
            }
        };
        Ok(Issued::Followed(successors))
    }
}

#[cfg(test)]
mod tests;
