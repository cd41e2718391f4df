//! Waiting until a world is in order.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{ADMIN, CHANGE, CONTROLLER_ADMIN, READINESS, START, World};
use crate::expect::eventually;
use crate::plan::{AMBIENT, PodPlan};

impl World {
    pub(super) fn wait_ready(&self) {
        for program in self.programs.names() {
            self.wait_program(&program);
        }
    }

    /// Waits until a program says that it is ready, if it is one that says so.
    pub(super) fn wait_program(&self, program: &str) {
        let ready = "/healthz/ready";
        let (netns, port, path) = match program.split_once('-') {
            None => (self.netns("control"), CONTROLLER_ADMIN, ready),
            Some(("ztunnel", node)) => (self.netns(node), READINESS, ready),
            Some(("waypoint", pod)) if self.plan.envoy => (self.netns(pod), ADMIN, "/ready"),
            Some(("waypoint", pod)) => (self.netns(pod), READINESS, ready),
            Some(_) => return,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually(START, &format!("{program} is ready"), || {
            assert!(
                self.programs.runs(program),
                "{program} ended:\n{}",
                self.tail(program)
            );
            match crate::http::get(netns, address, path) {
                Ok(answer) if answer.status.is_success() => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(format!("{error:#}")),
            }
        });
    }

    /// Waits until every node proxy knows every pod that should be in the mesh as HBONE.
    pub fn wait_enrolled(&self) {
        let wanted: Vec<_> = self
            .plan
            .pods
            .iter()
            .filter(|pod| self.wanted(pod))
            .collect();
        // One look is enough for many pods, and many pods take longer.
        let bound = CHANGE + Duration::from_millis(50) * u32::try_from(wanted.len()).unwrap_or(0);
        for node in 1..=self.plan.nodes {
            let name = format!("ztunnel-n{node}");
            eventually(bound, &format!("{name} knows all pods as HBONE"), || {
                let dump = self
                    .config_dump(&name)
                    .map_err(|error| format!("{error:#}"))?;
                let missing = wanted.iter().find(|pod| {
                    let known = workload_in(&dump, &pod.namespace, &pod.name);
                    known.and_then(protocol_of) != Some("HBONE")
                });
                missing.map_or(Ok(()), |pod| Err(pod.path()))
            });
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
                    let found = protocol_of(&known).unwrap_or("none");
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
        workload_in(&dump, namespace, name)
            .cloned()
            .with_context(|| format!("{path} is not known"))
    }
}

/// A pod in what a node proxy says it knows.
fn workload_in<'a>(dump: &'a Value, namespace: &str, name: &str) -> Option<&'a Value> {
    let mut workloads = dump["workloads"].as_array()?.iter();
    workloads.find(|w| w["namespace"] == namespace && w["name"] == name)
}

fn protocol_of(workload: &Value) -> Option<&str> {
    workload.get("protocol").and_then(Value::as_str)
}
