//! Roots by trust domain, as the agents of SPIFFE hand them out.
//!
//! Source: SPIFFE Trust Domain and Bundle, section 4; SPIFFE Workload API, section 5.2: the certificates of a bundle stand
//! one after another in DER, with nothing between them.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::error::TlsError;

/// Most trust domains. A mesh federates with a handful; each costs memory for every certificate in use.
pub(crate) const MAX_DOMAINS: usize = 256;

/// Most roots of one trust domain. Two while they are exchanged, and a few more where several authorities sign.
pub(crate) const MAX_ROOTS: usize = 64;

/// Whose certificates are proven by which roots.
///
/// A certificate of a trust domain is proven by the roots of that domain and by no others: an authority of one that is
/// federated with can name nobody of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundles(BTreeMap<String, Vec<CertificateDer<'static>>>);

impl TrustBundles {
    /// Adds or replaces the roots of a trust domain, from a concatenation of certificates in DER. What stood there is kept
    /// when they cannot be used.
    ///
    /// # Errors
    /// `Material` if there is none, one is not a certificate, or there are more than 64 roots or
    /// 256 domains.
    pub fn insert(&mut self, domain: &str, der: &[u8]) -> Result<(), TlsError> {
        let unusable = |why: &str| TlsError::Material(format!("trust bundle: {why}"));
        let roots = certificates_from_der(der, MAX_ROOTS)?;
        if roots.is_empty() {
            return Err(unusable("empty"));
        }
        for root in &roots {
            webpki::anchor_from_trusted_cert(root).map_err(|error| unusable(&error.to_string()))?;
        }
        if self.0.len() >= MAX_DOMAINS && !self.0.contains_key(domain) {
            return Err(unusable("more trust domains than are looked after"));
        }
        self.0.insert(domain.to_owned(), roots);
        Ok(())
    }

    /// Takes over the roots of a trust domain from `other`; whether it has some.
    pub fn keep(&mut self, other: &Self, domain: &str) -> bool {
        let roots = other.0.get(domain).cloned();
        let found = roots.is_some();
        self.0.extend(roots.map(|roots| (domain.to_owned(), roots)));
        found
    }

    /// Whether there are roots of this trust domain.
    #[must_use]
    pub fn contains(&self, domain: &str) -> bool {
        self.0.contains_key(domain)
    }

    /// Those of some trust domains alone.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let chosen = self.0.iter().filter(|(domain, _)| wanted(domain));
        Self(
            chosen
                .map(|(d, roots)| (d.clone(), roots.clone()))
                .collect(),
        )
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Vec<CertificateDer<'static>>)> {
        self.0.iter()
    }
}

/// Certificates in DER that stand one after another, at most so many.
///
/// # Errors
/// `Material` if something between or after them is no certificate, or there are more.
pub(crate) fn certificates_from_der(
    mut der: &[u8],
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let mut found = Vec::new();
    while !der.is_empty() {
        if found.len() >= most {
            let problem = format!("more than {most} certificates");
            return Err(TlsError::Material(problem));
        }
        let unreadable = || TlsError::Material("DER: not a certificate".into());
        let (rest, _) = X509Certificate::from_der(der).map_err(|_| unreadable())?;
        let length = der.len().saturating_sub(rest.len());
        let one = der.get(..length).ok_or_else(unreadable)?;
        found.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(found)
}
