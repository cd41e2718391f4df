//! Environment and mesh file → [`Settings`]. The only reader of both.
//!
//! [`read`] is pure: it gets the variables, the mesh file's text and what the machine has, so each
//! rule below is tested without touching the process' environment. Every problem is reported, not
//! only the first, so that a broken deployment is mended in one go.

mod otlp;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ambit_observe::access::filter::Filter;
use ambit_observe::metrics::{LEAST_IDLE, Limits};
use serde::Deserialize;

use super::value::{
    boolean, cpus, deadline_within, default_threads, dns_address, duration, threads, unix_socket,
    workload,
};
use super::{
    Compliance, DNS_PORT, DnsAddress, Endpoint, Http2, Keepalive, LogFormat, Mode, Only,
    OriginalSource, Problem, Roots, Settings, Source, Spire, Token,
};

/// Istio's mesh file, relative to the working directory (`/` in the container).
const MESH_FILE: &str = "./etc/istio/config/mesh";
const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const IN_CLUSTER_CONTROL: &str = "https://istiod.istio-system.svc:15012";
const LOCAL_CONTROL: &str = "https://localhost:15012";
/// Where SPIRE's chart puts the agent's admin socket.
const SPIRE_ADMIN_SOCKET: &str = "/run/spire/sockets/admin.sock";
const AGENT_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
/// The mark the redirection rules know the proxy's sockets by.
const PACKET_MARK: u32 = 1337;
/// Settings of Istio's ztunnel that would change what is safe or what is reachable, and that this
/// program does not do: (name, the value that asks for nothing).
const NOT_DONE: [(&str, &str); 4] = [
    ("TLS12_ENABLED", "false"),
    ("FAKE_CA", "false"),
    ("UNSTABLE_ENABLE_SOCKS5", "false"),
    ("ENABLE_PROXY", "true"),
];

/// What the machine has, as far as the settings depend on it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The text of the mesh file, if there is one.
    pub mesh: Option<String>,
    /// CPUs this process may run on.
    pub cpus: usize,
    /// Whether the default token file exists.
    pub token_file: bool,
    /// Files that exist among those the variables name.
    pub files: Vec<String>,
    /// What the machine's resolver was told.
    pub resolver: crate::dns::places::Conf,
}

/// Reads the settings of this process.
///
/// # Errors
/// Every setting that is wrong, by name.
pub fn from_process() -> Result<Settings, Vec<Problem>> {
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let named = ["AUTH_TOKEN", "XDS_ROOT_CA", "CA_ROOT_CA"];
    let machine = Machine {
        mesh: std::fs::read_to_string(MESH_FILE).ok(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        token_file: std::path::Path::new(TOKEN_FILE).exists(),
        files: named
            .iter()
            .filter_map(|name| variables.get(*name))
            .filter(|path| std::path::Path::new(path).exists())
            .cloned()
            .collect(),
        resolver: crate::dns::places::own(),
    };
    read(variables, &machine)
}

/// Reads settings from `variables` on a given machine.
///
/// # Errors
/// Every setting that is wrong, by name.
pub fn read(
    variables: BTreeMap<String, String>,
    machine: &Machine,
) -> Result<Settings, Vec<Problem>> {
    let mut from = Reader {
        variables,
        problems: Vec::new(),
    };
    let mesh = from.mesh(machine);
    for (name, nothing) in NOT_DONE {
        if let Some(value) = from.text(name)
            && value != nothing
        {
            from.problem(name, "this proxy does not do that; remove the setting");
        }
    }
    let settings = from.settings(&mesh, machine);
    if from.problems.is_empty() {
        Ok(settings)
    } else {
        Err(from.problems)
    }
}

/// The part of Istio's ProxyConfig that a node proxy reads.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfig {
    discovery_address: Option<String>,
    proxy_admin_port: Option<u16>,
    stats_port: Option<u16>,
    concurrency: Option<usize>,
    proxy_metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: ProxyConfig,
}

struct Reader {
    variables: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Reader {
    fn settings(&mut self, mesh: &ProxyConfig, machine: &Machine) -> Settings {
        let keepalive = self.keepalive();
        let ipv6_enabled = self.flag("IPV6_ENABLED", true);
        let mode = self.mode();
        // Of a proxy of its own the redirection knows by its group which connections are its own,
        // and nothing leads answers to another's address back to it.
        let (packet_mark, original_source) = match mode {
            Mode::Shared => (PACKET_MARK, OriginalSource::Auto),
            Mode::Dedicated(_) => (0, OriginalSource::Off),
        };
        let own = match &mode {
            Mode::Shared => Only::default(),
            Mode::Dedicated(only) => only.clone(),
        };
        Settings {
            mode,
            network: self.text("NETWORK").unwrap_or_default(),
            local_node: self.text("NODE_NAME").unwrap_or_default(),
            cluster_id: self
                .text("ISTIO_META_CLUSTER_ID")
                .or_else(|| self.text("CLUSTER_ID"))
                .unwrap_or_else(|| "Kubernetes".to_owned()),
            trust_domain: self.or("TRUST_DOMAIN", "cluster.local"),
            pod_name: self.or("POD_NAME", &own.name),
            pod_namespace: self.or("POD_NAMESPACE", &own.namespace),
            service_account: self.or("SERVICE_ACCOUNT", &own.service_account),
            instance_ip: self.parse("INSTANCE_IP", IpAddr::from([1, 1, 1, 1])),
            xds: self.source(mesh, machine),
            xds_on_demand: self.xds_on_demand(mesh),
            ca: self.endpoint("CA", mesh, machine),
            spire: self.spire(),
            auth: self.token(machine),
            crl_path: self.set("CRL_PATH").map(Into::into),
            compliance_policy: self.compliance(),
            secret_ttl: self.period("SECRET_TTL", Duration::from_secs(86_400)),
            proxy_metadata: self.metadata(mesh),
            proxy_metadata_json: self.metadata_json(),
            num_worker_threads: self.worker_threads(mesh, machine),
            pool_max_streams_per_connection: self
                .at_least_one("POOL_MAX_STREAMS_PER_CONNECTION", 100),
            pool_unused_release_timeout: self
                .period("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300)),
            http2: self.http2(),
            termination_deadline: self.termination(),
            original_source: match self.optional_flag("ENABLE_ORIG_SRC") {
                None => original_source,
                Some(true) => OriginalSource::Required,
                Some(false) => OriginalSource::Off,
            },
            packet_mark: self.parse("PACKET_MARK", packet_mark),
            inpod_uds: self.or("INPOD_UDS", AGENT_SOCKET).into(),
            inpod_port_reuse: self.flag("INPOD_PORT_REUSE", true),
            user_timeout: keepalive
                .filter(|_| self.flag("USER_TIMEOUT_ENABLED", false))
                .map(|k| k.time.saturating_add(k.interval.saturating_mul(k.retries))),
            keepalive,
            ipv6_enabled,
            dns_proxy: self.dns_proxy(mesh),
            cluster_domain: self.cluster_domain(machine),
            preferred_service_namespace: self.or("PREFERED_SERVICE_NAMESPACE", ""),
            localhost_app_tunnel: self.flag("LOCALHOST_APP_TUNNEL", true),
            same_node_direct: self.flag("SAME_NODE_DIRECT", true),
            splice_enabled: self.flag("SPLICE_ENABLED", true),
            early_data: self.flag("EARLY_DATA_ENABLED", true),
            response_baggage: self.flag("ENABLE_RESPONSE_BAGGAGE", true),
            admin_addr: SocketAddr::from((
                Ipv4Addr::LOCALHOST,
                mesh.proxy_admin_port.unwrap_or(15000),
            )),
            stats_addr: wildcard(ipv6_enabled, mesh.stats_port.unwrap_or(15020)),
            readiness_addr: wildcard(ipv6_enabled, 15021),
            log_filter: self.or("RUST_LOG", "info"),
            log_format: self.log_format(),
            access_log_filter: self.access_log_filter(),
            otlp: self.otlp(),
            policy_info_logging: self.flag("AUTHZ_POLICY_INFO_LOGGING", false),
            metrics: self.metrics(),
            version_tag: self.or("ISTIO_META_ISTIO_VERSION", "unknown"),
        }
    }

    fn problem(&mut self, name: &str, reason: impl Display) {
        self.problems.push(Problem {
            name: name.to_owned(),
            reason: reason.to_string(),
        });
    }

    fn text(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    /// A text that says something: empty is as good as absent.
    fn set(&self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty())
    }

    fn or(&self, name: &str, otherwise: &str) -> String {
        self.text(name).unwrap_or_else(|| otherwise.to_owned())
    }

    fn with<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.problem(name, reason);
                None
            }
        }
    }

    /// `PROXY_MODE`, and whom it is for.
    fn mode(&mut self) -> Mode {
        const WHOM: &str = "PROXY_WORKLOAD_INFO";
        let dedicated = self.with("PROXY_MODE", |text| match text {
            "" | "shared" => Ok(false),
            "dedicated" => Ok(true),
            other => Err(format!("`{other}` is not `shared` or `dedicated`")),
        });
        if dedicated != Some(true) {
            return Mode::Shared;
        }
        if self.text(WHOM).is_none() {
            self.problem(
                WHOM,
                "PROXY_MODE=dedicated needs NAMESPACE/NAME/SERVICEACCOUNT",
            );
        }
        let only = self.with(WHOM, workload);
        only.map_or(Mode::Shared, Mode::Dedicated)
    }

    fn optional_flag(&mut self, name: &str) -> Option<bool> {
        self.with(name, boolean)
    }

    fn flag(&mut self, name: &str, otherwise: bool) -> bool {
        self.optional_flag(name).unwrap_or(otherwise)
    }

    fn period(&mut self, name: &str, otherwise: Duration) -> Duration {
        self.with(name, duration).unwrap_or(otherwise)
    }

    fn parse<T: FromStr<Err: Display>>(&mut self, name: &str, otherwise: T) -> T {
        self.with(name, |text| {
            text.parse().map_err(|e| format!("`{text}`: {e}"))
        })
        .unwrap_or(otherwise)
    }

    fn at_least_one(&mut self, name: &str, otherwise: u32) -> u32 {
        let value = self.parse(name, otherwise);
        if value == 0 {
            self.problem(name, "0 would carry nothing; at least 1");
        }
        value
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

    /// PROXY_CONFIG over the mesh file's defaultConfig, field by field; metadata merged.
    fn mesh(&mut self, machine: &Machine) -> ProxyConfig {
        let mut base = match machine
            .mesh
            .as_deref()
            .map(serde_saphyr::from_str::<MeshConfig>)
        {
            None => ProxyConfig::default(),
            Some(Ok(mesh)) => mesh.default_config,
            Some(Err(e)) => {
                self.problem(MESH_FILE, e);
                ProxyConfig::default()
            }
        };
        let Some(over) = self.with("PROXY_CONFIG", |text| {
            serde_saphyr::from_str::<ProxyConfig>(text).map_err(|e| e.to_string())
        }) else {
            return base;
        };
        base.discovery_address = over.discovery_address.or(base.discovery_address);
        base.proxy_admin_port = over.proxy_admin_port.or(base.proxy_admin_port);
        base.stats_port = over.stats_port.or(base.stats_port);
        base.concurrency = over.concurrency.or(base.concurrency);
        base.proxy_metadata.extend(over.proxy_metadata);
        base
    }

    fn source(&mut self, mesh: &ProxyConfig, machine: &Machine) -> Source {
        let file = self.text("LOCAL_XDS_PATH").filter(|path| !path.is_empty());
        let inline = self.text("LOCAL_XDS").filter(|text| !text.is_empty());
        match (file, inline) {
            (Some(_), Some(_)) => {
                self.problem("LOCAL_XDS", "set either this or LOCAL_XDS_PATH");
                Source::Inline(String::new())
            }
            (Some(path), None) => Source::File(path.into()),
            (None, Some(text)) => Source::Inline(text),
            (None, None) => Source::ControlPlane(self.endpoint("XDS", mesh, machine)),
        }
    }

    /// Not beside the DNS proxy, as in Istio: it would have to ask for every name that any pod looks up.
    fn xds_on_demand(&mut self, mesh: &ProxyConfig) -> bool {
        const NAME: &str = "XDS_ON_DEMAND";
        let on_demand = self.flag(NAME, false);
        if on_demand && self.dns_proxy(mesh).is_some() {
            self.problem(
                NAME,
                "not beside the DNS proxy, which has to know every service: set ISTIO_META_DNS_CAPTURE=false",
            );
        }
        on_demand
    }

    /// `<prefix>_ADDRESS`, `_ROOT_CA`, `_HEADER_*` and `ALT_<prefix>_HOSTNAME`.
    fn endpoint(&mut self, prefix: &str, mesh: &ProxyConfig, machine: &Machine) -> Endpoint {
        let name = format!("{prefix}_ADDRESS");
        let address = self.text(&name).or_else(|| mesh.discovery_address.clone());
        let address = address.unwrap_or_else(|| {
            let inside = self.variables.contains_key("KUBERNETES_SERVICE_HOST");
            if inside {
                IN_CLUSTER_CONTROL
            } else {
                LOCAL_CONTROL
            }
            .to_owned()
        });
        let address = match address.split_once("://") {
            None if address.is_empty() => {
                self.problem(&name, "empty: nothing would configure the proxy");
                address
            }
            None => format!("https://{address}"),
            Some(("https", _)) => address,
            Some((scheme, _)) => {
                self.problem(
                    &name,
                    format_args!("`{scheme}` is not encrypted; use https"),
                );
                address
            }
        };
        let headers = format!("{prefix}_HEADER_");
        Endpoint {
            address,
            roots: self.roots(&format!("{prefix}_ROOT_CA"), machine),
            alternative_name: self.text(&format!("ALT_{prefix}_HOSTNAME")),
            headers: self.with_prefix(&headers).collect(),
        }
    }

    fn roots(&mut self, name: &str, machine: &Machine) -> Roots {
        match self.text(name) {
            None => Roots::File(ROOT_FILE.into()),
            Some(text) if text == "SYSTEM" => Roots::System,
            Some(text) if text.contains("-----BEGIN") => Roots::Pem(text),
            Some(path) => {
                if !machine.files.contains(&path) {
                    self.problem(
                        name,
                        format_args!("`{path}` is no file, no PEM and not SYSTEM"),
                    );
                }
                Roots::File(path.into())
            }
        }
    }

    /// Only if it is asked for: a variable such as `SPIFFE_ENDPOINT_SOCKET` may be there for others.
    fn spire(&mut self) -> Option<Spire> {
        if !self.flag("SPIRE_ENABLED", false) {
            return None;
        }
        if self
            .text("PROXY_MODE")
            .is_some_and(|mode| mode == "dedicated")
        {
            self.problem(
                "SPIRE_ENABLED",
                "not with PROXY_MODE=dedicated, which has the one identity that CA_ADDRESS gives it",
            );
        }
        let admin = self.with("SPIRE_ADMIN_ENDPOINT_SOCKET", unix_socket);
        Some(Spire {
            admin: admin.unwrap_or_else(|| SPIRE_ADMIN_SOCKET.into()),
            workload: self.with("SPIFFE_ENDPOINT_SOCKET", unix_socket),
        })
    }

    fn token(&mut self, machine: &Machine) -> Option<Token> {
        match self.text("AUTH_TOKEN").filter(|text| !text.is_empty()) {
            Some(text) if machine.files.contains(&text) => Some(Token::File(text.into())),
            // A path that is missing is a mistake, not a token: no token contains a slash first.
            Some(text) if text.starts_with('/') || text.starts_with("./") => {
                self.problem("AUTH_TOKEN", format_args!("`{text}` does not exist"));
                None
            }
            Some(text) => Some(Token::Literal(text)),
            None => machine.token_file.then(|| Token::File(TOKEN_FILE.into())),
        }
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
        self.variables.iter().filter_map(move |(name, value)| {
            Some((name.strip_prefix(prefix)?.to_owned(), value.clone()))
        })
    }

    fn metadata(&self, mesh: &ProxyConfig) -> Vec<(String, String)> {
        let mut metadata = mesh.proxy_metadata.clone();
        metadata.extend(self.with_prefix("ISTIO_META_"));
        metadata.into_iter().collect()
    }

    fn metadata_json(&mut self) -> Vec<(String, serde_json::Value)> {
        let given: Vec<_> = self.with_prefix("ISTIO_METAJSON_").collect();
        let mut read = Vec::with_capacity(given.len());
        for (name, text) in given {
            match serde_json::from_str(&text) {
                Ok(value) => read.push((name, value)),
                Err(e) => self.problem(&format!("ISTIO_METAJSON_{name}"), e),
            }
        }
        read
    }

    fn worker_threads(&mut self, mesh: &ProxyConfig, machine: &Machine) -> usize {
        let limit = self
            .with("ZTUNNEL_RESOURCE_CPU_LIMIT", cpus)
            .or_else(|| self.with("ZTUNNEL_CPU_LIMIT", cpus));
        let request = self.with("ZTUNNEL_RESOURCE_CPU_REQUEST", cpus);
        let available = limit.map_or(machine.cpus, |limit| default_threads(1, Some(limit), None));
        if let Some(asked) = self.with("ZTUNNEL_WORKER_THREADS", |text| threads(text, available)) {
            return asked;
        }
        match mesh.concurrency {
            Some(0) => available.max(1),
            Some(n) => n.min(1024),
            None => default_threads(machine.cpus, limit, request),
        }
    }

    /// On unless it is said otherwise, in a variable or in the mesh file's metadata of the same name.
    fn dns_proxy(&mut self, mesh: &ProxyConfig) -> Option<DnsAddress> {
        let said = |reader: &Self, name: &str| {
            let text = reader.text(name);
            text.or_else(|| mesh.proxy_metadata.get(name).cloned())
        };
        const ADDRESS: &str = "ISTIO_META_DNS_PROXY_ADDR";
        let address = said(self, ADDRESS).map(|text| dns_address(&text));
        let address = match address {
            None => DnsAddress::Localhost(DNS_PORT),
            Some(Ok(address)) => address,
            Some(Err(reason)) => {
                self.problem(ADDRESS, reason);
                return None;
            }
        };
        let capture = said(self, "ISTIO_META_DNS_CAPTURE");
        capture.is_none_or(|text| text == "true").then_some(address)
    }

    /// As it is said, else as the machine's search domains show it, else Kubernetes' own default.
    fn cluster_domain(&self, machine: &Machine) -> String {
        let said = self.text("CLUSTER_DOMAIN").filter(|text| !text.is_empty());
        let shown = || machine.resolver.cluster_domain().map(str::to_owned);
        let domain = said.or_else(shown);
        let domain = domain.unwrap_or_else(|| "cluster.local".to_owned());
        domain.trim_matches('.').to_ascii_lowercase()
    }

    fn http2(&mut self) -> Http2 {
        let mut size = |name: &str, most: u32| {
            let value = self.with(name, |text| text.parse::<u32>().map_err(|e| e.to_string()))?;
            // RFC 9113 6.5.2 and 6.9.1: windows end at 2^31-1, frames lie in 2^14..2^24.
            let least = if most < 1 << 30 { 16_384 } else { 65_535 };
            if !(least..=most).contains(&value) {
                self.problem(name, format_args!("{value} is outside {least}..={most}"));
            }
            Some(value)
        };
        Http2 {
            stream_window: size("HTTP2_STREAM_WINDOW_SIZE", (1 << 31) - 1),
            connection_window: size("HTTP2_CONNECTION_WINDOW_SIZE", (1 << 31) - 1),
            frame_size: size("HTTP2_FRAME_SIZE", (1 << 24) - 1),
        }
    }

    fn termination(&mut self) -> Duration {
        let grace = self.with("TERMINATION_GRACE_PERIOD_SECONDS", |text| {
            text.parse::<u64>().map_err(|e| format!("`{text}`: {e}"))
        });
        let asked = self.with("CONNECTION_TERMINATION_DEADLINE", duration);
        asked
            .or_else(|| grace.map(deadline_within))
            .unwrap_or(Duration::from_secs(5))
    }

    fn keepalive(&mut self) -> Option<Keepalive> {
        let keepalive = Keepalive {
            time: self.period("KEEPALIVE_TIME", Duration::from_secs(180)),
            interval: self.period("KEEPALIVE_INTERVAL", Duration::from_secs(180)),
            retries: self.at_least_one("KEEPALIVE_RETRIES", 9),
        };
        self.flag("KEEPALIVE_ENABLED", true).then_some(keepalive)
    }

    fn compliance(&mut self) -> Compliance {
        self.with("COMPLIANCE_POLICY", |text| match text {
            "" => Ok(Compliance::None),
            "pqc" => Ok(Compliance::Pqc),
            other => Err(format!("`{other}` is not `pqc`")),
        })
        .unwrap_or(Compliance::None)
    }

    /// `ACCESS_LOG_FILTER`; empty as if it were not set.
    fn access_log_filter(&mut self) -> Option<Filter> {
        const NAME: &str = "ACCESS_LOG_FILTER";
        self.text(NAME).filter(|text| !text.trim().is_empty())?;
        self.with(NAME, |text| {
            Filter::parse(text).map_err(|error| error.to_string())
        })
    }

    fn log_format(&mut self) -> LogFormat {
        self.with("LOG_FORMAT", |text| match text {
            "plain" => Ok(LogFormat::Plain),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("`{other}` is not `plain` or `json`")),
        })
        .unwrap_or(LogFormat::Plain)
    }
}

fn wildcard(ipv6: bool, port: u16) -> SocketAddr {
    if ipv6 {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    }
}

#[cfg(test)]
mod tests;
