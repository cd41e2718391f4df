//! Outbound and inbound decisions on any small mesh: what is reached by tunnel is never reached in plaintext, a waypoint is never
//! passed by, and the application is reached only at the address that was connected to.
#![no_main]

use ambit_fuzz::{address, port};
use ambit_model::address::{GatewayAddress, GatewayDestination, Vip};
use ambit_model::admit::{Arrival, Inbound, admit, still_admitted};
use ambit_model::route::{OWN_PORTS, Outbound, Route, outbound};
use ambit_model::service::{Mode, Port, Service, ServiceKey};
use ambit_model::update::{Change, apply};
use ambit_model::workload::{Health, Protocol, Workload};
use ambit_model::{Identity, Text, View};
use ambit_wire::Authority;
use libfuzzer_sys::arbitrary::{self, Unstructured};

type Bytes<'a, 'b> = &'a mut Unstructured<'b>;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn key(from: Bytes<'_, '_>) -> arbitrary::Result<ServiceKey> {
    let name = from.choose(&NAMES)?;
    Ok(ServiceKey::new("ns", format!("{name}.example")))
}

fn gateway(from: Bytes<'_, '_>) -> arbitrary::Result<Option<GatewayAddress>> {
    let destination = match from.int_in_range(0..=3)? {
        0 => GatewayDestination::Hostname(key(from)?),
        1 => GatewayDestination::Address {
            network: Text::empty(),
            address: address(from)?,
        },
        _ => return Ok(None),
    };
    Ok(Some(GatewayAddress {
        destination,
        hbone_port: port(from)?,
    }))
}

fn ports(from: Bytes<'_, '_>) -> arbitrary::Result<Vec<Port>> {
    let target = [0, 80, 8080, 15008];
    let count = from.int_in_range(0..=2)?;
    let mut one = || {
        Ok(Port {
            service_port: port(from)?,
            target_port: *from.choose(&target)?,
        })
    };
    (0..count).map(|_| one()).collect()
}

fn workload(from: Bytes<'_, '_>) -> arbitrary::Result<Option<Workload>> {
    let name = *from.choose(&NAMES)?;
    let Ok(identity) = Identity::new("td", "ns", name) else {
        return Ok(None);
    };
    let mut workload = Workload::new(name.into(), name.into(), identity);
    for _ in 0..from.int_in_range(0..=2)? {
        workload.addresses.push(address(from)?);
    }
    workload.protocol = *from.choose(&[Protocol::Hbone, Protocol::Tcp])?;
    workload.health = *from.choose(&[Health::Healthy, Health::Unhealthy])?;
    workload.waypoint = gateway(from)?;
    for _ in 0..from.int_in_range(0..=2)? {
        workload.services.insert(key(from)?, ports(from)?);
    }
    Ok(Some(workload))
}

fn service(from: Bytes<'_, '_>) -> arbitrary::Result<Service> {
    let mut service = Service::new(key(from)?);
    for _ in 0..from.int_in_range(0..=2)? {
        service
            .vips
            .push(Vip::single(Text::empty(), address(from)?));
    }
    service.ports = ports(from)?;
    service.waypoint = gateway(from)?;
    service.load_balancing.mode =
        *from.choose(&[Mode::Standard, Mode::Failover, Mode::Passthrough])?;
    Ok(service)
}

fn check_outbound(view: &View, source: &Workload, from: Bytes<'_, '_>) -> arbitrary::Result<()> {
    let destination = (address(from)?, port(from)?).into();
    let mut seed: u64 = from.arbitrary()?;
    let mut random = || {
        seed = seed
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        seed
    };
    let connection = Outbound {
        source,
        destination,
        network: "",
        avoid: &[],
    };
    let addressed = view.service_at("", destination.ip(), "ns");
    match outbound(view, &connection, &mut random) {
        Ok(Route::Plain {
            to,
            upstream,
            service,
            ..
        }) => {
            assert!(upstream.is_none_or(|upstream| upstream.protocol == Protocol::Tcp));
            assert!(
                service
                    .as_ref()
                    .is_none_or(|service| service.waypoint.is_none())
            );
            assert_eq!(service.as_ref(), addressed);
            if addressed.is_none() {
                assert_eq!(to.port(), destination.port());
            }
        }
        Ok(Route::Tunnel(tunnel)) => {
            let own = &tunnel.upstream;
            assert!(tunnel.expected.contains(&own.identity));
            assert!(own.owns(tunnel.next_hop.ip()));
            let waypoint = addressed.is_some_and(|service| service.waypoint.is_some());
            assert!(tunnel.via_waypoint || tunnel.beyond.is_some() || !waypoint);
            if tunnel.via_waypoint {
                assert_eq!(tunnel.authority, destination.into());
            }
        }
        Ok(Route::Named(named)) => {
            assert!(named.upstream().addresses.is_empty());
            assert!(!named.hostname().is_empty());
            let resolved = named.at([192, 0, 2, 1].into());
            assert!(!matches!(resolved, Route::Named(_)));
        }
        Err(_) => {}
    }
    Ok(())
}

fn check_inbound(view: &View, local: &Workload, from: Bytes<'_, '_>) -> arbitrary::Result<()> {
    let connection = (address(from)?, 15008).into();
    let authority = if from.arbitrary()? {
        Authority::from(std::net::SocketAddr::from((address(from)?, port(from)?)))
    } else {
        let Ok(host) = Authority::host(&key(from)?.hostname, port(from)?) else {
            return Ok(());
        };
        host
    };
    let Ok(peer) = Identity::new("td", "ns", "peer") else {
        return Ok(());
    };
    let inbound = Inbound {
        local: &local.uid,
        connection,
        peer_address: (address(from)?, 40000).into(),
        arrival: Arrival::Tunnel {
            authority: &authority,
            peer: &peer,
        },
    };
    if let Ok(admitted) = admit(view, &inbound) {
        assert_eq!(admitted.upstream().ip(), connection.ip());
        assert!(!OWN_PORTS.contains(&admitted.upstream().port()));
        assert_ne!(admitted.upstream().port(), 0);
        assert_eq!(still_admitted(view, &admitted), Ok(()));
    }
    Ok(())
}

fn run(from: Bytes<'_, '_>) -> arbitrary::Result<()> {
    let mut changes = Vec::new();
    for _ in 0..from.int_in_range(1..=6)? {
        changes.extend(workload(from)?.map(Change::UpsertWorkload));
        changes.push(Change::UpsertService(service(from)?));
    }
    let view = apply(&View::default(), changes);
    let mut workloads: Vec<_> = view.workloads().cloned().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let local = from.choose(&workloads)?;
    check_outbound(&view, local, from)?;
    check_inbound(&view, local, from)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = run(&mut Unstructured::new(bytes));
});
