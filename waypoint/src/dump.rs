//! The state of a waypoint, for people and for `ambitctl`: `/config_dump`.

use std::collections::BTreeMap;

use ambit_identity::Certificates;
use ambit_observe::version::Version;
use serde_json::{Value, json};

use crate::config::Settings;
use crate::discovery::Published;
use crate::endpoints::{Endpoint, Health, Transport};
use crate::filter::Filter;
use crate::plan::{Cluster, HttpChain, Plan, PortMap, Target, TcpChain, Upstream};
use crate::routes::{Action, RouteTable};
use crate::rules::{RuleAction, Rules};

/// Everything, as JSON.
#[must_use]
pub fn config_dump(
    settings: &Settings,
    published: &Published,
    certificates: &Certificates,
) -> Value {
    let plan = published.plan.load();
    let refused: Vec<Value> = published
        .refusals
        .lock()
        .iter()
        .map(|((kind, name), reason)| json!({ "type": kind, "name": name, "reason": reason }))
        .collect();
    json!({
        "version": Version::of(&settings.version_tag),
        "config": settings.shown(),
        "certificates": certificates.dump(),
        "plan": self::plan(&plan),
        "refused": refused,
        "workloads": published.view.load().sizes().0,
    })
}

fn plan(plan: &Plan) -> Value {
    let mut clusters: Vec<_> = plan.clusters.values().collect();
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    json!({
        "version": plan.version,
        "tunnel": plan.tunnel.as_ref().map(|tunnel| json!({
            "trustDomains": tunnel.trust_domains.iter().map(|d| &**d).collect::<Vec<_>>(),
            "maxStreams": tunnel.max_streams,
            "rules": tunnel.rules.iter().map(|one| rules(one)).collect::<Vec<_>>(),
        })),
        "destinations": destinations(plan),
        "chains": chains(plan),
        "clusters": clusters.into_iter().map(|one| cluster(one)).collect::<Vec<_>>(),
    })
}

/// Address and port → chain name.
fn destinations(plan: &Plan) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (socket, target) in plan.dispatch.sockets() {
        out.insert(socket.to_string(), name(target));
    }
    for (range, ports) in plan.dispatch.ranges() {
        match ports {
            PortMap::Any(target) => drop(out.insert(format!("{range}:*"), name(target))),
            PortMap::Listed(ports) => {
                for (port, target) in ports {
                    out.insert(format!("{range}:{port}"), name(target));
                }
            }
        }
    }
    for ((host, port), target) in plan.dispatch.hosts() {
        out.insert(format!("{host}:{port}"), name(target));
    }
    out
}

fn name(target: &Target) -> String {
    match target {
        Target::Tcp(chain) => chain.name.to_string(),
        Target::Http(chain) => chain.name.to_string(),
        Target::Sniff { http, tcp } => format!("{} or {}", http.name, tcp.name),
        Target::Refused(name) => format!("{name} (refused)"),
    }
}

fn chains(plan: &Plan) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    let mut add = |target: &Target| match target {
        Target::Tcp(chain) => drop(out.insert(chain.name.to_string(), tcp(chain))),
        Target::Http(chain) => drop(out.insert(chain.name.to_string(), http(chain))),
        Target::Sniff { http: h, tcp: t } => {
            out.insert(h.name.to_string(), http(h));
            out.insert(t.name.to_string(), tcp(t));
        }
        Target::Refused(_) => {}
    };
    for (_, target) in plan.dispatch.sockets() {
        add(target);
    }
    for (_, target) in plan.dispatch.hosts() {
        add(target);
    }
    for (_, ports) in plan.dispatch.ranges() {
        match ports {
            PortMap::Any(target) => add(target),
            PortMap::Listed(ports) => ports.values().for_each(&mut add),
        }
    }
    out
}

fn tcp(chain: &TcpChain) -> Value {
    json!({
        "protocol": "tcp",
        "rules": chain.rules.iter().map(|one| rules(one)).collect::<Vec<_>>(),
        "clusters": chain.clusters.names().map(|name| &**name).collect::<Vec<_>>(),
        "idleTimeout": chain.idle_timeout.map(|limit| format!("{limit:?}")),
        "accessLogs": chain.logs.len(),
        "metrics": chain.reporter.is_some(),
    })
}

fn http(chain: &HttpChain) -> Value {
    let filters = chain.filters.iter().map(|filter| match filter {
        Filter::Rules(list) => json!({ "rules": rules(list) }),
        Filter::Headers { request, response } => json!({
            "headers": { "request": request.len(), "response": response.len() },
        }),
    });
    json!({
        "protocol": "http",
        "path": format!("{:?}", chain.settings.path),
        "filters": filters.collect::<Vec<_>>(),
        "hosts": routes(&chain.routes),
        "accessLogs": chain.logs.len(),
        "metrics": chain.reporter.is_some(),
    })
}

fn rules(rules: &Rules) -> Value {
    let action = match rules.action {
        RuleAction::Allow => "ALLOW",
        RuleAction::Deny => "DENY",
        RuleAction::Log => "LOG",
    };
    let policies = rules.policies.iter().map(|policy| {
        json!({
            "name": &*policy.name,
            "permissions": policy.permissions.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>(),
            "principals": policy.principals.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>(),
        })
    });
    json!({ "action": action, "policies": policies.collect::<Vec<_>>() })
}

fn routes(table: &RouteTable) -> Vec<Value> {
    let host = |host: &crate::routes::VirtualHost| {
        let routes = host.routes.iter().map(|route| {
            let action = match &route.action {
                Action::Forward(forward) => json!({
                    "clusters": forward
                        .destinations()
                        .map(|(to, weight)| json!({ "name": &*to.cluster, "weight": weight }))
                        .collect::<Vec<_>>(),
                    "timeout": forward.timeout.map(|limit| format!("{limit:?}")),
                    "retries": forward.retry.as_ref().map(|retry| retry.retries),
                }),
                Action::Redirect(redirect) => json!({ "redirect": redirect.status.as_u16() }),
                Action::Respond(respond) => json!({ "respond": respond.status.as_u16() }),
            };
            json!({
                "name": &*route.name,
                "match": format!("{:?}", route.matcher),
                "action": action,
            })
        });
        json!({ "name": &*host.name, "routes": routes.collect::<Vec<_>>() })
    };
    table.hosts().iter().map(host).collect()
}

fn cluster(cluster: &Cluster) -> Value {
    let endpoints = match &cluster.upstream {
        Upstream::OriginalDestination => json!("original destination"),
        Upstream::Endpoints(endpoints) => endpoints.all().iter().map(|one| endpoint(one)).collect(),
    };
    json!({
        "name": &*cluster.name,
        "service": cluster.service.as_ref().map(|service| &*service.host),
        "subset": cluster.subset.as_deref(),
        "protocol": format!("{:?}", cluster.protocol),
        "balance": format!("{:?}", cluster.balance),
        "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "address": endpoint.address,
        "hbone": match endpoint.transport {
            Transport::Hbone(next_hop) => Some(next_hop),
            Transport::Plain => None,
        },
        "health": match endpoint.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Draining => "draining",
        },
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "inFlight": endpoint.load(),
        "workload": endpoint.workload.as_ref().map(|workload| &*workload.name),
    })
}
