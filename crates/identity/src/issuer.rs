//! Asking a certificate authority.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ambit_model::identity::Identity;
use ambit_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use ambit_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use ambit_tls::csr::{KeyAndCsr, PrivateKey};
use ambit_tls::{Rejected, Svid, Terms, TlsError};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use thiserror::Error;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::{Code, Status};

use crate::spire::AgentError;

/// The key of the request's metadata by which a node proxy names the identity it asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Most elements of an answer: leaf, intermediates and bundle. A deeper chain than this is refused
/// by every verifier anyway.
const MAX_ELEMENTS: usize = 16;

/// Why an attempt brought no certificate.
#[derive(Debug, Error)]
pub enum IssueError {
    /// Environment or peer: the authority could not be asked.
    #[error("certificate authority cannot be asked: {}", describe(.0))]
    Unavailable(Status),
    /// Configuration or peer: the authority says no.
    #[error("certificate authority refuses: {}", describe(.0))]
    Refused(Status),
    /// Peer: the answer is no usable certificate for our key.
    #[error("certificate authority's answer is unusable: {0}")]
    Answer(TlsError),
    /// Peer: the answer has no leaf or no bundle, or too many elements.
    #[error("certificate authority's answer has {0} elements")]
    Layout(usize),
    /// Peer: a certificate for somebody else.
    #[error("issuer answered with a certificate of {0}")]
    WrongIdentity(Identity),
    /// Peer, or our clock: a certificate that no peer would accept now.
    #[error("issuer answered with a certificate that fails its own bundle: {0}")]
    Unfit(Rejected),
    /// Peer: no answer in time.
    #[error("issuer did not answer within {0:?}")]
    Timeout(Duration),
    /// Peer: what kept the certificate up to date has ended.
    #[error("issuer sends no more successors")]
    Ended,
    /// Environment, configuration or peer: the agent of this machine.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Us: no request could be made.
    #[error("no signing request: {0}")]
    Request(TlsError),
}

/// A status with its causes: the message alone often only says "transport error".
pub(crate) fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Whose certificate is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// What the certificate must say.
    pub identity: Identity,
    /// Uids of the pods of this node that it is for, as far as they were told.
    pub pods: Vec<String>,
}

/// How an issuer answers.
pub enum Issued {
    /// With a certificate, and it is to be asked again in time.
    Once(Arc<Svid>),
    /// With a certificate and then its successors, or what is wrong, as they come: the first at once.
    Followed(BoxStream<'static, Result<Arc<Svid>, IssueError>>),
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Once(svid) => f.debug_tuple("Once").field(svid).finish(),
            Self::Followed(_) => f.write_str("Followed(..)"),
        }
    }
}

/// Gets certificates from somewhere.
pub trait Issuer: Send + Sync + 'static {
    /// A new certificate for `subject`, for a key that nobody else was given.
    ///
    /// # Assumptions
    /// The caller bounds the time, checks the identity and whether the certificate is valid.
    fn issue(&self, subject: &Subject) -> impl Future<Output = Result<Issued, IssueError>> + Send;
}

/// The issuer of Istio's contract: `istio.v1.auth.IstioCertificateService`.
#[derive(Debug, Clone)]
pub struct CaIssuer<C> {
    channel: C,
    lifetime: Duration,
    impersonate: bool,
    terms: Terms,
}

impl<C> CaIssuer<C> {
    /// Asks over `channel` for certificates of `lifetime` (a wish: the authority decides).
    ///
    /// With `impersonate` the request names the identity, as a node proxy does for its pods;
    /// without, the authority gives what the token says.
    pub fn new(channel: C, lifetime: Duration, impersonate: bool) -> Self {
        Self {
            channel,
            lifetime,
            impersonate,
            terms: Terms::default(),
        }
    }

    /// Handshakes with its certificates keep to `terms`.
    #[must_use]
    pub fn on(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }

    fn request(&self, identity: &Identity, csr: String) -> IstioCertificateRequest {
        let metadata = self.impersonate.then(|| {
            let kind = Some(Kind::StringValue(identity.to_string()));
            Struct {
                fields: BTreeMap::from([(IMPERSONATED.to_owned(), Value { kind })]),
            }
        });
        let validity_duration = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        IstioCertificateRequest {
            csr,
            validity_duration,
            metadata,
        }
    }
}

impl<C> Issuer for CaIssuer<C>
where
    C: GrpcService<Body> + Clone + Send + Sync + 'static,
    C::Future: Send,
    C::Error: Into<Box<dyn StdError + Send + Sync>>,
    C::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
{
    async fn issue(&self, subject: &Subject) -> Result<Issued, IssueError> {
        let identity = &subject.identity;
        let KeyAndCsr { key, csr_pem } =
            KeyAndCsr::generate(identity).map_err(IssueError::Request)?;
        let mut client = IstioCertificateServiceClient::new(self.channel.clone());
        let request = self.request(identity, csr_pem);
        match client.create_certificate(request).await {
            Ok(answer) => {
                accept(&key, answer.into_inner(), identity, &self.terms).map(Issued::Once)
            }
            Err(status) if is_refusal(&status) => Err(IssueError::Refused(status)),
            Err(status) => Err(IssueError::Unavailable(status)),
        }
    }
}

/// Whether asking again is of no use before somebody has changed something.
pub(crate) fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

/// Checks an answer: a certificate of `identity`, for `key`, with its bundle.
fn accept(
    key: &PrivateKey,
    answer: IstioCertificateResponse,
    identity: &Identity,
    terms: &Terms,
) -> Result<Arc<Svid>, IssueError> {
    let chain = answer.cert_chain;
    if !(2..=MAX_ELEMENTS).contains(&chain.len()) {
        return Err(IssueError::Layout(chain.len()));
    }
    // Refuses a leaf whose public key is not that of `key`.
    let svid = Svid::from_chain_on(key, &chain, terms).map_err(IssueError::Answer)?;
    if svid.identity() == identity {
        Ok(svid)
    } else {
        Err(IssueError::WrongIdentity(svid.identity().clone()))
    }
}

#[cfg(test)]
mod tests;
