//! A small mesh for tests: a shop with two nodes, a waypoint and a client in another namespace.

use std::net::{IpAddr, SocketAddr};

use crate::address::{GatewayAddress, GatewayDestination, Vip};
use crate::identity::Identity;
use crate::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope};
use crate::service::{Port, Service, ServiceKey};
use crate::text::Text;
use crate::update::{Change, apply};
use crate::view::View;
use crate::workload::{Protocol, Workload};

pub(crate) const WEB: &str = "Kubernetes//Pod/shop/web";
pub(crate) const CART: &str = "Kubernetes//Pod/shop/cart";
pub(crate) const WAYPOINT: &str = "Kubernetes//Pod/shop/waypoint";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn identity(namespace: &str, account: &str) -> Identity {
    Identity::new("cluster.local", namespace, account).unwrap()
}

/// A pod reached by tunnel whose account has its name.
pub(crate) fn pod(namespace: &str, name: &str, address: &str) -> Workload {
    let uid = format!("Kubernetes//Pod/{namespace}/{name}").into();
    let mut pod = Workload::new(uid, name, identity(namespace, name));
    pod.addresses.push(ip(address));
    pod.protocol = Protocol::Hbone;
    pod.node = "node1".into();
    pod
}

/// The same workload after a change.
pub(crate) fn but(mut workload: Workload, change: impl FnOnce(&mut Workload)) -> Workload {
    change(&mut workload);
    workload
}

pub(crate) fn key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey::new(namespace, format!("{name}.{namespace}.svc.cluster.local"))
}

/// A service of one port, 80, which leads to 8080.
pub(crate) fn service(namespace: &str, name: &str, vip: &str) -> Service {
    Service {
        vips: vec![Vip::single(Text::empty(), ip(vip))],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
        }],
        ..Service::new(key(namespace, name))
    }
}

/// Makes `workload` an endpoint with the ports the service declares.
pub(crate) fn serves(mut workload: Workload, service: &ServiceKey) -> Workload {
    let port = Port {
        service_port: 80,
        target_port: 8080,
    };
    workload.services.insert(service.clone(), vec![port]);
    workload
}

pub(crate) fn gateway(service: &ServiceKey) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Hostname(service.clone()),
        hbone_port: 15008,
    }
}

pub(crate) fn at(address: &str) -> GatewayAddress {
    let address = ip(address);
    let destination = GatewayDestination::Address {
        network: Text::empty(),
        address,
    };
    GatewayAddress {
        destination,
        hbone_port: 15008,
    }
}

/// A policy of one rule of one clause for each list of matches.
pub(crate) fn policy(name: &str, scope: Scope, action: Action, clauses: Vec<Vec<Match>>) -> Policy {
    let clauses = clauses
        .into_iter()
        .map(|matches| Clause { matches })
        .collect();
    Policy {
        key: PolicyKey::parse(name),
        scope,
        action,
        dry_run: false,
        rules: vec![Rule { clauses }],
        not_understood: Vec::new(),
    }
}

pub(crate) fn view(changes: impl IntoIterator<Item = Change>) -> View {
    apply(&View::default(), changes)
}

/// Web and cart in the shop, each a service; the waypoint, a service too but used by nobody.
pub(crate) fn shop() -> View {
    shop_with(|_| {}, |_| {})
}

/// The shop after a change of cart's workload and of cart's service.
pub(crate) fn shop_with(
    change_workload: impl FnOnce(&mut Workload),
    change_service: impl FnOnce(&mut Service),
) -> View {
    let mut cart = serves(pod("shop", "cart", "10.0.0.2"), &key("shop", "cart"));
    change_workload(&mut cart);
    let mut cart_service = service("shop", "cart", "10.1.0.2");
    change_service(&mut cart_service);
    let mut waypoint = pod("shop", "waypoint", "10.0.0.9");
    let port = Port {
        service_port: 15008,
        target_port: 15008,
    };
    waypoint
        .services
        .insert(key("shop", "waypoint"), vec![port]);
    let mut waypoint_service = service("shop", "waypoint", "10.1.0.9");
    waypoint_service.ports = vec![port];
    view([
        Change::UpsertWorkload(serves(pod("shop", "web", "10.0.0.1"), &key("shop", "web"))),
        Change::UpsertWorkload(cart),
        Change::UpsertWorkload(waypoint),
        Change::UpsertService(service("shop", "web", "10.1.0.1")),
        Change::UpsertService(cart_service),
        Change::UpsertService(waypoint_service),
    ])
}

/// Uniform numbers from a seed (SplitMix64).
pub(crate) fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
