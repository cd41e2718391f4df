//! L7 authorization: pure, compiled from Envoy's RBAC, explained by the policy that decided.
//!
//! A chain carries one [`Rules`] per action in the order of the control plane (AUDIT, DENY, ALLOW);
//! a request passes if every one of them allows it. Within one, policies are looked at in the order
//! of their names.
//!
//! # Two readings
//! Servers disagree about `%2F`, `//` and `;x=y`. Where a lenient server could read a request
//! differently ([`Subject::strict`]), a DENY holds if it matches *either* reading, and an ALLOW
//! holds only if it matches *both*. So a rule cannot be evaded by spelling.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::plan::Name;
use crate::routes::matching::{HeaderMatch, StringMatch};
use crate::rules::template::Template;
use crate::subject::Subject;

pub mod template;

/// One list of policies with one action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What a match means.
    pub action: RuleAction,
    /// In the order of their names.
    pub policies: Vec<Policy>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// Only what matches may pass.
    Allow,
    /// What matches may not pass.
    Deny,
    /// Nothing happens (audit, dry run).
    Log,
}

/// Matches if one of the permissions and one of the principals match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `ns[shop]-policy[allow-get]-rule[0]`
    pub name: Name,
    /// What is done.
    pub permissions: Vec<Condition>,
    /// Who does it.
    pub principals: Vec<Condition>,
}

/// A predicate on a request or connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Always (`true`) or never.
    Constant(bool),
    /// All of them.
    All(Vec<Self>),
    /// One of them.
    Any(Vec<Self>),
    /// Not this one.
    Not(Box<Self>),
    /// A header or pseudo header.
    Header(HeaderMatch),
    /// The path without query.
    Path(StringMatch),
    /// The path without query against a template with `{*}` and `{**}`.
    PathTemplate(Template),
    /// Destination address.
    DestinationIp(IpNet),
    /// Destination port, both ends included.
    DestinationPort(RangeInclusive<u16>),
    /// Address of the connection's client.
    SourceIp(IpNet),
    /// Address of the client as forwarded.
    RemoteIp(IpNet),
    /// SPIFFE URI of the verified peer; `None` means any verified peer.
    Peer(Option<StringMatch>),
    /// SPIFFE URI of this waypoint.
    Local(StringMatch),
    /// The TLS server name the client asked for.
    ServerName(StringMatch),
}

/// The outcome of [`Rules::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// May pass; the ALLOW policy that matched, if that decided.
    Allowed(Option<&'a Name>),
    /// May not pass; the DENY policy that matched, or `None` when no ALLOW policy did.
    Denied(Option<&'a Name>),
}

impl Rules {
    /// Decides. Pure; allocates nothing.
    #[must_use]
    pub fn check(&self, subject: &Subject<'_>) -> Verdict<'_> {
        let found = self.first_match(subject, subject.path());
        let strict = || {
            subject
                .strict
                .map(|strict| self.first_match(subject, strict.path))
        };
        match self.action {
            RuleAction::Log => Verdict::Allowed(None),
            RuleAction::Deny => match found.or_else(|| strict().flatten()) {
                Some(policy) => Verdict::Denied(Some(policy)),
                None => Verdict::Allowed(None),
            },
            RuleAction::Allow => match (found, strict()) {
                (Some(policy), None | Some(Some(_))) => Verdict::Allowed(Some(policy)),
                _ => Verdict::Denied(None),
            },
        }
    }

    fn first_match(&self, subject: &Subject<'_>, path: &str) -> Option<&Name> {
        let holds = |condition: &Condition| condition.holds(subject, path);
        self.policies
            .iter()
            .find(|policy| {
                policy.permissions.iter().any(holds) && policy.principals.iter().any(holds)
            })
            .map(|policy| &policy.name)
    }
}

impl Condition {
    /// Whether it holds, reading the path as `path`.
    #[must_use]
    pub fn holds(&self, subject: &Subject<'_>, path: &str) -> bool {
        let connection = &subject.connection;
        match self {
            Self::Constant(value) => *value,
            Self::All(all) => all.iter().all(|one| one.holds(subject, path)),
            Self::Any(any) => any.iter().any(|one| one.holds(subject, path)),
            Self::Not(one) => !one.holds(subject, path),
            Self::Header(header) => header.matches(subject),
            Self::Path(wanted) => wanted.matches(path.as_bytes()),
            Self::PathTemplate(template) => template.matches(path),
            Self::DestinationIp(net) => within(net, connection.destination.ip()),
            Self::DestinationPort(ports) => ports.contains(&connection.destination.port()),
            Self::SourceIp(net) => within(net, connection.source.ip()),
            Self::RemoteIp(net) => within(net, subject.remote),
            Self::Peer(None) => connection.peer.is_some(),
            Self::Peer(Some(wanted)) => connection
                .peer
                .is_some_and(|peer| wanted.matches(peer.as_bytes())),
            Self::Local(wanted) => wanted.matches(connection.local.as_bytes()),
            Self::ServerName(wanted) => connection
                .server_name
                .is_some_and(|name| wanted.matches(name.as_bytes())),
        }
    }
}

/// IPv4 seen through an IPv6 socket is still IPv4.
fn within(net: &IpNet, address: IpAddr) -> bool {
    net.contains(&address.to_canonical())
}

#[cfg(test)]
mod tests;
