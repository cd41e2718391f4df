//! What the size of the mesh costs a node proxy: time until it is ready, memory of one workload, and one change.
//!
//! # Theory of operation
//! A scripted control plane stands in the controller's place and tells a real node proxy of meshes of several sizes. For each the
//! proxy is started anew: how long until it says that it is ready, how much memory it then has above that of an empty mesh, and how
//! much CPU a thousand changes of single pods take, each a push of its own. Beside that the same changes are applied to
//! the same mesh in this process, to see the store alone. A cost that does not grow with the mesh has equal columns.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ambit_model::intern::Interned;
use ambit_model::update::{self, Change};
use ambit_model::view::View;
use ambit_proto::discovery::{DeltaDiscoveryResponse, Resource};
use ambit_proto::istio::workload::{
    Address, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, WorkloadStatus,
    WorkloadType, address,
};
use ambit_proto::type_url::ADDRESS;
use ambit_tests::discovery::Discovery;
use ambit_tests::expect::eventually_true;
use ambit_tests::http;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::World;
use ambit_xds::{Update, decode};
use anyhow::{Context, Result, ensure};
use prost::Message;

use crate::report::{Arm, Better, Table};
use crate::window::pause;

/// Meshes, in workloads. There is a service for every ten of them.
const SIZES: [(Arm, usize); 3] = [("500", 500), ("5,000", 5_000), ("50,000", 50_000)];
/// Workloads behind one service.
const BEHIND: usize = 10;
/// Changes that are pushed, and applied in this process.
const CHANGES: usize = 1000;
/// The proxy under test, and where it says that it is ready.
const PROXY: &str = "ztunnel-n1";
const NODE: &str = "n1";
const READY: u16 = 15021;
/// The longest that a mesh may take to be loaded, and that memory may take to settle.
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory has settled when it has fallen no further for that long. The allocator gives back what was needed for the moment
/// only within ten seconds.
const SETTLED: Duration = Duration::from_secs(12);

/// Measures every size in each of `rounds` rounds.
///
/// # Errors
///
/// Not root, or the programs are not built.
pub fn measure(rounds: usize, say: impl Fn(&str)) -> Result<Table> {
    let arms = SIZES.map(|(arm, _)| arm);
    let mut table = Table::new(
        "One node proxy, by workloads in the mesh",
        &arms,
        arms[2],
        &arms[..1],
    );
    let plan = Plan::new("scale")
        .namespace("mesh", &[AMBIENT])
        .pod("mesh/client", 1)
        .setting("RUST_LOG", "warn");
    let world = World::start(plan)?;
    world.kill("controller");
    for round in 1..=rounds {
        let empty = load(&world, Vec::new())?.resident;
        for (arm, size) in SIZES {
            say(&format!("round {round} of {rounds}: {arm} workloads"));
            let loaded = load(&world, mesh(size))?;
            let memory = loaded.resident.saturating_sub(empty) as f64;
            let seconds = loaded.ready.as_secs_f64();
            table.add("until ready, s", Better::Less, arm, seconds);
            table.add(
                "resident, MiB",
                Better::Less,
                arm,
                loaded.resident as f64 / (1 << 20) as f64,
            );
            let each = memory / size as f64;
            table.add("resident for each workload, bytes", Better::Less, arm, each);
            let pushed = micros(pushed(&world, &loaded.discovery, size)?);
            table.add(
                "CPU of the proxy for one change, µs",
                Better::Less,
                arm,
                pushed,
            );
            let stored = micros(stored(size)?);
            table.add(
                "the store alone for one change, µs",
                Better::Less,
                arm,
                stored,
            );
        }
    }
    Ok(table)
}

/// One proxy that knows a mesh.
struct Loaded {
    discovery: Discovery,
    ready: Duration,
    resident: u64,
}

/// Starts the proxy anew on this mesh.
fn load(world: &World, mesh: Vec<Resource>) -> Result<Loaded> {
    world.kill(PROXY);
    let discovery = Discovery::serve(world, vec![(ADDRESS, mesh)])?;
    let ready_at = SocketAddr::from((Ipv4Addr::LOCALHOST, READY));
    let begin = Instant::now();
    world.start_again(PROXY);
    let mut ready = Duration::ZERO;
    eventually_true(PATIENCE, "the proxy is ready", || {
        let answer = http::get(world.netns(NODE), ready_at, "/healthz/ready");
        ready = begin.elapsed();
        answer.is_ok_and(|answer| answer.status.is_success())
    });
    Ok(Loaded {
        discovery,
        ready,
        resident: settled(world)?,
    })
}

/// Memory once it falls no further.
fn settled(world: &World) -> Result<u64> {
    let now = || world.programs().resident(PROXY).context("a running proxy");
    let (mut least, mut since) = (now()?, Instant::now());
    let begin = Instant::now();
    while since.elapsed() < SETTLED && begin.elapsed() < PATIENCE {
        pause(Duration::from_millis(250));
        let seen = now()?;
        // A hundredth more or less is noise.
        if seen < least - least / 100 {
            (least, since) = (seen, Instant::now());
        }
    }
    Ok(least)
}

/// CPU of the proxy for one of a thousand changes.
fn pushed(world: &World, discovery: &Discovery, size: usize) -> Result<Duration> {
    let cpu = || world.programs().cpu(PROXY).context("a running proxy");
    let before = cpu()?;
    for (index, resource) in changes(size).enumerate() {
        discovery.push(DeltaDiscoveryResponse {
            type_url: ADDRESS.to_owned(),
            nonce: format!("change {index}"),
            resources: vec![resource],
            ..DeltaDiscoveryResponse::default()
        });
    }
    let last = format!("change {}", CHANGES - 1);
    eventually_true(PATIENCE, "every change is acknowledged", || {
        let told = discovery.told(ADDRESS);
        told.iter().any(|told| told.response_nonce == last)
    });
    let refused = discovery.told(ADDRESS);
    let refused = refused.iter().filter(|told| told.error_detail.is_some());
    ensure!(refused.count() == 0, "the proxy refuses what it is told");
    Ok((cpu()? - before) / u32::try_from(CHANGES)?)
}

/// Time of one of the same changes in the store.
fn stored(size: usize) -> Result<Duration> {
    let mut interned = Interned::default();
    let mut decoded = |resources: Vec<Resource>| {
        let resources = resources.into_iter().map(|resource| ambit_xds::Resource {
            name: resource.name.into(),
            version: resource.version,
            payload: resource.resource.unwrap_or_default().value.into(),
        });
        let update = Update {
            type_url: ADDRESS.to_owned(),
            resources: resources.collect(),
            removed: Vec::new(),
        };
        let (changes, rejected) = decode::changes(update, &mut interned);
        assert!(rejected.is_empty(), "{rejected:?}");
        changes
    };
    let mut view = update::apply(&View::default(), decoded(mesh(size)));
    let changes: Vec<Change> = decoded(changes(size).collect());
    let begin = Instant::now();
    for change in changes {
        view = update::apply(&view, [change]);
    }
    Ok(begin.elapsed() / u32::try_from(CHANGES)?)
}

/// All of a mesh.
fn mesh(size: usize) -> Vec<Resource> {
    let workloads = (0..size).map(|number| workload(number, WorkloadStatus::Healthy));
    workloads.chain((0..size / BEHIND).map(service)).collect()
}

/// Pods all over the mesh, each no longer ready and ready again.
fn changes(size: usize) -> impl Iterator<Item = Resource> {
    (0..CHANGES).map(move |index| {
        let status = if index % 2 == 0 {
            WorkloadStatus::Unhealthy
        } else {
            WorkloadStatus::Healthy
        };
        // 7919 is a prime, so that it comes by everywhere.
        workload(index / 2 * 7919 % size, status)
    })
}

/// A pod as a cluster has them: what is its own, and what it shares with those of its deployment.
fn workload(number: usize, status: WorkloadStatus) -> Resource {
    let (app, namespace) = of(number / BEHIND);
    let name = format!("{app}-5d78c9869d-{number:05x}");
    let ports = PortList {
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            ..Port::default()
        }],
    };
    let key = format!("{namespace}/{app}.{namespace}.svc.cluster.local");
    let octets = u32::try_from(number).expect("a small number").to_be_bytes();
    let workload = Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name,
        namespace: namespace.clone(),
        addresses: vec![vec![10, octets[1] + 16, octets[2], octets[3]].into()],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: app.clone(),
        node: format!("node-{}.example.internal", number % 500),
        canonical_name: app.clone(),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Deployment.into(),
        workload_name: app,
        cluster_id: "Kubernetes".to_owned(),
        services: BTreeMap::from([(key, ports)]),
        status: status.into(),
        ..Workload::default()
    };
    let name = workload.uid.clone();
    resource(name, address::Type::Workload(workload))
}

fn service(number: usize) -> Resource {
    let (app, namespace) = of(number);
    let octets = u32::try_from(number).expect("a small number").to_be_bytes();
    let hostname = format!("{app}.{namespace}.svc.cluster.local");
    let name = format!("{namespace}/{hostname}");
    let service = Service {
        name: app,
        namespace,
        hostname,
        addresses: vec![NetworkAddress {
            address: vec![10, 96, octets[2], octets[3]].into(),
            ..NetworkAddress::default()
        }],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            ..Port::default()
        }],
        ..Service::default()
    };
    resource(name, address::Type::Service(service))
}

/// Name and namespace of a deployment.
fn of(number: usize) -> (String, String) {
    (format!("app-{number}"), format!("team-{}", number % 100))
}

fn resource(name: String, of: address::Type) -> Resource {
    let message = Address { r#type: Some(of) }.encode_to_vec();
    Resource {
        name,
        // As long as the digests that control planes send.
        version: format!("{:016x}", message.len()),
        resource: Some(prost_types::Any {
            type_url: ADDRESS.to_owned(),
            value: message,
        }),
        ..Resource::default()
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
