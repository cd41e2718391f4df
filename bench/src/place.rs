//! Where load runs: one world with a pair of pods without a mesh, one behind the limit, one in the
//! mesh.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use ambit_tests::expect::eventually_true;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::programs::Recipe;
use ambit_tests::world::{START, World};
use anyhow::{Context, Result, ensure};

use crate::load;
use crate::relay::MARK;

/// Where the relay listens in a pod.
const RELAY: u16 = 15001;
/// Threads of the relay, as many as a node proxy has by default on two CPUs.
const THREADS: usize = 2;
/// Pods in the mesh, those under load included: the number at which memory is compared.
const PODS: usize = 10;

/// What stands between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arm {
    /// Nothing.
    Plain,
    /// The bare relay.
    Limit,
    /// The mesh.
    Mesh,
}

impl Arm {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Limit, Self::Mesh];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "no mesh",
            Self::Limit => "limit",
            Self::Mesh => "ambit",
        }
    }

    fn namespace(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Limit => "bare",
            Self::Mesh => "mesh",
        }
    }
}

/// A world with load's servers in it.
#[derive(Debug)]
pub struct Place {
    world: World,
}

impl Place {
    /// Makes everything.
    ///
    /// # Errors
    ///
    /// Not root, or the programs are not built.
    pub fn make() -> Result<Self> {
        let mut plan = Plan::new("bench")
            .namespace("plain", &[])
            .namespace("bare", &[])
            .namespace("mesh", &[AMBIENT])
            .setting("RUST_LOG", "warn");
        for arm in Arm::ALL {
            let namespace = arm.namespace();
            plan = plan
                .pod(&format!("{namespace}/client"), 1)
                .pod(&format!("{namespace}/server"), 2)
                .pod(&format!("{namespace}/near"), 1);
        }
        for number in 3..PODS {
            plan = plan.pod(&format!("mesh/idle-{number}"), 1 + number % 2);
        }
        let place = Self {
            world: World::start(plan)?,
        };
        for pod in place.world.pods() {
            many_ports(pod)?;
        }
        place.limit()?;
        for arm in Arm::ALL {
            for name in ["server", "near"] {
                load::serve(place.pod(arm, name))?;
            }
        }
        Ok(place)
    }

    /// A pod of an arm: `client`, `server` on the other node, `near` on the client's.
    #[must_use]
    pub fn pod(&self, arm: Arm, name: &str) -> &Pod {
        self.world.pod(&format!("{}/{name}", arm.namespace()))
    }

    /// The world, for its programs' memory and time.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Puts relays and redirect rules into the pods behind the limit.
    fn limit(&self) -> Result<()> {
        for name in ["client", "server", "near"] {
            let pod = self.pod(Arm::Limit, name);
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
            self.world
                .programs()
                .start(&format!("relay-{name}"), recipe)?;
            redirect(pod)?;
        }
        // The relay answers, with a refusal, before anything else listens behind it.
        eventually_true(START, "the relays run", || {
            let pod = self.pod(Arm::Limit, "client");
            pod.connect(&format!("127.0.0.1:{RELAY}")).is_ok()
        });
        Ok(())
    }
}

/// Redirects load's ports to the relay: what leaves the pod, and what comes to it.
fn redirect(pod: &Pod) -> Result<()> {
    let ports = format!("{}-{}", load::PORTS.start, load::PORTS.end - 1);
    let rules = format!(
        "table ip bare {{
            chain leaving {{
                type nat hook output priority dstnat;
                meta mark {MARK} accept
                tcp dport {ports} redirect to :{RELAY}
            }}
            chain coming {{
                type nat hook prerouting priority dstnat;
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
fn many_ports(pod: &Pod) -> Result<()> {
    let mut command: Command = pod.command("sysctl");
    command.args([
        "-qw",
        "net.ipv4.tcp_tw_reuse=1",
        "net.ipv4.ip_local_port_range=1024 14999",
    ]);
    ensure!(command.status()?.success(), "sysctl");
    Ok(())
}
