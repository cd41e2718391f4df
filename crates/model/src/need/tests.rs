//! What is asked for, one name after the other.

use std::collections::BTreeSet;

use ambit_wire::Authority;

use super::{inbound, outbound};
use crate::fixture::{at, gateway, ip, key, pod, serves, service, shop, shop_with, socket, view};
use crate::route::Outbound;
use crate::text::Text;
use crate::update::Change;
use crate::view::View;

/// What web lacks for a connection to `to`.
fn lacks(view: &View, to: &str, absent: &[&str]) -> Option<String> {
    let web = pod("shop", "web", "10.0.0.1");
    let connection = Outbound {
        source: &web,
        destination: socket(to),
        network: "",
        avoid: &[],
    };
    let absent: BTreeSet<Text> = absent.iter().map(|name| (*name).into()).collect();
    outbound(view, &connection, |name| absent.contains(name)).map(|name| name.to_string())
}

#[test]
fn an_address_is_needed_until_it_is_known_or_known_to_be_nothing() {
    let nothing = view([]);
    assert_eq!(lacks(&nothing, "10.0.0.2:80", &[]).unwrap(), "/10.0.0.2");
    assert_eq!(lacks(&nothing, "10.0.0.2:80", &["/10.0.0.2"]), None);
    assert_eq!(
        lacks(&nothing, "[::ffff:10.0.0.2]:80", &["/10.0.0.2"]),
        None
    );
    for known in ["10.0.0.2:80", "10.1.0.2:80"] {
        assert_eq!(lacks(&shop(), known, &[]), None, "{known}");
    }
}

#[test]
fn an_address_in_a_block_may_be_something_of_its_own() {
    let mut block = service("shop", "block", "10.5.0.1");
    block.vips[0].block = "10.5.0.0/16".parse().unwrap();
    let view = view([Change::UpsertService(block)]);
    assert_eq!(lacks(&view, "10.5.0.7:80", &[]).unwrap(), "/10.5.0.7");
    assert_eq!(lacks(&view, "10.5.0.7:80", &["/10.5.0.7"]), None);
}

#[test]
fn a_waypoint_is_needed_after_what_it_is_for() {
    let far = key("far", "way");
    let name = "far/way.far.svc.cluster.local";
    let by_name = shop_with(|_| {}, |cart| cart.waypoint = Some(gateway(&far)));
    assert_eq!(lacks(&by_name, "10.1.0.2:80", &[]).unwrap(), name);
    assert_eq!(lacks(&by_name, "10.1.0.2:80", &[name]), None);
    let by_address = shop_with(|cart| cart.waypoint = Some(at("10.7.0.1")), |_| {});
    assert_eq!(lacks(&by_address, "10.0.0.2:80", &[]).unwrap(), "/10.7.0.1");
    // To the service, which has none, the workload's is not passed.
    assert_eq!(lacks(&by_address, "10.1.0.2:80", &[]), None);
    let known = shop_with(
        |_| {},
        |cart| cart.waypoint = Some(gateway(&key("shop", "waypoint"))),
    );
    assert_eq!(lacks(&known, "10.1.0.2:80", &[]), None);
}

#[test]
fn a_gateway_is_needed_for_endpoints_of_other_networks() {
    let there = shop_with(
        |cart| {
            cart.network = "there".into();
            cart.network_gateway = Some(at("10.8.0.1"));
        },
        |_| {},
    );
    assert_eq!(lacks(&there, "10.1.0.2:80", &[]).unwrap(), "/10.8.0.1");
}

#[test]
fn who_comes_in_needs_what_it_asks_for() {
    let cart = serves(pod("shop", "cart", "10.0.0.2"), &key("shop", "cart"));
    let lacks = |view: &View, authority: &str| {
        let authority = Authority::parse(authority.as_bytes()).unwrap();
        inbound(view, &cart, ip("10.0.0.2"), &authority, |_| false).map(|name| name.to_string())
    };
    let nothing = view([]);
    assert_eq!(lacks(&nothing, "10.0.0.2:80"), None);
    assert_eq!(lacks(&nothing, "10.1.0.2:80").unwrap(), "/10.1.0.2");
    let cart_name = "cart.shop.svc.cluster.local";
    assert_eq!(
        lacks(&nothing, &format!("{cart_name}:80")).unwrap(),
        format!("shop/{cart_name}")
    );
    assert_eq!(lacks(&nothing, "other.shop.svc.cluster.local:80"), None);
    assert_eq!(lacks(&shop(), &format!("{cart_name}:80")), None);
    assert_eq!(lacks(&shop(), "10.1.0.2:80"), None);
}
