//! Namespaces and the cables between them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ambit_net::netns::Netns;
use anyhow::{Context, Result, ensure};

use crate::plan::{Plan, PodPlan, RANGES, node_byte};
use crate::run::Run;

/// The controller's address on the fabric.
pub const CONTROLLER: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 100);
/// The name that the controller's certificate carries.
pub const CONTROLLER_NAME: &str = "istiod.istio-system.svc";

/// A node's address on the fabric.
#[must_use]
pub fn node_address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 250, 0, node_byte(node))
}

/// The namespaces of a world, by short name: `fabric`, `control`, `n1`…, `NAMESPACE-POD`.
#[derive(Debug)]
pub struct Network {
    namespaces: BTreeMap<String, Arc<Netns>>,
}

impl Network {
    /// Makes everything a plan says.
    ///
    /// # Errors
    ///
    /// Not root, or `ip` or `nft` is missing.
    pub fn make(plan: &Plan, run: &Run) -> Result<Self> {
        let mut names = vec!["fabric".to_owned(), "control".to_owned()];
        names.extend((1..=plan.nodes).map(|node| format!("n{node}")));
        names.extend(plan.pods.iter().map(PodPlan::netns));
        let mut network = Self {
            namespaces: BTreeMap::new(),
        };
        for name in names {
            network.namespace(plan, run, &name)?;
        }
        network.cables(plan, run)?;
        for node in 1..=plan.nodes {
            network.services(plan, node)?;
        }
        Ok(network)
    }

    /// A namespace by its short name.
    ///
    /// # Panics
    ///
    /// There is none of that name: the test asks for something its plan does not have.
    #[must_use]
    pub fn get(&self, name: &str) -> &Arc<Netns> {
        self.namespaces
            .get(name)
            .unwrap_or_else(|| panic!("no namespace {name}"))
    }

    fn namespace(&mut self, plan: &Plan, run: &Run, name: &str) -> Result<()> {
        let full = run.namespace(name);
        ip(None, &format!("netns add {full}\n"))?;
        let netns = Netns::open(run.namespace_path(name))?;
        netns.run(|| -> Result<()> {
            // Addresses are usable at once instead of after a second of duplicate detection.
            set("net/ipv6/conf/all/accept_dad", "0")?;
            set("net/ipv6/conf/default/accept_dad", "0")?;
            set("net/ipv4/ip_forward", "1")?;
            // What most machines have, whatever this one's owner has set. BBR, which paces by timers, halves what goes between two
            // namespaces of one machine. A kernel without it keeps its own.
            let _ = set("net/ipv4/tcp_congestion_control", "cubic");
            set("net/ipv6/conf/all/forwarding", "1")
        })??;
        // `ip netns exec` shows this file to the programs as /etc/hosts.
        let folder = Path::new("/etc/netns").join(&full);
        fs::create_dir_all(&folder).context("/etc/netns")?;
        let mut hosts =
            format!("127.0.0.1 localhost\n::1 localhost\n{CONTROLLER} {CONTROLLER_NAME}\n");
        for service in &plan.services {
            let [v4, v6] = service.addresses();
            for ip in [v4, v6] {
                let (name, namespace) = (&service.name, &service.namespace);
                writeln!(
                    hosts,
                    "{ip} {name}.{namespace} {name}.{namespace}.svc.cluster.local"
                )?;
            }
        }
        fs::write(folder.join("hosts"), hosts).context("/etc/netns/NAME/hosts")?;
        self.namespaces.insert(name.to_owned(), Arc::new(netns));
        Ok(())
    }

    /// One batch of `ip` for the cables, then one in each namespace for what is inside.
    fn cables(&self, plan: &Plan, run: &Run) -> Result<()> {
        let mut cables = String::new();
        let mut inside: BTreeMap<String, String> = self
            .namespaces
            .keys()
            .map(|name| (name.clone(), "link set lo up\n".to_owned()))
            .collect();
        let mut add = |name: &str, text: String| {
            inside
                .get_mut(name)
                .expect("a namespace of this world")
                .push_str(&text);
        };
        add(
            "fabric",
            "link add switch type bridge\nlink set switch up\n".to_owned(),
        );
        let plug = |name: &str| {
            let (fabric, other) = (run.namespace("fabric"), run.namespace(name));
            format!("link add eth0 netns {other} type veth peer name {name} netns {fabric}\n")
        };
        for name in (1..=plan.nodes)
            .map(|node| format!("n{node}"))
            .chain(["control".to_owned()])
        {
            cables.push_str(&plug(&name));
            add("fabric", format!("link set {name} master switch up\n"));
        }
        let control = format!("link set eth0 up\naddress add {CONTROLLER}/24 dev eth0\n");
        add("control", control);
        for node in 1..=plan.nodes {
            let name = format!("n{node}");
            let own = format!(
                "link set eth0 up\naddress add {}/24 dev eth0\naddress add fd00:250::{node}/64 dev eth0\n",
                node_address(node)
            );
            add(&name, own);
            for other in (1..=plan.nodes).filter(|other| *other != node) {
                let via = node_address(other);
                add(&name, pods_via(other, via));
                let there = format!("route add fd00:10:244:{other}::/64 via fd00:250::{other}\n");
                add(&name, there);
            }
            add("control", pods_via(node, node_address(node)));
        }
        for pod in &plan.pods {
            let (node, name, short) = (format!("n{}", pod.node), pod.netns(), pod.number);
            let (pod_ns, node_ns) = (run.namespace(&name), run.namespace(&node));
            writeln!(
                cables,
                "link add eth0 netns {pod_ns} type veth peer name v{short} netns {node_ns}"
            )?;
            let gateway = format!("10.244.{}.1", pod.node);
            let (v4, v6) = (pod.ipv4(), pod.ipv6());
            add(
                &node,
                format!(
                    "link set v{short} up\naddress add {gateway}/32 dev v{short}\naddress add fe80::1/64 dev v{short} nodad\nroute add {v4}/32 dev v{short}\nroute add {v6}/128 dev v{short}\n"
                ),
            );
            add(
                &name,
                format!(
                    "link set eth0 up\naddress add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0\nroute add {gateway} dev eth0\nroute add default via {gateway}\nroute add default via fe80::1 dev eth0\n"
                ),
            );
        }
        ip(None, &cables)?;
        for (name, batch) in inside {
            ip(Some(&run.namespace(&name)), &batch).context(name)?;
        }
        Ok(())
    }

    /// What kube-proxy does on a node: service addresses to the addresses of ready pods.
    fn services(&self, plan: &Plan, node: usize) -> Result<()> {
        let mut rules = [String::new(), String::new()];
        for service in &plan.services {
            let behind: Vec<_> = plan
                .pods
                .iter()
                .filter(|pod| service.selects(pod))
                .collect();
            if behind.is_empty() {
                continue;
            }
            let [v4, v6] = service.addresses();
            let (mut map4, mut map6) = (Vec::new(), Vec::new());
            for (index, pod) in behind.iter().enumerate() {
                map4.push(format!("{index} : {}", pod.ipv4()));
                map6.push(format!("{index} : {}", pod.ipv6()));
            }
            let (count, map4, map6) = (behind.len(), map4.join(", "), map6.join(", "));
            for (_, port, target) in &service.ports {
                writeln!(
                    rules[0],
                    "ip daddr {v4} tcp dport {port} dnat to numgen random mod {count} map {{ {map4} }} : {target}"
                )?;
                writeln!(
                    rules[1],
                    "ip6 daddr {v6} tcp dport {port} dnat to numgen random mod {count} map {{ {map6} }} : {target}"
                )?;
            }
        }
        let mut table = String::new();
        for (family, rules) in ["ip", "ip6"].iter().zip(rules) {
            write!(
                table,
                "table {family} services {{\nchain services {{\ntype nat hook prerouting priority dstnat;\n{rules}}}\n}}\n"
            )?;
        }
        self.get(&format!("n{node}"))
            .run(|| feed(Command::new("nft").args(["-f", "-"]), &table))?
    }
}

/// Routes to all pods of a node.
fn pods_via(node: usize, gateway: Ipv4Addr) -> String {
    RANGES
        .map(|range| format!("route add 10.{range}.{node}.0/24 via {gateway}\n"))
        .collect()
}

/// Runs a batch of `ip` commands, in a namespace if one is given.
fn ip(namespace: Option<&str>, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    feed(command.args(["-batch", "-"]), batch)
}

/// Runs a command with `input`, and fails with what it said.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    child
        .stdin
        .take()
        .context("stdin")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{input}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Sets a kernel parameter of the calling thread's namespace.
fn set(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value).with_context(|| name.to_owned())
}
