//! What the handshakes of a process keep to, besides its certificates.

use crate::revocation::Revocations;

/// The same for every certificate that a process has.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// How keys are agreed on.
    pub key_exchange: KeyExchange,
    /// Whose certificates were taken back.
    pub revocations: Revocations,
}

/// How keys are agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519MLKEM768 with whoever can, and X25519, P-256 or P-384 with others.
    #[default]
    PostQuantumPreferred,
    /// X25519MLKEM768, and no connection with whoever cannot.
    PostQuantumOnly,
}
