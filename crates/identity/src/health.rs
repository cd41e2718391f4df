//! How it stands with the certificates, for people and their alarms.

use std::time::SystemTime;

use ambit_observe::metrics::{Descriptor, Kind, Registry};

use crate::Certificates;

/// How it stands with the certificates of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Identities with a valid certificate.
    pub valid: usize,
    /// Identities without: their connections fail.
    pub missing: usize,
    /// Identities for which the last attempt failed, whether they still have a certificate or not.
    pub failing: usize,
    /// Identities whose issuer tells of new certificates by itself, and whose stream of them is open.
    pub followed: usize,
    /// When the first of the valid ones ends.
    pub first_end: Option<SystemTime>,
}

impl Certificates {
    /// Adds it to what the program counts. `ambit_certificates_failing` is what to raise an alarm by: it
    /// leaves half of a certificate's life to act.
    pub fn register(&self, registry: &Registry) {
        let gauge = |name, help, value: fn(&Health) -> Option<f64>| {
            let certificates = self.clone();
            let kind = Kind::Gauge;
            let descriptor = Descriptor { name, help, kind };
            registry.computed(descriptor, move || value(&certificates.health()));
        };
        gauge(
            "ambit_certificates_valid",
            "Identities with a valid certificate (unstable).",
            |health| count(health.valid),
        );
        gauge(
            "ambit_certificates_missing",
            "Identities without a valid certificate (unstable).",
            |health| count(health.missing),
        );
        gauge(
            "ambit_certificates_failing",
            "Identities whose last request for a certificate failed (unstable).",
            |health| count(health.failing),
        );
        gauge(
            "ambit_certificates_followed",
            "Identities whose certificates come by themselves, from SPIRE's agent (unstable).",
            |health| count(health.followed),
        );
        gauge(
            "ambit_certificates_first_end_timestamp_seconds",
            "When the first of the valid certificates ends, in seconds since 1970 (unstable).",
            |health| {
                let end = health.first_end?.duration_since(SystemTime::UNIX_EPOCH);
                end.ok().map(|end| end.as_secs_f64())
            },
        );
    }
}

fn count(number: usize) -> Option<f64> {
    u32::try_from(number).ok().map(f64::from)
}
