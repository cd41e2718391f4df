//! The signing side: a root and the certificates it issues.
//!
//! Pure apart from key generation: the caller gives the time, decides who may have which identity,
//! and keeps the root's key where it belongs (a file of mode 0600, a secret).

use std::fmt;
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKey,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::csr::{PrivateKey, uri_name};
use crate::error::TlsError;
use crate::svid::{certificates_from_pem, pem};

/// Leaves start this long before their issue, so that a node whose clock is behind accepts them.
/// Istio's authority uses two minutes too.
pub const BACKDATE: Duration = Duration::from_secs(120);

/// Longest life of a leaf: 90 days, as Istio's authority allows at most.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// Largest request read: a P-256 request is about 500 bytes, an RSA-4096 one about 2 KiB.
pub const MAX_REQUEST: usize = 16 * 1024;

/// A certificate authority: a root certificate and its key.
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
}

impl Root {
    /// Makes a new self-signed root (ECDSA P-256) for `organization`, valid from `now` for `life`.
    ///
    /// # Errors
    /// `Bug` if the crypto library fails.
    pub fn generate(organization: &str, now: SystemTime, life: Duration) -> Result<Self, TlsError> {
        let key = PrivateKey::generate()?.into_pair();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        // Distinguishes two roots of one organization: path building looks at names first.
        let unique = serial()?;
        params
            .distinguished_name
            .push(DnType::CommonName, unique.to_string());
        params.serial_number = Some(unique);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(back(now))?;
        params.not_after = date(now + life)?;
        let certificate = params
            .self_signed(&key)
            .map_err(|_| TlsError::Bug("root cannot be signed"))?;
        Self::assemble(certificate.der().clone(), key)
    }

    /// Reads a root back from the two texts that [`Root::certificate_pem`] and [`Root::key_pem`] gave,
    /// or an operator's own.
    ///
    /// # Errors
    /// `Material` if either cannot be read, the certificate may not sign, or they do not belong
    /// together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let key = PrivateKey::from_pem(key_pem)?.into_pair();
        let certificate = certificates_from_pem(certificate_pem)?
            .into_iter()
            .next()
            .ok_or_else(|| TlsError::Material("no root certificate".into()))?;
        Self::assemble(certificate, key)
    }

    fn assemble(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, TlsError> {
        let unreadable = || TlsError::Material("root certificate cannot be read".into());
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|_| unreadable())?;
        if !parsed.is_ca() {
            return Err(TlsError::Material(
                "root certificate is not an authority's".into(),
            ));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(TlsError::Material(
                "root key is not the certificate's".into(),
            ));
        }
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| unreadable())?;
        Ok(Self {
            issuer,
            certificate,
            not_after,
        })
    }

    /// The root certificate: what everybody may have.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem(&self.certificate)
    }

    /// The root's private key. For its owner's store and nowhere else.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// When the root expires; no leaf outlives it.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues an X.509-SVID for `identity` to the holder of `request`'s key. Names and extensions in
    /// the request are ignored: who may have what is the caller's decision, made from its token.
    ///
    /// Answers leaf then root, each in PEM: the layout of Istio's certificate service.
    ///
    /// # Errors
    /// `Material` if the root itself has expired.
    pub fn issue(
        &self,
        request: &Request,
        identity: &Identity,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Vec<String>, TlsError> {
        let mut params = self.leaf(now, ttl.min(MAX_TTL))?;
        params.subject_alt_names = vec![uri_name(identity)?];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params
            .signed_by(&request.key, &self.issuer)
            .map_err(|_| TlsError::Bug("leaf cannot be signed"))?;
        Ok(vec![pem(certificate.der()), self.certificate_pem()])
    }

    /// Issues a certificate for the control plane's own gRPC port.
    ///
    /// Answers the chain in PEM.
    ///
    /// # Errors
    /// `Material` if a name cannot stand in a certificate or the root has expired.
    pub fn issue_server(
        &self,
        key: &PrivateKey,
        names: &[impl AsRef<str>],
        now: SystemTime,
        ttl: Duration,
    ) -> Result<String, TlsError> {
        let names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        let mut params = self.leaf(now, ttl)?;
        params.subject_alt_names = CertificateParams::new(names)
            .map_err(|_| TlsError::Material("not a DNS name".into()))?
            .subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params
            .signed_by(key.pair(), &self.issuer)
            .map_err(|_| TlsError::Bug("leaf cannot be signed"))?;
        Ok(pem(certificate.der()))
    }

    fn leaf(&self, now: SystemTime, ttl: Duration) -> Result<CertificateParams, TlsError> {
        if now >= self.not_after {
            return Err(TlsError::Material("root certificate has expired".into()));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(back(now))?;
        params.not_after = date((now + ttl).min(self.not_after))?;
        Ok(params)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A certificate signing request whose own signature was checked: its sender holds the key.
pub struct Request {
    key: PublicKey,
}

impl Request {
    /// Reads and checks a PKCS#10 request in PEM.
    ///
    /// # Errors
    /// `Request` if it is too large, cannot be read, or its signature is wrong.
    pub fn from_pem(csr_pem: &str) -> Result<Self, TlsError> {
        if csr_pem.len() > MAX_REQUEST {
            return Err(TlsError::Request(format!(
                "{} bytes is too large",
                csr_pem.len()
            )));
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| TlsError::Request(error.to_string()))?;
        Ok(Self {
            key: request.public_key,
        })
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request(..)")
    }
}

/// 127 random bits: unique without a counter to keep, positive in DER.
fn serial() -> Result<SerialNumber, TlsError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TlsError::Bug("no randomness"))?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn back(now: SystemTime) -> SystemTime {
    now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn date(at: SystemTime) -> Result<OffsetDateTime, TlsError> {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .ok_or_else(|| TlsError::Material("date is out of range".into()))?;
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| TlsError::Material("date is out of range".into()))
}
