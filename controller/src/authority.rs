//! The certificate authority: who may have which certificate, and signing it.
//!
//! 1. The token says who calls ([`review`]).
//! 2. The objects say whether it may have what it asks for ([`grant`]).
//! 3. The root signs.
//!
//! A caller learns only that it was refused; why is in the log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_proto::istio::ca::istio_certificate_service_server::IstioCertificateService;
use ambit_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use ambit_runtime::clock::Clock;
use ambit_tls::authority::{Request as Signing, Root};
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use crate::app::Shared;
use crate::metrics::Metrics;

pub mod grant;
pub mod keys;
pub mod review;

/// Life of a certificate when the request does not say: a day, as in Istio.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// Member of the request's metadata by which a node proxy names the identity it asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The signing service.
#[derive(Debug)]
pub struct Authority {
    /// What signs.
    pub root: Arc<Root>,
    /// What is published now, and who may read it.
    pub shared: Shared,
    /// Longest life of a certificate.
    pub max_ttl: Duration,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let answer = self.sign(&request, self.clock.now());
        self.metrics.signed(answer.is_ok());
        answer.map(Response::new)
    }
}

impl Authority {
    fn sign(
        &self,
        request: &Request<IstioCertificateRequest>,
        now: SystemTime,
    ) -> Result<IstioCertificateResponse, Status> {
        let published = self.shared.published();
        let caller = self.shared.caller(request.metadata(), &published, now)?;
        let message = request.get_ref();
        let wanted = impersonated(message);
        let granted = grant::grant(&published.cluster, &caller, wanted);
        let identity = granted.map_err(|refused| {
            tracing::warn!(%caller, wanted, %refused, "certificate refused");
            Status::unauthenticated("request authenticate failure")
        })?;
        let signing = Signing::from_pem(&message.csr).map_err(|error| {
            tracing::warn!(%caller, %error, "certificate request cannot be read");
            Status::invalid_argument("CSR cannot be read")
        })?;
        let ttl = self.ttl(message.validity_duration);
        let chain = self
            .root
            .issue(&signing, &identity, now, ttl)
            .map_err(|error| {
                tracing::error!(%caller, %identity, %error, "certificate cannot be signed");
                Status::internal("CSR cannot be signed")
            })?;
        tracing::info!(%caller, %identity, ttl_seconds = ttl.as_secs(), "certificate signed");
        Ok(IstioCertificateResponse { cert_chain: chain })
    }

    /// What was asked for, within bounds: nobody gets a certificate for longer than we want to
    /// honour a mistake.
    fn ttl(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(self.max_ttl),
            _ => DEFAULT_TTL.min(self.max_ttl),
        }
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    match request
        .metadata
        .as_ref()?
        .fields
        .get(IMPERSONATED)?
        .kind
        .as_ref()?
    {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
