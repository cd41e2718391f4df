//! Errors by who is to blame.

use std::io;
use std::time::Duration;

use ambit_model::identity::Identity;

/// Why a TLS operation failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate breaks a rule, or is not the one we wanted.
    #[error("peer's certificate refused: {0}")]
    Peer(#[from] Rejected),
    /// The peer refused us: it sent a fatal alert during the handshake.
    #[error("peer refused the handshake: {0}")]
    RefusedByPeer(String),
    /// The peer broke the protocol or offers nothing that we accept.
    #[error("handshake failed: {0}")]
    Protocol(String),
    /// The peer negotiated no application protocol; only `h2` is spoken here.
    #[error("peer did not negotiate h2")]
    NoApplicationProtocol,
    /// The peer sent more than a handshake may take before it was verified.
    #[error("handshake exceeded {0} bytes")]
    HandshakeTooLarge(usize),
    /// The handshake did not end in time.
    #[error("handshake did not end within {0:?}")]
    Timeout(Duration),
    /// The connection below broke.
    #[error("connection failed during the handshake")]
    Io(#[source] io::Error),
    /// A chain, key or bundle that we were given cannot be used.
    #[error("unusable certificate material: {0}")]
    Material(String),
    /// A certificate signing request that we were given cannot be accepted.
    #[error("unusable certificate signing request: {0}")]
    Request(String),
    /// Our own mistake.
    #[error("internal error: {0}")]
    Bug(&'static str),
}

/// Why a peer's certificate was refused. One variant for each rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The peer sent no certificate.
    #[error("peer presented no certificate")]
    NoCertificate,
    /// More certificates than any sane chain has.
    #[error("chain of {0} certificates is too long")]
    ChainTooLong(usize),
    /// More bytes of certificates than any sane chain has.
    #[error("chain of {0} bytes is too large")]
    ChainTooLarge(usize),
    /// Not an X.509 certificate, or an extension appears twice or cannot be read.
    #[error("certificate cannot be parsed")]
    Malformed,
    /// No URI among the subject alternative names.
    #[error("certificate has no SPIFFE identity")]
    NoIdentity,
    /// More than one URI among the subject alternative names.
    #[error("certificate has {0} URI names, exactly one is allowed")]
    SeveralIdentities(usize),
    /// The URI is not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("certificate's URI is not a workload identity: {0}")]
    BadIdentity(String),
    /// Subject is empty but the alternative name is not marked critical (RFC 5280 4.2.1.6).
    #[error("alternative name is not critical though the subject is empty")]
    NameNotCritical,
    /// The end-entity certificate is a certificate authority's.
    #[error("a certificate authority's certificate must not authenticate")]
    AuthorityAsLeaf,
    /// Key usage is absent, not critical, lacks digitalSignature or grants signing of certificates.
    #[error("key usage does not fit a workload")]
    KeyUsage,
    /// Extended key usage is present but lacks server or client authentication.
    #[error("extended key usage does not fit a workload")]
    ExtendedKeyUsage,
    /// Signed by the right authority, but for another trust domain.
    #[error("trust domain {found} is not {wanted}")]
    TrustDomain {
        /// The trust domain in the certificate.
        found: String,
        /// The trust domain that was required.
        wanted: String,
    },
    /// A valid workload, but not one of those that we dialled.
    #[error("identity {found} is not one of the expected")]
    Identity {
        /// The identity in the certificate.
        found: Identity,
    },
    /// Past its `notAfter`.
    #[error("certificate has expired")]
    Expired,
    /// Before its `notBefore`.
    #[error("certificate is not valid yet")]
    NotYetValid,
    /// It, or an authority's certificate above it, is on a revocation list.
    #[error("certificate has been revoked")]
    Revoked,
    /// No path to a root of the trust bundle.
    #[error("certificate is not signed by the trust bundle")]
    UnknownIssuer,
    /// Any other failure of RFC 5280 path validation.
    #[error("certificate path refused: {0}")]
    Path(String),
}
