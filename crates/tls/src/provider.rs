//! The one crypto provider: aws-lc-rs, TLS 1.3, post-quantum key exchange first.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

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

/// The versions spoken: 1.3 alone. 1.2 has renegotiation, weaker forward secrecy and visible
/// certificates, and nothing that speaks HBONE needs it.
pub(crate) static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The shared provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// Name of the crypto library and key exchange preference, for `--version` and dumps.
#[must_use]
pub fn provider_name() -> &'static str {
    "aws-lc-rs, TLS 1.3, X25519MLKEM768 preferred"
}
