//! The authenticated gRPC channel to the control plane.
//!
//! # Purpose
//! Discovery and the certificate authority are reached in the same way: gRPC over TLS, the server
//! proved by a root certificate, we by a service-account token. This crate is that way. An agent of this machine is
//! reached by a unix socket instead ([`LocalChannel`]).
//!
//! # Theory of operation
//! A [`Channel`] connects when it is first used and again whenever the connection is gone. Each
//! attempt reads the root certificates anew and each call reads the token anew, because both are
//! files that somebody else replaces.
//!
//! # Invariants
//! - Never plaintext on a network: an `http` address is refused when the channel is made.
//! - A token is never part of an error or a log line.
//!
//! # Failure modes
//! A failed attempt fails the call that caused it; nothing here retries. Callers put
//! `ambit_runtime::backoff` between their calls.

mod channel;
mod local;
mod roots;
mod token;

pub use channel::{Channel, ControlPlane};
pub use local::LocalChannel;
pub use roots::Roots;
pub use token::TokenSource;

use std::io;
use std::path::PathBuf;

use ambit_tls::TlsError;
use thiserror::Error;

/// Why the control plane could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Configuration: the address is none, or not https.
    #[error("control plane address {address:?}: {problem}")]
    Address {
        /// As configured.
        address: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Configuration: a header to send is not one.
    #[error("header {0:?} cannot be sent")]
    Header(String),
    /// Environment: a file of root certificates or the token cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Environment: the token file holds no token.
    #[error("{0} holds no usable token")]
    Token(PathBuf),
    /// Environment: no trust store of the system was found.
    #[error("no system trust store")]
    NoSystemRoots,
    /// Peer or network: no TCP connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// Peer: TLS failed, or the server is not who it should be.
    #[error("TLS with {0}")]
    Tls(String, #[source] TlsError),
    /// Peer or network: the connection or the call failed.
    #[error("call to the control plane")]
    Transport(#[source] tonic::transport::Error),
}
