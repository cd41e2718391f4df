//! What is written can be read again, and no bytes of a peer do worse than to be refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{collection, option, prop_assert, prop_assert_eq, proptest};

use crate::Authority;
use crate::baggage::{Baggage, OwnerType};
use crate::forwarded::Forwarded;
use crate::proxy_v2::{self, Decoded, Header};
use crate::trace::TraceParent;

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), 1_u16..).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn text() -> impl Strategy<Value = Option<Arc<str>>> {
    let text = collection::vec(any::<char>(), 1..20);
    option::of(text.prop_map(|letters| letters.into_iter().collect::<String>().into()))
}

fn baggage() -> impl Strategy<Value = Baggage> {
    let owner = option::of((0..4_usize).prop_map(|index| {
        [
            OwnerType::Deployment,
            OwnerType::CronJob,
            OwnerType::Pod,
            OwnerType::Job,
        ][index]
    }));
    (
        text(),
        text(),
        owner,
        (text(), text(), text()),
        text(),
        text(),
    )
        .prop_map(|(cluster, namespace, owner, names, region, zone)| Baggage {
            cluster,
            namespace,
            workload_type: owner,
            workload_name: owner.map(|_| names.0.unwrap_or_else(|| "w".into())),
            service_name: names.1,
            service_version: names.2,
            region,
            zone,
        })
}

/// Bytes that resemble `text` here and there.
fn bytes_like(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (0..text.len(), 1..16_usize).prop_map(move |(from, length)| {
            text.bytes().skip(from).take(length).collect::<Vec<u8>>()
        }),
        collection::vec(any::<u8>(), 0..4),
    ];
    collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn reads_back_every_address(address in address()) {
        let authority = Authority::from(address);
        prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
    }

    #[test]
    fn reads_back_every_host(host in "([a-z0-9_-]{1,20}\\.){0,5}[a-z][a-z0-9-]{0,20}", port in 1_u16..) {
        let authority = Authority::host(&host, port).unwrap();
        prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
    }

    #[test]
    fn has_one_form_of_each_authority(bytes in bytes_like("[2001:db8::1%1]:80 Host.example:443 10.0.0.1")) {
        if let Ok(authority) = Authority::parse(&bytes) {
            let text = authority.to_string();
            prop_assert_eq!(text.parse::<Authority>(), Ok(authority));
            prop_assert!(!text.contains(['@', '/', ' ', '%']));
        }
    }

    #[test]
    fn reads_back_any_baggage(baggage in baggage()) {
        let text = baggage.to_string();
        prop_assert!(text.bytes().all(|b| (0x21..=0x7e).contains(&b)));
        prop_assert_eq!(Baggage::parse(text.as_bytes()), Ok(baggage));
    }

    #[test]
    fn takes_any_bytes_for_baggage(bytes in bytes_like("k8s.pod.name=a%20b,service.name=x;p,cloud.region==%f")) {
        if let Ok(baggage) = Baggage::parse(&bytes) {
            let again = Baggage::parse(baggage.to_string().as_bytes()).unwrap();
            prop_assert_eq!(again, baggage);
        }
    }

    #[test]
    fn reads_back_any_forwarded(client in option::of(address()), host in option::of("[a-z.-]{1,40}")) {
        let forwarded = Forwarded { client, host: host.map(Into::into) };
        prop_assert_eq!(Forwarded::parse(forwarded.to_string().as_bytes()), Ok(forwarded));
    }

    #[test]
    fn takes_any_bytes_for_forwarded(bytes in bytes_like("for=\"[2001:db8::1]:80\";host=a.b, By=\"x\\\"")) {
        let _ = Forwarded::parse(&bytes);
    }

    #[test]
    fn reads_back_any_trace(trace in 1_u128.., parent in 1_u64.., flags in any::<u8>()) {
        let header = TraceParent { trace_id: trace, parent_id: parent, flags };
        prop_assert_eq!(TraceParent::parse(header.to_string().as_bytes()), Ok(header));
    }

    #[test]
    fn takes_any_bytes_for_a_trace(
        bytes in bytes_like("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ) {
        let _ = TraceParent::parse(&bytes);
    }

    #[test]
    fn reads_back_any_proxy_header(
        source in address(), destination in address(),
        identity in option::of("[ -~]{0,200}"), service in option::of("[ -~]{0,200}"),
        payload in collection::vec(any::<u8>(), 0..20),
    ) {
        let (identity, service) = (identity.map(Into::into), service.map(Into::into));
        let header = Header { source, destination, identity, service };
        let mut bytes = header.encode().unwrap();
        let length = bytes.len();
        bytes.extend(payload);
        let decoded = proxy_v2::decode(&bytes).unwrap();
        prop_assert_eq!(decoded, Decoded::Header { header: Some(header), length });
    }

    #[test]
    fn takes_any_bytes_behind_the_signature(
        command in 0x1f_u8..0x23, family in 0x10_u8..0x32, length in 0..600_u16,
        body in collection::vec(any::<u8>(), 0..600),
    ) {
        let [high, low] = length.to_be_bytes();
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([command, family, high, low]);
        bytes.extend(&body);
        match proxy_v2::decode(&bytes) {
            Ok(Decoded::Header { length, .. }) => prop_assert!(length <= bytes.len()),
            Ok(Decoded::NeedMore(needed)) => prop_assert!(needed > bytes.len()),
            Err(_) => {}
        }
    }
}
