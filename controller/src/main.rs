//! `controller`: arguments to settings, then [`ambit_controller::app`].

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use ambit_controller::app;
use ambit_controller::authority::keys::{Keys, ROOT_CERTIFICATE};
use ambit_controller::authority::review::{self, Bound, Wanted};
use ambit_controller::config::{Mesh, Serve};
use ambit_objects::Folder;
use ambit_observe::logging::{LogFormat, Logging};
use anyhow::{Context as _, anyhow};
use clap::{Args, Parser, Subcommand};

/// Control plane of an ambient mesh: manifests in, discovery and certificates out.
#[derive(Debug, Parser)]
#[command(name = "controller", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve discovery and certificates.
    Serve(ServeArguments),
    /// Make the root certificate and the token key, and nothing else.
    Init(State),
    /// Make a token by which a proxy proves who it is; it is written to standard output.
    Token(TokenArguments),
    /// Read a folder of manifests once and say what is wrong in it.
    Check {
        /// Folder of manifests.
        #[arg(long)]
        manifests: PathBuf,
    },
}

#[derive(Debug, Args)]
struct State {
    /// Folder of root certificate and keys; they are made at first use and kept.
    #[arg(long, env = "AMBIT_STATE")]
    state: PathBuf,
    /// Trust domain of every identity.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
}

#[derive(Debug, Args)]
struct ServeArguments {
    #[command(flatten)]
    state: State,
    /// Folder of manifests.
    #[arg(long, env = "AMBIT_MANIFESTS")]
    manifests: PathBuf,
    /// Folder where node agents write the status of pods [default: .status in the manifests].
    #[arg(long)]
    status: Option<PathBuf>,
    /// Where discovery and certificates are served.
    #[arg(long, default_value = "[::]:15012")]
    listen: SocketAddr,
    /// Where metrics, readiness and dumps are served.
    #[arg(long, default_value = "127.0.0.1:15014")]
    admin: SocketAddr,
    /// Further names or addresses that the server's certificate is to prove.
    #[arg(long = "server-name")]
    server_names: Vec<String>,
    /// Name of this cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Name of this cluster's network.
    #[arg(long, env = "NETWORK", default_value = "")]
    network: String,
    /// Namespace whose policies hold for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// Suffix of service host names.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Service accounts (namespace/name) of node proxies.
    #[arg(long, default_value = "istio-system/ztunnel", value_delimiter = ',')]
    node_accounts: Vec<String>,
    /// Longest life of a certificate, such as 24h or 30m.
    #[arg(long, default_value = "24h", value_parser = duration)]
    max_certificate_ttl: Duration,
    /// PEM of a further public key whose tokens are accepted.
    #[arg(long)]
    token_key: Option<PathBuf>,
    /// Log levels, such as info or warn,ambit_controller=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
    /// Log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

#[derive(Debug, Args)]
struct TokenArguments {
    #[command(flatten)]
    state: State,
    /// The proxy's namespace.
    #[arg(long)]
    namespace: String,
    /// The proxy's service account.
    #[arg(long)]
    service_account: String,
    /// The pod it is bound to. A node proxy's must be bound.
    #[arg(long)]
    pod: Option<String>,
    /// The pod's uid, if its manifest has one.
    #[arg(long, default_value = "", requires = "pod")]
    pod_uid: String,
    /// The pod's node.
    #[arg(long)]
    node: Option<String>,
    /// Whom the token is for.
    #[arg(long, default_value = review::AUDIENCE)]
    audience: String,
    /// How long it is good for.
    #[arg(long, default_value = "12h", value_parser = duration)]
    ttl: Duration,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // There may be no log to say it in.
            let _ = writeln!(std::io::stderr(), "controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(arguments) => serve(arguments),
        Command::Init(state) => {
            open(&state)?;
            print(&format!(
                "{}\n",
                state.state.join(ROOT_CERTIFICATE).display()
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Token(arguments) => {
            print(&token(arguments)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { manifests } => check(&manifests),
    }
}

fn serve(arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    let format = if arguments.log_json {
        LogFormat::Json
    } else {
        LogFormat::Plain
    };
    let logging = Logging::install(format, &arguments.log)?;
    let settings = settings(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start")?;
    let outcome = runtime.block_on(Box::pin(app::serve(settings, &logging)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    logging.writer().flush(Duration::from_secs(1));
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn settings(arguments: ServeArguments) -> anyhow::Result<Serve> {
    let account = |text: &String| {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| anyhow!("{text:?} is not namespace/name"))?;
        Ok((namespace.to_owned(), name.to_owned()))
    };
    let node_accounts: anyhow::Result<Vec<_>> =
        arguments.node_accounts.iter().map(account).collect();
    let server_names = server_names(&arguments);
    fs::create_dir_all(&arguments.manifests)
        .with_context(|| format!("manifests {}", arguments.manifests.display()))?;
    Ok(Serve {
        manifests: arguments.manifests,
        status: arguments.status,
        state: arguments.state.state,
        listen: arguments.listen,
        admin: arguments.admin,
        server_names,
        max_ttl: arguments.max_certificate_ttl,
        token_key: arguments.token_key,
        mesh: Mesh {
            trust_domain: arguments.state.trust_domain,
            cluster_id: arguments.cluster_id,
            network: arguments.network,
            root_namespace: arguments.root_namespace,
            cluster_domain: arguments.cluster_domain,
            node_accounts: node_accounts?,
        },
    })
}

/// The names by which proxies know a control plane, this machine's own, and what was asked for.
fn server_names(arguments: &ServeArguments) -> Vec<String> {
    let root = &arguments.root_namespace;
    let mut names = vec![
        format!("istiod.{root}.svc"),
        format!("istiod.{root}.svc.{}", arguments.cluster_domain),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let address: IpAddr = arguments.listen.ip();
    if !address.is_unspecified() {
        names.push(address.to_string());
    }
    names.extend(arguments.server_names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn token(arguments: TokenArguments) -> anyhow::Result<String> {
    let keys = open(&arguments.state)?;
    let uid = arguments.pod_uid;
    let wanted = Wanted {
        namespace: arguments.namespace,
        service_account: arguments.service_account,
        pod: arguments.pod.map(|name| Bound { name, uid }),
        node: arguments.node,
        audience: arguments.audience,
        issuer: format!("https://controller.{}", arguments.state.trust_domain),
        ttl: arguments.ttl,
    };
    review::make(&keys.token_key, wanted, SystemTime::now()).map_err(|error| anyhow!(error))
}

fn check(manifests: &std::path::Path) -> anyhow::Result<ExitCode> {
    let objects = Folder::new(manifests, None)
        .read()
        .with_context(|| format!("manifests {}", manifests.display()))?;
    let mut text = String::new();
    for problem in &objects.problems {
        text.push_str(&format!("{problem}\n"));
    }
    let (_, resources) = ambit_controller::translate::translate(objects, Mesh::default());
    for finding in &resources.findings {
        text.push_str(&format!("{finding}\n"));
    }
    print(&text)?;
    Ok(if text.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn open(state: &State) -> anyhow::Result<Keys> {
    Keys::open(&state.state, &state.trust_domain, SystemTime::now())
        .with_context(|| format!("state {}", state.state.display()))
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write")
}

/// `90s`, `30m`, `12h` or `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 90s, 30m, 12h or 7d");
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}
