//! Istio's `AuthorizationPolicy` and `PeerAuthentication`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An `AuthorizationPolicy`: who may do what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// Metadata; the annotation `istio.io/dry-run` makes it log only.
    pub metadata: ObjectMeta,
    /// What is asked for; absent is an ALLOW that allows nothing.
    #[serde(default)]
    pub spec: AuthorizationPolicySpec,
    /// What is known about it.
    pub status: Option<Value>,
    /// Paths of the fields of `spec` that this program does not know, such as
    /// `spec.rules[0].when[0].value`. A policy must not become weaker by what was not understood.
    #[serde(skip)]
    pub unknown: Vec<String>,
}

/// What a policy asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// Workloads it applies to at the node proxy; all of the namespace when absent.
    pub selector: Option<Selector>,
    /// What it applies to at a waypoint.
    pub target_ref: Option<TargetRef>,
    /// What it applies to at waypoints.
    pub target_refs: Option<Vec<TargetRef>>,
    /// Any of these must match; none at all never matches.
    pub rules: Option<Vec<PolicyRule>>,
    /// ALLOW when absent.
    pub action: Option<Action>,
    /// For [`Action::Custom`].
    pub provider: Option<Value>,
}

/// Workloads by label; all labels must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels and their values.
    pub match_labels: Option<BTreeMap<String, String>>,
}

/// What a policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// API group; the empty string for core.
    pub group: Option<String>,
    /// `Service`, `Gateway` or `GatewayClass`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Must be the policy's own when set.
    pub namespace: Option<String>,
}

/// What a policy does when a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets it pass; when any ALLOW applies, one must match.
    #[default]
    Allow,
    /// Refuses it.
    Deny,
    /// Marks it for audit; not supported.
    Audit,
    /// Asks somebody else; not supported.
    Custom,
}

/// One rule; its three parts must all match, and an absent part does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Any of these.
    pub from: Option<Vec<FromClause>>,
    /// Any of these.
    pub to: Option<Vec<ToClause>>,
    /// All of these.
    pub when: Option<Vec<Condition>>,
}

/// Where a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FromClause {
    /// The source; all members set must match.
    pub source: Option<Source>,
}

/// A source. Values of one member are alternatives, members are conjoined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the members are Istio's, one to one")]
pub struct Source {
    pub principals: Option<Vec<String>>,
    pub not_principals: Option<Vec<String>>,
    pub request_principals: Option<Vec<String>>,
    pub not_request_principals: Option<Vec<String>>,
    pub namespaces: Option<Vec<String>>,
    pub not_namespaces: Option<Vec<String>>,
    pub service_accounts: Option<Vec<String>>,
    pub not_service_accounts: Option<Vec<String>>,
    pub ip_blocks: Option<Vec<String>>,
    pub not_ip_blocks: Option<Vec<String>>,
    pub remote_ip_blocks: Option<Vec<String>>,
    pub not_remote_ip_blocks: Option<Vec<String>>,
    pub trust_domains: Option<Vec<String>>,
    pub not_trust_domains: Option<Vec<String>>,
}

/// What a request is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToClause {
    /// The operation; all members set must match.
    pub operation: Option<Operation>,
}

/// An operation. Values of one member are alternatives, members are conjoined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the members are Istio's, one to one")]
pub struct Operation {
    pub hosts: Option<Vec<String>>,
    pub not_hosts: Option<Vec<String>>,
    pub ports: Option<Vec<String>>,
    pub not_ports: Option<Vec<String>>,
    pub methods: Option<Vec<String>>,
    pub not_methods: Option<Vec<String>>,
    pub paths: Option<Vec<String>>,
    pub not_paths: Option<Vec<String>>,
}

/// A further condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The attribute, such as `source.namespace`.
    pub key: String,
    /// Any of these.
    pub values: Option<Vec<String>>,
    /// None of these.
    pub not_values: Option<Vec<String>>,
}

/// A `PeerAuthentication`: whether plaintext is accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// Metadata; the oldest of a level decides.
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
    /// What is known about it.
    pub status: Option<Value>,
}

/// What a `PeerAuthentication` asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// Workloads it applies to; all of the namespace when absent.
    pub selector: Option<Selector>,
    /// The mode.
    pub mtls: Option<Mtls>,
    /// Modes of single ports of the workload.
    pub port_level_mtls: Option<BTreeMap<u16, Mtls>>,
}

/// A mode and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// UNSET when absent.
    pub mode: Option<Mode>,
}

/// Whether plaintext is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the level above says.
    #[default]
    Unset,
    /// Plaintext; in ambient the same as PERMISSIVE.
    Disable,
    /// Both.
    Permissive,
    /// Only mutual TLS.
    Strict,
}
