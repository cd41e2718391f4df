//! Policies in the form in which they are evaluated.
//!
//! Compiling happens when a policy changes. It settles what a value means that could not be understood: in an ALLOW policy the field
//! that holds it does not gain by it, in a DENY policy the field holds because of it. So a mistake refuses more, never less:
//!
//! | | field | `not_` field |
//! |---|---|---|
//! | ALLOW | the value matches nothing | the value matches everything, so the field fails |
//! | DENY | the value matches everything, so the field holds | the value matches nothing |
//!
//! A policy that was not understood beyond its values is closed: an ALLOW never matches, a DENY always does.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::authorize::Attributes;
use crate::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, ServiceAccount, StringMatch, Value,
};
use crate::text::Text;

/// A policy ready for evaluation, with its source for dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    policy: Policy,
    rules: Box<[CompiledRule]>,
    problems: Box<[Text]>,
}

impl Compiled {
    /// Compiles a policy. Never fails: see the module for what is not understood.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let mut compiler = Compiler {
            action: policy.action,
            problems: policy.not_understood.clone(),
        };
        let understood = policy
            .rules
            .iter()
            .map(|rule| compiler.rule(rule))
            .collect();
        let rules = if policy.not_understood.is_empty() {
            understood
        } else {
            closed(policy.action)
        };
        let problems = compiler.problems.into();
        Self {
            policy,
            rules,
            problems,
        }
    }

    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> &PolicyKey {
        &self.policy.key
    }

    /// The policy as it was received.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What was not understood, fields and values, for people.
    #[must_use]
    pub fn problems(&self) -> &[Text] {
        &self.problems
    }

    /// Index of the first rule that matches. Allocates nothing.
    #[must_use]
    pub fn first_match(&self, attributes: &Attributes<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.holds(attributes))
    }
}

/// The rules of a policy that refuses all it can.
fn closed(action: Action) -> Box<[CompiledRule]> {
    let always = CompiledRule {
        clauses: Box::default(),
    };
    match action {
        Action::Allow => Box::default(),
        Action::Deny => Box::new([always]),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CompiledRule {
    clauses: Box<[CompiledClause]>,
}

impl CompiledRule {
    fn holds(&self, attributes: &Attributes<'_>) -> bool {
        self.clauses.iter().all(|clause| clause.holds(attributes))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CompiledClause {
    /// Each is the list of fields that are set.
    matches: Box<[Box<[Field]>]>,
}

impl CompiledClause {
    fn holds(&self, attributes: &Attributes<'_>) -> bool {
        let any = |fields: &[Field]| {
            !fields.is_empty() && fields.iter().all(|field| field.holds(attributes))
        };
        self.matches.is_empty() || self.matches.iter().any(|fields| any(fields))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    test: Test,
    /// Outcome when a value applies.
    wanted: bool,
    /// Some value was not understood and counts as applying.
    applies_anyway: bool,
}

impl Field {
    fn holds(&self, attributes: &Attributes<'_>) -> bool {
        (self.applies_anyway || self.test.applies(attributes)) == self.wanted
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Namespace {
        values: Box<[StringMatch]>,
        /// Is a peer without identity compared as the empty namespace, or not at all. It is compared where a match refuses.
        nobody_is_empty: bool,
    },
    Account(Box<[ServiceAccount]>),
    Principal(Box<[StringMatch]>),
    Source(Box<[IpNet]>),
    Destination(Box<[IpNet]>),
    Port(Box<[u16]>),
}

impl Test {
    fn applies(&self, attributes: &Attributes<'_>) -> bool {
        let peer = attributes.peer;
        match self {
            Self::Namespace {
                values,
                nobody_is_empty,
            } => {
                let nobody = nobody_is_empty.then_some("");
                let namespace = peer.map(crate::Identity::namespace).or(nobody);
                namespace.is_some_and(|text| values.iter().any(|value| value.applies(text)))
            }
            Self::Account(values) => peer.is_some_and(|peer| {
                values.iter().any(|value| {
                    value.namespace == *peer.namespace() && value.name == *peer.service_account()
                })
            }),
            Self::Principal(values) => {
                peer.is_some_and(|peer| values.iter().any(|value| value.applies(peer.principal())))
            }
            Self::Source(blocks) => within(blocks, attributes.source),
            Self::Destination(blocks) => within(blocks, attributes.destination.ip()),
            Self::Port(ports) => ports.contains(&attributes.destination.port()),
        }
    }
}

/// Bits in front of an IPv4 address that is mapped into IPv6.
const MAPPED_PREFIX: u8 = 96;

/// Blocks of mapped IPv4 addresses as the IPv4 blocks they are: addresses are compared in canonical form.
fn canonical(blocks: Box<[IpNet]>) -> Box<[IpNet]> {
    let one = |block: IpNet| {
        let IpAddr::V4(address) = block.addr().to_canonical() else {
            return block;
        };
        let length = block
            .prefix_len()
            .checked_sub(MAPPED_PREFIX)
            .filter(|_| !block.addr().is_ipv4());
        length
            .and_then(|length| IpNet::new(address.into(), length).ok())
            .unwrap_or(block)
    };
    blocks.into_iter().map(one).collect()
}

fn within(blocks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    blocks.iter().any(|block| block.contains(&address))
}

struct Compiler {
    action: Action,
    problems: Vec<Text>,
}

impl Compiler {
    fn rule(&mut self, rule: &Rule) -> CompiledRule {
        CompiledRule {
            clauses: rule
                .clauses
                .iter()
                .map(|clause| self.clause(clause))
                .collect(),
        }
    }

    fn clause(&mut self, clause: &Clause) -> CompiledClause {
        CompiledClause {
            matches: clause.matches.iter().map(|m| self.fields(m)).collect(),
        }
    }

    fn fields(&mut self, source: &Match) -> Box<[Field]> {
        let nobody_is_empty = self.action == Action::Deny;
        let namespace = |values| Test::Namespace {
            values,
            nobody_is_empty,
        };
        [
            self.field(&source.namespaces, true, namespace),
            self.field(&source.not_namespaces, false, namespace),
            self.field(&source.service_accounts, true, Test::Account),
            self.field(&source.not_service_accounts, false, Test::Account),
            self.field(&source.principals, true, Test::Principal),
            self.field(&source.not_principals, false, Test::Principal),
            self.field(&source.source_ips, true, |blocks| {
                Test::Source(canonical(blocks))
            }),
            self.field(&source.not_source_ips, false, |blocks| {
                Test::Source(canonical(blocks))
            }),
            self.field(&source.destination_ips, true, |blocks| {
                Test::Destination(canonical(blocks))
            }),
            self.field(&source.not_destination_ips, false, |blocks| {
                Test::Destination(canonical(blocks))
            }),
            self.field(&source.destination_ports, true, Test::Port),
            self.field(&source.not_destination_ports, false, Test::Port),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn field<T: Clone>(
        &mut self,
        values: &[Value<T>],
        wanted: bool,
        test: impl FnOnce(Box<[T]>) -> Test,
    ) -> Option<Field> {
        if values.is_empty() {
            return None;
        }
        let mut known = Vec::with_capacity(values.len());
        let before = self.problems.len();
        for value in values {
            match value {
                Value::Known(value) => known.push(value.clone()),
                Value::Unparsable(text) => self.problems.push(text.clone()),
            }
        }
        let unparsable = self.problems.len() > before;
        // Applying makes a plain field hold and a `not_` field fail; a DENY wants the first, an ALLOW the second.
        let applies_anyway = unparsable && wanted == (self.action == Action::Deny);
        Some(Field {
            test: test(known.into()),
            wanted,
            applies_anyway,
        })
    }
}

#[cfg(test)]
mod tests;
