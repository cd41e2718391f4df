//! The way to one collector: gRPC in plaintext or over TLS, with headers.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_control::{ControlPlane, Roots, TokenSource};
use ambit_tls::KeyExchange;
use http::{HeaderName, HeaderValue, Uri};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::Endpoint;

use crate::{OtlpError, Target};

/// Time for a TCP connection; the same as to the control plane.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel to a collector; it connects when it is used. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    inner: Inner,
    headers: Arc<Vec<(HeaderName, HeaderValue)>>,
}

#[derive(Clone)]
enum Inner {
    Plain(tonic::transport::Channel),
    Tls(ambit_control::Channel),
}

impl Transport {
    pub(crate) fn new(target: &Target, key_exchange: KeyExchange) -> Result<Self, OtlpError> {
        let wrong = || OtlpError::Endpoint(target.endpoint.clone());
        let uri: Uri = target.endpoint.parse().map_err(|_invalid| wrong())?;
        let host = uri.host().is_some_and(|host| !host.is_empty());
        let inner = match uri.scheme_str() {
            Some("http") if host => {
                let endpoint = Endpoint::from(uri).connect_timeout(CONNECT_TIMEOUT);
                Inner::Plain(endpoint.connect_lazy())
            }
            Some("https") if host => {
                let roots = target.certificate.clone();
                Inner::Tls(ambit_control::Channel::connect(&ControlPlane {
                    address: target.endpoint.clone(),
                    roots: roots.map_or(Roots::System, Roots::File),
                    token: TokenSource::None,
                    cluster_id: String::new(),
                    headers: Vec::new(),
                    alternative_names: Vec::new(),
                    key_exchange,
                })?)
            }
            _ => return Err(wrong()),
        };
        let header = |(name, value): &(String, String)| {
            let parsed_name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok();
            let value = HeaderValue::from_str(value).ok();
            let pair = parsed_name.zip(value);
            pair.ok_or_else(|| OtlpError::Header(name.clone()))
        };
        let headers = target
            .headers
            .iter()
            .map(header)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            inner,
            headers: Arc::new(headers),
        })
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;
type Answer = Result<http::Response<Body>, BoxError>;

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.inner {
            Inner::Plain(channel) => channel.poll_ready(cx).map_err(Into::into),
            Inner::Tls(channel) => channel.poll_ready(cx).map_err(Into::into),
        }
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        for (name, value) in self.headers.iter() {
            request.headers_mut().insert(name, value.clone());
        }
        match &mut self.inner {
            Inner::Plain(channel) => {
                let answer = channel.call(request);
                Box::pin(async { answer.await.map_err(Into::into) })
            }
            Inner::Tls(channel) => {
                let answer = channel.call(request);
                Box::pin(async { answer.await.map_err(Into::into) })
            }
        }
    }
}
