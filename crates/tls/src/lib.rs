//! Mutual TLS with SPIFFE identities.
//!
//! # Purpose
//! Turn a certificate chain into connections whose other end is known. Everything above this crate
//! sees bytes and a [`Peer`]; rustls stays inside.
//!
//! # Theory of operation
//! An [`Svid`] is one certificate of one identity with its key and its trust bundle. Its TLS
//! settings are built once, when it is made, and shared by every handshake. [`accept`] and
//! [`connect`] run one handshake under a deadline; the certificate rules of the SPIFFE X.509-SVID
//! specification are applied inside it (see [`verify`]), so that a peer which fails them never
//! receives a byte of the caller's and, on the dialling side, not even our certificate.
//!
//! # Invariants
//! - A [`Peer`] is made in exactly one place, after the chain, the usages and the identity passed.
//! - TLS 1.3 only; no resumption and no early data, so every connection is a full verification.
//! - Private keys have no `Debug`, are never serialised here except by [`authority::Root`], whose
//!   owner must keep its key across restarts.
//!
//! # Not done here
//! When certificates are fetched and renewed (`ambit-identity`), where keys of a certificate
//! authority are stored (the controller), where revocation lists come from (ztunnel).

mod aead;
pub mod authority;
pub mod csr;
mod error;
pub mod grpc;
mod handshake;
mod leaf;
mod negotiate;
mod peer;
mod provider;
mod record;
pub mod revocation;
mod stream;
mod svid;
mod terms;
mod trust;
pub mod verify;

pub use error::{Rejected, TlsError};
pub use handshake::{Limits, accept, connect};
pub use leaf::Described;
pub use peer::Peer;
pub use provider::{Effective, effective, provider_name};
pub use revocation::{Lineage, Revocations};
pub use stream::{ClientStream, ServerStream, TlsStream};
pub use svid::Svid;
pub use terms::{KeyExchange, Terms};
pub use trust::TrustBundles;

#[cfg(test)]
mod tests;
