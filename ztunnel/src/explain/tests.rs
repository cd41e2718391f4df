//! Questions and their answers.

use ambit_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, Value};
use ambit_model::update::Change;
use ambit_model::view::View;
use ambit_model::workload::{Protocol, Workload};

use ambit_observe::server::Call;

use super::{Unanswerable, explain, question};

fn workload(name: &str, address: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap();
    let mut workload = Workload::new(format!("c//Pod/shop/{name}").into(), name, identity);
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

#[test]
fn what_would_not_be_admitted_is_explained_though_no_policy_was_asked() {
    let own = explain(&view(), "", "192.0.2.1", "shop/cart", Some(15008)).unwrap();
    assert_eq!(own["admission"]["admitted"], false);
    assert_eq!(own["admission"]["decision"], serde_json::Value::Null);
    assert!(own["admission"]["refusal"].is_string(), "{own}");
}

#[test]
fn a_client_outside_the_mesh_is_judged_where_it_arrives() {
    let from = |dst, port| explain(&view(), "", "192.0.2.1", dst, Some(port));
    let denied = from("shop/cart", 9999).unwrap();
    assert_eq!(denied["route"]["kind"], "outside");
    assert_eq!(denied["admission"]["mutualTls"], false);
    assert_eq!(denied["admission"]["admitted"], false);
    assert_eq!(denied["admission"]["decision"]["decidedBy"], "shop/no-9999");
    let admitted = from("shop/cart", 80).unwrap();
    assert_eq!(admitted["admission"]["application"], "10.0.0.2:80");
    let beyond = from("192.0.2.7", 80).unwrap_err();
    assert!(matches!(beyond, Unanswerable::Parameter(name, _) if name == "dst"));
}

#[test]
fn a_question_that_makes_no_sense_is_refused_with_the_parameter() {
    let ask = |query: &[(&str, &str)]| {
        let query = query
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let call = Call {
            query: query.collect(),
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::new(),
        };
        let asked = question(&call).map(|(src, dst, port)| (src.to_owned(), dst.to_owned(), port));
        asked.map_err(|problem| problem.to_string())
    };
    let right = ask(&[("src", "a/b"), ("dst", "c/d"), ("port", "80")]);
    assert_eq!(right, Ok(("a/b".to_owned(), "c/d".to_owned(), Some(80))));
    for (query, wrong) in [
        (&[][..], "src: missing"),
        (&[("src", "a/b"), ("dst", "")], "dst: missing"),
        (
            &[("src", "a"), ("src", "b"), ("dst", "c")],
            "src: given twice",
        ),
        (
            &[("src", "a"), ("dst", "c"), ("port", "0")],
            "port: `0` is not a number from 1 to 65535",
        ),
        (
            &[("src", "a"), ("dst", "c"), ("port", "http")],
            "port: `http` is not a number from 1 to 65535",
        ),
        (
            &[("source", "a"), ("dst", "c")],
            "source: not a parameter; there are src, dst and port",
        ),
    ] {
        assert_eq!(ask(query).unwrap_err(), wrong);
    }
}
