//! Proof that the other end was verified.

use std::fmt;
use std::time::SystemTime;

use ambit_model::identity::Identity;

/// The verified other end of a connection.
///
/// A value of this type exists only after the peer proved possession of the key of a certificate
/// which passed every rule of [`crate::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    identity: Identity,
    fingerprint: [u8; 32],
    serial: String,
    not_after: SystemTime,
}

impl Peer {
    /// Only [`crate::verify`] may call this.
    pub(crate) fn proven(
        identity: Identity,
        fingerprint: [u8; 32],
        serial: String,
        not_after: SystemTime,
    ) -> Self {
        Self {
            identity,
            fingerprint,
            serial,
            not_after,
        }
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// SHA-256 of its end-entity certificate.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Serial number of its certificate: lower-case hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When its certificate expires. A connection may outlive this; nothing new is admitted on it then.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("identity", &self.identity.to_string())
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}
