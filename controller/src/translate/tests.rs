use std::path::Path;
use std::sync::Arc;

use ambit_objects::{Object, Objects, Severity, parse};
use ambit_proto::istio::workload::{
    Address, AppProtocol, GatewayAddress, NetworkMode, Service, TunnelProtocol, Workload,
    WorkloadStatus, address, gateway_address, load_balancing,
};

use super::{Resources, translate};
use crate::config::Mesh;
use crate::finding::Finding;

fn objects(text: &str) -> Vec<Object> {
    let parsed = parse::parse(Path::new("test.yaml"), text);
    assert_eq!(parsed.problems, []);
    parsed
        .objects
        .into_iter()
        .map(|found| found.object)
        .collect()
}

fn snapshot(list: &[Object]) -> Arc<Objects> {
    let mut objects = Objects::default();
    for object in list {
        objects.insert(object.clone());
    }
    Arc::new(objects)
}

pub(crate) fn resources(text: &str) -> Resources {
    translate(snapshot(&objects(text)), Mesh::default()).1
}

fn workload<'a>(resources: &'a Resources, name: &str) -> &'a Workload {
    match &resources.addresses[&format!("Kubernetes//{name}")] {
        Address {
            r#type: Some(address::Type::Workload(workload)),
        } => workload,
        other => panic!("{other:?}"),
    }
}

fn service<'a>(resources: &'a Resources, name: &str) -> &'a Service {
    match &resources.addresses[name] {
        Address {
            r#type: Some(address::Type::Service(service)),
        } => service,
        other => panic!("{other:?}"),
    }
}

fn told(resources: &Resources) -> Vec<String> {
    resources.findings.iter().map(ToString::to_string).collect()
}

fn hostname(address: Option<&GatewayAddress>) -> Option<String> {
    match address?.destination.as_ref()? {
        gateway_address::Destination::Hostname(name) => {
            Some(format!("{}/{}", name.namespace, name.hostname))
        }
        gateway_address::Destination::Address(_) => None,
    }
}

const SHOP: &str = include_str!("../../tests/shop.yaml");

#[test]
fn a_pod_becomes_a_workload_with_its_ports_and_place() {
    let resources = resources(SHOP);
    let cart = workload(&resources, "Pod/shop/cart-1");
    assert_eq!(cart.addresses, [bytes::Bytes::from_static(&[10, 0, 1, 3])]);
    assert_eq!(cart.tunnel_protocol, i32::from(TunnelProtocol::Hbone));
    assert!(!cart.native_tunnel);
    assert_eq!(
        (cart.service_account.as_str(), cart.node.as_str()),
        ("cart", "node-1")
    );
    assert_eq!(
        (
            cart.canonical_name.as_str(),
            cart.canonical_revision.as_str()
        ),
        ("cart", "v2")
    );
    assert_eq!(cart.workload_name, "cart");
    assert_eq!(cart.trust_domain, "");
    assert_eq!(cart.status, i32::from(WorkloadStatus::Healthy));
    let place = cart.locality.as_ref().unwrap();
    assert_eq!(
        (
            place.region.as_str(),
            place.zone.as_str(),
            place.subzone.as_str()
        ),
        ("r1", "z1", "s1")
    );
    let ports = &cart.services["shop/cart.shop.svc.cluster.local"].ports;
    let pairs: Vec<(u32, u32)> = ports
        .iter()
        .map(|port| (port.service_port, port.target_port))
        .collect();
    assert_eq!(pairs, [(80, 8080), (9000, 9000)]);
    assert_eq!(cart.services.len(), 1);
}

#[test]
fn only_a_captured_pod_is_announced_as_hbone() {
    let resources = resources(SHOP);
    let tunnel = |name| workload(&resources, name).tunnel_protocol;
    assert_eq!(tunnel("Pod/shop/cart-1"), i32::from(TunnelProtocol::Hbone));
    assert_eq!(tunnel("Pod/shop/web-1"), i32::from(TunnelProtocol::None));
    // A waypoint terminates its tunnels itself.
    let waypoint = workload(&resources, "Pod/shop/waypoint-1");
    assert_eq!(waypoint.tunnel_protocol, i32::from(TunnelProtocol::Hbone));
    assert!(waypoint.native_tunnel);
    assert_eq!(waypoint.waypoint, None);
}

#[test]
fn ended_and_address_less_pods_are_left_out_and_unready_ones_unhealthy() {
    let resources = resources(SHOP);
    assert!(
        !resources
            .addresses
            .contains_key("Kubernetes//Pod/shop/ended")
    );
    assert!(
        !resources
            .addresses
            .contains_key("Kubernetes//Pod/shop/no-address")
    );
    let web = workload(&resources, "Pod/shop/web-1");
    assert_eq!(web.status, i32::from(WorkloadStatus::Unhealthy));
    let host = workload(&resources, "Pod/istio-system/ztunnel-1");
    assert_eq!(host.network_mode, i32::from(NetworkMode::HostNetwork));
}

#[test]
fn a_service_has_its_addresses_ports_and_preferences() {
    let resources = resources(SHOP);
    let cart = service(&resources, "shop/cart.shop.svc.cluster.local");
    assert_eq!(
        cart.addresses[0].address,
        bytes::Bytes::from_static(&[10, 96, 0, 2])
    );
    assert_eq!(cart.addresses[1].address.len(), 16);
    let ports: Vec<_> = cart
        .ports
        .iter()
        .map(|port| (port.service_port, port.target_port, port.app_protocol))
        .collect();
    assert_eq!(
        ports,
        [
            (80, 0, i32::from(AppProtocol::Http11)),
            (9000, 9000, i32::from(AppProtocol::Tcp))
        ]
    );
    assert!(cart.canonical);
    let balancing = cart.load_balancing.as_ref().unwrap();
    assert_eq!(balancing.mode, i32::from(load_balancing::Mode::Failover));
    assert_eq!(balancing.routing_preference.len(), 3);
    // Of several services with that policy none spoils the others: an old Istio bug.
    let web = service(&resources, "shop/web.shop.svc.cluster.local");
    assert_eq!(web.load_balancing, None);
    let local = service(&resources, "shop/local.shop.svc.cluster.local")
        .load_balancing
        .clone();
    assert_eq!(local.unwrap().mode, i32::from(load_balancing::Mode::Strict));
    assert!(
        !resources
            .addresses
            .contains_key("shop/elsewhere.shop.svc.cluster.local")
    );
}

#[test]
fn endpoints_that_are_no_pods_are_workloads_of_their_own() {
    let resources = resources(SHOP);
    let name = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/outside-1/192.0.2.7";
    let Some(address::Type::Workload(outside)) = &resources.addresses[name].r#type else {
        panic!()
    };
    assert_eq!(outside.network_mode, i32::from(NetworkMode::HostNetwork));
    let ports = &outside.services["shop/outside.shop.svc.cluster.local"].ports;
    assert_eq!((ports[0].service_port, ports[0].target_port), (443, 8443));
}

#[test]
fn labels_decide_which_waypoint_serves_what() {
    let resources = resources(SHOP);
    let of = |name: &str| hostname(service(&resources, name).waypoint.as_ref());
    let waypoint = Some("shop/waypoint.shop.svc.cluster.local".to_owned());
    assert_eq!(
        of("shop/cart.shop.svc.cluster.local"),
        waypoint,
        "from its namespace"
    );
    assert_eq!(of("shop/web.shop.svc.cluster.local"), None, "opted out");
    assert_eq!(
        of("shop/waypoint.shop.svc.cluster.local"),
        None,
        "the waypoint's own"
    );
    assert_eq!(
        of("other/guest.other.svc.cluster.local"),
        waypoint,
        "allowed by the listener"
    );
    assert_eq!(
        workload(&resources, "Pod/shop/cart-1").waypoint,
        None,
        "it is for services"
    );
}

#[test]
fn an_unusable_waypoint_is_told_and_refuses_where_a_policy_counts_on_it() {
    let text = SHOP.replace(
        "istio.io/use-waypoint: waypoint,",
        "istio.io/use-waypoint: gone,",
    );
    let resources = resources(&text);
    let waypoint = |name: &str| hostname(service(&resources, name).waypoint.as_ref());
    let told = told(&resources);
    let why = "metadata.labels[istio.io/use-waypoint]: waypoint shop/gone cannot be used: there is no such waypoint, or it is not ready";

    assert_eq!(waypoint("shop/local.shop.svc.cluster.local"), None);
    let without = format!("Service shop/local: {why}; traffic goes without one");
    assert!(told.contains(&without), "{told:#?}");

    // The example attaches a policy to this one.
    assert_eq!(
        waypoint("shop/cart.shop.svc.cluster.local").unwrap(),
        "shop/gone.shop.svc.cluster.local"
    );
    let refused = format!(
        "Service shop/cart: {why}; as a policy is attached to the service, its traffic is refused"
    );
    assert!(told.contains(&refused), "{told:#?}");
}

#[test]
fn objects_that_do_not_fit_together_are_told_and_the_rest_is_served() {
    let table: &[(&str, &str, &str)] = &[
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: thief, namespace: shop}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}",
            "Service shop/thief: spec.clusterIPs: 10.96.0.2 belongs to Service shop/cart; it is left out here",
            "shop/thief.shop.svc.cluster.local",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: thief, namespace: shop}\nspec: {clusterIP: 10.0.1.3, ports: [{port: 80}]}",
            "Service shop/thief: spec.clusterIPs: 10.0.1.3 belongs to Pod shop/cart-1; it is left out here",
            "shop/thief.shop.svc.cluster.local",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: thief, namespace: shop}\nspec: {containers: []}\nstatus: {phase: Running, podIP: not-an-ip}",
            "Pod shop/thief: status.podIPs: \"not-an-ip\" is not an IP address; it is left out",
            "shop/cart.shop.svc.cluster.local",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: bare, namespace: shop}\nspec: {gatewayClassName: istio-waypoint}",
            "Gateway shop/bare: spec.listeners: a waypoint without listeners cannot be used; it needs one of protocol HBONE on port 15008",
            "shop/cart.shop.svc.cluster.local",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: nowhere}\nspec: {containers: []}\nstatus: {phase: Running, podIP: 10.9.9.9}",
            "Pod nowhere/lost: metadata.namespace: there is no Namespace nowhere; it counts as one without labels",
            "Kubernetes//Pod/nowhere/lost",
        ),
    ];
    for (document, expected, served) in table {
        let resources = resources(&format!("{SHOP}---\n{document}\n"));
        assert!(
            told(&resources).contains(&(*expected).to_owned()),
            "{expected}\n{:#?}",
            told(&resources)
        );
        assert!(resources.addresses.contains_key(*served), "{served}");
        let cart = service(&resources, "shop/cart.shop.svc.cluster.local");
        assert_eq!(cart.addresses.len(), 2);
    }
}

#[test]
fn the_example_itself_is_clean() {
    let findings = resources(SHOP).findings;
    let errors: Vec<_> = findings
        .iter()
        .filter(|one| one.severity == Severity::Error)
        .collect();
    assert_eq!(errors, Vec::<&Finding>::new());
}
