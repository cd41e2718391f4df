use std::collections::BTreeSet;

use ambit_model::View;
use ambit_model::service::{HealthPolicy, LoadBalancing, Service};
use ambit_model::workload::{Health, Workload};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::{any, prop, proptest};

use super::{TTL, answer};
use crate::Transport;
use crate::fixture::{SHOP, ask, ask_with, endpoint, kubernetes, name, random, service, view, vip};
use crate::lookup::Scope;
use crate::query::Query;

fn reply(view: &View, scope: &Scope<'_>, asked: &[u8], transport: Transport) -> Option<Message> {
    let query = Query::read(asked).unwrap();
    let answer = answer(view, scope, &query, transport, &mut random(1))?;
    let (length, limit) = (answer.bytes.len(), query.limit(transport));
    assert!(length <= limit, "{length} bytes of {limit}");
    Some(Message::from_vec(&answer.bytes).unwrap())
}

/// Owner, type and data of every answer, in order.
fn told(message: &Message) -> Vec<String> {
    let records = message.answers.iter();
    records
        .map(|record| {
            assert_eq!(record.ttl, TTL);
            format!("{} {} {}", record.name, record.record_type(), record.data)
        })
        .collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, read row by row")]
fn tells_addresses_of_the_family_and_network_that_were_asked_for() {
    let networks = Service {
        vips: vec![
            vip("", "10.3.0.1"),
            vip("east", "10.3.0.2"),
            vip("east", "fd00::2"),
        ],
        ..service("shop", "networks.example", &[])
    };
    let view = view(
        [
            kubernetes("shop", "web", &["10.1.0.1"]),
            kubernetes("shop", "dual", &["10.1.0.2", "fd00::1"]),
            networks,
        ],
        [],
    );
    let east = Scope {
        network: "east",
        ..SHOP
    };
    let only_v4 = Scope {
        ipv6: false,
        ..SHOP
    };
    let web = "web.shop.svc.cluster.local.";
    let dual = "dual.shop.svc.cluster.local.";
    let table: &[(&Scope<'_>, &str, RecordType, &[&str])] = &[
        (
            &SHOP,
            web,
            RecordType::A,
            &["web.shop.svc.cluster.local. A 10.1.0.1"],
        ),
        (&SHOP, web, RecordType::AAAA, &[]),
        (
            &SHOP,
            dual,
            RecordType::A,
            &["dual.shop.svc.cluster.local. A 10.1.0.2"],
        ),
        (
            &SHOP,
            dual,
            RecordType::AAAA,
            &["dual.shop.svc.cluster.local. AAAA fd00::1"],
        ),
        (&only_v4, dual, RecordType::AAAA, &[]),
        (
            &only_v4,
            dual,
            RecordType::A,
            &["dual.shop.svc.cluster.local. A 10.1.0.2"],
        ),
        (
            &SHOP,
            "networks.example.",
            RecordType::A,
            &["networks.example. A 10.3.0.1"],
        ),
        (&SHOP, "networks.example.", RecordType::AAAA, &[]),
        (
            &east,
            "networks.example.",
            RecordType::A,
            &["networks.example. A 10.3.0.2"],
        ),
        (
            &east,
            "networks.example.",
            RecordType::AAAA,
            &["networks.example. AAAA fd00::2"],
        ),
        (&SHOP, "WEB.shop.", RecordType::A, &["WEB.shop. A 10.1.0.1"]),
        (
            &SHOP,
            "web.shop.shop.svc.cluster.local.",
            RecordType::A,
            &[
                "web.shop.shop.svc.cluster.local. CNAME web.shop.",
                "web.shop. A 10.1.0.1",
            ],
        ),
        (
            &SHOP,
            "web.shop.shop.svc.cluster.local.",
            RecordType::AAAA,
            &[],
        ),
    ];
    for (scope, asked, kind, expected) in table {
        for transport in [Transport::Udp, Transport::Tcp] {
            let message = reply(&view, scope, &ask(asked, *kind), transport).unwrap();
            assert_eq!(told(&message), *expected, "{asked} {kind}");
            assert_eq!(
                message.response_code,
                ResponseCode::NoError,
                "never NXDOMAIN"
            );
            assert!(message.authoritative && message.recursion_available);
            assert!(message.recursion_desired && !message.truncation);
            assert_eq!(message.id, 0x1234);
            assert_eq!(message.queries[0].name(), &name(asked));
        }
    }
    for kind in [
        RecordType::TXT,
        RecordType::SRV,
        RecordType::ANY,
        RecordType::CAA,
    ] {
        assert!(
            reply(&view, &SHOP, &ask(web, kind), Transport::Udp).is_none(),
            "{kind}"
        );
    }
    let mut chaos = ask(web, RecordType::A);
    *chaos.last_mut().unwrap() = 3;
    assert!(
        reply(&view, &SHOP, &chaos, Transport::Udp).is_none(),
        "another class"
    );
}

#[test]
fn a_headless_service_is_its_healthy_endpoints_in_this_network() {
    let headless = kubernetes("shop", "db", &[]);
    let all = Service {
        load_balancing: LoadBalancing {
            health_policy: HealthPolicy::AllowAll,
            ..LoadBalancing::default()
        },
        ..kubernetes("shop", "all", &[])
    };
    let sick = |mut workload: Workload| {
        workload.health = Health::Unhealthy;
        workload
    };
    let away = |mut workload: Workload| {
        workload.network = "away".into();
        workload
    };
    let workloads = [
        endpoint("db-0", &["10.0.0.1", "10.0.0.11", "fd00::1"], &headless),
        endpoint("db-1", &["10.0.0.2"], &headless),
        endpoint("db-2", &["fd00::3"], &headless),
        sick(endpoint("db-3", &["10.0.0.4"], &headless)),
        away(endpoint("db-4", &["10.0.0.5"], &headless)),
        sick(endpoint("all-0", &["10.0.0.6"], &all)),
    ];
    let empty = kubernetes("shop", "empty", &[]);
    let view = view([headless, all, empty], workloads);
    let table: &[(&str, RecordType, &[&str])] = &[
        ("db", RecordType::A, &["10.0.0.1", "10.0.0.2"]),
        ("db", RecordType::AAAA, &["fd00::1", "fd00::3"]),
        ("all", RecordType::A, &["10.0.0.6"]),
        ("empty", RecordType::A, &[]),
    ];
    for (asked, kind, expected) in table {
        let message = reply(&view, &SHOP, &ask(asked, *kind), Transport::Udp).unwrap();
        let found: BTreeSet<String> = told(&message)
            .iter()
            .map(|line| line.rsplit(' ').next().unwrap().to_owned())
            .collect();
        let expected: BTreeSet<String> = expected.iter().map(|ip| (*ip).to_owned()).collect();
        assert_eq!(found, expected, "{asked} {kind}");
    }
}

/// A service of this many endpoints.
fn large(count: u8) -> View {
    let headless = kubernetes("shop", "big", &[]);
    let workloads: Vec<_> = (0..count)
        .map(|n| endpoint(&format!("big-{n}"), &[&format!("10.0.1.{n}")], &headless))
        .collect();
    view([headless], workloads)
}

#[test]
fn an_answer_over_udp_ends_where_the_client_says_and_tcp_tells_all() {
    let view = large(255);
    let asked = "big.shop.svc.cluster.local.";
    // 12 of header, 32 of question, 16 for each record, 11 of EDNS.
    let table = [
        (ask(asked, RecordType::A), Transport::Udp, 29, true),
        (
            ask_with(asked, RecordType::A, 1232, false),
            Transport::Udp,
            73,
            true,
        ),
        (
            ask_with(asked, RecordType::A, 0, false),
            Transport::Udp,
            28,
            true,
        ),
        (
            ask_with(asked, RecordType::A, 4096, false),
            Transport::Udp,
            252,
            true,
        ),
        (
            ask_with(asked, RecordType::A, 4200, true),
            Transport::Udp,
            255,
            false,
        ),
        (ask(asked, RecordType::A), Transport::Tcp, 255, false),
    ];
    for (query, transport, records, truncated) in table {
        let message = reply(&view, &SHOP, &query, transport).unwrap();
        assert_eq!(message.answers.len(), records, "{query:?}");
        assert_eq!(message.truncation, truncated);
        let asked = Query::read(&query).unwrap().edns();
        assert_eq!(
            message.edns.is_some(),
            asked.is_some(),
            "EDNS stays where it was cut"
        );
        if let (Some(edns), Some(asked)) = (message.edns, asked) {
            assert_eq!(edns.max_payload(), asked.payload.max(512));
            assert_eq!(edns.flags().dnssec_ok, asked.dnssec_ok);
        }
    }
}

#[test]
fn the_order_is_drawn_anew_for_each_answer() {
    let view = large(3);
    let bytes = ask("big", RecordType::A);
    let query = Query::read(&bytes).unwrap();
    let mut random = random(7);
    let mut orders = BTreeSet::new();
    for _ in 0..200 {
        let answer = answer(&view, &SHOP, &query, Transport::Udp, &mut random).unwrap();
        assert_eq!(answer.addresses, 3);
        orders.insert(told(&Message::from_vec(&answer.bytes).unwrap()));
    }
    assert_eq!(orders.len(), 6, "all orders of three");
}

#[test]
fn an_unknown_version_of_edns_is_told_so() {
    let view = view([kubernetes("shop", "web", &["10.1.0.1"])], []);
    let mut bytes = ask_with("web", RecordType::A, 1232, false);
    let version = bytes.len() - 5;
    bytes[version] = 1;
    let message = reply(&view, &SHOP, &bytes, Transport::Udp).unwrap();
    // The library reads 16 as the other code of that number, which is in other records.
    assert_eq!(u16::from(message.response_code), 16, "BADVERS");
    assert!(message.answers.is_empty());
}

proptest! {
    #[test]
    fn no_answer_is_longer_than_its_limit(
        label in prop::collection::vec(prop::num::u8::ANY, 1..60),
        payload in any::<u16>(),
        count in 0u8..80,
        ipv6 in any::<bool>(),
    ) {
        let label: String = label.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        let wildcard = service("shop", "*.example", &[]);
        let vips = (0..count).map(|n| if ipv6 {
            vip("", &format!("fd00::{n:x}"))
        } else {
            vip("", &format!("10.0.0.{n}"))
        });
        let wildcard = Service { vips: vips.collect(), ..wildcard };
        let view = view([wildcard], []);
        let kind = if ipv6 { RecordType::AAAA } else { RecordType::A };
        for suffix in ["example", "example.shop.svc.cluster.local"] {
            let asked = ask_with(&format!("{label}.{label}.{suffix}"), kind, payload, true);
            let Some(message) = reply(&view, &SHOP, &asked, Transport::Udp) else {
                assert_eq!(count, 0);
                continue;
            };
            let all = message.answers.len() == usize::from(count);
            assert_eq!(message.truncation, !all);
        }
    }
}
