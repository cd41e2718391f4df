//! One source, operation or condition of a rule as the fields of one match.

use std::net::IpAddr;

use ambit_objects::Key;
use ambit_objects::kinds::security::{Condition, Operation, Source};
use ambit_proto::istio::security::{
    Address, Match, ServiceAccountMatch, StringMatch, string_match::MatchType,
};
use ipnet::IpNet;

use crate::finding::Findings;
use crate::translate::octets;

/// What became of it.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    /// Fields that must all match.
    Match(Box<Match>),
    /// Matches everything: the rule denies and nothing readable is left.
    Always,
    /// Had nothing but HTTP conditions, or had one and the rule allows.
    OnlyHttp,
    /// Matches nothing: the rule allows and something in it cannot be read.
    Never,
}

/// Builds one match.
pub(super) struct Fields<'a> {
    deny: bool,
    key: &'a Key,
    path: String,
    findings: &'a mut Findings,
    built: Match,
    http: bool,
    /// A field was left out because it could not be read.
    widened: bool,
    never: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn new(deny: bool, key: &'a Key, path: &str, findings: &'a mut Findings) -> Self {
        let path = path.to_owned();
        let built = Match::default();
        Self {
            deny,
            key,
            path,
            findings,
            built,
            http: false,
            widened: false,
            never: false,
        }
    }

    pub(super) fn source(mut self, namespace: &str, source: &Source) -> Part {
        let account = |text: &str| service_account(namespace, text);
        self.built.principals = self.take("principals", &source.principals, principal);
        self.built.not_principals =
            self.take_not("notPrincipals", &source.not_principals, principal);
        self.built.namespaces = self.take("namespaces", &source.namespaces, string);
        self.built.not_namespaces = self.take_not("notNamespaces", &source.not_namespaces, string);
        self.built.service_accounts =
            self.take("serviceAccounts", &source.service_accounts, account);
        self.built.not_service_accounts =
            self.take_not("notServiceAccounts", &source.not_service_accounts, account);
        self.built.source_ips = self.take("ipBlocks", &source.ip_blocks, block);
        self.built.not_source_ips = self.take_not("notIpBlocks", &source.not_ip_blocks, block);
        self.http(&[
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
        ]);
        self.finish()
    }

    pub(super) fn operation(mut self, operation: &Operation) -> Part {
        self.built.destination_ports = self.take("ports", &operation.ports, port);
        self.built.not_destination_ports = self.take_not("notPorts", &operation.not_ports, port);
        self.http(&[
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ]);
        self.finish()
    }

    pub(super) fn condition(mut self, condition: &Condition) -> Part {
        let (values, not) = (&condition.values, &condition.not_values);
        match condition.key.as_str() {
            "source.ip" => {
                self.built.source_ips = self.take("values", values, block);
                self.built.not_source_ips = self.take_not("notValues", not, block);
            }
            "source.namespace" => {
                self.built.namespaces = self.take("values", values, string);
                self.built.not_namespaces = self.take_not("notValues", not, string);
            }
            "source.principal" => {
                self.built.principals = self.take("values", values, principal);
                self.built.not_principals = self.take_not("notValues", not, principal);
            }
            "destination.ip" => {
                self.built.destination_ips = self.take("values", values, block);
                self.built.not_destination_ips = self.take_not("notValues", not, block);
            }
            "destination.port" => {
                self.built.destination_ports = self.take("values", values, port);
                self.built.not_destination_ports = self.take_not("notValues", not, port);
            }
            key if is_http(key) => self.http(&[("values", values), ("notValues", not)]),
            key => {
                let message = format!("{key:?} is no attribute of a connection or a request");
                self.invalid("key", &message);
                self.never |= !self.deny;
                self.widened = true;
            }
        }
        self.finish()
    }

    fn finish(self) -> Part {
        let path = self.path.clone();
        if self.never {
            return Part::Never;
        }
        if self.http && !self.deny {
            return Part::OnlyHttp;
        }
        if self.built != Match::default() {
            return Part::Match(Box::new(self.built));
        }
        if self.widened {
            return Part::Always;
        }
        if self.http {
            return Part::OnlyHttp;
        }
        // Istio refuses such a policy; here it must not allow anything, nor fail to deny.
        let (outcome, part) = if self.deny {
            ("everything", Part::Always)
        } else {
            ("nothing", Part::Never)
        };
        self.findings
            .error(self.key, &path, format!("is empty; it matches {outcome}"));
        part
    }

    /// Values of which one must match. One that cannot be read: an ALLOW goes without it, a DENY
    /// without the field.
    fn take<T>(
        &mut self,
        name: &str,
        values: &Option<Vec<String>>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let (good, bad) = self.read(name, values, read);
        if bad && self.deny {
            self.widened = true;
            return Vec::new();
        }
        self.never |= bad && good.is_empty();
        good
    }

    /// Values of which none may match. One that cannot be read: a DENY goes without it, an ALLOW
    /// is not used.
    fn take_not<T>(
        &mut self,
        name: &str,
        values: &Option<Vec<String>>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let (good, bad) = self.read(name, values, read);
        self.never |= bad && !self.deny;
        self.widened |= bad && good.is_empty();
        good
    }

    fn read<T>(
        &mut self,
        name: &str,
        values: &Option<Vec<String>>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> (Vec<T>, bool) {
        let (mut good, mut bad) = (Vec::new(), false);
        for (index, text) in values.iter().flatten().enumerate() {
            match read(text) {
                Ok(value) => good.push(value),
                Err(message) => {
                    self.invalid(&format!("{name}[{index}]"), &message);
                    bad = true;
                }
            }
        }
        (good, bad)
    }

    fn invalid(&mut self, name: &str, message: &str) {
        let effect = if self.deny {
            "denies more"
        } else {
            "allows less"
        };
        let message = format!("{message}; so the rule {effect}");
        self.findings
            .error(self.key, &format!("{}.{name}", self.path), message);
    }

    fn http(&mut self, fields: &[(&str, &Option<Vec<String>>)]) {
        let effect = if self.deny {
            "the condition is left out"
        } else {
            "the rule allows nothing"
        };
        for (name, values) in fields {
            if values.as_ref().is_some_and(|values| !values.is_empty()) {
                let field = format!("{}.{name}", self.path);
                let message = format!("only a waypoint can check this; at node proxies {effect}");
                self.findings.error(self.key, &field, message);
                self.http = true;
            }
        }
    }
}

/// Attributes that exist only for requests, or that only a waypoint sees.
pub(crate) fn is_http(key: &str) -> bool {
    key.starts_with("request.")
        || key.starts_with("experimental.")
        || matches!(
            key,
            "remote.ip" | "connection.sni" | "source.serviceAccount" | "source.trustDomain"
        )
}

/// Istio's four forms: exact, `prefix*`, `*suffix` and `*` for anything.
fn string(text: &str) -> Result<StringMatch, String> {
    if text.is_empty() {
        return Err("an empty value matches nothing".to_owned());
    }
    let kind = if text == "*" {
        MatchType::Presence(())
    } else if let Some(suffix) = text.strip_prefix('*') {
        MatchType::Suffix(suffix.to_owned())
    } else if let Some(prefix) = text.strip_suffix('*') {
        MatchType::Prefix(prefix.to_owned())
    } else {
        MatchType::Exact(text.to_owned())
    };
    Ok(StringMatch {
        match_type: Some(kind),
    })
}

/// Principals are compared without the scheme; one written with it means the same.
fn principal(text: &str) -> Result<StringMatch, String> {
    string(text.strip_prefix("spiffe://").unwrap_or(text))
}

/// `namespace/account`, or an account of the policy's own namespace.
fn service_account(namespace: &str, text: &str) -> Result<ServiceAccountMatch, String> {
    let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || account.is_empty() || text.contains('*') || account.contains('/') {
        return Err(format!("{text:?} is not a service account"));
    }
    Ok(ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    })
}

/// A CIDR, or one address.
fn block(text: &str) -> Result<Address, String> {
    let block = ip_block(text)?;
    Ok(Address {
        address: octets(block.addr()),
        length: u32::from(block.prefix_len()),
    })
}

/// A CIDR, or one address.
pub(crate) fn ip_block(text: &str) -> Result<IpNet, String> {
    let parsed = match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse::<IpAddr>().ok().map(IpNet::from),
    };
    parsed
        .map(|block: IpNet| block.trunc())
        .ok_or_else(|| format!("{text:?} is neither an IP address nor a CIDR"))
}

fn port(text: &str) -> Result<u32, String> {
    port_number(text).map(u32::from)
}

/// A port, 1 to 65535.
pub(crate) fn port_number(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{text:?} is not a port"))
}
