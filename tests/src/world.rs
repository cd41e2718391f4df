//! A running world.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ambit_net::netns::Netns;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use parking_lot::RwLock;
use serde_json::Value;

use crate::capture::Capture;
use crate::expect::{eventually, eventually_true};
use crate::manifests;
use crate::metrics::Metrics;
use crate::network::{CONTROLLER_NAME, Network, node_address};
use crate::plan::{AMBIENT, Plan, PodPlan, WaypointPlan};
use crate::pod::{Names, Pod};
use crate::programs::{self, Programs, Recipe};
use crate::records::{self, Record};
use crate::run::Run;

/// Every program starts in a fraction of this.
pub const START: Duration = Duration::from_secs(20);
/// A change of the manifests is in force everywhere in a fraction of this.
pub const CHANGE: Duration = Duration::from_secs(15);

/// Ports of a proxy (Istio's).
const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// The controller's own.
const CONTROLLER_ADMIN: u16 = 15014;

/// A running world. Everything ends when it is dropped.
///
/// Fields are dropped in order: first the programs, then what they ran in.
#[derive(Debug)]
pub struct World {
    programs: Programs,
    plan: Plan,
    pods: BTreeMap<String, Pod>,
    network: Network,
    run: Run,
}

impl World {
    /// Makes a world and waits until it is in order: programs ready, pods in the mesh.
    ///
    /// # Errors
    ///
    /// Not root, a missing tool or program. A program that does not become ready panics with
    /// what was waited for.
    pub fn start(plan: Plan) -> Result<Self> {
        let world = Self::network_only(plan)?;
        if world.plan.mesh {
            world.write_manifests()?;
            world.start_controller()?;
            for node in 1..=world.plan.nodes {
                world.start_node(node)?;
            }
            for waypoint in &world.plan.waypoints {
                world.start_waypoint(waypoint)?;
            }
            world.wait_ready();
            world.wait_enrolled();
        }
        Ok(world)
    }

    /// The namespaces of a plan, and nothing in them.
    ///
    /// # Errors
    ///
    /// Not root, or a missing tool.
    pub fn network_only(plan: Plan) -> Result<Self> {
        let run = Run::begin(&plan.name)?;
        let network = Network::make(&plan, &run)?;
        let mut names = Names::new();
        for pod in &plan.pods {
            names.insert(pod.path(), [pod.ipv4().into(), pod.ipv6().into()]);
        }
        for service in &plan.services {
            names.insert(
                format!("{}.{}", service.name, service.namespace),
                service.addresses(),
            );
        }
        let names = Arc::new(names);
        let pods = plan.pods.iter().map(|pod| {
            let made = Pod {
                plan: pod.clone(),
                netns: Arc::clone(network.get(&pod.netns())),
                netns_name: run.namespace(&pod.netns()),
                names: Arc::clone(&names),
            };
            (pod.path(), made)
        });
        let pods = pods.collect();
        let programs = Programs::new(run.folder().join("log"));
        Ok(Self {
            programs,
            plan,
            pods,
            network,
            run,
        })
    }

    /// A pod by `NAMESPACE/NAME`.
    ///
    /// # Panics
    ///
    /// The plan has none of that name.
    #[must_use]
    pub fn pod(&self, path: &str) -> &Pod {
        self.pods
            .get(path)
            .unwrap_or_else(|| panic!("no pod {path}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// A namespace by short name: `fabric`, `control`, `n1`, `n2`.
    #[must_use]
    pub fn netns(&self, name: &str) -> &Netns {
        self.network.get(name)
    }

    /// Begins a capture of everything between the nodes.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    #[must_use]
    pub fn capture(&self) -> Capture {
        Capture::begin(self.netns("fabric")).expect("a capture on the fabric")
    }

    /// The programs: `controller`, `agent-n1`, `ztunnel-n1`, `waypoint-NAMESPACE-NAME`…
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Kills a program and waits until it is gone.
    pub fn kill(&self, program: &str) {
        self.programs.end(program, Signal::SIGKILL, START);
    }

    /// Starts a program that was ended, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// It was never started, or does not become ready.
    pub fn start_again(&self, program: &str) {
        self.programs
            .start_again(program)
            .expect("a program that was started before");
        self.wait_program(program);
    }

    // Manifests.

    /// The folder of manifests.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.run.folder().join("manifests")
    }

    /// The controller's folder: root certificate, keys.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.run.folder().join("controller")
    }

    /// Writes a file of manifests, whole or not at all, as an editor or a sync tool would.
    ///
    /// # Panics
    ///
    /// The disk is full.
    pub fn apply(&self, file: &str, text: &str) {
        let folder = self.manifests();
        // A name that begins with a dot is not read.
        let half = folder.join(format!(".{file}"));
        fs::write(&half, text).expect("room for a manifest");
        fs::rename(&half, folder.join(format!("{file}.yaml"))).expect("the folder is ours");
    }

    /// Removes a file of manifests; nothing if there is none.
    pub fn remove(&self, file: &str) {
        let _ = fs::remove_file(self.manifests().join(format!("{file}.yaml")));
    }

    /// Applies a file for as long as the answer lives: for a policy that one test needs.
    #[must_use = "the file is removed when this is dropped"]
    pub fn apply_for_now<'a>(&'a self, file: &str, text: &str) -> Applied<'a> {
        self.apply(file, text);
        Applied {
            world: self,
            file: file.to_owned(),
        }
    }

    /// Sets or removes a label of a namespace.
    ///
    /// # Panics
    ///
    /// The plan has no such namespace.
    pub fn label_namespace(&self, name: &str, key: &str, value: Option<&str>) {
        let planned = self
            .plan
            .namespaces
            .iter()
            .find(|(planned, _)| planned == name);
        let (_, mut labels) = planned
            .unwrap_or_else(|| panic!("no namespace {name}"))
            .clone();
        match value {
            Some(value) => labels.insert(key.to_owned(), value.to_owned()),
            None => labels.remove(key),
        };
        self.apply(
            &format!("namespace-{name}"),
            &manifests::namespace(name, &labels),
        );
    }

    /// Sets a label of a pod, or removes it.
    pub fn label_pod(&self, path: &str, key: &str, value: Option<&str>) {
        let pod = self.pod(path);
        let mut plan = pod.plan.clone();
        match value {
            Some(value) => plan.labels.insert(key.to_owned(), value.to_owned()),
            None => plan.labels.remove(key),
        };
        let file = format!("pod-{}-{}", plan.namespace, plan.name);
        self.apply(
            &file,
            &manifests::pod(&plan, &self.run.namespace_path(&plan.netns())),
        );
    }

    fn write_manifests(&self) -> Result<()> {
        fs::create_dir_all(self.manifests())?;
        let files = manifests::files(&self.plan, |pod| self.run.namespace_path(&pod.netns()));
        for (file, text) in files {
            self.apply(&file, &text);
        }
        Ok(())
    }

    // Programs.

    fn start_controller(&self) -> Result<()> {
        let mut arguments = vec!["serve".to_owned()];
        for (name, path) in [("--manifests", self.manifests()), ("--state", self.state())] {
            arguments.extend([name.to_owned(), path.display().to_string()]);
        }
        // The root and the key of tokens are needed before the controller serves.
        let program = programs::folder()?.join("controller");
        let init = Command::new(&program)
            .args(["init", "--state"])
            .arg(self.state())
            .output()?;
        ensure!(
            init.status.success(),
            "controller init: {}",
            text(&init.stderr)
        );
        let environment = BTreeMap::from([("RUST_LOG".to_owned(), "info".to_owned())]);
        let netns = self.run.namespace("control");
        self.programs.start(
            "controller",
            Recipe {
                netns,
                program,
                arguments,
                environment,
            },
        )
    }

    fn start_node(&self, node: usize) -> Result<()> {
        let name = format!("n{node}");
        let netns = self.run.namespace(&name);
        let socket = self.run.folder().join(format!("ztunnel-{name}.sock"));
        let arguments = [
            ("--node-name", name.clone()),
            ("--manifests", self.manifests().display().to_string()),
            ("--zds-socket", socket.display().to_string()),
        ];
        let agent = Recipe {
            netns: netns.clone(),
            program: programs::folder()?.join("agent"),
            arguments: arguments
                .into_iter()
                .flat_map(|(a, b)| [a.to_owned(), b])
                .collect(),
            environment: BTreeMap::from([("RUST_LOG".to_owned(), "info".to_owned())]),
        };
        self.programs.start(&format!("agent-{name}"), agent)?;
        let pod = format!("ztunnel-{name}");
        let mut environment =
            self.proxy_environment("istio-system", &pod, "ztunnel", node, node_address(node))?;
        environment.insert("INPOD_UDS".to_owned(), socket.display().to_string());
        let ztunnel = Recipe {
            netns,
            program: programs::folder()?.join("ztunnel"),
            arguments: vec!["proxy".to_owned(), "ztunnel".to_owned()],
            environment,
        };
        self.programs.start(&pod, ztunnel)
    }

    fn start_waypoint(&self, waypoint: &WaypointPlan) -> Result<()> {
        let pod = &self
            .pod(&format!("{}/{}", waypoint.namespace, waypoint.pod))
            .plan;
        let recipe = Recipe {
            netns: self.run.namespace(&pod.netns()),
            program: programs::folder()?.join("waypoint"),
            arguments: vec!["proxy".to_owned(), "waypoint".to_owned()],
            environment: self.waypoint_environment(pod)?,
        };
        self.programs.start(&waypoint_program(waypoint), recipe)
    }

    /// The environment of a program that stands in a waypoint's pod.
    ///
    /// # Errors
    ///
    /// No token can be made.
    pub fn waypoint_environment(&self, pod: &PodPlan) -> Result<BTreeMap<String, String>> {
        let account = &pod.service_account;
        self.proxy_environment(&pod.namespace, &pod.name, account, pod.node, pod.ipv4())
    }

    fn proxy_environment(
        &self,
        namespace: &str,
        pod: &str,
        service_account: &str,
        node: usize,
        ip: Ipv4Addr,
    ) -> Result<BTreeMap<String, String>> {
        let token = self.run.folder().join(format!("token-{namespace}-{pod}"));
        fs::write(&token, self.token(namespace, service_account, pod, node)?)?;
        let control = format!("https://{CONTROLLER_NAME}:15012");
        let root = self.state().join("root-cert.pem").display().to_string();
        let mut environment: BTreeMap<String, String> = [
            ("XDS_ADDRESS", control.clone()),
            ("CA_ADDRESS", control),
            ("XDS_ROOT_CA", root.clone()),
            ("CA_ROOT_CA", root),
            ("AUTH_TOKEN", token.display().to_string()),
            ("POD_NAME", pod.to_owned()),
            ("POD_NAMESPACE", namespace.to_owned()),
            ("SERVICE_ACCOUNT", service_account.to_owned()),
            ("NODE_NAME", format!("n{node}")),
            ("INSTANCE_IP", ip.to_string()),
            ("LOG_FORMAT", "json".to_owned()),
            ("RUST_LOG", "info".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        environment.extend(self.plan.environment.clone());
        Ok(environment)
    }

    /// A token of the controller's, bound to a pod.
    ///
    /// # Errors
    ///
    /// The controller program refuses.
    pub fn token(&self, namespace: &str, account: &str, pod: &str, node: usize) -> Result<String> {
        let output = Command::new(programs::folder()?.join("controller"))
            .arg("token")
            .arg("--state")
            .arg(self.state())
            .args([
                "--namespace",
                namespace,
                "--service-account",
                account,
                "--pod",
                pod,
            ])
            .args([
                "--pod-uid",
                &manifests::uid(namespace, pod),
                "--node",
                &format!("n{node}"),
            ])
            .output()
            .context("controller token")?;
        ensure!(
            output.status.success(),
            "controller token: {}",
            text(&output.stderr)
        );
        Ok(text(&output.stdout).trim().to_owned())
    }

    // Waiting.

    fn wait_ready(&self) {
        for program in self.programs.names() {
            self.wait_program(&program);
        }
    }

    /// Waits until a program says that it is ready, if it is one that says so.
    fn wait_program(&self, program: &str) {
        let (netns, port) = match program.split_once('-') {
            None => (self.netns("control"), CONTROLLER_ADMIN),
            Some(("ztunnel", node)) => (self.netns(node), READINESS),
            Some(("waypoint", pod)) => (self.netns(pod), READINESS),
            Some(_) => return,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually(START, &format!("{program} is ready"), || {
            assert!(
                self.programs.runs(program),
                "{program} ended:\n{}",
                self.tail(program)
            );
            match crate::http::get(netns, address, "/healthz/ready") {
                Ok(answer) if answer.status.is_success() => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(format!("{error:#}")),
            }
        });
    }

    /// Waits until every node proxy knows every pod that should be in the mesh as HBONE.
    pub fn wait_enrolled(&self) {
        let pods: Vec<String> = self
            .plan
            .pods
            .iter()
            .filter(|pod| self.wanted(pod))
            .map(PodPlan::path)
            .collect();
        for pod in pods {
            self.wait_protocol(&pod, "HBONE");
        }
    }

    /// Waits until every node proxy knows a pod with this protocol: `HBONE` or `TCP`.
    pub fn wait_protocol(&self, path: &str, protocol: &str) {
        for node in 1..=self.plan.nodes {
            let name = format!("ztunnel-n{node}");
            eventually(
                CHANGE,
                &format!("{name} knows {path} as {protocol}"),
                || {
                    let known = self
                        .workload(node, path)
                        .map_err(|error| format!("{error:#}"))?;
                    let found = known
                        .get("protocol")
                        .and_then(Value::as_str)
                        .unwrap_or("none");
                    if found == protocol {
                        Ok(())
                    } else {
                        Err(found.to_owned())
                    }
                },
            );
        }
    }

    fn wanted(&self, pod: &PodPlan) -> bool {
        let (key, wanted) = AMBIENT;
        let of_namespace = self
            .plan
            .namespaces
            .iter()
            .find(|(name, _)| *name == pod.namespace);
        let label = pod.labels.get(key).or_else(|| of_namespace?.1.get(key));
        !pod.host_network && label.is_some_and(|value| value == wanted)
    }

    /// What a node's proxy knows of a pod.
    ///
    /// # Errors
    ///
    /// The proxy does not answer, or does not know the pod.
    pub fn workload(&self, node: usize, path: &str) -> Result<Value> {
        let dump = self.config_dump(&format!("ztunnel-n{node}"))?;
        let (namespace, name) = path.split_once('/').context("NAMESPACE/POD")?;
        let workloads = dump["workloads"].as_array().context("workloads")?;
        let found = workloads
            .iter()
            .find(|w| w["namespace"] == namespace && w["name"] == name);
        found
            .cloned()
            .with_context(|| format!("{path} is not known"))
    }

    // Looking.

    /// Asks a proxy's or the controller's admin port.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn admin(&self, program: &str, path: &str) -> Result<crate::http::Answer> {
        let (netns, port) = self.place(program);
        let port = if port == 0 { CONTROLLER_ADMIN } else { ADMIN };
        crate::http::get(netns, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path)
    }

    /// The configuration that a program has in force.
    ///
    /// # Errors
    ///
    /// It does not answer, or not in JSON.
    pub fn config_dump(&self, program: &str) -> Result<Value> {
        let answer = self.admin(program, "/config_dump")?;
        ensure!(
            answer.status.is_success(),
            "{}: {}",
            answer.status,
            answer.text()
        );
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// What a proxy counts.
    ///
    /// # Panics
    ///
    /// It does not answer.
    #[must_use]
    pub fn metrics(&self, program: &str) -> Metrics {
        let (netns, _) = self.place(program);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
        let answer = crate::http::get(netns, address, "/stats/prometheus").expect(program);
        Metrics::parse(&answer.text()).expect(program)
    }

    /// A program's access log so far.
    #[must_use]
    pub fn records(&self, program: &str) -> Vec<Record> {
        records::read(&self.programs.log(program))
    }

    /// Waits for records with these fields and returns them: at least `count`.
    #[track_caller]
    pub fn wait_records(
        &self,
        program: &str,
        fields: &[(&str, &str)],
        count: usize,
    ) -> Vec<Record> {
        eventually(
            CHANGE,
            &format!("{count} records of {program} with {fields:?}"),
            || {
                let all = self.records(program);
                let found: Vec<_> = all
                    .iter()
                    .filter(|record| record.has(fields))
                    .cloned()
                    .collect();
                if found.len() >= count {
                    Ok(found)
                } else {
                    Err(all.into_iter().rev().take(3).collect::<Vec<_>>())
                }
            },
        )
    }

    /// Waits until a metric reaches a value.
    #[track_caller]
    pub fn wait_metric(&self, program: &str, name: &str, labels: &[(&str, &str)], at_least: f64) {
        let what = format!("{program}: {name}{labels:?} reaches {at_least}");
        eventually(CHANGE, &what, || {
            let found = self.metrics(program).sum(name, labels);
            if found >= at_least {
                Ok(())
            } else {
                Err(found)
            }
        });
    }

    /// The last lines of a program's log.
    #[must_use]
    pub fn tail(&self, program: &str) -> String {
        let log = fs::read_to_string(self.programs.log(program)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Waits until something is true; on failure the programs' logs are shown.
    #[track_caller]
    pub fn eventually(&self, what: &str, look: impl FnMut() -> bool) {
        eventually_true(CHANGE, what, look);
    }

    /// The namespace of a program, and zero for the controller.
    fn place(&self, program: &str) -> (&Netns, u16) {
        match program.split_once('-') {
            Some(("ztunnel" | "agent", node)) => (self.netns(node), 1),
            Some((_, pod)) => (self.netns(pod), 1),
            None => (self.netns("control"), 0),
        }
    }

    /// Addresses of a node on the fabric.
    #[must_use]
    pub fn node_address(&self, node: usize) -> IpAddr {
        node_address(node).into()
    }

    /// Copies the programs' logs to where they outlive the world.
    fn keep_logs(&self) {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/world-logs");
        let kept = kept.join(&self.plan.name);
        let _ = fs::remove_dir_all(&kept);
        let _ = fs::create_dir_all(&kept);
        let copied = Command::new("cp")
            .arg("-rT")
            .arg(self.run.folder())
            .arg(&kept)
            .status();
        if copied.is_ok() {
            eprintln!(
                "the world's logs and manifests are kept in {}",
                kept.display()
            );
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
    }
}

/// A world that several tests use, started by the first.
///
/// Tests that only send traffic share it ([`Shared::with_others`]); tests that change manifests or
/// end programs have it to themselves ([`Shared::alone`]) and leave it as they found it.
#[derive(Debug)]
pub struct Shared(LazyLock<RwLock<World>>);

impl Shared {
    /// A world not started yet.
    #[must_use]
    pub const fn new(start: fn() -> RwLock<World>) -> Self {
        Self(LazyLock::new(start))
    }

    /// The world, at the same time as other tests.
    pub fn with_others(&self) -> Held<impl Deref<Target = World>> {
        Held(self.0.read())
    }

    /// The world, for one test alone.
    pub fn alone(&self) -> Held<impl Deref<Target = World>> {
        Held(self.0.write())
    }
}

/// Starts a world for a [`Shared`].
///
/// # Panics
///
/// The world does not start.
#[must_use]
pub fn started(plan: Plan) -> RwLock<World> {
    RwLock::new(World::start(plan).unwrap_or_else(|error| panic!("{error:?}")))
}

/// A shared world in a test's hands; keeps the logs when the test fails.
#[derive(Debug)]
pub struct Held<G: Deref<Target = World>>(G);

impl<G: Deref<Target = World>> Deref for Held<G> {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl<G: Deref<Target = World>> Drop for Held<G> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.keep_logs();
        }
    }
}

/// A file of manifests that is removed when this is dropped.
#[derive(Debug)]
pub struct Applied<'a> {
    world: &'a World,
    file: String,
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        self.world.remove(&self.file);
    }
}

/// The name of a waypoint's program.
#[must_use]
pub fn waypoint_program(waypoint: &WaypointPlan) -> String {
    format!("waypoint-{}-{}", waypoint.namespace, waypoint.name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
