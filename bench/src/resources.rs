//! What the mesh takes of a node: one node proxy for all of its pods (and a waypoint), beside one Envoy for each.
//!
//! # Theory of operation
//!
//! On one node there are a number of pods, on another a client that sends requests to all of them at a fixed rate,
//! which does not depend on how many they are nor on who stands between. The same pods are there three times: without a
//! mesh, each with an Envoy sidecar ([`ambit_tests::envoy::sidecar`]), and in our mesh; so are the ways that a
//! request goes: as bytes of a connection between pods (L4), and as a request to a service that a proxy reads and
//! routes (HTTP): the sidecars themselves, or a waypoint. All take turns in rounds. [`findings`] holds the numbers,
//! [`page`] makes the text of them.
//!
//! Memory is that of the node with the pods, CPU time that of all proxies on the way.

use std::time::Duration;

use ambit_tests::envoy::sidecar::{Outbound, Protocol, Sidecar};
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::{Family, Pod};
use ambit_tests::world::World;
use anyhow::{Context, Result, ensure};

use crate::http::{self, Client};
use crate::paced::{self, Pace};
use crate::place::many_ports;
use crate::window::{pause, settle};

use findings::{Findings, Number, Way, What};

pub mod findings;
pub mod page;
mod verdict;

/// Where the application listens: for what is called bytes, and for what is called HTTP. It is the same.
const BYTES: u16 = 8080;
const HTTP: u16 = 8081;
/// Connections, if there are fewer pods: as many as in Istio's own measurements.
const CONNECTIONS: usize = 4;
/// How often a way is tried whose rate is not kept: something else may have had the machine.
const TRIES: usize = 3;
const MIB: f64 = 1024.0 * 1024.0;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Rounds of all ways.
    pub rounds: usize,
    /// Of each way in each round.
    pub during: Duration,
    /// Requests a second, over all pods.
    pub rate: f64,
    /// How many pods are on the node, one measurement after the other.
    pub pods: Vec<usize>,
}

/// Measures everything.
///
/// # Errors
///
/// Not root, or a program is missing: without Envoy there is nothing to compare.
pub fn measure(effort: &Effort, say: fn(&str)) -> Result<Findings> {
    let mut findings = Findings::new(effort)?;
    for pods in &effort.pods {
        let node = Node::make(*pods)?;
        for way in Way::MESHES {
            node.memory(way, [What::Idle, What::IdleShared], &mut findings);
        }
        for round in 1..=effort.rounds {
            say(&format!("{pods} pods, round {round} of {}", effort.rounds));
            node.idle(effort.during, &mut findings);
            for way in Way::ALL {
                node.load(way, effort, &mut findings)
                    .with_context(|| way.name())?;
            }
        }
        for way in Way::MESHES {
            node.memory(way, [What::After, What::AfterShared], &mut findings);
        }
        node.encrypted()?;
    }
    Ok(findings)
}

/// A world with so many pods on its second node.
struct Node {
    world: World,
    pods: usize,
}

impl Node {
    fn make(pods: usize) -> Result<Self> {
        let world = World::start(plan(pods))?;
        let node = Self { world, pods };
        for namespace in ["plain", "side", "mesh"] {
            many_ports(node.world.pod(&format!("{namespace}/client")))?;
            for server in node.servers(namespace) {
                http::serve(server, BYTES)?;
                http::serve(server, HTTP)?;
            }
        }
        node.sidecars()?;
        settle();
        Ok(node)
    }

    fn servers(&self, namespace: &str) -> Vec<&Pod> {
        let path = |number| format!("{namespace}/server-{number}");
        (0..self.pods)
            .map(|number| self.world.pod(&path(number)))
            .collect()
    }

    /// An Envoy beside each pod and beside the client. As all know the service, all are told of it; of pods by
    /// address only the client is.
    fn sidecars(&self) -> Result<()> {
        let (client, servers) = (self.world.pod("side/client"), self.servers("side"));
        let service = Outbound {
            name: "shop.side".to_owned(),
            address: client.resolve("shop.side:80", Family::V4).ip(),
            port: 80,
            protocol: Protocol::Http,
            endpoints: (servers.iter().copied().cloned().collect(), HTTP),
        };
        let of_server = Sidecar {
            inbound: vec![(BYTES, Protocol::Tcp), (HTTP, Protocol::Http)],
            outbound: vec![service],
            ..Sidecar::default()
        };
        let mut of_client = of_server.clone();
        of_client
            .outbound
            .extend(servers.iter().map(|pod| Outbound {
                name: format!("{}.svc.cluster.local", pod.path().replace('/', ".")),
                address: pod.ipv4().into(),
                port: BYTES,
                protocol: Protocol::Tcp,
                endpoints: (vec![(*pod).clone()], BYTES),
            }));
        let beside = servers.into_iter().map(|pod| (pod, of_server.clone()));
        self.world
            .start_sidecars(beside.chain([(client, of_client)]))
    }

    /// Sidecars that do not encrypt would be no comparison.
    fn encrypted(&self) -> Result<()> {
        for pod in self.servers("side") {
            let [made, _] = self.world.handshakes(pod)?;
            ensure!(
                made >= 2,
                "{}: {made} handshakes, not one of each kind",
                pod.path()
            );
        }
        Ok(())
    }

    /// Programs of the node with the pods, and all programs on the way.
    fn programs(&self, way: Way) -> (Vec<String>, Vec<String>) {
        let all = self.world.programs().names();
        let pick = |wanted: &dyn Fn(&str) -> bool| {
            all.iter().filter(|name| wanted(name)).cloned().collect()
        };
        let waypoint = |name: &str| way == Way::Waypoint && name.starts_with("waypoint-");
        match way {
            Way::None => (Vec::new(), Vec::new()),
            Way::SidecarsBytes | Way::SidecarsHttp => (
                pick(&|name| name.starts_with("envoy-side-server")),
                pick(&|name| name.starts_with("envoy-side-")),
            ),
            Way::Node | Way::Waypoint => (
                pick(&|name| ["agent-n2", "ztunnel-n2"].contains(&name) || waypoint(name)),
                pick(&|name| {
                    name.starts_with("agent-") || name.starts_with("ztunnel-") || waypoint(name)
                }),
            ),
        }
    }

    /// All pages of each program, and the same with pages that programs share counted once.
    fn memory(&self, way: Way, [resident, shared_once]: [What; 2], findings: &mut Findings) {
        let (here, _) = self.programs(way);
        let each: Vec<_> = here
            .iter()
            .filter_map(|name| self.world.programs().memory(name))
            .collect();
        let all: u64 = each.iter().map(|one| one.resident).sum();
        let own: u64 = each.iter().map(|one| one.own).sum();
        // Sidecars are one program; node proxy, agent and waypoint share nothing worth to count.
        let shared = each.iter().map(|one| one.resident - one.own);
        let shared: u64 = match way {
            Way::SidecarsBytes | Way::SidecarsHttp => shared.max().unwrap_or_default(),
            _ => shared.sum(),
        };
        findings.add(self.number(way, resident), all as f64 / MIB);
        findings.add(self.number(way, shared_once), (own + shared) as f64 / MIB);
    }

    fn number(&self, way: Way, what: What) -> Number {
        Number {
            pods: self.pods,
            way,
            what,
        }
    }

    fn cpu(&self, way: Way) -> Duration {
        let (_, all) = self.programs(way);
        all.iter()
            .filter_map(|name| self.world.programs().cpu(name))
            .sum()
    }

    /// CPU time without any request: of all at once.
    fn idle(&self, during: Duration, findings: &mut Findings) {
        let before = Way::MESHES.map(|way| self.cpu(way));
        pause(during);
        for (way, before) in Way::MESHES.into_iter().zip(before) {
            let used = self.cpu(way).saturating_sub(before);
            findings.add(
                self.number(way, What::IdleCores),
                used.as_secs_f64() / during.as_secs_f64(),
            );
        }
    }

    fn load(&self, way: Way, effort: &Effort, findings: &mut Findings) -> Result<()> {
        let (namespace, service) = match way {
            Way::None => ("plain", None),
            Way::SidecarsBytes => ("side", None),
            Way::SidecarsHttp => ("side", Some("shop.side:80")),
            Way::Node => ("mesh", None),
            Way::Waypoint => ("mesh", Some("shop.mesh:80")),
        };
        let client = self.world.pod(&format!("{namespace}/client"));
        let pace = Pace {
            rate: effort.rate,
            during: effort.during,
        };
        let meter = || self.cpu(way);
        let paced = || {
            let connections = (0..self.pods.max(CONNECTIONS)).map(|index| {
                let pod = format!("{namespace}/server-{}:{BYTES}", index % self.pods);
                Client::connect(client, service.unwrap_or(&pod))
            });
            let connections = connections.collect::<std::io::Result<Vec<_>>>()?;
            paced::run(connections, pace, &meter, Client::request)
        };
        let mut tries = (0..TRIES).map(|_| paced());
        let kept = tries.find(|paced| !paced.as_ref().is_ok_and(|paced| !paced.kept_up(pace)));
        let paced = kept.context("the machine is too busy or too slow for this rate")??;
        let cores = paced.window.cpu.as_secs_f64() / paced.window.took.as_secs_f64();
        let micros =
            |thousandths| Ok::<_, anyhow::Error>(paced.at(thousandths)?.as_secs_f64() * 1e6);
        findings.add(self.number(way, What::Half), micros(500)?);
        findings.add(self.number(way, What::Most), micros(990)?);
        if way != Way::None {
            findings.add(self.number(way, What::Cores), cores);
        }
        Ok(())
    }
}

/// A client on the first node; the pods, three times, and a waypoint for some of them, on the second.
fn plan(pods: usize) -> Plan {
    let mut plan = Plan::new("res")
        .namespace("mesh", &[AMBIENT])
        .namespace("side", &[])
        .namespace("plain", &[])
        .setting("RUST_LOG", "warn");
    for namespace in ["mesh", "side", "plain"] {
        plan = plan.pod(&format!("{namespace}/client"), 1);
        for number in 0..pods {
            plan = plan.pod_with(&format!("{namespace}/server-{number}"), 2, |pod| {
                pod.label("app", "shop").service_account("shop")
            });
        }
    }
    let http: &[(&str, u16, u16)] = &[("http", 80, HTTP)];
    plan.service("side/shop", "shop", http)
        .service("mesh/shop", "shop", http)
        .labelled("istio.io/use-waypoint", "waypoint")
        .waypoint("mesh/waypoint", 2, "service")
}
