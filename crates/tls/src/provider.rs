//! The one crypto provider: aws-lc-rs, TLS 1.3, post-quantum key exchange first.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use serde::Serialize;

use crate::terms::KeyExchange;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // AES is in hardware wherever the mesh runs. AES-128 first: its strength matches the P-256
        // and X25519 parts of the handshake and it costs a quarter less per byte than AES-256.
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        // The hybrid first, so that traffic recorded today stays closed to a later quantum computer.
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// As above, with the hybrid alone.
static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        ..CryptoProvider::clone(&PROVIDER)
    })
});

/// The versions spoken: 1.3 alone. 1.2 has renegotiation, weaker forward secrecy and visible
/// certificates, and nothing that speaks HBONE needs it.
pub(crate) static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The shared provider, for what is no handshake and for those of every kind.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// The provider for handshakes.
pub(crate) fn provider_for(exchange: KeyExchange) -> Arc<CryptoProvider> {
    match exchange {
        KeyExchange::PostQuantumPreferred => Arc::clone(&PROVIDER),
        KeyExchange::PostQuantumOnly => Arc::clone(&POST_QUANTUM),
    }
}

/// What is offered and taken in handshakes, by the names of the standards, the best liked first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// Versions of TLS.
    pub versions: Vec<String>,
    /// Cipher suites.
    pub cipher_suites: Vec<String>,
    /// Groups of the key exchange.
    pub key_exchange: Vec<String>,
}

/// What handshakes with this kind of key exchange come to.
#[must_use]
pub fn effective(exchange: KeyExchange) -> Effective {
    let provider = provider_for(exchange);
    let suites = provider.cipher_suites.iter().map(|suite| suite.suite());
    let groups = provider.kx_groups.iter().map(|group| group.name());
    Effective {
        versions: VERSIONS
            .iter()
            .map(|known| format!("{:?}", known.version))
            .collect(),
        cipher_suites: suites.map(|suite| format!("{suite:?}")).collect(),
        key_exchange: groups.map(|group| format!("{group:?}")).collect(),
    }
}

/// Name of the crypto library and key exchange preference, for `--version` and dumps.
#[must_use]
pub fn provider_name() -> &'static str {
    "aws-lc-rs, TLS 1.3, X25519MLKEM768 preferred"
}
