//! One handshake, under limits.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use ambit_model::identity::Identity;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::{Rejected, TlsError};
use crate::peer::Peer;
use crate::stream::{ClientStream, ServerStream, TlsStream};
use crate::svid::{ALPN_H2, Svid};
use crate::verify;

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
    let handshake = TlsAcceptor::from(svid.accepting()).accept(transport);
    let stream = within(limits, handshake).await?;
    finish(stream.into())
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
    let handshake = TlsConnector::from(svid.dialling(expected)).connect(name, transport);
    let stream = within(limits, handshake).await?;
    finish(stream.into())
}

pub(crate) async fn within<S>(
    limits: Limits,
    handshake: impl Future<Output = io::Result<S>>,
) -> Result<S, TlsError> {
    match tokio::time::timeout(limits.timeout, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(blame(error)),
        Err(_elapsed) => Err(TlsError::Timeout(limits.timeout)),
    }
}

fn finish<T>(stream: tokio_rustls::TlsStream<T>) -> Result<(TlsStream<T>, Peer), TlsError> {
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(ALPN_H2) {
        return Err(TlsError::NoApplicationProtocol);
    }
    let leaf = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or(TlsError::Bug("handshake ended without a peer certificate"))?;
    let peer = verify::proven(leaf)?;
    Ok((TlsStream::new(stream), peer))
}

/// Whose fault a failed handshake is.
fn blame(error: io::Error) -> TlsError {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        None => TlsError::Io(error),
        Some(rustls::Error::InvalidCertificate(reason)) => {
            TlsError::Peer(verify::from_alert(reason))
        }
        Some(rustls::Error::NoCertificatesPresented) => TlsError::Peer(Rejected::NoCertificate),
        Some(rustls::Error::AlertReceived(alert)) => TlsError::RefusedByPeer(format!("{alert:?}")),
        Some(rustls::Error::NoApplicationProtocol) => TlsError::NoApplicationProtocol,
        Some(other) => TlsError::Protocol(other.to_string()),
    }
}
