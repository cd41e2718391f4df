//! Questions and their answers.

use ambit_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, Value};
use ambit_model::update::Change;
use ambit_model::view::View;
use ambit_model::workload::{Protocol, Workload};

use super::{Unanswerable, explain};

fn workload(name: &str, address: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap();
    let mut workload = Workload::new(format!("c//Pod/shop/{name}").into(), name.into(), identity);
    workload.addresses.push(address.parse().unwrap());
    workload.protocol = Protocol::Hbone;
    workload
}

fn view() -> View {
    let deny = Policy {
        key: PolicyKey::new("shop", "no-9999"),
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![Match {
                    destination_ports: vec![Value::Known(9999)],
                    ..Match::default()
                }],
            }],
        }],
        not_understood: Vec::new(),
    };
    ambit_model::update::apply(
        &View::default(),
        [
            Change::UpsertWorkload(workload("web", "10.0.0.1")),
            Change::UpsertWorkload(workload("cart", "10.0.0.2")),
            Change::UpsertPolicy(deny),
        ],
    )
}

#[test]
fn names_the_way_and_the_policy_that_decides() {
    let allowed = explain(&view(), "", "shop/web", "shop/cart", Some(80)).unwrap();
    assert_eq!(allowed["route"]["kind"], "tunnel");
    assert_eq!(allowed["route"]["nextHop"], "10.0.0.2:15008");
    assert_eq!(allowed["admission"]["decision"]["allowed"], true);
    let denied = explain(&view(), "", "10.0.0.1", "10.0.0.2", Some(9999)).unwrap();
    assert_eq!(denied["admission"]["decision"]["allowed"], false);
    assert_eq!(denied["admission"]["decision"]["decidedBy"], "shop/no-9999");
}

#[test]
fn says_what_it_does_not_know() {
    let view = view();
    let unknown = |src, dst, port| explain(&view, "", src, dst, port).unwrap_err();
    assert!(matches!(
        unknown("shop/nobody", "shop/cart", None),
        Unanswerable::Unknown(..)
    ));
    assert!(matches!(
        unknown("shop/web", "nowhere", None),
        Unanswerable::Unknown(..)
    ));
    assert!(matches!(
        unknown("shop/web", "shop/cart", None),
        Unanswerable::Parameter(..)
    ));
    let outside = explain(&view, "", "shop/web", "192.0.2.1", Some(80)).unwrap();
    assert_eq!(outside["route"]["kind"], "plain");
    assert_eq!(outside["admission"], serde_json::Value::Null);
}
