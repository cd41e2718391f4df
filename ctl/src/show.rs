//! One table per command. Pure.

use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{Connections, Filter};
use crate::dump::{Certificate, CertificateText, Connection, Dump};
use crate::table::Table;

#[cfg(test)]
mod tests;

/// The places of the workloads that a filter lets through.
#[must_use]
pub fn select_workloads(dump: &Dump, filter: &Filter) -> Vec<usize> {
    places(&dump.workloads, |workload| {
        let node = filter
            .node
            .as_ref()
            .is_none_or(|node| *node == workload.node);
        is_in(filter, &workload.namespace) && node
    })
}

/// The places of the services that a filter lets through.
#[must_use]
pub fn select_services(dump: &Dump, filter: &Filter) -> Vec<usize> {
    places(&dump.services, |service| is_in(filter, &service.namespace))
}

/// The places of the policies that a filter lets through.
#[must_use]
pub fn select_policies(dump: &Dump, filter: &Filter) -> Vec<usize> {
    places(&dump.policies, |policy| is_in(filter, &policy.namespace))
}

/// Workloads by namespace and name.
#[must_use]
pub fn workloads(dump: &Dump, places: &[usize]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD NAME",
        "ADDRESS",
        "NODE",
        "WAYPOINT",
        "PROTOCOL",
    ]);
    for workload in places.iter().filter_map(|place| dump.workloads.get(*place)) {
        table.row([
            workload.namespace.clone(),
            workload.name.clone(),
            workload.workload_ips.first().cloned().unwrap_or_default(),
            workload.node.clone(),
            dump.waypoint(workload.waypoint.as_ref(), &workload.namespace),
            workload.protocol.clone(),
        ]);
    }
    table.sorted()
}

/// Services by namespace and name.
#[must_use]
pub fn services(dump: &Dump, places: &[usize]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "SERVICE NAME",
        "SERVICE VIP",
        "WAYPOINT",
        "ENDPOINTS",
    ]);
    for service in places.iter().filter_map(|place| dump.services.get(*place)) {
        let healthy = service
            .endpoints
            .values()
            .filter(|endpoint| endpoint.status.is_empty() || endpoint.status == "Healthy")
            .count();
        let vips = service
            .vips
            .iter()
            .map(|vip| vip.rsplit_once('/').map_or(vip.as_str(), |(_, ip)| ip));
        table.row([
            service.namespace.clone(),
            service.name.clone(),
            vips.collect::<Vec<_>>().join(","),
            dump.waypoint(service.waypoint.as_ref(), &service.namespace),
            format!("{healthy}/{}", service.endpoints.len()),
        ]);
    }
    table.sorted()
}

/// Policies by namespace and name.
#[must_use]
pub fn policies(dump: &Dump, places: &[usize]) -> Table {
    let mut table = Table::new(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE", "NOTE"]);
    for policy in places.iter().filter_map(|place| dump.policies.get(*place)) {
        let mut notes = Vec::new();
        if policy.dry_run {
            notes.push("dry run".to_owned());
        }
        if !policy.problems.is_empty() {
            notes.push(format!("{} values not understood", policy.problems.len()));
        }
        table.row([
            policy.namespace.clone(),
            policy.name.clone(),
            policy.action.clone(),
            policy.scope.clone(),
            notes.join(", "),
        ]);
    }
    table.sorted()
}

/// Certificates, leaves before roots.
#[must_use]
pub fn certificates(dump: &Dump) -> Table {
    let mut table = Table::new(&[
        "CERTIFICATE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ]);
    let now = OffsetDateTime::now_utc();
    let mut sorted: Vec<&Certificate> = dump.certificates.iter().collect();
    sorted.sort_by(|one, other| one.identity.cmp(&other.identity));
    for certificate in sorted {
        let chain = certificate
            .cert_chain
            .iter()
            .enumerate()
            .map(|(place, text)| (if place == 0 { "Leaf" } else { "Intermediate" }, text));
        let roots = certificate.root_certs.iter().map(|text| ("Root", text));
        let before = table.rows().len();
        // Where only the leaf's dates are known there is nothing to say about the others.
        let known = chain
            .chain(roots)
            .filter(|(_, text)| !text.serial_number.is_empty());
        for (kind, text) in known {
            table.row([
                certificate.identity.clone(),
                kind.to_owned(),
                certificate.state.clone(),
                is_valid(text, now).to_string(),
                text.serial_number.clone(),
                text.expiration_time.clone(),
                text.valid_from.clone(),
            ]);
        }
        if table.rows().len() == before {
            let state = certificate.state.clone();
            table.row([
                certificate.identity.clone(),
                "Leaf".to_owned(),
                state,
                "false".to_owned(),
            ]);
        }
    }
    table
}

/// One connection with its pod, as `-o json` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row<'a> {
    /// `namespace/pod`.
    pub workload: String,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// The connection.
    #[serde(flatten)]
    pub connection: &'a Connection,
}

/// The connections that a filter lets through.
#[must_use]
pub fn select_connections<'a>(dump: &'a Dump, filter: &Connections) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for pod in dump.pods.values() {
        if filter
            .namespace
            .as_ref()
            .is_some_and(|wanted| *wanted != pod.info.namespace)
        {
            continue;
        }
        let both = [
            ("inbound", &pod.connections.inbound),
            ("outbound", &pod.connections.outbound),
        ];
        for (direction, connections) in both {
            if filter
                .direction
                .as_ref()
                .is_some_and(|wanted| wanted != direction)
            {
                continue;
            }
            rows.extend(connections.iter().map(|connection| Row {
                workload: format!("{}/{}", pod.info.namespace, pod.info.name),
                direction,
                connection,
            }));
        }
    }
    rows
}

/// Connections by pod and direction. LOCAL is the pod's side.
#[must_use]
pub fn connections(dump: &Dump, rows: &[Row<'_>], raw: bool) -> Table {
    let mut table = Table::new(&[
        "WORKLOAD",
        "DIRECTION",
        "LOCAL",
        "REMOTE",
        "REMOTE TARGET",
        "PROTOCOL",
    ]);
    let name = |text: &str| match text.parse::<SocketAddr>() {
        Ok(address) if !raw => match dump.name_of(address.ip()) {
            Some(name) => format!("{name}:{}", address.port()),
            None => text.to_owned(),
        },
        _ => text.to_owned(),
    };
    for row in rows {
        let connection = row.connection;
        let (local, remote) = match row.direction {
            "inbound" => (&connection.actual_dst, &connection.src),
            _ => (&connection.src, &connection.actual_dst),
        };
        table.row([
            row.workload.clone(),
            row.direction.to_owned(),
            name(local),
            name(remote),
            connection
                .original_dst
                .as_deref()
                .map(name)
                .unwrap_or_default(),
            connection.protocol.clone(),
        ]);
    }
    table.sorted()
}

/// What is wrong with the manifests.
#[must_use]
pub fn problems(found: &Value) -> Table {
    let mut table = Table::new(&["SEVERITY", "WHERE", "FIELD", "WHAT"]);
    let text = |entry: &Value, key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    for entry in found.as_array().into_iter().flatten() {
        table.row(["severity", "at", "field", "message"].map(|key| text(entry, key)));
    }
    table.sorted()
}

fn places<T>(all: &[T], kept: impl Fn(&T) -> bool) -> Vec<usize> {
    all.iter()
        .enumerate()
        .filter(|(_, one)| kept(one))
        .map(|(place, _)| place)
        .collect()
}

fn is_in(filter: &Filter, namespace: &str) -> bool {
    filter
        .namespace
        .as_ref()
        .is_none_or(|wanted| wanted == namespace)
}

fn is_valid(text: &CertificateText, now: OffsetDateTime) -> bool {
    let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    at(&text.valid_from).is_some_and(|from| from <= now)
        && at(&text.expiration_time).is_some_and(|end| now < end)
}
