//! The labels that Istio's traffic metrics share, and the TCP metrics.

use std::fmt::Display;

use crate::access::Shown;
use crate::labels::Labels;

crate::series! {
    /// What is counted of TCP connections, by the labels of [`Traffic`].
    pub struct Tcp {
        /// Connections accepted.
        opened: Counter = ("istio_tcp_connections_opened", "The total number of TCP connections opened."),
        /// Connections ended, however they ended.
        closed: Counter = ("istio_tcp_connections_closed", "The total number of TCP connections closed."),
        /// Bytes from the client to the server.
        received: Counter = ("istio_tcp_received_bytes", "The size of total bytes received during request in case of a TCP connection."),
        /// Bytes from the server to the client.
        sent: Counter = ("istio_tcp_sent_bytes", "The size of total bytes sent during response in case of a TCP connection."),
        /// Connections that ended for a reason other than their own.
        failed: Counter = ("istio_tcp_connections_failed", "The total number of TCP connections that failed (unstable)."),
    }
}

/// Who reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reporter {
    /// The client's node proxy.
    #[default]
    Source,
    /// The server's node proxy.
    Destination,
    /// A waypoint.
    Waypoint,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Waypoint => "waypoint",
        }
    }
}

/// One side of the traffic. Empty texts print as `unknown`.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct Side<'a> {
    pub workload: &'a str,
    pub canonical_service: &'a str,
    pub canonical_revision: &'a str,
    pub namespace: &'a str,
    /// Printed with its scheme, as `spiffe://…`.
    pub principal: Option<&'a dyn Shown>,
    pub app: &'a str,
    pub version: &'a str,
    pub cluster: &'a str,
    pub region: &'a str,
    pub zone: &'a str,
}

impl Side<'_> {
    /// Writes the labels of a client, in Istio's order.
    pub fn write_as_source(&self, labels: &mut Labels) {
        labels.open("source_workload", self.workload);
        labels.open("source_canonical_service", self.canonical_service);
        labels.open("source_canonical_revision", self.canonical_revision);
        labels.open("source_workload_namespace", self.namespace);
        principal(labels, "source_principal", self.principal);
        labels.open("source_app", self.app);
        labels.open("source_version", self.version);
        labels.open("source_cluster", self.cluster);
    }
}

/// The service that the client meant.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct Service<'a> {
    pub host: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// Everything the labels of traffic are made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic<'a> {
    /// Who reports.
    pub reporter: Reporter,
    /// The client.
    pub source: Side<'a>,
    /// The server.
    pub destination: Side<'a>,
    /// The service.
    pub service: Service<'a>,
    /// `tcp`, `http` or `grpc`; empty is `tcp`.
    pub protocol: &'a str,
    /// Istio's flag of the outcome; empty is `-`, which is success.
    pub flags: &'a str,
    /// Whether mutual TLS protected it.
    pub mutual_tls: bool,
    /// Whether region and zone are shown: Istio does so only when it knows one of the workloads.
    pub locality: bool,
}

impl Traffic<'_> {
    /// Writes the labels in Istio's order.
    pub fn write(&self, labels: &mut Labels) {
        labels.closed("reporter", self.reporter.as_str());
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        source.write_as_source(labels);
        labels.open("destination_service", service.host);
        labels.open("destination_service_namespace", service.namespace);
        labels.open("destination_service_name", service.name);
        labels.open("destination_workload", destination.workload);
        labels.open(
            "destination_canonical_service",
            destination.canonical_service,
        );
        labels.open(
            "destination_canonical_revision",
            destination.canonical_revision,
        );
        labels.open("destination_workload_namespace", destination.namespace);
        principal(labels, "destination_principal", destination.principal);
        labels.open("destination_app", destination.app);
        labels.open("destination_version", destination.version);
        labels.open("destination_cluster", destination.cluster);
        labels.closed("request_protocol", or(self.protocol, "tcp"));
        labels.closed("response_flags", or(self.flags, "-"));
        let security = if self.mutual_tls {
            "mutual_tls"
        } else {
            "unknown"
        };
        labels.closed("connection_security_policy", security);
        if self.locality {
            labels.open("source_region", source.region);
            labels.open("source_zone", source.zone);
            labels.open("destination_region", destination.region);
            labels.open("destination_zone", destination.zone);
        }
    }
}

fn principal(labels: &mut Labels, name: &str, value: Option<&(impl Display + ?Sized)>) {
    match value {
        Some(identity) => labels.open_display(name, identity),
        None => labels.open(name, ""),
    }
}

fn or<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Registry};

    #[test]
    fn labels_come_in_istio_s_order_and_unknown_fills_gaps() {
        let registry = Registry::default();
        let family = registry.family::<Tcp>();
        let traffic = Traffic {
            source: Side {
                workload: "web",
                principal: Some(&"spiffe://td/ns/a/sa/b"),
                ..Side::default()
            },
            mutual_tls: true,
            ..Traffic::default()
        };
        family.resolve(|labels| traffic.write(labels)).opened.inc();
        let text = registry.render(Format::Text);
        let line = text.lines().find(|line| !line.starts_with('#')).unwrap();
        let names: Vec<_> = line
            .split(['{', ','])
            .skip(1)
            .map(|label| label.split('=').next().unwrap())
            .collect();
        let expected = "reporter source_workload source_canonical_service source_canonical_revision \
            source_workload_namespace source_principal source_app source_version source_cluster \
            destination_service destination_service_namespace destination_service_name \
            destination_workload destination_canonical_service destination_canonical_revision \
            destination_workload_namespace destination_principal destination_app \
            destination_version destination_cluster request_protocol response_flags \
            connection_security_policy";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
        assert!(line.starts_with("istio_tcp_connections_opened_total{reporter=\"source\","));
        assert!(line.contains("source_principal=\"spiffe://td/ns/a/sa/b\""));
        assert!(line.contains("source_app=\"unknown\"") && line.contains("response_flags=\"-\""));
        assert!(line.ends_with("connection_security_policy=\"mutual_tls\"} 1"));
    }
}
