use std::sync::Arc;

use super::{Interned, SMALL};
use crate::fixture::{gateway, key, pod, serves, service};
use crate::text::Text;
use crate::update::Change;
use crate::workload::Workload;

fn shared(interned: &mut Interned, workload: Workload) -> Workload {
    let mut change = Change::UpsertWorkload(workload);
    interned.change(&mut change);
    let Change::UpsertWorkload(workload) = change else {
        unreachable!("it is the same change");
    };
    workload
}

/// A pod of a deployment with a policy, a waypoint and a service.
fn replica(name: &str, address: &str) -> Workload {
    let mut replica = serves(pod("shop", name, address), &key("shop", "cart"));
    let account = pod("shop", "cart", address);
    replica.identity = account.identity.clone();
    replica.waypoint = Some(gateway(&key("shop", "waypoint")));
    replica.policies = vec![crate::policy::PolicyKey::parse("shop/p")];
    replica
}

fn same(one: &Text, other: &Text) -> bool {
    std::ptr::eq(one.as_str(), other.as_str())
}

#[test]
fn says_the_same_and_keeps_it_once() {
    let mut interned = Interned::default();
    let (one, other) = (replica("cart-1", "10.0.0.1"), replica("cart-2", "10.0.0.2"));
    let first = shared(&mut interned, one.clone());
    let second = shared(&mut interned, other.clone());
    assert_eq!((&first, &second), (&one, &other));
    assert!(Arc::ptr_eq(&first.template, &second.template));
    assert!(same(&first.node, &second.node));
    // Of another template the parts are shared.
    let mut third = replica("cart-3", "10.0.0.3");
    third.locality.zone = "z".into();
    let third = shared(&mut interned, third);
    assert!(!Arc::ptr_eq(&first.template, &third.template));
    assert!(same(&first.namespace, &third.namespace));
    let services = |workload: &Workload| workload.services.keys().next().unwrap().clone();
    assert!(same(&services(&first).hostname, &services(&third).hostname));
    let mut change = Change::UpsertService(service("shop", "cart", "10.1.0.1"));
    interned.change(&mut change);
    let Change::UpsertService(cart) = &change else {
        unreachable!("it is the same change");
    };
    assert!(same(&cart.key.hostname, &services(&first).hostname));
}

#[test]
fn a_workload_that_is_written_to_is_its_own_again() {
    let mut interned = Interned::default();
    let first = shared(&mut interned, replica("cart-1", "10.0.0.1"));
    let mut second = shared(&mut interned, replica("cart-2", "10.0.0.2"));
    second.capacity = 7;
    assert_eq!(first.capacity, 1);
    assert_eq!(second.capacity, 7);
}

#[test]
fn what_nobody_uses_any_more_is_let_go() {
    let mut interned = Interned::default();
    let kept = shared(&mut interned, replica("cart", "10.0.0.1"));
    for number in 0..10 * SMALL {
        let mut passing = replica("passing", "10.0.0.2");
        passing.canonical_name = format!("app-{number}").into();
        drop(shared(&mut interned, passing));
    }
    assert!(interned.templates.kept.len() <= SMALL);
    // A sweep of the texts may come before the one that lets their templates go.
    assert!(interned.texts.kept.len() <= 4 * SMALL);
    assert!(interned.templates.kept.contains(&kept.template));
}
