//! The policies of such a file.

use ambit_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Value,
};
use ipnet::IpNet;
use serde::Deserialize;

// Unknown fields of a policy are refused: what is not understood must not be left out of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PolicyText {
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
#[serde(untagged)]
enum StringText {
    Test(TestText),
    Bare(BareText),
}

#[derive(Debug, Deserialize)]
enum TestText {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// The dump shows it with an empty list.
    Presence([String; 0]),
}

#[derive(Debug, Deserialize)]
enum BareText {
    Presence,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AccountText {
    namespace: String,
    #[serde(alias = "name")]
    service_account: String,
}

/// A policy of the model.
pub(super) fn policy(text: PolicyText) -> Policy {
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
        StringText::Test(TestText::Exact(text)) => StringMatch::Exact(text.into()),
        StringText::Test(TestText::Prefix(text)) => StringMatch::Prefix(text.into()),
        StringText::Test(TestText::Suffix(text)) => StringMatch::Suffix(text.into()),
        StringText::Test(TestText::Presence([])) | StringText::Bare(BareText::Presence) => {
            StringMatch::Presence
        }
    };
    known(texts.into_iter().map(value).collect())
}

fn accounts(texts: Vec<AccountText>) -> Vec<Value<ServiceAccount>> {
    let value = |text: AccountText| ServiceAccount {
        namespace: text.namespace.into(),
        name: text.service_account.into(),
    };
    known(texts.into_iter().map(value).collect())
}
