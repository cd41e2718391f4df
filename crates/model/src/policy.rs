//! An authorization policy as it was received.
//!
//! A value that could not be understood stays in its place as [`Value::Unparsable`]. Dropping it would change what the rule means:
//! a list that becomes empty no longer limits anything. [`crate::compile`] gives it the meaning that permits least. What is not
//! understood of the policy itself (a field that we do not know may be a condition, an alternative, or anything else) is kept in
//! [`Policy::not_understood`].

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::text::Text;

/// Key of a policy. Displays as `namespace/name`, which is also its resource name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Namespace.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

impl PolicyKey {
    /// A key of its two parts.
    #[must_use]
    pub fn new(namespace: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Reads `namespace/name`. Text without a slash becomes a name without namespace: a reference that nothing resolves, which
    /// refuses, instead of one that is forgotten.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or(("", text));
        Self::new(namespace, name)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for PolicyKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}

/// A policy: which connections its workloads accept or refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Namespace and name.
    pub key: PolicyKey,
    /// Whom it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Report, but decide nothing.
    pub dry_run: bool,
    /// Any matching rule makes the policy match. Without rules it never matches.
    pub rules: Vec<Rule>,
    /// What of the policy itself was not understood, by field. With anything in it the rules say only a part of what was meant, so
    /// they do not count: an ALLOW permits nothing, a DENY refuses everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_understood: Vec<Text>,
}

/// Whom a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of its namespace.
    Namespace,
    /// Workloads that list it.
    WorkloadSelector,
}

/// What a match of a policy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Action {
    /// Permit. As soon as one such policy applies to a workload, one has to match.
    Allow,
    /// Refuse, before any permit is looked at.
    Deny,
}

/// All clauses must hold. Without clauses it holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// One of the matches must hold. Without matches it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// The alternatives.
    pub matches: Vec<Match>,
}

/// Every field that has values must hold; without any it never holds. One of the values has to apply, and of a `not_` field none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Namespace of the peer's identity.
    pub namespaces: Vec<Value<StringMatch>>,
    /// None of these namespaces.
    pub not_namespaces: Vec<Value<StringMatch>>,
    /// Service account of the peer's identity, whatever its trust domain.
    pub service_accounts: Vec<Value<ServiceAccount>>,
    /// None of these service accounts.
    pub not_service_accounts: Vec<Value<ServiceAccount>>,
    /// The peer's identity without scheme.
    pub principals: Vec<Value<StringMatch>>,
    /// None of these identities.
    pub not_principals: Vec<Value<StringMatch>>,
    /// Address of the peer.
    pub source_ips: Vec<Value<IpNet>>,
    /// None of these peer addresses.
    pub not_source_ips: Vec<Value<IpNet>>,
    /// Address that was dialled.
    pub destination_ips: Vec<Value<IpNet>>,
    /// None of these dialled addresses.
    pub not_destination_ips: Vec<Value<IpNet>>,
    /// Port on which the application is reached.
    pub destination_ports: Vec<Value<u16>>,
    /// None of these ports.
    pub not_destination_ports: Vec<Value<u16>>,
}

/// A value of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Value<T> {
    /// Understood.
    Known(T),
    /// Not understood; the text says what it was, for people.
    Unparsable(Text),
}

impl<T> From<T> for Value<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

/// A test on a string. Letters compare by case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum StringMatch {
    /// Equal.
    Exact(Text),
    /// Begins with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Not empty.
    Presence,
}

impl StringMatch {
    /// Does `text` pass.
    #[must_use]
    pub fn applies(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact.as_str(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// A service account in a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceAccount {
    /// Namespace.
    pub namespace: Text,
    /// Account.
    pub name: Text,
}
