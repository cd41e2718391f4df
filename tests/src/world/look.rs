//! Looking at a world: configurations, metrics, records, logs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ambit_net::netns::Netns;
use anyhow::{Result, ensure};
use serde_json::Value;

use super::{ADMIN, CHANGE, CONTROLLER_ADMIN, METRICS, World};
use crate::expect::{eventually, eventually_true};
use crate::metrics::Metrics;
use crate::network::node_address;
use crate::records::{self, Record};

impl World {
    /// Asks a program's admin port.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn admin(&self, program: &str, path: &str) -> Result<crate::http::Answer> {
        let (netns, port) = self.place(program);
        let port = if port == 0 { CONTROLLER_ADMIN } else { ADMIN };
        crate::http::get(netns, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path)
    }

    /// Asks a program to stop, over its admin page.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn quit(&self, program: &str) -> Result<crate::http::Answer> {
        let (netns, _) = self.place(program);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
        crate::http::send(netns, to, http::Method::POST, "/quitquitquit")
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
        Metrics::parse(&self.metrics_page(program)).expect(program)
    }

    /// The page on which a proxy says what it counts.
    ///
    /// # Panics
    ///
    /// It does not answer.
    #[must_use]
    pub fn metrics_page(&self, program: &str) -> String {
        let (netns, _) = self.place(program);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
        let answer = crate::http::get(netns, address, "/stats/prometheus").expect(program);
        answer.text()
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
            let metrics = self.metrics(program);
            let found = metrics.sum(name, labels);
            if found >= at_least {
                Ok(())
            } else {
                let all = metrics.find(name, &[]).cloned();
                Err((found, all.collect::<Vec<_>>()))
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

    /// The namespace of a program, and zero if its admin port is not a proxy's.
    fn place(&self, program: &str) -> (&Netns, u16) {
        match program.split_once('-') {
            Some(("ztunnel", node)) => (self.netns(node), 1),
            Some(("agent", node)) => (self.netns(node), 0),
            Some((_, pod)) => (self.netns(pod), 1),
            None => (self.netns("control"), 0),
        }
    }

    /// Addresses of a node on the fabric.
    #[must_use]
    pub fn node_address(&self, node: usize) -> IpAddr {
        node_address(node).into()
    }
}
