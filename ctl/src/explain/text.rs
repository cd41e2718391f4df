//! The explanation for people.

use std::fmt::Write;

use serde_json::Value;

use super::{Enrolment, Explained};
use crate::dump::AgentPod;
use crate::table::Table;

/// Column of the values.
const COLUMN: usize = 14;

/// The whole explanation.
#[must_use]
pub fn text(explained: &Explained) -> String {
    let mut lines = Lines(format!("Pod {}\n", explained.pod));
    enrolment(&mut lines, &explained.enrolment);
    workload(&mut lines, explained);
    if let (Some(target), Some(connection)) = (&explained.target, &explained.connection) {
        let port = target
            .port
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        lines.0.push_str(&format!("\nTo {}{port}\n", target.name));
        route(&mut lines, connection);
        decision(&mut lines, connection.get("admission"));
    }
    lines.0
}

struct Lines(String);

impl Lines {
    fn line(&mut self, key: &str, value: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "  {key:COLUMN$} {value}");
    }
}

fn enrolment(lines: &mut Lines, enrolment: &Enrolment) {
    match enrolment {
        Enrolment::Yes {
            node,
            node_proxies_connected,
            pod,
        } => {
            let yes = if pod.wanted { "yes" } else { "no" };
            lines.line("enrolled", &format!("{yes}: {}", pod.why));
            lines.line("state", &state(pod));
            lines.line(
                "node",
                &format!("{node} ({node_proxies_connected} node proxies connected to its agent)"),
            );
            if let Some(path) = &pod.netns_path {
                let id = pod
                    .netns
                    .as_ref()
                    .map(|id| format!(" ({id})"))
                    .unwrap_or_default();
                lines.line("namespace", &format!("{path}{id}"));
            } else if pod.wanted {
                lines.line(
                    "namespace",
                    "not named: without the annotation ambit.io/netns the pod stays outside the mesh",
                );
            }
            if let Some(error) = &pod.last_error {
                lines.line("last error", error);
            }
            if pod.mended > 0 {
                lines.line("rules mended", &format!("{} times", pod.mended));
            }
        }
        Enrolment::OtherNode { node } => {
            lines.line(
                "enrolled",
                &format!("not a pod of node {node}; ask the agent of its own node"),
            );
        }
        Enrolment::Unreachable { why } => {
            lines.line(
                "enrolled",
                &format!("not known, the agent could not be asked: {why}"),
            );
        }
    }
}

fn state(pod: &AgentPod) -> String {
    let rules = match pod.rules.as_str() {
        "capture" => "new connections are redirected",
        "drain" => "only old connections are redirected",
        _ => "nothing is redirected",
    };
    let proxy = if pod.proxy == "serves" {
        "the node proxy serves it"
    } else {
        "no node proxy serves it"
    };
    let announced = match pod.announced.as_str() {
        "enabled" => "others are told to use HBONE",
        "pending" => "others use plaintext, enrolment is pending",
        _ => "others use plaintext",
    };
    format!("{}: {rules}, {proxy}, {announced}", pod.state)
}

fn workload(lines: &mut Lines, explained: &Explained) {
    match &explained.workload {
        Some(workload) => {
            if !matches!(explained.enrolment, Enrolment::Yes { .. }) && !workload.node.is_empty() {
                lines.line("node", &workload.node);
            }
            lines.line("addresses", &workload.workload_ips.join(", "));
            lines.line("identity", &workload.identity());
            lines.line("reached over", &workload.protocol);
            lines.line("waypoint", &explained.waypoint);
            let named = &workload.authorization_policies;
            if !named.is_empty() {
                lines.line("selected by", &named.join(", "));
            }
        }
        None => lines.line(
            "workload",
            "the control plane has not announced it to this node proxy",
        ),
    }
    let proxy = match &explained.proxy.state {
        Some(state) => format!(
            "{state}, {} inbound and {} outbound connections open",
            explained.proxy.inbound, explained.proxy.outbound
        ),
        None => "the node proxy that was asked does not serve it".to_owned(),
    };
    lines.line("proxy", &proxy);
    if let Some(certificate) = &explained.certificate {
        let until = certificate
            .cert_chain
            .first()
            .filter(|leaf| !leaf.expiration_time.is_empty());
        let until = until.map(|leaf| format!(", valid until {}", leaf.expiration_time));
        lines.line(
            "certificate",
            &format!("{}{}", certificate.state, until.unwrap_or_default()),
        );
    }
}

fn route(lines: &mut Lines, connection: &Value) {
    let text = |pointer: &str| {
        connection
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    lines.line("destination", text("/destination"));
    let service = text("/route/service/hostname");
    let service = if service.is_empty() {
        text("/route/service")
    } else {
        service
    };
    if !service.is_empty() {
        lines.line("service", service);
    }
    let hop = text("/route/nextHop");
    let way = match text("/route/kind") {
        "plain" => format!("in plaintext to {hop}: the destination is not in the mesh"),
        "tunnel" => format!("over HBONE to {hop}, CONNECT {}", text("/route/authority")),
        "waypoint" => {
            format!(
                "over HBONE through the waypoint at {hop}, CONNECT {}",
                text("/route/authority")
            )
        }
        "named" => format!(
            "to an address of {}, which the node proxy resolves for each connection",
            text("/route/hostname")
        ),
        "refused" => format!("refused by the node proxy: {}", text("/route/reason")),
        other => other.to_owned(),
    };
    lines.line("route", &way);
    let workload = text("/route/workload");
    if !workload.is_empty() {
        lines.line("workload", workload);
    }
    let expected: Vec<&str> = connection
        .pointer("/route/expected")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !expected.is_empty() {
        lines.line("must prove", &expected.join(" or "));
    }
    if text("/route/kind") == "waypoint" {
        lines.line(
            "then",
            "the waypoint applies its HTTP routes and policies, and goes on to an endpoint",
        );
    }
}

fn decision(lines: &mut Lines, admission: Option<&Value>) {
    let Some(admission) = admission.filter(|admission| !admission.is_null()) else {
        lines.line(
            "policies",
            "none apply: nobody at the other end enforces any",
        );
        return;
    };
    let flag = |pointer: &str| {
        admission
            .pointer(pointer)
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    let reason = admission
        .pointer("/decision/reason")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let verdict = if flag("/decision/allowed") {
        "allowed"
    } else {
        "refused"
    };
    lines.line("decision", &format!("{verdict}: {reason}"));
    rehearsed(lines, admission);
    if !flag("/enforced") {
        lines.line("", "not enforced: no proxy takes the connection in");
    }
    if !flag("/mutualTls") {
        lines.line("", "in plaintext: the peer has no identity to match");
    }
    let policies = admission
        .pointer("/decision/policies")
        .and_then(Value::as_array);
    let Some(policies) = policies.filter(|policies| !policies.is_empty()) else {
        return;
    };
    let mut table = Table::new(&["POLICY", "ACTION", "SCOPE", "MATCHES", "NOTE"]);
    for policy in policies {
        let text = |key: &str| {
            policy
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let matches = match policy.get("matchedRule").and_then(Value::as_u64) {
            Some(rule) => format!("rule {}", rule + 1),
            None => "no".to_owned(),
        };
        let dry_run = policy
            .get("dryRun")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let problems = policy
            .get("problems")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        let mut notes = Vec::new();
        if dry_run {
            notes.push("dry run".to_owned());
        }
        if problems > 0 {
            notes.push(format!("{problems} values not understood"));
        }
        table.row([
            text("policy"),
            text("action"),
            text("scope"),
            matches,
            notes.join(", "),
        ]);
    }
    for line in table.to_string().lines() {
        let _ = writeln!(lines.0, "  {line}");
    }
}

/// What the decision would be if dry-run policies were enforced, where there are any.
fn rehearsed(lines: &mut Lines, admission: &Value) {
    let allowed = admission.pointer("/decision/rehearsed/allowed");
    if let Some(allowed) = allowed.and_then(Value::as_bool) {
        let verdict = if allowed { "allowed" } else { "refused" };
        let reason = admission.pointer("/decision/rehearsed/reason");
        let reason = reason.and_then(Value::as_str).unwrap_or_default();
        lines.line("dry run", &format!("would be {verdict}: {reason}"));
    }
}
