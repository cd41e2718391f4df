//! Proof that the other end was verified.

use std::fmt;
use std::time::SystemTime;

use ambit_model::identity::Identity;

use crate::revocation::Lineage;

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
    lineage: Option<Lineage>,
}

impl Peer {
    /// Only [`crate::verify`] may call this.
    pub(crate) fn proven(
        identity: Identity,
        fingerprint: [u8; 32],
        serial: String,
        not_after: SystemTime,
        lineage: Option<Lineage>,
    ) -> Self {
        Self {
            identity,
            fingerprint,
            serial,
            not_after,
            lineage,
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

    /// Who vouched for it, to be asked about when there are new revocation lists. `None` where there
    /// never are any.
    #[must_use]
    pub fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref()
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
