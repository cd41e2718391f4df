//! What is counted of DNS, with Istio's names and labels.

use std::sync::Arc;

use ambit_dns::Transport;
use ambit_dns::query::Query;
use ambit_model::workload::Workload;
use ambit_observe::labels::Labels;
use ambit_observe::metrics::{Family, Registry};

ambit_observe::series! {
    /// Queries of pods.
    pub struct Requests {
        /// Read.
        requests: Counter = ("istio_dns_requests", "Total number of DNS requests (unstable)."),
    }
}

ambit_observe::series! {
    /// Queries that others were asked.
    pub struct Upstream {
        /// Sent on.
        requests: Counter = ("istio_dns_upstream_requests", "Total number of DNS requests forwarded to upstream (unstable)."),
        /// Of those, the ones that nobody answered.
        failures: Counter = ("istio_dns_upstream_failures", "Total number of DNS requests that failed at upstream (unstable)."),
        /// Time to the answer.
        duration: Histogram[&[0.0005, 0.001, 0.01, 0.1, 1.0, 5.0]] = ("istio_dns_upstream_request_duration_seconds", "Time in seconds until upstream answered (unstable)."),
    }
}

/// The families of DNS.
#[derive(Debug, Clone)]
pub struct Families {
    /// Queries of pods.
    pub requests: Family<Requests>,
    /// Queries that others were asked.
    pub upstream: Family<Upstream>,
}

impl Families {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.family(),
            upstream: registry.family(),
        }
    }
}

/// Writes the labels of a query.
pub fn write(labels: &mut Labels, kind: u16, transport: Transport, source: Option<&Arc<Workload>>) {
    labels.closed("request_query_type", mnemonic(kind));
    labels.closed("request_protocol", transport.as_str());
    let (service, revision) = source.map_or(("", ""), |source| {
        (
            source.canonical_name.as_str(),
            source.canonical_revision.as_str(),
        )
    });
    labels.open("source_canonical_service", service);
    labels.open("source_canonical_revision", revision);
}

/// A type's name in lower case. Types that nobody uses share one: a pod could draw 65,536 of them.
#[must_use]
pub fn mnemonic(kind: u16) -> &'static str {
    match kind {
        1 => "a",
        2 => "ns",
        5 => "cname",
        6 => "soa",
        12 => "ptr",
        13 => "hinfo",
        15 => "mx",
        16 => "txt",
        28 => "aaaa",
        33 => "srv",
        35 => "naptr",
        43 => "ds",
        46 => "rrsig",
        48 => "dnskey",
        52 => "tlsa",
        64 => "svcb",
        65 => "https",
        251 => "ixfr",
        252 => "axfr",
        255 => "any",
        257 => "caa",
        _ => "unknown",
    }
}

/// Writes one query to the log, target `dns`, where that is asked for.
pub fn log(query: &Query<'_>, source: Option<&Workload>, outcome: &Outcome<'_>) {
    if !tracing::enabled!(target: "dns", tracing::Level::DEBUG) {
        return;
    }
    let (workload, namespace) = source.map_or(("", ""), |source| {
        (source.name(), source.namespace.as_str())
    });
    tracing::event!(
        target: "dns",
        tracing::Level::DEBUG,
        src.workload = workload,
        src.namespace = namespace,
        query = mnemonic(query.kind()),
        domain = query.name().unwrap_or("(not text)"),
        result = outcome.result,
        service = outcome.service,
        endpoints = outcome.endpoints
    );
}

/// What became of a query.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome<'a> {
    /// In a word or two.
    pub result: &'a str,
    /// The service that was meant.
    pub service: &'a str,
    /// How many addresses it has.
    pub endpoints: usize,
}
