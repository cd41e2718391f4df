//! No mistake in a policy permits more: whatever value is made unreadable, what was refused stays refused.
#![no_main]

use ambit_fuzz::{Connection, address, port};
use ambit_model::authorize::authorize;
use ambit_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Value,
};
use ambit_model::update::{Change, apply};
use ambit_model::workload::Workload;
use ambit_model::{Identity, View};
use ipnet::IpNet;
use libfuzzer_sys::arbitrary::{self, Unstructured};

type Bytes<'a, 'b> = &'a mut Unstructured<'b>;

fn string(from: Bytes<'_, '_>) -> arbitrary::Result<StringMatch> {
    let text = *from.choose(&["", "a", "b", "ab", "td/ns/a/sa/b", "td/ns/", "/sa/b"])?;
    Ok(match from.int_in_range(0..=3)? {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn account(from: Bytes<'_, '_>) -> arbitrary::Result<ServiceAccount> {
    let mut name = || from.choose(&["a", "b"]).map(|name| (*name).into());
    Ok(ServiceAccount {
        namespace: name()?,
        name: name()?,
    })
}

fn block(from: Bytes<'_, '_>) -> arbitrary::Result<IpNet> {
    let address = address(from)?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = from.int_in_range(0..=longest)?;
    Ok(IpNet::new(address, length).unwrap_or_else(|_| address.into()))
}

fn values<T>(
    from: Bytes<'_, '_>,
    one: impl Fn(Bytes<'_, '_>) -> arbitrary::Result<T>,
) -> arbitrary::Result<Vec<Value<T>>> {
    let count = from.int_in_range(0..=4)?;
    // Most fields are not set, as in most policies.
    (2..count).map(|_| one(from).map(Value::Known)).collect()
}

fn fields(from: Bytes<'_, '_>) -> arbitrary::Result<Match> {
    Ok(Match {
        namespaces: values(from, string)?,
        not_namespaces: values(from, string)?,
        service_accounts: values(from, account)?,
        not_service_accounts: values(from, account)?,
        principals: values(from, string)?,
        not_principals: values(from, string)?,
        source_ips: values(from, block)?,
        not_source_ips: values(from, block)?,
        destination_ips: values(from, block)?,
        not_destination_ips: values(from, block)?,
        destination_ports: values(from, port)?,
        not_destination_ports: values(from, port)?,
    })
}

fn list<T>(
    from: Bytes<'_, '_>,
    one: impl Fn(Bytes<'_, '_>) -> arbitrary::Result<T>,
) -> arbitrary::Result<Vec<T>> {
    (0..from.int_in_range(0..=2)?).map(|_| one(from)).collect()
}

fn policy(from: Bytes<'_, '_>) -> arbitrary::Result<Policy> {
    let clause = |from: Bytes<'_, '_>| {
        Ok(Clause {
            matches: list(from, fields)?,
        })
    };
    let rule = |from: Bytes<'_, '_>| {
        Ok(Rule {
            clauses: list(from, clause)?,
        })
    };
    Ok(Policy {
        key: PolicyKey::new("a", *from.choose(&["p", "q", "r"])?),
        scope: *from.choose(&[Scope::Global, Scope::Namespace, Scope::WorkloadSelector])?,
        action: *from.choose(&[Action::Allow, Action::Deny])?,
        dry_run: from.ratio(1, 8)?,
        rules: list(from, rule)?,
        not_understood: Vec::new(),
    })
}

/// Makes values unreadable, each with even odds.
fn spoil<T>(from: Bytes<'_, '_>, values: &mut [Value<T>]) -> arbitrary::Result<()> {
    for value in values {
        if from.arbitrary()? {
            *value = Value::Unparsable("?".into());
        }
    }
    Ok(())
}

fn spoil_policy(from: Bytes<'_, '_>, policy: &mut Policy) -> arbitrary::Result<()> {
    let clauses = policy.rules.iter_mut().flat_map(|rule| &mut rule.clauses);
    for fields in clauses.flat_map(|clause| &mut clause.matches) {
        spoil(from, &mut fields.namespaces)?;
        spoil(from, &mut fields.not_namespaces)?;
        spoil(from, &mut fields.service_accounts)?;
        spoil(from, &mut fields.not_service_accounts)?;
        spoil(from, &mut fields.principals)?;
        spoil(from, &mut fields.not_principals)?;
        spoil(from, &mut fields.source_ips)?;
        spoil(from, &mut fields.not_source_ips)?;
        spoil(from, &mut fields.destination_ips)?;
        spoil(from, &mut fields.not_destination_ips)?;
        spoil(from, &mut fields.destination_ports)?;
        spoil(from, &mut fields.not_destination_ports)?;
    }
    Ok(())
}

fn permits(policies: &[Policy], workload: &Workload, connection: &Connection) -> bool {
    let changes = policies.iter().cloned().map(Change::UpsertPolicy);
    let view = apply(&View::default(), changes);
    authorize(&view.policies_for(workload), &connection.attributes()).allowed()
}

fn run(from: Bytes<'_, '_>) -> arbitrary::Result<()> {
    let connection = Connection::new(from)?;
    let Ok(identity) = Identity::new("td", "a", "server") else {
        return Ok(());
    };
    let mut workload = Workload::new("w".into(), "w".into(), identity);
    workload.policies = list(from, |from| {
        from.choose(&["a/p", "a/gone"])
            .map(|name| PolicyKey::parse(name))
    })?;
    let mut policies = list(from, policy)?;
    let before = permits(&policies, &workload, &connection);
    for policy in &mut policies {
        spoil_policy(from, policy)?;
    }
    let after = permits(&policies, &workload, &connection);
    assert!(
        before || !after,
        "a mistake permits {connection:?} under {policies:?}"
    );
    Ok(())
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = run(&mut Unstructured::new(bytes));
});
