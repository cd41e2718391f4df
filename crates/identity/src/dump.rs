//! Certificates as the admin page shows them, in the shape that istioctl and Kiali read.

use std::time::SystemTime;

use ambit_model::identity::Identity;
use ambit_tls::Svid;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificates::Entry;

/// One identity's certificate, without anything secret.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDump {
    /// Whose.
    pub identity: Identity,
    /// `Initializing`, `Available`, or `Unavailable: ` and why.
    pub state: String,
    /// The leaf, then its intermediates.
    pub cert_chain: Vec<CertificateText>,
    /// The trust bundle.
    pub root_certs: Vec<CertificateText>,
}

/// One certificate.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateText {
    /// PEM, in base64 once more.
    pub pem: String,
    /// Serial number, hexadecimal. Empty where only the leaf's is known.
    pub serial_number: String,
    /// RFC 3339; empty as above.
    pub valid_from: String,
    /// RFC 3339; empty as above.
    pub expiration_time: String,
}

impl CertificateDump {
    pub(crate) fn of(entry: &Entry, now: SystemTime) -> Self {
        let valid = entry.valid(now);
        let last_error = entry.state.lock().last_error.clone();
        let state = match (&valid, last_error) {
            (Some(_), _) => "Available".to_owned(),
            (None, Some(error)) => format!("Unavailable: {error}"),
            (None, None) => "Initializing".to_owned(),
        };
        Self {
            identity: entry.identity.clone(),
            state,
            cert_chain: valid.as_deref().map(chain).unwrap_or_default(),
            root_certs: valid.as_deref().map(roots).unwrap_or_default(),
        }
    }
}

fn chain(svid: &Svid) -> Vec<CertificateText> {
    let mut texts: Vec<_> = svid.chain_pem().iter().map(|pem| text(pem)).collect();
    if let Some(leaf) = texts.first_mut() {
        svid.serial().clone_into(&mut leaf.serial_number);
        leaf.valid_from = rfc3339(svid.not_before());
        leaf.expiration_time = rfc3339(svid.not_after());
    }
    texts
}

fn roots(svid: &Svid) -> Vec<CertificateText> {
    svid.roots_pem().iter().map(|pem| text(pem)).collect()
}

fn text(pem: &str) -> CertificateText {
    CertificateText {
        pem: STANDARD.encode(pem),
        serial_number: String::new(),
        valid_from: String::new(),
        expiration_time: String::new(),
    }
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}
