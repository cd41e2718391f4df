//! Pods with an Envoy of their own, as the mesh was before it was ambient.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{START, World};
use crate::envoy::sidecar::{self, Sidecar, WORKERS};
use crate::envoy::tunnels::Files;
use crate::expect::eventually;
use crate::mint::Mint;
use crate::network::feed;
use crate::pod::Pod;

/// The name of the program that is a pod's sidecar.
#[must_use]
pub fn sidecar_program(pod: &Pod) -> String {
    format!("envoy-{}", pod.plan.netns())
}

impl World {
    /// Gives each of these pods a sidecar with a certificate of the mesh, and waits until all are ready. The pods must
    /// not be in the ambient mesh themselves. The programs are named by [`sidecar_program`].
    ///
    /// # Errors
    ///
    /// No Envoy, or no certificate for it.
    pub fn start_sidecars<'a>(
        &self,
        sidecars: impl IntoIterator<Item = (&'a Pod, Sidecar)>,
    ) -> Result<()> {
        let mint = Mint::of(&self.state())?;
        let mut names = Vec::new();
        for (pod, told) in sidecars {
            let name = sidecar_program(pod);
            let files = self.certificate_files(&mint, pod, &name)?;
            feed(pod.command("nft").args(["-f", "-"]), &sidecar::redirect())?;
            self.run_envoy(&name, pod, WORKERS, &told.bootstrap(&files))?;
            names.push(name);
        }
        for name in names {
            eventually(START, &format!("{name} is ready"), || {
                ensure!(self.programs.runs(&name), "ended:\n{}", self.tail(&name));
                let answer = self.admin(&name, "/ready")?;
                ensure!(answer.status.is_success(), "{}", answer.text());
                Ok(())
            });
        }
        Ok(())
    }

    /// Handshakes of TLS that a pod's sidecar has made: as server, and as client.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn handshakes(&self, pod: &Pod) -> Result<[u64; 2]> {
        let answer = self.admin(&sidecar_program(pod), "/stats?filter=ssl.handshake$")?;
        let text = answer.text();
        let sum = |of: &str| {
            let lines = text.lines().filter(|line| line.starts_with(of));
            let numbers = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            numbers.sum()
        };
        Ok([sum("listener."), sum("cluster.")])
    }

    /// Ends a pod's sidecar, and leads its connections to nobody any more.
    ///
    /// # Errors
    ///
    /// `nft` refuses.
    pub fn end_sidecar(&self, pod: &Pod) -> Result<()> {
        self.kill(&sidecar_program(pod));
        feed(
            pod.command("nft").args(["-f", "-"]),
            "delete table ip sidecar",
        )
    }

    /// A certificate for a pod, in files that a program can read.
    pub(super) fn certificate_files(&self, mint: &Mint, pod: &Pod, name: &str) -> Result<Files> {
        let credentials = mint.issue(&pod.identity())?;
        let (_root, chain) = credentials.chain.split_last().context("a chain")?;
        let files = Files {
            chain: self.run.folder().join(format!("{name}-chain.pem")),
            key: self.run.folder().join(format!("{name}-key.pem")),
            root: self.state().join("root-cert.pem"),
        };
        fs::write(&files.chain, chain.concat())?;
        fs::write(&files.key, &credentials.key)?;
        Ok(files)
    }
}
