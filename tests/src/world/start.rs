//! Starting the programs as on one machine anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{START, World};
use crate::envoy;
use crate::expect::eventually_true;
use crate::manifests;
use crate::mint::Mint;
use crate::network::{CONTROLLER_NAME, node_address};
use crate::plan::{PodPlan, WaypointPlan};
use crate::pod::Pod;
use crate::programs::{self, Recipe};

impl World {
    pub(super) fn start_controller(&self) -> Result<()> {
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

    pub(super) fn start_node(&self, node: usize) -> Result<()> {
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
            program: match self.plan.node_proxies.get(&node) {
                Some(other) => other.clone(),
                None => programs::folder()?.join("ztunnel"),
            },
            arguments: vec!["proxy".to_owned(), "ztunnel".to_owned()],
            environment,
        };
        self.programs.start(&pod, ztunnel)
    }

    pub(super) fn start_waypoint(&self, waypoint: &WaypointPlan) -> Result<()> {
        let pod = self.pod(&format!("{}/{}", waypoint.namespace, waypoint.pod));
        if self.plan.envoy {
            return self.start_envoy(&waypoint_program(waypoint), pod);
        }
        let pod = &pod.plan;
        let recipe = Recipe {
            netns: self.run.namespace(&pod.netns()),
            program: programs::folder()?.join("waypoint"),
            arguments: vec!["proxy".to_owned(), "waypoint".to_owned()],
            environment: self.waypoint_environment(pod)?,
        };
        self.programs.start(&waypoint_program(waypoint), recipe)
    }

    /// Envoy takes a file of settings where our waypoint takes variables, and its certificate from
    /// a server beside it.
    fn start_envoy(&self, name: &str, pod: &Pod) -> Result<()> {
        let PodPlan {
            namespace,
            name: pod_name,
            service_account,
            node,
            ..
        } = &pod.plan;
        let credentials = Mint::of(&self.state())?.issue(&pod.identity())?;
        self.servers.lock().push(pod.serve_secrets(&credentials));
        let token = self.token(namespace, service_account, pod_name, *node)?;
        let bootstrap = envoy::bootstrap(pod, &self.state().join("root-cert.pem"), &token);
        self.run_envoy(name, pod, 1, &bootstrap)
    }

    /// Starts an Envoy in `pod` that takes tunnels for its applications and makes tunnels to those of
    /// `far`: see [`envoy::tunnels`]. Its program is `envoy-NAMESPACE-POD`.
    ///
    /// # Errors
    ///
    /// No Envoy, or no certificate for it.
    pub fn start_envoy_tunnels(&self, pod: &Pod, far: &Pod, ports: &[u16]) -> Result<()> {
        let name = format!("envoy-{}", pod.plan.netns());
        let files = self.certificate_files(&Mint::of(&self.state())?, pod, &name)?;
        let bootstrap = envoy::tunnels::bootstrap(&files, far.ipv4(), ports);
        self.run_envoy(&name, pod, 1, &bootstrap)?;
        eventually_true(START, "Envoy is ready", || {
            self.admin(&name, "/ready")
                .is_ok_and(|answer| answer.status.is_success())
        });
        Ok(())
    }

    pub(super) fn run_envoy(
        &self,
        name: &str,
        pod: &Pod,
        workers: u32,
        bootstrap: &serde_json::Value,
    ) -> Result<()> {
        let file = self.run.folder().join(format!("{name}.json"));
        fs::write(&file, bootstrap.to_string())?;
        let (file, workers) = (file.display().to_string(), workers.to_string());
        let arguments = ["-c", &file, "--concurrency", &workers];
        let alone = ["--disable-hot-restart", "--log-level", "warning"];
        // Envoy writes its log from time to time only.
        let soon = ["--file-flush-interval-msec", "200"];
        let recipe = Recipe {
            netns: self.run.namespace(&pod.plan.netns()),
            program: envoy::program()?,
            arguments: arguments
                .into_iter()
                .chain(alone)
                .chain(soon)
                .map(str::to_owned)
                .collect(),
            environment: BTreeMap::new(),
        };
        self.programs.start(name, recipe)
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
        let run = self.run.folder().display().to_string();
        let set = self.plan.environment.iter();
        environment.extend(set.map(|(name, value)| (name.clone(), value.replace("{run}", &run))));
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
}

/// The name of a waypoint's program.
#[must_use]
pub fn waypoint_program(waypoint: &WaypointPlan) -> String {
    format!("waypoint-{}-{}", waypoint.namespace, waypoint.name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
