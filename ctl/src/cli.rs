//! The command line, and which question each command asks.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::dump::{Dump, Pods};
use crate::explain::{self, Explained};
use crate::fetch::Ask;
use crate::show;
use crate::table::Table;
use crate::target::Target;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "ambitctl",
    version,
    about = "Shows what the proxies of an ambient mesh know, and explains their decisions",
    after_help = "Examples:\n  \
        ambitctl workloads\n  \
        ambitctl services -n shop -o json\n  \
        ambitctl --netns n1 connections\n  \
        ambitctl explain shop/web\n  \
        ambitctl explain shop/web to payments.shop:80\n\n\
        The admin ports listen on localhost of each node: run ambitctl there, or give --netns."
)]
pub struct Arguments {
    /// Admin server of the node proxy
    #[arg(
        long,
        global = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:15000"
    )]
    pub ztunnel: String,
    /// Admin server of the node agent
    #[arg(
        long,
        global = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:15014"
    )]
    pub agent: String,
    /// Admin server of the controller
    #[arg(
        long,
        global = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:15014"
    )]
    pub controller: String,
    /// Network namespace to ask from: a path, or a name of `ip netns`
    #[arg(long, global = true, value_name = "PATH")]
    pub netns: Option<String>,
    /// How to answer
    #[arg(long, short, global = true, value_enum, default_value = "table")]
    pub output: Output,
    /// What to ask.
    #[command(subcommand)]
    pub command: Command,
}

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns, for people
    Table,
    /// For programs
    Json,
}

/// What to ask.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Workloads that the node proxy knows
    #[command(visible_alias = "w")]
    Workloads(Filter),
    /// Services that the node proxy knows
    #[command(visible_aliases = ["svc", "s"])]
    Services(Filter),
    /// Authorization policies in force at the node proxy
    #[command(visible_alias = "p")]
    Policies(Filter),
    /// Certificates that the node proxy holds for its pods
    #[command(visible_alias = "certs")]
    Certificates,
    /// Connections that the node proxy carries now
    #[command(visible_alias = "c")]
    Connections(Connections),
    /// What is wrong with the manifests, as the controller sees it
    Problems,
    /// Why a pod is in the mesh or not, and what would happen to a connection of it
    #[command(
        after_help = "Examples:\n  ambitctl explain shop/web\n  ambitctl explain shop/web to payments.shop:80\n  ambitctl explain shop/web to 10.0.0.7:9000"
    )]
    Explain(Explain),
}

/// Which ones.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only this namespace
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Only workloads on this node
    #[arg(long)]
    pub node: Option<String>,
}

/// `ambitctl connections`.
#[derive(Debug, Args)]
pub struct Connections {
    /// Only pods of this namespace
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Only this direction
    #[arg(long, value_parser = ["inbound", "outbound"])]
    pub direction: Option<String>,
    /// Show addresses as they are, not the names behind them
    #[arg(long)]
    pub raw: bool,
}

/// `ambitctl explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The pod: NAMESPACE/NAME, or NAME in the namespace default
    pub pod: String,
    /// The word `to`, and where to: NAME.NAMESPACE:PORT, NAMESPACE/NAME:PORT or ADDRESS:PORT
    #[arg(value_name = "to TARGET", num_args = 0..=2)]
    pub to: Vec<String>,
}

/// Asks, and makes the answer a text.
///
/// # Errors
/// What kept it from being answered, for people.
pub async fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let ask = Ask {
        netns: netns(arguments.netns.as_deref())?,
    };
    let json = arguments.output == Output::Json;
    if let Command::Problems = arguments.command {
        let problems = ask.json(&arguments.controller, "/debug/problems").await;
        let problems = problems.context("the controller")?;
        return answer(json, &problems, || show::problems(&problems));
    }
    let raw = ask
        .json(&arguments.ztunnel, "/config_dump")
        .await
        .context("the node proxy")?;
    let dump = Dump::read(raw).context("the node proxy's state")?;
    match &arguments.command {
        Command::Workloads(filter) => {
            let found = show::select_workloads(&dump, filter);
            answer(json, &dump.raw_of("workloads", &found), || {
                show::workloads(&dump, &found)
            })
        }
        Command::Services(filter) => {
            let found = show::select_services(&dump, filter);
            answer(json, &dump.raw_of("services", &found), || {
                show::services(&dump, &found)
            })
        }
        Command::Policies(filter) => {
            let found = show::select_policies(&dump, filter);
            answer(json, &dump.raw_of("policies", &found), || {
                show::policies(&dump, &found)
            })
        }
        Command::Certificates => {
            answer(json, dump.raw("certificates"), || show::certificates(&dump))
        }
        Command::Connections(filter) => {
            let found = show::select_connections(&dump, filter);
            answer(json, &found, || {
                show::connections(&dump, &found, filter.raw)
            })
        }
        Command::Explain(question) => {
            let explained = explained(arguments, &ask, dump, question).await?;
            if json {
                to_json(&explained)
            } else {
                Ok(explain::text(&explained))
            }
        }
        Command::Problems => Ok(String::new()),
    }
}

async fn explained(
    arguments: &Arguments,
    ask: &Ask,
    dump: Dump,
    question: &Explain,
) -> anyhow::Result<Explained> {
    let (namespace, name) = question
        .pod
        .split_once('/')
        .unwrap_or(("default", &question.pod));
    let target = match question.to.as_slice() {
        [] => None,
        [to, target] if to == "to" => Some(target.parse::<Target>()?),
        [target] if target != "to" => Some(target.parse::<Target>()?),
        _ => bail!("say `explain POD to TARGET`"),
    };
    let pods: anyhow::Result<Pods> = match ask.json(&arguments.agent, "/debug/pods").await {
        Ok(raw) => serde_json::from_value(raw).context("the agent's answer"),
        Err(error) => Err(error),
    };
    let connection = match &target {
        Some(target) => {
            let path = target.question(&dump, namespace, name);
            Some(
                ask.json(&arguments.ztunnel, &path)
                    .await
                    .context("the node proxy")?,
            )
        }
        None => None,
    };
    explain::gather(namespace, name, &dump, pods, target.as_ref(), connection)
}

fn answer(
    json: bool,
    value: &impl Serialize,
    table: impl FnOnce() -> Table,
) -> anyhow::Result<String> {
    if json {
        to_json(value)
    } else {
        Ok(table().to_string())
    }
}

fn to_json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn netns(name: Option<&str>) -> anyhow::Result<Option<ambit_net::netns::Netns>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let path = if name.contains('/') {
        PathBuf::from(name)
    } else {
        PathBuf::from("/run/netns").join(name)
    };
    let opened = ambit_net::netns::Netns::open(&path);
    opened
        .map(Some)
        .with_context(|| format!("the network namespace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Arguments, Command};

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [
            &["ambitctl", "-o", "json", "workloads"][..],
            &["ambitctl", "workloads", "-o", "json", "--netns", "n1"],
            &[
                "ambitctl",
                "explain",
                "shop/web",
                "to",
                "cart.shop:80",
                "--ztunnel",
                "http://[::1]:15000",
            ],
        ] {
            assert!(Arguments::try_parse_from(line).is_ok(), "{line:?}");
        }
        let parsed = Arguments::parse_from(["ambitctl", "explain", "shop/web", "to", "cart.shop"]);
        let Command::Explain(explain) = parsed.command else {
            panic!()
        };
        assert_eq!(explain.to, ["to", "cart.shop"]);
    }
}
