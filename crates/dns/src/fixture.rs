//! A small mesh and a few messages for tests.

use ambit_model::identity::Identity;
use ambit_model::service::{Service, ServiceKey, Visibility};
use ambit_model::update::{Change, apply};
use ambit_model::workload::Workload;
use ambit_model::{View, address::Vip};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RecordType};

use crate::lookup::Scope;

/// A client in namespace `shop`.
pub(crate) const SHOP: Scope<'static> = Scope {
    namespace: "shop",
    network: "",
    domain: "cluster.local",
    search: None,
    preferred_namespace: "",
    ipv6: true,
};

pub(crate) fn vip(network: &str, address: &str) -> Vip {
    Vip::single(network.into(), address.parse().unwrap())
}

/// A service with virtual addresses of the network without a name.
pub(crate) fn service(namespace: &str, host: &str, vips: &[&str]) -> Service {
    Service {
        vips: vips.iter().map(|address| vip("", address)).collect(),
        ..Service::new(ServiceKey::new(namespace, host))
    }
}

/// `NAME.NAMESPACE.svc.cluster.local`.
pub(crate) fn kubernetes(namespace: &str, name: &str, vips: &[&str]) -> Service {
    let host = format!("{name}.{namespace}.svc.cluster.local");
    service(namespace, &host, vips)
}

/// Seen by its own namespace alone.
pub(crate) fn private(service: Service) -> Service {
    Service {
        visibility: Visibility::Namespace,
        ..service
    }
}

/// A workload behind a service.
pub(crate) fn endpoint(uid: &str, addresses: &[&str], of: &Service) -> Workload {
    let identity = Identity::new("cluster.local", &of.key.namespace, "default").unwrap();
    let mut endpoint = Workload::new(uid.into(), uid, identity);
    endpoint.addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    endpoint.services.insert(of.key.clone(), Vec::new());
    endpoint
}

pub(crate) fn view(
    services: impl IntoIterator<Item = Service>,
    workloads: impl IntoIterator<Item = Workload>,
) -> View {
    let services = services.into_iter().map(Change::UpsertService);
    let workloads = workloads.into_iter().map(Change::UpsertWorkload);
    apply(&View::default(), services.chain(workloads))
}

pub(crate) fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

/// A query as a resolver sends it.
pub(crate) fn ask(text: &str, kind: RecordType) -> Vec<u8> {
    question(text, kind).to_vec().unwrap()
}

/// A query of a client that takes datagrams of this size.
pub(crate) fn ask_with(text: &str, kind: RecordType, payload: u16, dnssec_ok: bool) -> Vec<u8> {
    let mut message = question(text, kind);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns.set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

pub(crate) fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), kind));
    message
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
