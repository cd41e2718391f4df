//! A node proxy for one workload, as `deploy/one-workload` says to start it.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::World;
use crate::pod::Pod;
use crate::programs::{self, Recipe};

/// The rules that lead a workload's connections to its proxy.
const RULES: &str = include_str!("../../../deploy/one-workload/redirect.nft");

impl World {
    /// Starts a proxy for `pod` alone, with further settings, and returns its name. It has the group that the rules know, and no
    /// capability. No connection is led to it yet.
    ///
    /// # Errors
    ///
    /// A program is missing.
    pub fn run_dedicated(&self, pod: &Pod, settings: &[(&str, &str)]) -> Result<String> {
        let plan = &pod.plan;
        let whom = format!("{}/{}/{}", plan.namespace, plan.name, plan.service_account);
        let mut environment = self.waypoint_environment(plan)?;
        let own = [("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", &whom)];
        let all = own.iter().chain(settings);
        environment.extend(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let ztunnel = programs::folder()?.join("ztunnel").display().to_string();
        let bare = ["--regid", "1337", "--clear-groups", "--bounding-set=-all"];
        let arguments = bare.into_iter().chain(["--no-new-privs", &ztunnel]);
        let recipe = Recipe {
            netns: self.run.namespace(&plan.netns()),
            program: "setpriv".into(),
            arguments: arguments.map(str::to_owned).collect(),
            environment,
        };
        let name = format!("ztunnel-{}", plan.netns());
        self.programs.start(&name, recipe)?;
        Ok(name)
    }

    /// Starts a proxy for `pod` alone, leads its connections to it, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// A program is missing, or the kernel refuses the rules.
    pub fn start_dedicated(&self, pod: &Pod) -> Result<String> {
        let name = self.run_dedicated(pod, &[])?;
        let mut nft = pod
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = nft.stdin.take().context("stdin")?;
        input.write_all(RULES.as_bytes())?;
        drop(input);
        ensure!(nft.wait()?.success(), "nft refuses the rules");
        self.wait_program(&name);
        Ok(name)
    }
}
