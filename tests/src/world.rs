//! A running world.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ambit_net::netns::Netns;
use anyhow::Result;
use nix::sys::signal::Signal;
use parking_lot::Mutex;

use crate::apps::App;
use crate::capture::Capture;
use crate::manifests;
use crate::network::Network;
use crate::plan::Plan;
use crate::pod::{Names, Pod};
use crate::programs::Programs;
use crate::run::Run;

/// Every program starts in a fraction of this.
pub const START: Duration = Duration::from_secs(20);
/// A change of the manifests is in force everywhere in a fraction of this.
pub const CHANGE: Duration = Duration::from_secs(15);

/// Ports of a proxy (Istio's).
const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// The controller's and the agents' own.
const CONTROLLER_ADMIN: u16 = 15014;

mod dedicated;
mod look;
mod shared;
mod sidecars;
mod start;
pub mod told;
mod wait;

pub use shared::{Held, Shared, started};
pub use sidecars::sidecar_program;

/// A running world. Everything ends when it is dropped.
///
/// Fields are dropped in order: first the programs, then what they ran in.
#[derive(Debug)]
pub struct World {
    programs: Programs,
    /// Servers that belong to programs.
    servers: Mutex<Vec<App>>,
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
            servers: Mutex::default(),
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

    /// Starts a second node proxy beside `program`, for the same node, and waits until it is
    /// ready. Like the new pod of a rolling update it has a network namespace of its own: that of
    /// a pod outside the mesh. Returns its name.
    ///
    /// # Panics
    ///
    /// There is no such program, or the second does not become ready.
    #[must_use]
    pub fn start_beside(&self, program: &str, pod: &str) -> String {
        let netns = self.pod(pod).plan.netns();
        let second = format!("ztunnel-{netns}");
        let mut recipe = self.programs.recipe(program).expect(program);
        recipe.netns = self.run.namespace(&netns);
        self.programs.start(&second, recipe).expect("the same file");
        self.wait_program(&second);
        second
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
        /// Tests that put the manifests back at one time must not take each other's half-written ones.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let folder = self.manifests();
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        // A name that begins with a dot is not read.
        let half = folder.join(format!(".{file}.{write}"));
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

    /// Where a pod's network namespace is, as its manifest says it.
    #[must_use]
    pub fn netns_path(&self, path: &str) -> PathBuf {
        self.run.namespace_path(&self.pod(path).plan.netns())
    }

    /// A file of the run's folder, which `{run}` stands for in a setting.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.run.folder().join(name)
    }

    fn write_manifests(&self) -> Result<()> {
        fs::create_dir_all(self.manifests())?;
        let files = manifests::files(&self.plan, |pod| self.run.namespace_path(&pod.netns()));
        for (file, text) in files {
            self.apply(&file, &text);
        }
        Ok(())
    }

    /// Puts the manifests of the plan back, so that a test that failed half-way does not fail the
    /// next.
    fn restore(&self) {
        for entry in fs::read_dir(self.manifests())
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = self.write_manifests();
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
