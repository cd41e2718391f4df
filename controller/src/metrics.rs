//! What the controller counts.

use ambit_observe::metrics::{Family, Handle, Registry};
use ambit_observe::series;

use crate::publish::{Difference, Published};

series! {
    /// Of the program.
    struct Totals {
        clients: Gauge = ("ambit_xds_clients", "Discovery streams open now."),
        publications: Counter = ("ambit_xds_publications", "Changes of the objects that changed a resource."),
        changed: Counter = ("ambit_xds_resources_changed", "Resources changed by publications."),
        removed: Counter = ("ambit_xds_resources_removed", "Resources removed by publications."),
        problems: Gauge = ("ambit_problems", "Documents and objects with something wrong in them."),
        signed: Counter = ("ambit_ca_certificates_signed", "Certificates signed."),
        refused: Counter = ("ambit_ca_requests_refused", "Certificate requests refused."),
        denied: Counter = ("ambit_tokens_denied", "Calls without a token that counts."),
    }
}

series! {
    /// By type of resource.
    struct ByType {
        responses: Counter = ("ambit_xds_responses", "Responses sent."),
        rejections: Counter = ("ambit_xds_rejections", "Responses that a client refused."),
    }
}

/// Handles on all of it.
#[derive(Debug)]
pub struct Metrics {
    totals: Handle<Totals>,
    by_type: Family<ByType>,
}

impl Metrics {
    /// Adds the controller's metrics to the registry.
    pub fn register(registry: &Registry) -> Self {
        Self {
            totals: registry.single(),
            by_type: registry.family(),
        }
    }

    pub(crate) fn client_came(&self) {
        self.totals.clients.inc();
    }

    pub(crate) fn client_left(&self) {
        self.totals.clients.dec();
    }

    pub(crate) fn published(&self, published: &Published, difference: Difference) {
        let all = published.findings.len() + published.cluster.objects().problems.len();
        self.totals
            .problems
            .set(i64::try_from(all).unwrap_or(i64::MAX));
        if !difference.is_empty() {
            self.totals.publications.inc();
            self.totals
                .changed
                .add(u64::try_from(difference.changed).unwrap_or(u64::MAX));
            self.totals
                .removed
                .add(u64::try_from(difference.removed).unwrap_or(u64::MAX));
        }
    }

    pub(crate) fn signed(&self, signed: bool) {
        if signed {
            self.totals.signed.inc();
        } else {
            self.totals.refused.inc();
        }
    }

    pub(crate) fn denied(&self) {
        self.totals.denied.inc();
    }

    pub(crate) fn responded(&self, type_url: &str) {
        self.of_type(type_url).responses.inc();
    }

    pub(crate) fn rejected(&self, type_url: &str) {
        self.of_type(type_url).rejections.inc();
    }

    fn of_type(&self, type_url: &str) -> Handle<ByType> {
        self.by_type
            .resolve(|labels| labels.open("type", short_name(type_url)))
    }
}

/// The last part of a type's name.
pub(crate) fn short_name(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}
