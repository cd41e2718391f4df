//! The agent's arguments and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::enrol::{Policy, Selector};
use crate::pod::Settings;
use crate::rules::Options;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "agent",
    version,
    about = "Ambit's node agent: decides which pods are in the mesh, redirects their traffic, and tells ztunnel",
    after_help = "Examples:\n  agent --node-name node-1 --manifests ./manifests\n  agent unenrol --all --node-name node-1",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Arguments {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: Option<Run>,
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Remove redirection from pods. Stop the agent first, or it puts it back.
    Unenrol(Unenrol),
}

/// `agent unenrol`.
#[derive(Debug, Args)]
pub struct Unenrol {
    /// From all pods; there is no other choice yet, and this makes sure that it is meant
    #[arg(long, required = true)]
    pub all: bool,
    /// Only what this node's agent made
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Where network namespaces have names
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// Only what an agent with this folder of manifests made; also remove the status of the pods in it
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Folder of the pods' status [default: MANIFESTS/.status]
    #[arg(long, value_name = "DIR")]
    pub status: Option<PathBuf>,
}

/// Settings of a running agent.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// The node whose pods are this agent's
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Folder of Kubernetes manifests: namespaces and pods
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Folder to which the status of pods is written [default: MANIFESTS/.status]
    #[arg(long, value_name = "DIR")]
    pub status: Option<PathBuf>,
    /// Socket at which node proxies connect
    #[arg(
        long,
        value_name = "PATH",
        env = "ZTUNNEL_UDS_ADDRESS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    pub zds_socket: PathBuf,
    /// Address of the admin server: /metrics, /healthz/ready, /debug/pods
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    pub admin: SocketAddr,
    /// Where network namespaces have names; swept at the start for rules of pods that are gone
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// Namespaces that are never in the mesh
    #[arg(
        long,
        value_name = "NAMES",
        env = "EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// Which pods are in the mesh, as JSON: [{"podSelector": {...}, "namespaceSelector": {...}}, ...]
    #[arg(long, value_name = "JSON", env = "AMBIENT_ENABLEMENT_SELECTOR", value_parser = selectors)]
    pub enablement_selectors: Option<Selectors>,
    /// Namespace of the node proxy itself
    #[arg(
        long,
        value_name = "NAME",
        env = "SYSTEM_NAMESPACE",
        default_value = "istio-system"
    )]
    pub system_namespace: String,
    /// Redirect DNS to the node proxy, which must then serve it
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = false, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// Redirect IPv6; without it TCP over IPv6 of enrolled pods is dropped
    #[arg(long, env = "AMBIENT_IPV6", default_value_t = true, action = clap::ArgAction::Set)]
    pub ipv6: bool,
    /// Let health probes from 169.254.7.127 and its IPv6 counterpart reach pods directly
    #[arg(long, env = "AMBIENT_PROBE_EXEMPTION", default_value_t = false, action = clap::ArgAction::Set)]
    pub probe_exemption: bool,
    /// How long others may take to hear that a pod is leaving
    // Nobody can tell that the last of them has: they are told by a control plane that does not know us. A push takes a fraction of a
    // second; three cover one that is batched, or a proxy that just connects anew. The pod is in the mesh meanwhile, and works.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "3s")]
    pub settle: Duration,
    /// How long redirected connections have to end when their pod leaves
    // New ones are not redirected any more, so this is not felt. It ends as soon as they have.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub drain: Duration,
    /// Log levels, for example info or warn,ambit_agent=debug
    #[arg(long, value_name = "LEVELS", env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
    /// Log format: plain or json
    #[arg(
        long,
        value_name = "FORMAT",
        env = "LOG_FORMAT",
        default_value = "plain"
    )]
    pub log_format: String,
}

impl Run {
    /// What holds for all pods.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let defaults = Policy::default();
        let selectors = self
            .enablement_selectors
            .clone()
            .map(|selectors| selectors.0);
        Settings {
            policy: Policy {
                selectors: selectors.unwrap_or(defaults.selectors),
                exclude_namespaces: self.exclude_namespaces.clone(),
                system_namespace: self.system_namespace.clone(),
            },
            options: Options {
                ipv6: self.ipv6,
                dns: self.dns_capture,
                probes: self.probe_exemption,
                ..Options::default()
            },
        }
    }
}

/// The list of selectors, one value for the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Selectors(pub Vec<Selector>);

fn selectors(text: &str) -> Result<Selectors, String> {
    serde_json::from_str(text)
        .map(Selectors)
        .map_err(|error| error.to_string())
}

/// `3s`, `500ms`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text}: not a time such as 3s or 500ms"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("{unit}: not a unit; ms, s and m are")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory, Parser};

    use super::{Arguments, Command, duration};

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_agent_runs_or_unenrols() {
        let run = Arguments::parse_from(["agent", "--node-name", "n", "--manifests", "m"]);
        let run = run.run.unwrap();
        assert_eq!(run.exclude_namespaces, ["kube-system"]);
        assert_eq!(run.settings().policy.selectors.len(), 2);
        let unenrol = Arguments::parse_from(["agent", "unenrol", "--all"]);
        assert!(matches!(unenrol.command, Some(Command::Unenrol(_))));
        assert!(Arguments::try_parse_from(["agent"]).is_err());
        assert!(Arguments::try_parse_from(["agent", "unenrol"]).is_err());
    }

    #[test]
    fn a_broken_selector_is_refused() {
        let with = |json| {
            let base = [
                "agent",
                "--node-name",
                "n",
                "--manifests",
                "m",
                "--enablement-selectors",
            ];
            Arguments::try_parse_from(base.into_iter().chain([json]))
        };
        assert!(with(r#"[{"podSelector": {"matchLabels": {"a": "b"}}}]"#).is_ok());
        assert!(with("{").is_err());
        assert!(with(r#"[{"podSelektor": {}}]"#).is_err());
    }

    #[test]
    fn times_have_units() {
        let table = [("3s", 3000), ("500ms", 500), ("2m", 120_000), ("4", 4000)];
        for (text, millis) in table {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "3h", "-1s", "1.5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
