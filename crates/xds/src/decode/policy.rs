//! `istio.security.Authorization`.

use ambit_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Value,
};
use ambit_proto::istio::security as wire;
use ipnet::IpNet;

use super::service::block;
use super::{Invalid, known};

/// A policy of the model. What decoding dropped, and so is not in the message, is not found here.
///
/// # Errors
/// See [`Invalid`]; values inside rules, actions and scopes are never the reason.
pub fn policy(from: wire::Authorization) -> Result<Policy, Invalid> {
    parse(from).map_err(|invalid| invalid.inside("authorization"))
}

fn parse(from: wire::Authorization) -> Result<Policy, Invalid> {
    if from.name.is_empty() {
        return Err(Invalid::field("name", "empty"));
    }
    let mut not_understood = Vec::new();
    let mut unknown = |invalid: Invalid| not_understood.push(invalid.to_string().into());
    let scope = match known("scope", from.scope) {
        Ok(wire::Scope::Global) => Scope::Global,
        Ok(wire::Scope::Namespace) => Scope::Namespace,
        Ok(wire::Scope::WorkloadSelector) => Scope::WorkloadSelector,
        Err(invalid) => {
            // Its namespace is the most that a policy which is not the mesh's can be about; whoever
            // lists it gets it too.
            unknown(invalid);
            Scope::Namespace
        }
    };
    let action = match known("action", from.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(invalid) => {
            unknown(invalid);
            Action::Deny
        }
    };
    Ok(Policy {
        key: PolicyKey::new(from.namespace, from.name),
        scope,
        action,
        dry_run: from.dry_run,
        rules: from.rules.into_iter().map(rule).collect(),
        not_understood,
    })
}

fn rule(from: wire::Rule) -> Rule {
    let clause = |from: wire::Clause| Clause {
        matches: from.matches.into_iter().map(alternative).collect(),
    };
    Rule {
        clauses: from.clauses.into_iter().map(clause).collect(),
    }
}

fn alternative(from: wire::Match) -> Match {
    Match {
        namespaces: strings(from.namespaces),
        not_namespaces: strings(from.not_namespaces),
        service_accounts: accounts(from.service_accounts),
        not_service_accounts: accounts(from.not_service_accounts),
        principals: strings(from.principals),
        not_principals: strings(from.not_principals),
        source_ips: blocks(&from.source_ips),
        not_source_ips: blocks(&from.not_source_ips),
        destination_ips: blocks(&from.destination_ips),
        not_destination_ips: blocks(&from.not_destination_ips),
        destination_ports: ports(&from.destination_ports),
        not_destination_ports: ports(&from.not_destination_ports),
    }
}

fn strings(from: Vec<wire::StringMatch>) -> Vec<Value<StringMatch>> {
    use wire::string_match::MatchType;
    let one = |from: wire::StringMatch| match from.match_type {
        Some(MatchType::Exact(text)) => StringMatch::Exact(text.into()).into(),
        Some(MatchType::Prefix(text)) => StringMatch::Prefix(text.into()).into(),
        Some(MatchType::Suffix(text)) => StringMatch::Suffix(text.into()).into(),
        Some(MatchType::Presence(())) => StringMatch::Presence.into(),
        None => Value::Unparsable("string match of an unknown kind".into()),
    };
    from.into_iter().map(one).collect()
}

fn accounts(from: Vec<wire::ServiceAccountMatch>) -> Vec<Value<ServiceAccount>> {
    let one = |from: wire::ServiceAccountMatch| ServiceAccount {
        namespace: from.namespace.into(),
        name: from.service_account.into(),
    };
    from.into_iter().map(one).map(Value::Known).collect()
}

fn blocks(from: &[wire::Address]) -> Vec<Value<IpNet>> {
    let one = |from: &wire::Address| match block(&from.address, from.length) {
        Some(block) => Value::Known(block),
        None => {
            let bytes = from.address.len();
            Value::Unparsable(format!("address of {bytes} bytes / {}", from.length).into())
        }
    };
    from.iter().map(one).collect()
}

fn ports(from: &[u32]) -> Vec<Value<u16>> {
    let one = |number: &u32| match u16::try_from(*number) {
        Ok(port) => Value::Known(port),
        Err(_too_large) => Value::Unparsable(format!("port {number}").into()),
    };
    from.iter().map(one).collect()
}
