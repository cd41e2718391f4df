//! Tests of the route table.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;

use super::matching::{PathMatch, RouteMatch, StringMatch, StringTest};
use super::{Action, Destination, Forward, Route, RouteTable, VirtualHost};
use crate::plan::Name;
use crate::subject::test::subject;

fn route(name: &str, prefix: &str) -> Arc<Route> {
    let test = StringTest::Prefix(prefix.as_bytes().into());
    let matcher = RouteMatch {
        path: PathMatch::Prefix(StringMatch::new(test, false)),
        headers: Vec::new(),
        query: Vec::new(),
        grpc: false,
    };
    let forward = Forward::to([(Destination::plain(Name::from("c")), 1)]).unwrap();
    Arc::new(Route {
        name: Name::from(name),
        matcher,
        action: Action::Forward(Box::new(forward)),
        request_edits: Vec::new(),
        response_edits: Vec::new(),
        operation: None,
    })
}

fn host(name: &str, routes: Vec<Arc<Route>>) -> VirtualHost {
    VirtualHost {
        name: Name::from(name),
        routes,
    }
}

fn found(table: &RouteTable, authority: &str, path: &str) -> Option<String> {
    let headers = HeaderMap::new();
    let mut subject = subject(&headers);
    subject.authority = authority;
    subject.path_and_query = path;
    table.find(&subject).map(|route| route.name.to_string())
}

#[test]
fn hosts_go_from_exact_over_longest_wildcard_to_any() {
    let mut table = RouteTable::default();
    for (name, domains) in [
        ("any", &["*"][..]),
        ("exact", &["a.example", "A.example:8080"]),
        ("short", &["*.example"]),
        ("long", &["*.b.example"]),
        ("prefix", &["api.*"]),
    ] {
        let domains: Vec<String> = domains.iter().map(|&d| d.to_owned()).collect();
        table
            .add(host(name, vec![route(name, "/")]), &domains)
            .unwrap();
    }
    for (authority, wanted) in [
        ("a.example", "exact"),
        ("a.example:8080", "exact"),
        ("a.example:81", "any"),
        ("x.b.example", "long"),
        ("x.c.example", "short"),
        (".example", "any"),
        ("api.test", "prefix"),
        ("other", "any"),
    ] {
        assert_eq!(
            found(&table, authority, "/").as_deref(),
            Some(wanted),
            "{authority}"
        );
    }
    let again = table.add(host("x", vec![]), &["*.EXAMPLE".to_owned()]);
    assert!(again.unwrap_err().to_string().contains("*.example"));
}

#[test]
fn the_first_matching_route_wins_and_the_best_host_is_final() {
    let mut table = RouteTable::default();
    let routes = vec![
        route("one", "/a/b"),
        route("two", "/a"),
        route("never", "/a/b/c"),
    ];
    table.add(host("h", routes), &["h".to_owned()]).unwrap();
    table
        .add(host("any", vec![route("rest", "/")]), &["*".to_owned()])
        .unwrap();
    for (authority, path, wanted) in [
        ("h", "/a/b/c", Some("one")),
        ("h", "/a/x", Some("two")),
        ("h", "/z", None),
        ("other", "/z", Some("rest")),
    ] {
        assert_eq!(
            found(&table, authority, path).as_deref(),
            wanted,
            "{authority}{path}"
        );
    }
}

#[test]
fn destinations_are_chosen_in_proportion_to_their_weights() {
    let destination = |name| Destination::plain(Name::from(name));
    let forward = Forward::to([
        (destination("a"), 1),
        (destination("b"), 3),
        (destination("z"), 0),
    ])
    .unwrap();
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for random in 0..400 {
        *counts
            .entry(&forward.choose(random).unwrap().cluster)
            .or_default() += 1;
    }
    assert_eq!(counts, HashMap::from([("a", 100), ("b", 300)]));
    let weights: Vec<_> = forward.destinations().map(|(_, weight)| weight).collect();
    assert_eq!(weights, [1, 3]);
    assert!(Forward::to([(destination("a"), 0)]).is_none());
}
