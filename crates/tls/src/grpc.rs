//! TLS between a program and the control plane, for gRPC.
//!
//! The server proves its DNS name in the ordinary way (RFC 9525); the client proves itself with a
//! token inside the calls, so no client certificate is asked for.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::csr::PrivateKey;
use crate::error::TlsError;
use crate::handshake::{Limits, within};
use crate::negotiate;
use crate::provider::{VERSIONS, provider, provider_for};
use crate::stream::{ClientStream, ServerStream};
use crate::svid::{certificates_from_pem, harden_client, harden_server};
use crate::terms::KeyExchange;

/// The control plane's end.
#[derive(Clone)]
pub struct Server {
    config: Arc<ServerConfig>,
}

impl Server {
    /// Serves with a certificate chain (leaf first, PEM) and its key.
    ///
    /// # Errors
    /// `Material` if they cannot be read or do not belong together.
    pub fn new(chain_pem: &str, key: &PrivateKey) -> Result<Self, TlsError> {
        let chain = certificates_from_pem(chain_pem)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(|_| TlsError::Bug("provider lacks TLS 1.3"))?
            .with_no_client_auth()
            .with_single_cert(chain, key.der())
            .map_err(|error| TlsError::Material(format!("certificate and key: {error}")))?;
        harden_server(&mut config);
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub async fn accept<T>(&self, transport: T, limits: Limits) -> Result<ServerStream<T>, TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = Box::pin(negotiate::server(Arc::clone(&self.config), transport));
        Ok(within(limits, handshake).await?.stream)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("grpc::Server(..)")
    }
}

/// A program's end.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// Trusts the roots in `roots_pem` and nothing else; the server must prove `name` (a DNS name or
    /// an IP address).
    ///
    /// # Errors
    /// `Material` if there is no readable root or the name is not one.
    pub fn new(roots_pem: &str, name: &str) -> Result<Self, TlsError> {
        Self::with(roots_pem, name, KeyExchange::default())
    }

    /// As [`Client::new`], and agrees on keys as `exchange` says.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with(roots_pem: &str, name: &str, exchange: KeyExchange) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates_from_pem(roots_pem)? {
            roots
                .add(root)
                .map_err(|error| TlsError::Material(format!("root certificate: {error}")))?;
        }
        if roots.is_empty() {
            return Err(TlsError::Material("trust bundle is empty".into()));
        }
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::Material(format!("{name:?} is not a server name")))?;
        let mut config = ClientConfig::builder_with_provider(provider_for(exchange))
            .with_protocol_versions(VERSIONS)
            .map_err(|_| TlsError::Bug("provider lacks TLS 1.3"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        harden_client(&mut config);
        config.enable_sni = true; // the control plane's address may be shared by several names
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// Opens one connection.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub async fn connect<T>(
        &self,
        transport: T,
        limits: Limits,
    ) -> Result<ClientStream<T>, TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = Box::pin(negotiate::client(
            Arc::clone(&self.config),
            self.name.clone(),
            transport,
        ));
        Ok(within(limits, handshake).await?.stream)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("grpc::Client")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
