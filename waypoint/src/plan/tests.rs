//! Tests of dispatch, weights and log filters.

use std::collections::HashMap;
use std::time::Duration;

use super::{Dispatch, LogFilter, Name, PortMap, Target, WeightedClusters};

fn refused(name: &str) -> Target {
    Target::Refused(Name::from(name))
}

fn listed(ports: &[(u16, &str)]) -> PortMap {
    PortMap::Listed(
        ports
            .iter()
            .map(|(port, name)| (*port, refused(name)))
            .collect(),
    )
}

fn name(dispatch: &Dispatch, to: &str) -> Option<String> {
    match dispatch.at(to.parse().unwrap()) {
        Some(Target::Refused(name)) => Some(name.to_string()),
        _ => None,
    }
}

#[test]
fn the_most_specific_range_wins_and_a_missing_port_falls_through() {
    let mut dispatch = Dispatch::default();
    let add = |dispatch: &mut Dispatch, range: &str, ports| {
        dispatch.add_range(range.parse().unwrap(), ports);
    };
    add(
        &mut dispatch,
        "10.0.0.0/8",
        listed(&[(80, "wide"), (90, "wide90")]),
    );
    add(&mut dispatch, "10.1.0.0/16", listed(&[(80, "narrow")]));
    add(&mut dispatch, "10.1.1.1/32", listed(&[(80, "one")]));
    add(
        &mut dispatch,
        "10.1.1.1/32",
        listed(&[(80, "second"), (81, "one81")]),
    );
    add(
        &mut dispatch,
        "10.9.9.9/32",
        PortMap::Any(refused("workload")),
    );
    add(&mut dispatch, "fd00::/64", listed(&[(80, "six")]));
    dispatch.add_host(Name::from("cart.shop"), 80, refused("host"));
    let cases = [
        ("10.1.1.1:80", Some("one")),
        ("10.1.1.1:81", Some("one81")),
        ("10.1.1.1:90", Some("wide90")),
        ("10.1.2.3:80", Some("narrow")),
        ("10.2.2.3:80", Some("wide")),
        ("10.2.2.3:81", None),
        ("10.9.9.9:1234", Some("workload")),
        ("[::ffff:10.1.1.1]:80", Some("one")),
        ("[fd00::5]:80", Some("six")),
        ("[fd01::5]:80", None),
        ("11.1.1.1:80", None),
    ];
    for (to, wanted) in cases {
        assert_eq!(name(&dispatch, to).as_deref(), wanted, "{to}");
    }
    assert!(dispatch.named("Cart.Shop", 80).is_some());
    assert!(dispatch.named("cart.shop", 81).is_none());
}

#[test]
fn clusters_are_chosen_in_proportion_to_their_weights() {
    let list = [("a", 90), ("zero", 0), ("b", 10)];
    let list = list.map(|(name, weight)| (Name::from(name), weight));
    let clusters = WeightedClusters::several(list).unwrap();
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for random in 0..1000 {
        *counts.entry(clusters.choose(random)).or_default() += 1;
    }
    assert_eq!(counts, HashMap::from([("a", 900), ("b", 100)]));
    assert_eq!(WeightedClusters::several([(Name::from("a"), 0)]), None);
}

#[test]
fn log_filters_combine() {
    let took = Duration::from_millis(5);
    let flags = LogFilter::Flags(vec![Name::from("UF")]);
    assert!(LogFilter::Status(400, u16::MAX).admits(404, took, &[]));
    assert!(!LogFilter::Status(400, u16::MAX).admits(200, took, &[]));
    assert!(flags.admits(503, took, &["UF"]));
    assert!(!flags.admits(503, took, &["UH"]));
    assert!(LogFilter::Flags(vec![]).admits(503, took, &["UH"]));
    assert!(!LogFilter::All(vec![LogFilter::Always, flags.clone()]).admits(503, took, &[]));
    assert!(LogFilter::Any(vec![LogFilter::Always, flags]).admits(503, took, &[]));
}
