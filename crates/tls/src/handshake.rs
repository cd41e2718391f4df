//! One handshake, under limits.

use std::net::Ipv4Addr;
use std::time::Duration;

use ambit_model::identity::Identity;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Rejected, TlsError};
use crate::negotiate::{self, Negotiated};
use crate::peer::Peer;
use crate::stream::{ClientStream, ServerStream, TlsStream};
use crate::svid::{ALPN_H2, Svid};
use crate::verify::{self, Side};

/// Bounds of one handshake.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest time from the first byte to a verified peer.
    pub timeout: Duration,
}

impl Default for Limits {
    /// Ten seconds: two lost segments and their retransmissions on a bad path, and short enough that
    /// half-open handshakes do not pile up.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
        }
    }
}

/// Accepts one connection: presents `svid`, requires a certificate of the same trust domain.
///
/// # Errors
/// See [`TlsError`]. Nothing above TLS was read or written when this fails.
pub async fn accept<T>(
    svid: &Svid,
    transport: T,
    limits: Limits,
) -> Result<(ServerStream<T>, Peer), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Box::pin(negotiate::server(svid.accepting(), transport));
    finish(svid, Side::Client, within(limits, handshake).await?)
}

/// Opens one connection: presents `svid`, requires the peer to be one of `expected` and nobody if
/// that is empty. A peer that is not never sees our certificate.
///
/// # Errors
/// See [`TlsError`]. Nothing above TLS was read or written when this fails.
pub async fn connect<T>(
    svid: &Svid,
    transport: T,
    expected: &[Identity],
    limits: Limits,
) -> Result<(ClientStream<T>, Peer), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // Never sent (SNI is off) and never compared: the verifier looks at identities only.
    let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let handshake = Box::pin(negotiate::client(svid.dialling(expected), name, transport));
    finish(svid, Side::Server, within(limits, handshake).await?)
}

/// One handshake under its limits, and over `h2`.
pub(crate) async fn within<T>(
    limits: Limits,
    handshake: impl Future<Output = Result<Negotiated<T>, TlsError>>,
) -> Result<Negotiated<T>, TlsError> {
    let negotiated = tokio::time::timeout(limits.timeout, handshake)
        .await
        .map_err(|_elapsed| TlsError::Timeout(limits.timeout))??;
    if negotiated.protocol.as_deref() == Some(ALPN_H2) {
        Ok(negotiated)
    } else {
        Err(TlsError::NoApplicationProtocol)
    }
}

/// `side` is the peer's.
fn finish<T>(
    svid: &Svid,
    side: Side,
    negotiated: Negotiated<T>,
) -> Result<(TlsStream<T>, Peer), TlsError> {
    let (leaf, intermediates) = negotiated
        .chain
        .split_first()
        .ok_or(TlsError::Bug("handshake without a peer certificate"))?;
    let peer = verify::proven(svid.bundle(), side, leaf, intermediates)?;
    Ok((negotiated.stream, peer))
}

/// Whose fault a failed handshake is.
pub(crate) fn blame(error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InvalidCertificate(reason) => TlsError::Peer(verify::from_alert(reason)),
        rustls::Error::NoCertificatesPresented => TlsError::Peer(Rejected::NoCertificate),
        rustls::Error::AlertReceived(alert) => TlsError::RefusedByPeer(format!("{alert:?}")),
        rustls::Error::NoApplicationProtocol => TlsError::NoApplicationProtocol,
        other => TlsError::Protocol(other.to_string()),
    }
}
