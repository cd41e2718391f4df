//! What is counted of dry-run policies.

use ambit_model::admit::{self, Arrival, Inbound};
use ambit_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, Value};
use ambit_model::update::{Change, apply};
use ambit_model::view::View;
use ambit_model::workload::Workload;
use ambit_observe::metrics::{Format, Registry};

use super::{Tried, tell};

fn policy(name: &str, action: Action, port: u16) -> Change {
    let on_port = Match {
        destination_ports: vec![Value::Known(port)],
        ..Match::default()
    };
    let clauses = vec![Clause {
        matches: vec![on_port],
    }];
    Change::UpsertPolicy(Policy {
        key: PolicyKey::new("shop", name),
        scope: Scope::Namespace,
        action,
        dry_run: true,
        rules: vec![Rule { clauses }],
        not_understood: Vec::new(),
    })
}

fn view() -> View {
    let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let mut cart = Workload::new("cart".into(), "cart", identity);
    cart.addresses.push("10.0.0.2".parse().unwrap());
    let changes = [
        Change::UpsertWorkload(cart),
        policy("no-80", Action::Deny, 80),
        policy("only-443", Action::Allow, 443),
    ];
    apply(&View::default(), changes)
}

/// The page of metrics after connections to these ports, all of which come in.
fn page(ports: &[u16]) -> String {
    let registry = Registry::default();
    let tried = Tried::new(Tried::register(&registry));
    let view = view();
    for port in ports {
        let inbound = Inbound {
            local: "cart",
            connection: ([10, 0, 0, 2], *port).into(),
            peer_address: ([10, 0, 0, 1], 4000).into(),
            arrival: Arrival::Plaintext,
        };
        admit::admit_told(&view, &inbound, |asked| tell(&tried, false, asked))
            .expect("a dry run decides nothing");
        tried.sweep();
    }
    registry.render(Format::Text)
}

#[test]
fn each_dry_run_policy_that_applies_is_counted_with_both_verdicts() {
    let page = page(&[80, 80, 443]);
    for (policy, action, matched, rehearsed, count) in [
        ("no-80", "DENY", true, "deny", 2),
        ("only-443", "ALLOW", false, "deny", 2),
        ("no-80", "DENY", false, "allow", 1),
        ("only-443", "ALLOW", true, "allow", 1),
    ] {
        let line = format!(
            "ambit_dry_run_policy_connections_total{{policy=\"shop/{policy}\",action=\"{action}\",matched=\"{matched}\",\
             enforced=\"allow\",rehearsed=\"{rehearsed}\"}} {count}\n"
        );
        assert!(page.contains(&line), "{line}not in\n{page}");
    }
}

#[test]
fn nothing_is_counted_without_a_connection() {
    assert!(!page(&[]).contains("dry_run_policy_connections_total{"));
}
