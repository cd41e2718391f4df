//! Certificates as the admin page shows them, in the shape that istioctl and Kiali read.

use std::time::SystemTime;

use ambit_model::identity::Identity;
use ambit_tls::{Described, Svid};
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
    /// Serial number, decimal. Empty if the certificate cannot be read.
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
            cert_chain: texts(valid.as_deref().map(Svid::chain)),
            root_certs: texts(valid.as_deref().map(Svid::roots)),
        }
    }
}

fn texts(certificates: Option<Vec<Described>>) -> Vec<CertificateText> {
    certificates.into_iter().flatten().map(text).collect()
}

fn text(certificate: Described) -> CertificateText {
    let at = |at: Option<SystemTime>| at.map(rfc3339).unwrap_or_default();
    let (from, until) = certificate.life.unzip();
    CertificateText {
        pem: STANDARD.encode(&certificate.pem),
        serial_number: certificate.serial,
        valid_from: at(from),
        expiration_time: at(until),
    }
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}
