//! The port for people and scrapers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ambit_objects::{Problem, Severity};
use ambit_observe::metrics::{Format, Registry};
use ambit_observe::server::{Answer, Routes};
use http::StatusCode;
use serde::Serialize;

use crate::app::Shared;
use crate::metrics::short_name;
use crate::publish::Published;
use crate::serve::clients::Clients;

/// One thing wrong, whether a document said it or the objects together did.
#[derive(Debug, Serialize)]
struct Shown {
    severity: Severity,
    /// The file and line, or the object.
    at: String,
    field: String,
    message: String,
}

/// Adds the controller's own routes, metrics and readiness among them.
///
/// Ready is who listens: the objects were read before the port was opened.
pub fn add(routes: &Routes, registry: &Registry, shared: &Shared, clients: &Arc<Clients>) {
    routes.get("/healthz/ready", "readiness", |_| {
        Answer::text(StatusCode::OK, "ready\n")
    });
    let registry = registry.clone();
    let about = "metrics, Prometheus text or OpenMetrics by Accept";
    routes.get("/metrics", about, move |call| {
        registry.expire(Instant::now());
        let format = Format::for_accept(call.header("accept"));
        Answer::pieces(format.content_type(), registry.exposition(format))
    });
    let problems = shared.clone();
    let about = "what is wrong with documents and objects";
    routes.get("/debug/problems", about, move |_| {
        Answer::json(&shown(&problems.published()))
    });

    let resources = shared.clone();
    let about = "versions of all resources by view and type";
    routes.get("/debug/resources", about, move |_| {
        Answer::json(&versions(&resources.published()))
    });

    let clients = Arc::clone(clients);
    let about = "who is connected, what they have and what they refused";
    routes.get("/debug/clients", about, move |_| {
        Answer::json(&clients.list())
    });
}

fn shown(published: &Published) -> Vec<Shown> {
    let file = |problem: &Problem| Shown {
        severity: problem.severity,
        at: format!("{}:{}", problem.file.display(), problem.line),
        field: problem.field.clone(),
        message: problem.message.clone(),
    };
    let documents = published.cluster.objects().problems.iter().map(file);
    let objects = published.findings.iter().map(|finding| Shown {
        severity: finding.severity,
        at: format!("{} {}", finding.kind, finding.name),
        field: finding.field.clone(),
        message: finding.message.clone(),
    });
    documents.chain(objects).collect()
}

fn versions(published: &Published) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for (view, type_url, table) in published.tables() {
        let entries = table
            .iter()
            .map(|(name, entry)| (name.clone(), entry.version.clone()))
            .collect();
        versions.insert(format!("{view} {}", short_name(type_url)), entries);
    }
    versions
}
