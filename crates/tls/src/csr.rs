//! A new key and the request to have it certified.

use std::fmt;

use ambit_model::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::TlsError;

/// A private key, made here or by an agent of this machine. It has no serialised form outside this crate, so it cannot leave the
/// process by way of a log, a dump or a response.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// A fresh ECDSA P-256 key: the kind every Istio component accepts, and the cheapest to sign
    /// with among those.
    ///
    /// # Errors
    /// `Bug` if the crypto library has no randomness.
    pub fn generate() -> Result<Self, TlsError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| TlsError::Bug("key generation failed"))
    }

    /// Reads a PKCS#8, SEC1 or PKCS#1 key in PEM: for material that an operator mounted as files.
    ///
    /// # Errors
    /// `Material` if the text holds no key of a kind in use.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        KeyPair::from_pem(pem)
            .map(Self)
            .map_err(|_| TlsError::Material("private key cannot be read".into()))
    }

    /// Reads a PKCS#8 key in DER: the form in which agents of SPIFFE hand keys out.
    ///
    /// # Errors
    /// `Material` if the bytes hold no key of a kind in use.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, TlsError> {
        KeyPair::try_from(&PrivatePkcs8KeyDer::from(der))
            .map(Self)
            .map_err(|_| TlsError::Material("private key cannot be read".into()))
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub(crate) fn into_pair(self) -> KeyPair {
        self.0
    }

    pub(crate) fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A key together with the request that asks for its certificate.
#[derive(Debug)]
pub struct KeyAndCsr {
    /// The private half; it goes into [`crate::Svid`] with the answer.
    pub key: PrivateKey,
    /// PKCS#10 in PEM: empty subject, one critical alternative name with the identity's URI.
    pub csr_pem: String,
}

impl KeyAndCsr {
    /// Makes a fresh key and a request for `identity`.
    ///
    /// # Errors
    /// `Bug` if the crypto library fails.
    pub fn generate(identity: &Identity) -> Result<Self, TlsError> {
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // With an empty subject rcgen marks the alternative name critical, as RFC 5280 4.2.1.6 asks.
        params.subject_alt_names = vec![uri_name(identity)?];
        let request = params
            .serialize_request(key.pair())
            .map_err(|_| TlsError::Bug("request cannot be written"))?;
        let csr_pem = request
            .pem()
            .map_err(|_| TlsError::Bug("request cannot be encoded"))?;
        Ok(Self { key, csr_pem })
    }
}

/// The identity as a subject alternative name.
pub(crate) fn uri_name(identity: &Identity) -> Result<SanType, TlsError> {
    let uri = identity.to_string();
    match uri.as_str().try_into() {
        Ok(name) => Ok(SanType::URI(name)),
        Err(_) => Err(TlsError::Request("identity is not ASCII".into())),
    }
}
