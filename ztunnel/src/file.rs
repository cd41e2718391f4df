//! The mesh from a file, for tests and for trying things out without a control plane.
//!
//! The shape is that of Istio's local files (`LOCAL_XDS_PATH`): YAML or JSON with `workloads`,
//! `services` and `policies` as `/config_dump` shows them. Read once, at start.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_model::Text;
use ambit_model::address::{GatewayAddress, GatewayDestination, Vip};
use ambit_model::identity::Identity;
use ambit_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Value,
};
use ambit_model::service::{Port, Service, ServiceKey};
use ambit_model::update::Change;
use ambit_model::workload::{DEFAULT_TRUST_DOMAIN, Health, Protocol, Workload};
use ipnet::IpNet;
use serde::Deserialize;

/// What is wrong with a file, by place.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The text is no such document.
    #[error("{0}")]
    Syntax(String),
    /// A value in it cannot be used.
    #[error("{0}: `{1}` {2}")]
    Value(&'static str, String, &'static str),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    workloads: Vec<WorkloadText>,
    services: Vec<ServiceText>,
    policies: Vec<PolicyText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WorkloadText {
    uid: String,
    name: String,
    namespace: String,
    service_account: String,
    trust_domain: String,
    network: String,
    workload_ips: Vec<IpAddr>,
    protocol: Option<Protocol>,
    node: String,
    workload_name: String,
    canonical_name: String,
    canonical_revision: String,
    status: Option<Health>,
    waypoint: Option<GatewayText>,
    services: BTreeMap<String, BTreeMap<u16, u16>>,
    authorization_policies: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GatewayText {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceText {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    ports: BTreeMap<u16, u16>,
    waypoint: Option<GatewayText>,
}

// Unknown fields of a policy are refused: what is not understood must not be left out of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyText {
    name: String,
    namespace: String,
    scope: ScopeText,
    action: ActionText,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    rules: Vec<Vec<Vec<MatchText>>>,
}

#[derive(Debug, Deserialize)]
enum ScopeText {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Deserialize)]
enum ActionText {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct MatchText {
    namespaces: Vec<StringText>,
    not_namespaces: Vec<StringText>,
    service_accounts: Vec<AccountText>,
    not_service_accounts: Vec<AccountText>,
    principals: Vec<StringText>,
    not_principals: Vec<StringText>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
enum StringText {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountText {
    namespace: String,
    name: String,
}

/// Reads the text of such a file.
///
/// # Errors
/// What is wrong and where. A file is taken whole or not at all.
pub fn read(text: &str) -> Result<Vec<Change>, FileError> {
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| FileError::Syntax(error.to_string()))?;
    let workloads = file
        .workloads
        .into_iter()
        .map(|w| workload(w).map(Change::UpsertWorkload));
    let services = file
        .services
        .into_iter()
        .map(|s| service(s).map(Change::UpsertService));
    let policies = file
        .policies
        .into_iter()
        .map(|p| Ok(Change::UpsertPolicy(policy(p))));
    workloads.chain(services).chain(policies).collect()
}

fn workload(text: WorkloadText) -> Result<Workload, FileError> {
    let account = Text::from(text.service_account).or("default");
    let domain = Text::from(text.trust_domain).or(DEFAULT_TRUST_DOMAIN);
    let identity = format!("spiffe://{domain}/ns/{}/sa/{account}", text.namespace);
    let identity: Identity = identity
        .parse()
        .map_err(|_| FileError::Value("workloads", identity.clone(), "is no identity"))?;
    let mut workload = Workload::new(text.uid.into(), text.name.into(), identity);
    workload.network = text.network.into();
    workload.addresses = text
        .workload_ips
        .into_iter()
        .map(|ip| ip.to_canonical())
        .collect();
    workload.protocol = text.protocol.unwrap_or(Protocol::Tcp);
    workload.node = text.node.into();
    workload.workload_name = text.workload_name.into();
    workload.canonical_name = text.canonical_name.into();
    workload.canonical_revision = text.canonical_revision.into();
    workload.health = text.status.unwrap_or(Health::Healthy);
    workload.waypoint = text.waypoint.map(gateway).transpose()?;
    for (key, mapped) in text.services {
        let parsed = ServiceKey::parse(&key);
        let key = parsed.ok_or(FileError::Value(
            "services",
            key,
            "is not namespace/hostname",
        ))?;
        workload.services.insert(key, ports(mapped));
    }
    workload.policies = text
        .authorization_policies
        .iter()
        .map(|name| PolicyKey::parse(name))
        .collect();
    Ok(workload)
}

fn gateway(text: GatewayText) -> Result<GatewayAddress, FileError> {
    let wrong = "is neither network/address nor namespace/hostname";
    let parsed = text
        .destination
        .split_once('/')
        .and_then(|(left, right)| match right.parse() {
            Ok(address) => Some(GatewayDestination::Address {
                network: left.into(),
                address,
            }),
            Err(_) => ServiceKey::parse(&text.destination).map(GatewayDestination::Hostname),
        });
    let destination = parsed.ok_or(FileError::Value("waypoint", text.destination, wrong))?;
    Ok(GatewayAddress {
        destination,
        hbone_port: text.hbone_mtls_port,
    })
}

fn ports(mapped: BTreeMap<u16, u16>) -> Vec<Port> {
    mapped
        .into_iter()
        .map(|(service_port, target_port)| Port {
            service_port,
            target_port,
        })
        .collect()
}

fn service(text: ServiceText) -> Result<Service, FileError> {
    let mut service = Service::new(ServiceKey::new(text.namespace, text.hostname));
    service.name = text.name.into();
    service.ports = ports(text.ports);
    service.waypoint = text.waypoint.map(gateway).transpose()?;
    for vip in text.vips {
        let parsed = vip.split_once('/').and_then(|(network, address)| {
            let address = address.parse().ok()?;
            Some(Vip::single(network.into(), address))
        });
        service
            .vips
            .push(parsed.ok_or(FileError::Value("vips", vip, "is not network/address"))?);
    }
    Ok(service)
}

fn policy(text: PolicyText) -> Policy {
    let rules = text.rules.into_iter().map(|clauses| Rule {
        clauses: clauses
            .into_iter()
            .map(|matches| Clause {
                matches: matches.into_iter().map(matched).collect(),
            })
            .collect(),
    });
    Policy {
        key: PolicyKey::new(text.namespace, text.name),
        scope: match text.scope {
            ScopeText::Global => Scope::Global,
            ScopeText::Namespace => Scope::Namespace,
            ScopeText::WorkloadSelector => Scope::WorkloadSelector,
        },
        action: match text.action {
            ActionText::Allow => Action::Allow,
            ActionText::Deny => Action::Deny,
        },
        dry_run: text.dry_run,
        rules: rules.collect(),
        not_understood: Vec::new(),
    }
}

fn matched(text: MatchText) -> Match {
    Match {
        namespaces: strings(text.namespaces),
        not_namespaces: strings(text.not_namespaces),
        service_accounts: accounts(text.service_accounts),
        not_service_accounts: accounts(text.not_service_accounts),
        principals: strings(text.principals),
        not_principals: strings(text.not_principals),
        source_ips: known(text.source_ips),
        not_source_ips: known(text.not_source_ips),
        destination_ips: known(text.destination_ips),
        not_destination_ips: known(text.not_destination_ips),
        destination_ports: known(text.destination_ports),
        not_destination_ports: known(text.not_destination_ports),
    }
}

fn known<T>(values: Vec<T>) -> Vec<Value<T>> {
    values.into_iter().map(Value::Known).collect()
}

fn strings(texts: Vec<StringText>) -> Vec<Value<StringMatch>> {
    let value = |text| match text {
        StringText::Exact(text) => StringMatch::Exact(text.into()),
        StringText::Prefix(text) => StringMatch::Prefix(text.into()),
        StringText::Suffix(text) => StringMatch::Suffix(text.into()),
        StringText::Presence => StringMatch::Presence,
    };
    known(texts.into_iter().map(value).collect())
}

fn accounts(texts: Vec<AccountText>) -> Vec<Value<ServiceAccount>> {
    let value = |text: AccountText| ServiceAccount {
        namespace: text.namespace.into(),
        name: text.name.into(),
    };
    known(texts.into_iter().map(value).collect())
}

#[cfg(test)]
mod tests {
    use ambit_model::update;
    use ambit_model::view::View;

    use super::{FileError, read};

    const FILE: &str = r#"
workloads:
- {uid: c//Pod/shop/web, name: web, namespace: shop, serviceAccount: web, workloadIps: [10.0.0.1], protocol: HBONE}
- uid: c//Pod/shop/cart
  name: cart
  namespace: shop
  workloadIps: [10.0.0.2]
  services: {"shop/cart.shop.svc.cluster.local": {80: 8080}}
  authorizationPolicies: [shop/only-web]
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.1], ports: {80: 8080}}
policies:
- {name: only-web, namespace: shop, scope: WorkloadSelector, action: Allow,
   rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}]}]]]}
"#;

    #[test]
    fn reads_workloads_services_and_policies() {
        let view = update::apply(&View::default(), read(FILE).unwrap());
        assert_eq!(view.sizes(), (2, 1, 1));
        let cart = view.workload("c//Pod/shop/cart").unwrap();
        assert_eq!(
            cart.identity.to_string(),
            "spiffe://cluster.local/ns/shop/sa/default"
        );
        assert!(view.policies_for(cart).unresolved().is_none());
        assert!(
            view.service_at("", "10.96.0.1".parse().unwrap(), "shop")
                .is_some()
        );
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let unknown = FILE.replace("principals:", "principalz:");
        assert!(matches!(read(&unknown), Err(FileError::Syntax(_))));
        let address = FILE.replace("/10.96.0.1", "here");
        assert!(matches!(read(&address), Err(FileError::Value("vips", ..))));
    }
}
