//! The rules for an end-entity certificate that can be checked without its issuer.
//!
//! Source: SPIFFE X.509-SVID, sections 2 (one URI SAN), 4.1 (basic constraints), 4.3 (key usage)
//! and 4.4 (extended key usage); RFC 5280 4.2.1.6.

use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::error::Rejected;
use crate::svid::pem;

/// What an end-entity certificate says, once it passed the rules.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) identity: Identity,
    pub(crate) serial: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    /// Applies every rule that needs no issuer.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, Rejected> {
        let certificate = parse(der)?;
        check_constraints(&certificate)?;
        check_usages(&certificate)?;
        let identity = identity(&certificate)?;
        Ok(Self {
            identity,
            serial: hex(certificate.raw_serial()),
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
        })
    }
}

/// What any certificate, of whatever kind, says of itself, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The certificate in PEM.
    pub pem: String,
    /// Serial number, decimal; empty if the certificate cannot be read.
    pub serial: String,
    /// Start and end of its life, if the certificate can be read.
    pub life: Option<(SystemTime, SystemTime)>,
}

impl Described {
    pub(crate) fn of(der: &[u8]) -> Self {
        let certificate = parse(der).ok();
        let life = |certificate: &X509Certificate<'_>| {
            let validity = certificate.validity();
            (
                system_time(validity.not_before),
                system_time(validity.not_after),
            )
        };
        Self {
            pem: pem(der),
            serial: certificate
                .as_ref()
                .map(|certificate| certificate.serial.to_string())
                .unwrap_or_default(),
            life: certificate.as_ref().map(life),
        }
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Rejected> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(Rejected::Malformed),
    }
}

fn check_constraints(certificate: &X509Certificate<'_>) -> Result<(), Rejected> {
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => Err(Rejected::AuthorityAsLeaf),
        Ok(_) => Ok(()),
        Err(_) => Err(Rejected::Malformed),
    }
}

fn check_usages(certificate: &X509Certificate<'_>) -> Result<(), Rejected> {
    let Ok(usage) = certificate.key_usage() else {
        return Err(Rejected::Malformed);
    };
    let fits = usage.is_some_and(|usage| {
        usage.critical
            && usage.value.digital_signature()
            && !usage.value.key_cert_sign()
            && !usage.value.crl_sign()
    });
    if !fits {
        return Err(Rejected::KeyUsage);
    }
    match certificate.extended_key_usage() {
        Ok(Some(extended)) if !(extended.value.server_auth && extended.value.client_auth) => {
            Err(Rejected::ExtendedKeyUsage)
        }
        Ok(_) => Ok(()),
        Err(_) => Err(Rejected::Malformed),
    }
}

fn identity(certificate: &X509Certificate<'_>) -> Result<Identity, Rejected> {
    let Ok(names) = certificate.subject_alternative_name() else {
        return Err(Rejected::Malformed);
    };
    let names = names.ok_or(Rejected::NoIdentity)?;
    if certificate.subject().iter().next().is_none() && !names.critical {
        return Err(Rejected::NameNotCritical);
    }
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None, // DNS and other names are allowed and grant nothing
        });
    let uri = uris.next().ok_or(Rejected::NoIdentity)?;
    match uris.count() {
        0 => uri.parse().map_err(|_| Rejected::BadIdentity(shown(uri))),
        more => Err(Rejected::SeveralIdentities(more + 1)),
    }
}

/// A peer chose this text: it goes into a log line cut short and with nothing unprintable.
fn shown(uri: &str) -> String {
    uri.chars()
        .take(128)
        .flat_map(char::escape_default)
        .collect()
}

fn system_time(time: ASN1Time) -> SystemTime {
    match u64::try_from(time.timestamp()) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
