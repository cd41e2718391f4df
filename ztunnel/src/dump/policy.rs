//! A policy as the admin page shows it: rules, clauses, matches and their fields, in the shape of Istio's node proxy.

use ambit_model::compile::Compiled;
use ambit_model::policy::{Match, ServiceAccount, StringMatch, Value};
use serde_json::{Map, Value as Json, json};

/// One policy. Values that were not understood are told of in `problems`; in the rules they would have no type.
#[must_use]
pub fn policy(compiled: &Compiled) -> Json {
    let policy = compiled.policy();
    let rules = policy.rules.iter().map(|rule| {
        let clauses = rule.clauses.iter();
        clauses
            .map(|clause| clause.matches.iter().map(fields).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    });
    json!({
        "name": policy.key.name,
        "namespace": policy.key.namespace,
        "scope": policy.scope,
        "action": policy.action,
        "dryRun": policy.dry_run,
        "rules": rules.collect::<Vec<_>>(),
        "problems": compiled.problems(),
    })
}

/// The fields of a match that have values.
fn fields(from: &Match) -> Json {
    let mut fields = Map::new();
    let mut add = |name: &str, values: Vec<Json>| {
        if !values.is_empty() {
            fields.insert(name.to_owned(), values.into());
        }
    };
    add("namespaces", known(&from.namespaces, string));
    add("notNamespaces", known(&from.not_namespaces, string));
    add("serviceAccounts", known(&from.service_accounts, account));
    add(
        "notServiceAccounts",
        known(&from.not_service_accounts, account),
    );
    add("principals", known(&from.principals, string));
    add("notPrincipals", known(&from.not_principals, string));
    add("sourceIps", known(&from.source_ips, |block| json!(block)));
    add(
        "notSourceIps",
        known(&from.not_source_ips, |block| json!(block)),
    );
    add(
        "destinationIps",
        known(&from.destination_ips, |block| json!(block)),
    );
    add(
        "notDestinationIps",
        known(&from.not_destination_ips, |block| json!(block)),
    );
    add(
        "destinationPorts",
        known(&from.destination_ports, |port| json!(port)),
    );
    add(
        "notDestinationPorts",
        known(&from.not_destination_ports, |port| json!(port)),
    );
    Json::Object(fields)
}

fn known<T>(values: &[Value<T>], shown: impl Fn(&T) -> Json) -> Vec<Json> {
    let understood = |value: &Value<T>| match value {
        Value::Known(value) => Some(shown(value)),
        Value::Unparsable(_) => None,
    };
    values.iter().filter_map(understood).collect()
}

fn string(test: &StringMatch) -> Json {
    match test {
        StringMatch::Exact(text) => json!({ "Exact": text }),
        StringMatch::Prefix(text) => json!({ "Prefix": text }),
        StringMatch::Suffix(text) => json!({ "Suffix": text }),
        StringMatch::Presence => json!({ "Presence": [] }),
    }
}

fn account(account: &ServiceAccount) -> Json {
    json!({ "namespace": account.namespace, "serviceAccount": account.name })
}
