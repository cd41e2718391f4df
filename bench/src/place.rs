//! Where load runs: pairs of pods without a mesh, behind the limit, in the mesh, in a mesh whose
//! node proxies are somebody else's, and with an Envoy beside each pod.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use ambit_tests::envoy;
use ambit_tests::envoy::sidecar::{Outbound, Protocol, Sidecar};
use ambit_tests::expect::eventually_true;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::programs::Recipe;
use ambit_tests::world::{START, World};
use anyhow::{Context, Result, ensure};

use crate::load;
use crate::relay::MARK;
use crate::report::Arm;

/// Nothing between client and server.
pub const NONE: Arm = "no mesh";
/// The bare relay.
pub const LIMIT: Arm = "limit";
/// Istio's node proxy under our agent and controller.
pub const ISTIO: Arm = "istio ztunnel";
/// Mutual TLS between an Envoy beside each pod, as Istio had it before it was ambient.
pub const SIDECARS: Arm = "envoy sidecars";
/// Ours.
pub const AMBIT: Arm = "ambit";

/// The variable that names Istio's node proxy, if it is to be compared.
const ISTIO_PROGRAM: &str = "ISTIO_ZTUNNEL";
/// Where the relay listens in a pod.
const RELAY: u16 = 15001;
/// Threads of the relay, as many as a node proxy has by default on two CPUs.
const THREADS: usize = 2;
/// Pods in the mesh, those under load included: the number at which memory is compared.
const PODS: usize = 10;
/// Ports that load uses.
const USED: [u16; 4] = [load::ECHO, load::SINK, load::SOURCE, load::HTTP];
/// Nodes under load.
const NODES: u64 = 2;
/// Pods of an arm: a client, a server on the other node, and one on the client's.
const NAMES: [&str; 3] = ["client", "server", "near"];

/// Worlds with load's servers in them.
#[derive(Debug)]
pub struct Place {
    ours: World,
    istio: Option<World>,
    /// The namespace `side` of ours has its Envoys.
    sidecars: bool,
}

/// Whether, and how, Envoys stand beside pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Not at all.
    Nothing,
    /// As in Istio by default, without an access log: so do the node proxies here.
    Silent,
    /// With the access log on.
    Logging,
}

impl Beside {
    /// What can be here: nothing without Envoy's program, which is said.
    #[must_use]
    pub fn possible(self, say: fn(&str)) -> Self {
        match envoy::program() {
            Err(error) if self != Self::Nothing => {
                say(&format!("no comparison with Envoy sidecars: {error:#}"));
                Self::Nothing
            }
            _ => self,
        }
    }
}

impl Place {
    /// Makes everything.
    ///
    /// # Errors
    ///
    /// Not root, or the programs are not built.
    pub fn make(beside: Beside) -> Result<Self> {
        let ours = mesh("bench").namespace("plain", &[]).namespace("bare", &[]);
        let ours = trio(trio(ours, "plain"), "bare");
        let ours = match beside {
            Beside::Nothing => ours,
            _ => ten(ours.namespace("side", &[]), "side"),
        };
        let istio = std::env::var_os(ISTIO_PROGRAM).filter(|program| !program.is_empty());
        let istio = istio.map(PathBuf::from);
        let istio = istio.map(|program| World::start(mesh("istio").node_proxy(&program)));
        let place = Self {
            ours: World::start(ours)?,
            istio: istio.transpose()?,
            sidecars: beside != Beside::Nothing,
        };
        for arm in place.arms() {
            for name in NAMES {
                many_ports(place.pod(arm, name))?;
            }
        }
        place.limit()?;
        if place.sidecars {
            place.sidecars(beside == Beside::Logging)?;
        }
        for arm in place.arms() {
            for name in ["server", "near"] {
                load::serve(place.pod(arm, name))?;
            }
        }
        if place.sidecars {
            place.encrypted()?;
        }
        Ok(place)
    }

    /// What can be compared here, in the order in which it takes turns.
    #[must_use]
    pub fn arms(&self) -> Vec<Arm> {
        let mut arms = vec![NONE, LIMIT];
        arms.extend(self.istio.as_ref().map(|_| ISTIO));
        arms.extend(self.sidecars.then_some(SIDECARS));
        arms.push(AMBIT);
        arms
    }

    /// A pod of an arm: `client`, `server` on the other node, `near` on the client's.
    #[must_use]
    pub fn pod(&self, arm: Arm, name: &str) -> &Pod {
        let namespace = match arm {
            NONE => "plain",
            LIMIT => "bare",
            SIDECARS => "side",
            _ => "mesh",
        };
        self.world(arm).pod(&format!("{namespace}/{name}"))
    }

    /// CPU time used so far by what stands between the pods of an arm.
    #[must_use]
    pub fn cpu(&self, arm: Arm) -> Duration {
        self.programs(arm)
            .filter_map(|name| self.world(arm).programs().cpu(&name))
            .sum()
    }

    /// Memory of the same on both nodes, in bytes: what is a program's own of each, and what programs of one node
    /// share once for each node.
    #[must_use]
    pub fn memory(&self, arm: Arm) -> f64 {
        let each = self
            .programs(arm)
            .filter_map(|name| self.world(arm).programs().memory(&name));
        let (own, shared) = each.fold((0, 0), |(own, shared), one| {
            (own + one.own, shared.max(one.resident - one.own))
        });
        (own + NODES * shared) as f64
    }

    /// What of it is the programs' own, and not their text, which the kernel maps and can take back.
    #[must_use]
    pub fn own_memory(&self, arm: Arm) -> f64 {
        let own = self
            .programs(arm)
            .filter_map(|name| Some(self.world(arm).programs().memory(&name)?.own));
        own.sum::<u64>() as f64
    }

    fn programs(&self, arm: Arm) -> impl Iterator<Item = String> {
        let kind = match arm {
            NONE => "nothing-",
            LIMIT => "relay-",
            SIDECARS => "envoy-side-",
            _ => "ztunnel-",
        };
        let names = self.world(arm).programs().names();
        names.into_iter().filter(move |name| name.starts_with(kind))
    }

    fn world(&self, arm: Arm) -> &World {
        self.istio
            .as_ref()
            .filter(|_| arm == ISTIO)
            .unwrap_or(&self.ours)
    }

    /// Puts an Envoy beside each of ten pods.
    fn sidecars(&self, access_log: bool) -> Result<()> {
        let inbound: Vec<_> = USED.map(|port| (port, Protocol::Tcp)).into();
        let called = ["server", "near"].map(|name| self.pod(SIDECARS, name));
        let outbound = called.iter().flat_map(|pod| {
            USED.map(|port| Outbound {
                name: format!("{}.side.svc.cluster.local", pod.path().replace("side/", "")),
                address: pod.ipv4().into(),
                port,
                protocol: Protocol::Tcp,
                endpoints: (vec![(*pod).clone()], port),
            })
        });
        let sidecar = Sidecar {
            access_log,
            inbound,
            outbound: outbound.collect(),
        };
        let pods = self
            .ours
            .pods()
            .filter(|pod| pod.path().starts_with("side/"));
        self.ours
            .start_sidecars(pods.map(|pod| (pod, sidecar.clone())))
    }

    /// What is compared with encryption must encrypt.
    fn encrypted(&self) -> Result<()> {
        let [client, server] = ["client", "server"].map(|name| self.pod(SIDECARS, name));
        load::ping(&mut load::connect(client, server, load::ECHO)?)?;
        let made = [
            self.ours.handshakes(client)?[1],
            self.ours.handshakes(server)?[0],
        ];
        ensure!(!made.contains(&0), "sidecars without mutual TLS: {made:?}");
        Ok(())
    }

    /// Puts relays and redirect rules into the pods behind the limit.
    fn limit(&self) -> Result<()> {
        for name in NAMES {
            let pod = self.pod(LIMIT, name);
            let args = pod.command("true");
            let netns = args
                .get_args()
                .nth(2)
                .context("a namespace")?
                .to_string_lossy()
                .into_owned();
            let recipe = Recipe {
                netns: netns.clone(),
                program: std::env::current_exe()?,
                arguments: [
                    "relay",
                    "--port",
                    &RELAY.to_string(),
                    "--threads",
                    &THREADS.to_string(),
                ]
                .map(str::to_owned)
                .into(),
                environment: BTreeMap::new(),
            };
            self.ours
                .programs()
                .start(&format!("relay-{name}"), recipe)?;
            redirect(pod)?;
        }
        // The relay answers, with a refusal, before anything else listens behind it.
        eventually_true(START, "the relays run", || {
            let pod = self.pod(LIMIT, "client");
            pod.connect(&format!("127.0.0.1:{RELAY}")).is_ok()
        });
        Ok(())
    }
}

/// A mesh of ten pods.
fn mesh(name: &str) -> Plan {
    let plan = Plan::new(name)
        .namespace("mesh", &[AMBIENT])
        .setting("RUST_LOG", "warn");
    ten(plan, "mesh")
}

/// The pods of an arm, and idle ones.
fn ten(plan: Plan, namespace: &str) -> Plan {
    (NAMES.len()..PODS).fold(trio(plan, namespace), |plan, number| {
        plan.pod(&format!("{namespace}/idle-{number}"), 1 + number % 2)
    })
}

/// The pods of an arm.
fn trio(plan: Plan, namespace: &str) -> Plan {
    NAMES.iter().fold(plan, |plan, name| {
        let node = if *name == "server" { 2 } else { 1 };
        plan.pod(&format!("{namespace}/{name}"), node)
    })
}

/// Redirects load's ports to the relay: what leaves the pod, and what comes to it.
fn redirect(pod: &Pod) -> Result<()> {
    let ports = format!("{}-{}", load::PORTS.start, load::PORTS.end - 1);
    let rules = format!(
        "table ip bare {{
            chain leaving {{
                type nat hook output priority -100;
                meta mark {MARK} accept
                tcp dport {ports} redirect to :{RELAY}
            }}
            chain coming {{
                type nat hook prerouting priority -100;
                iifname != \"lo\" tcp dport {ports} redirect to :{RELAY}
            }}
        }}"
    );
    let mut child = pod
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("stdin")?
        .write_all(rules.as_bytes())?;
    ensure!(child.wait()?.success(), "nft refuses the redirect rules");
    Ok(())
}

/// Thousands of short connections a second need ports again before a minute is over.
pub(crate) fn many_ports(pod: &Pod) -> Result<()> {
    let mut command: Command = pod.command("sysctl");
    command.args([
        "-qw",
        "net.ipv4.tcp_tw_reuse=1",
        "net.ipv4.ip_local_port_range=1024 14999",
    ]);
    ensure!(command.status()?.success(), "sysctl");
    Ok(())
}
