//! Environment and arguments → [`Settings`]. The only reader of both.
//!
//! [`read`] is pure, so each rule below is tested without touching the process' environment. Every
//! problem is reported, not only the first.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ambit_control::{Roots, TokenSource};
use ambit_model::identity::Identity;
use ambit_observe::logging::LogFormat;
use ambit_observe::metrics::{LEAST_IDLE, Limits};
use serde_json::Value;

use super::{Endpoint, HBONE_PORT, Problem, Settings};

const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const LABELS_FILE: &str = "./etc/istio/pod/labels";
const CONTROL_PLANE: &str = "istiod.istio-system.svc:15012";
/// How long Istio lets a proxy's connections drain.
const TERMINATION: Duration = Duration::from_secs(5);
/// Threads beyond this make no sense on any machine.
const MAX_THREADS: usize = 1024;
/// The Istio release whose contract this program follows; istiod gates features by it.
const ISTIO_VERSION: &str = "1.30.0";
/// Node metadata given as text, and as JSON.
const META: &str = "ISTIO_META_";
const META_JSON: &str = "ISTIO_METAJSON_";
/// Settings that would change what is safe, and that this program does not do.
const NOT_DONE: [&str; 3] = ["COMPLIANCE_POLICY", "CRL_PATH", "FILE_MOUNTED_CERTS"];

/// What the machine has, as far as the settings depend on it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// CPUs this process may run on.
    pub cpus: usize,
    /// Whether the default token file exists.
    pub token_file: bool,
    /// The pod's labels file, if there is one: lines of `key="value"`.
    pub labels: Option<String>,
}

/// Reads the settings of this process. `arguments` are what follows `proxy`.
///
/// # Errors
/// Every setting that is wrong, by name.
pub fn from_process(arguments: &[String]) -> Result<Settings, Vec<Problem>> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let machine = Machine {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        token_file: Path::new(TOKEN_FILE).exists(),
        labels: std::fs::read_to_string(LABELS_FILE).ok(),
    };
    read(variables, arguments, &machine)
}

/// Reads settings from variables and arguments on a given machine.
///
/// # Errors
/// Every setting that is wrong, by name.
pub fn read(
    variables: BTreeMap<String, String>,
    arguments: &[String],
    machine: &Machine,
) -> Result<Settings, Vec<Problem>> {
    let mut reader = Reader {
        variables,
        problems: Vec::new(),
    };
    for name in NOT_DONE {
        if reader.text(name).is_some_and(|value| value != "false") {
            reader.problem(name, "this proxy does not do that; remove the setting");
        }
    }
    let settings = reader.settings(arguments, machine);
    match settings {
        Some(settings) if reader.problems.is_empty() => Ok(settings),
        _ => Err(reader.problems),
    }
}

struct Reader {
    variables: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Reader {
    fn settings(&mut self, arguments: &[String], machine: &Machine) -> Option<Settings> {
        let config = self.json("PROXY_CONFIG");
        let discovery = config
            .get("discoveryAddress")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let xds = self.endpoint(
            &["XDS_ADDRESS"],
            "XDS_ROOT_CA",
            "ISTIOD_SAN",
            discovery.clone(),
        );
        let ca = self.endpoint(
            &["CA_ADDRESS", "CA_ADDR"],
            "CA_ROOT_CA",
            "ISTIOD_SAN",
            discovery,
        );
        let identity = self.identity();
        let namespace = self.text("POD_NAMESPACE").unwrap_or_default();
        let account = self.text("SERVICE_ACCOUNT").unwrap_or_default();
        let version_tag = self
            .text("ISTIO_META_ISTIO_VERSION")
            .unwrap_or_else(|| ISTIO_VERSION.to_owned());
        let settings = Settings {
            identity: identity?,
            pod_name: self.required("POD_NAME"),
            instance_ip: self.parse("INSTANCE_IP", IpAddr::from([127, 0, 0, 1])),
            domain: flag(arguments, "--domain")
                .unwrap_or_else(|| format!("{namespace}.svc.cluster.local")),
            service_cluster: flag(arguments, "--serviceCluster")
                .unwrap_or_else(|| format!("{account}.{namespace}")),
            cluster_id: self
                .text("ISTIO_META_CLUSTER_ID")
                .or_else(|| self.text("CLUSTER_ID"))
                .unwrap_or_else(|| "Kubernetes".to_owned()),
            network: self
                .text("ISTIO_META_NETWORK")
                .or_else(|| self.text("NETWORK"))
                .unwrap_or_default(),
            xds,
            ca,
            token: self.token(machine),
            secret_ttl: self.period("SECRET_TTL", Duration::from_secs(86_400)),
            metadata: Vec::new(),
            threads: self.threads(&config, machine),
            termination_deadline: self.period("TERMINATION_DRAIN_DURATION", TERMINATION),
            tunnel_addr: SocketAddr::from(([0u16; 8], HBONE_PORT)),
            admin_addr: SocketAddr::from((
                Ipv4Addr::LOCALHOST,
                port(&config, "proxyAdminPort", 15000),
            )),
            stats_addr: SocketAddr::from(([0u16; 8], port(&config, "statsPort", 15020))),
            readiness_addr: SocketAddr::from(([0u16; 8], 15021)),
            log_filter: self.text("RUST_LOG").unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format(arguments),
            metrics: self.metrics(),
            version_tag,
        };
        let metadata = self.metadata(&settings, machine);
        Some(Settings {
            metadata,
            ..settings
        })
    }

    fn problem(&mut self, name: &str, reason: impl Display) {
        self.problems.push(Problem {
            name: name.to_owned(),
            reason: reason.to_string(),
        });
    }

    fn text(&self, name: &str) -> Option<String> {
        self.variables
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned()
    }

    fn required(&mut self, name: &str) -> String {
        let value = self.text(name);
        if value.is_none() {
            self.problem(name, "is needed");
        }
        value.unwrap_or_default()
    }

    fn parse<T: FromStr<Err: Display>>(&mut self, name: &str, otherwise: T) -> T {
        match self
            .text(name)
            .map(|text| text.parse::<T>().map_err(|e| format!("`{text}`: {e}")))
        {
            None => otherwise,
            Some(Ok(value)) => value,
            Some(Err(reason)) => {
                self.problem(name, reason);
                otherwise
            }
        }
    }

    fn json(&mut self, name: &str) -> Value {
        match self.text(name).map(|text| serde_json::from_str(&text)) {
            None => Value::Null,
            Some(Ok(value)) => value,
            Some(Err(error)) => {
                self.problem(name, format_args!("is not JSON: {error}"));
                Value::Null
            }
        }
    }

    fn period(&mut self, name: &str, otherwise: Duration) -> Duration {
        match self.text(name) {
            None => otherwise,
            Some(text) => duration(&text).unwrap_or_else(|| {
                self.problem(
                    name,
                    format_args!("`{text}` is no duration such as 30s, 5m or 24h"),
                );
                otherwise
            }),
        }
    }

    fn identity(&mut self) -> Option<Identity> {
        let namespace = self.required("POD_NAMESPACE");
        let account = self.required("SERVICE_ACCOUNT");
        let domain = self
            .text("TRUST_DOMAIN")
            .unwrap_or_else(|| "cluster.local".to_owned());
        match Identity::new(&domain, &namespace, &account) {
            Ok(identity) => Some(identity),
            Err(error) => {
                self.problem("TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT", error);
                None
            }
        }
    }

    fn endpoint(
        &mut self,
        names: &[&str],
        roots: &str,
        alternative: &str,
        otherwise: Option<String>,
    ) -> Endpoint {
        let given = names.iter().find_map(|name| self.text(name));
        let address = given
            .or(otherwise)
            .unwrap_or_else(|| CONTROL_PLANE.to_owned());
        let address = match address.split_once("://") {
            None => format!("https://{address}"),
            Some(("https", _)) => address,
            Some((scheme, _)) => {
                let name = names.first().copied().unwrap_or_default();
                self.problem(name, format_args!("`{scheme}` is not encrypted; use https"));
                address
            }
        };
        let roots = self.text(roots).unwrap_or_else(|| ROOT_FILE.to_owned());
        Endpoint {
            address,
            roots: Roots::from_setting(&roots),
            alternative_name: self.text(alternative),
        }
    }

    fn token(&mut self, machine: &Machine) -> TokenSource {
        match self.text("AUTH_TOKEN") {
            Some(setting) => {
                let token = TokenSource::from_setting(&setting);
                // A path that is missing is a mistake, not a token: no token begins like a path.
                if matches!(token, TokenSource::Literal(_)) && setting.starts_with(['/', '.']) {
                    self.problem("AUTH_TOKEN", format_args!("`{setting}` does not exist"));
                }
                token
            }
            None if machine.token_file => TokenSource::File(TOKEN_FILE.into()),
            None => TokenSource::None,
        }
    }

    /// `WAYPOINT_WORKER_THREADS`, else Istio's `concurrency`, else one for each CPU.
    fn threads(&mut self, config: &Value, machine: &Machine) -> usize {
        let concurrency = config.get("concurrency").and_then(Value::as_u64);
        let concurrency = concurrency
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(0);
        let wanted = self.parse("WAYPOINT_WORKER_THREADS", concurrency);
        let count = if wanted == 0 { machine.cpus } else { wanted };
        if count > MAX_THREADS {
            self.problem(
                "WAYPOINT_WORKER_THREADS",
                format_args!("more than {MAX_THREADS}"),
            );
        }
        count.max(1)
    }

    /// `METRICS_MAX_LABEL_SETS` and `METRICS_IDLE_TIMEOUT`.
    fn metrics(&mut self) -> Limits {
        let default = Limits::default();
        let (sets, idle) = ("METRICS_MAX_LABEL_SETS", "METRICS_IDLE_TIMEOUT");
        let limits = Limits {
            sets: self.parse(sets, default.sets),
            idle: self.period(idle, default.idle),
        };
        if limits.sets == 0 {
            self.problem(sets, "0 would count nothing by name; at least 1");
        }
        if limits.idle < LEAST_IDLE {
            self.problem(idle, "less than a second");
        }
        limits
    }

    fn log_format(&mut self, arguments: &[String]) -> LogFormat {
        if arguments.iter().any(|argument| argument == "--log_as_json") {
            return LogFormat::named("json");
        }
        LogFormat::named(self.text("LOG_FORMAT").as_deref().unwrap_or("plain"))
    }

    /// What istiod wants to know of a node.
    fn metadata(&mut self, settings: &Settings, machine: &Machine) -> Vec<(String, Value)> {
        let mut out: BTreeMap<String, Value> = BTreeMap::new();
        let mut set = |name: &str, value: &str| {
            if !value.is_empty() {
                out.insert(name.to_owned(), Value::from(value));
            }
        };
        set("NAME", &settings.pod_name);
        set("NAMESPACE", settings.identity.namespace());
        set("SERVICE_ACCOUNT", settings.identity.service_account());
        set("CLUSTER_ID", &settings.cluster_id);
        set("NETWORK", &settings.network);
        set("INSTANCE_IPS", &settings.instance_ip.to_string());
        set(
            "NODE_NAME",
            self.text("NODE_NAME").as_deref().unwrap_or_default(),
        );
        set("ISTIO_VERSION", &settings.version_tag);
        set("METADATA_DISCOVERY", "true");
        set("ENABLE_HBONE", "true");
        set("ENVOY_STATUS_PORT", "15021");
        set("ENVOY_PROMETHEUS_PORT", "15090");
        if let Some(labels) = &machine.labels {
            out.insert("LABELS".to_owned(), Value::Object(self::labels(labels)));
        }
        let mut problems = Vec::new();
        for (name, value) in &self.variables {
            if let Some(key) = name.strip_prefix(META_JSON) {
                match serde_json::from_str(value) {
                    Ok(Value::Object(fields)) if key.is_empty() => out.extend(fields),
                    Ok(value) => drop(out.insert(key.to_owned(), value)),
                    Err(error) => problems.push((name.clone(), error.to_string())),
                }
            } else if let Some(key) = name.strip_prefix(META) {
                out.insert(key.to_owned(), Value::from(value.as_str()));
            }
        }
        for (name, error) in problems {
            self.problem(&name, format_args!("is not JSON: {error}"));
        }
        out.into_iter().collect()
    }
}

/// `--name value` or `--name=value`. Other arguments are Istio's and mean nothing here.
fn flag(arguments: &[String], name: &str) -> Option<String> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == name {
            return arguments.next().cloned();
        }
        if let Some(value) = argument
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
        {
            return Some(value.to_owned());
        }
    }
    None
}

fn port(config: &Value, name: &str, otherwise: u16) -> u16 {
    let given = config.get(name).and_then(Value::as_u64);
    given
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .unwrap_or(otherwise)
}

/// Lines of `key="value"`, as the downward API writes them.
fn labels(text: &str) -> serde_json::Map<String, Value> {
    let line = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value: String = serde_json::from_str(value.trim()).ok()?;
        Some((key.trim().to_owned(), Value::from(value)))
    };
    text.lines().filter_map(line).collect()
}

/// A sum of numbers with the units `ms`, `s`, `m`, `h`; a bare number is seconds.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        sum = sum.checked_add(scale.checked_mul(number.parse().ok()?)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests;
