//! OpenTelemetry's environment variables → where records and spans are exported to.
//!
//! Names, defaults and forms are those of OpenTelemetry's specification ("Environment Variable Specification", "OTLP Exporter
//! Configuration"), but that nothing is exported unless an endpoint is named. What asks for something that is not done here is
//! refused by name.

use std::time::Duration;

use ambit_otlp::{QUEUE, Sampling, Settings, TIMEOUT, Target};

use super::Reader;

/// Variables of which one value alone can be followed, or none.
const ONLY: [(&str, &[&str]); 5] = [
    ("OTEL_EXPORTER_OTLP_PROTOCOL", &["grpc"]),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", &["none"]),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &[]),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &[]),
    ("OTEL_METRICS_EXPORTER", &["none", "prometheus"]),
];

impl Reader {
    /// What to export; `None` for nothing.
    pub(super) fn otlp(&mut self) -> Option<Settings> {
        if self.flag("OTEL_SDK_DISABLED", false) {
            return None;
        }
        let logs = self.otlp_target("LOGS", "OTEL_LOGS_EXPORTER");
        let traces = self.otlp_target("TRACES", "OTEL_TRACES_EXPORTER");
        let sampling = self.sampling();
        let traces = traces.zip(sampling);
        if logs.is_none() && traces.is_none() {
            return None;
        }
        for (name, followed) in ONLY {
            if let Some(value) = self.said(name)
                && !followed.contains(&value.as_str())
            {
                self.problem(name, format_args!("`{value}` is not done here"));
            }
        }
        let queue = self.parse("OTEL_BLRP_MAX_QUEUE_SIZE", QUEUE);
        if queue == 0 {
            self.problem("OTEL_BLRP_MAX_QUEUE_SIZE", "0 would export nothing");
        }
        Some(Settings {
            logs,
            traces,
            resource: self.resource(),
            queue,
        })
    }

    /// The value of a variable; as OpenTelemetry asks, an empty one is as good as none.
    fn said(&self, name: &str) -> Option<String> {
        let said = self.text(name)?.trim().to_owned();
        (!said.is_empty()).then_some(said)
    }

    /// A signal's target, from its own variables, else from those for all.
    fn otlp_target(&mut self, signal: &str, exporter: &str) -> Option<Target> {
        match self.said(exporter).as_deref() {
            None | Some("otlp") => {}
            Some("none") => return None,
            Some(other) => {
                self.problem(
                    exporter,
                    format_args!("`{other}` is neither `otlp` nor `none`"),
                );
                return None;
            }
        }
        let name = |what: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_{signal}_{what}");
            let of_all = format!("OTEL_EXPORTER_OTLP_{what}");
            [own, of_all]
        };
        let endpoint_names = name("ENDPOINT");
        let (endpoint_name, endpoint) = self.first(&endpoint_names)?;
        if !["http://", "https://"]
            .iter()
            .any(|scheme| endpoint.starts_with(scheme))
        {
            let wrong = format!("`{endpoint}` is not http://host:port or https://host:port");
            self.problem(&endpoint_name, wrong);
        }
        let headers = match self.first(&name("HEADERS")) {
            None => Vec::new(),
            Some((name, text)) => self.pairs(&name, &text),
        };
        let timeout = match self.first(&name("TIMEOUT")) {
            None => TIMEOUT,
            Some((name, text)) => self.milliseconds(&name, &text),
        };
        Some(Target {
            endpoint,
            certificate: self
                .first(&name("CERTIFICATE"))
                .map(|(_, path)| path.into()),
            headers,
            timeout,
        })
    }

    /// The first of these variables that says something, with its name.
    fn first(&self, names: &[String]) -> Option<(String, String)> {
        names
            .iter()
            .find_map(|name| Some((name.clone(), self.said(name)?)))
    }

    fn milliseconds(&mut self, name: &str, text: &str) -> Duration {
        match text.parse() {
            Ok(0) | Err(_) => {
                self.problem(name, format_args!("`{text}` is no number of milliseconds"));
                TIMEOUT
            }
            Ok(number) => Duration::from_millis(number),
        }
    }

    /// `key=value,key=value`. Values are percent-encoded (W3C Baggage); a secret is never in a problem's text.
    fn pairs(&mut self, name: &str, text: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match part.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    pairs.push((key.trim().to_owned(), decoded(value.trim())));
                }
                _ => self.problem(name, "not key=value,key=value"),
            }
        }
        pairs
    }

    /// What is known of this program. What is said overrides what is known.
    fn resource(&mut self) -> Vec<(String, String)> {
        let said = self.said("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let mut resource = self.pairs("OTEL_RESOURCE_ATTRIBUTES", &said);
        if let Some(name) = self.said("OTEL_SERVICE_NAME") {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".to_owned(), name));
        }
        let known = [
            ("service.name", Some("ztunnel".to_owned())),
            (
                "service.version",
                Some(env!("CARGO_PKG_VERSION").to_owned()),
            ),
            ("k8s.node.name", self.said("NODE_NAME")),
            ("k8s.pod.name", self.said("POD_NAME")),
            ("k8s.namespace.name", self.said("POD_NAMESPACE")),
        ];
        for (key, value) in known {
            if let Some(value) = value
                && !resource.iter().any(|(there, _)| there == key)
            {
                resource.push((key.to_owned(), value));
            }
        }
        resource
    }

    /// `OTEL_TRACES_SAMPLER` and its argument; `None` for no spans.
    fn sampling(&mut self) -> Option<Sampling> {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
        match self.said(NAME).as_deref() {
            None | Some("always_on") => Some(Sampling::Always),
            Some("always_off") => None,
            Some("traceidratio") => {
                let text = self.said(ARGUMENT).unwrap_or_else(|| "1.0".to_owned());
                let sampling = ratio(&text);
                if sampling.is_none() {
                    self.problem(ARGUMENT, format_args!("`{text}` is not from 0 to 1"));
                }
                sampling
            }
            Some(other) => {
                let wrong = format!(
                    "`{other}` is not done here; there are always_on, always_off and traceidratio"
                );
                self.problem(NAME, wrong);
                None
            }
        }
    }
}

/// A ratio from 0 to 1 with at most nine digits behind the point.
fn ratio(text: &str) -> Option<Sampling> {
    let (whole, behind) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(behind) || behind.len() > 9 || (whole.is_empty() && behind.is_empty()) {
        return None;
    }
    let billionths: u64 = format!("{behind:0<9}").parse().ok()?;
    match whole {
        "" | "0" => {
            let parts = (billionths << 32) / 1_000_000_000;
            Some(Sampling::Ratio(u32::try_from(parts).ok()?))
        }
        "1" if billionths == 0 => Some(Sampling::Always),
        _ => None,
    }
}

/// `%41` → `A`; what is no escape stays.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use ambit_otlp::{Sampling, Settings};

    use crate::config::env::{Machine, read};

    fn otlp(variables: &[(&str, &str)]) -> Result<Option<Settings>, Vec<String>> {
        let variables: BTreeMap<_, _> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let machine = Machine {
            cpus: 2,
            ..Machine::default()
        };
        let settings = read(variables, &machine);
        settings
            .map(|settings| settings.otlp)
            .map_err(|all| all.into_iter().map(|problem| problem.name).collect())
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_named() {
        assert_eq!(otlp(&[]).unwrap(), None);
        assert_eq!(otlp(&[("OTEL_LOGS_EXPORTER", "otlp")]).unwrap(), None);
        let off = [ENDPOINT, ("OTEL_SDK_DISABLED", "true")];
        assert_eq!(otlp(&off).unwrap(), None);
        let both = otlp(&[ENDPOINT]).unwrap().unwrap();
        assert_eq!(both.logs.unwrap().endpoint, ENDPOINT.1);
        let (target, sampling) = both.traces.unwrap();
        assert_eq!(target.endpoint, ENDPOINT.1);
        assert_eq!(sampling, Sampling::Always);
    }

    #[test]
    fn a_signal_s_own_variables_come_before_those_for_all() {
        let settings = otlp(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, d=e=f"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=x,service.name=y"),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "10"),
            ("NODE_NAME", "n1"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.queue, 10);
        let logs = settings.logs.unwrap();
        assert_eq!(logs.timeout, Duration::from_secs(2));
        let header = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(logs.headers, [header("a", "b c"), header("d", "e=f")]);
        assert_eq!(logs.certificate.unwrap().to_str(), Some("/etc/ca.pem"));
        let (traces, sampling) = settings.traces.unwrap();
        assert_eq!(traces.endpoint, "https://traces:4317");
        assert_eq!(traces.timeout, Duration::from_millis(1500));
        assert_eq!(sampling, Sampling::Ratio(1 << 30));
        for (key, value) in [
            ("team", "x"),
            ("service.name", "y"),
            ("k8s.node.name", "n1"),
        ] {
            assert!(settings.resource.contains(&header(key, value)), "{key}");
        }
    }

    #[test]
    fn one_signal_alone_can_be_exported() {
        let logs = [ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")];
        let settings = otlp(&logs).unwrap().unwrap();
        assert!(settings.logs.is_some() && settings.traces.is_none());
        let logs = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "always_off")];
        assert!(otlp(&logs).unwrap().unwrap().traces.is_none());
        let traces = [ENDPOINT, ("OTEL_LOGS_EXPORTER", "none")];
        assert!(otlp(&traces).unwrap().unwrap().logs.is_none());
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name() {
        for wrong in [
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/etc/key.pem"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "console"),
            ("OTEL_TRACES_SAMPLER", "parentbased_jaeger_remote"),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_RESOURCE_ATTRIBUTES", "nothing"),
            ("OTEL_SDK_DISABLED", "yes"),
        ] {
            let refused = otlp(&[ENDPOINT, wrong]).unwrap_err();
            assert!(refused.iter().all(|name| name == wrong.0), "{refused:?}");
        }
        let ratio = ("OTEL_TRACES_SAMPLER", "traceidratio");
        for argument in ["2", "1.1", "-1", "1e-3", ".", "0.0000000001", "a"] {
            let argument = ("OTEL_TRACES_SAMPLER_ARG", argument);
            let refused = otlp(&[ENDPOINT, ratio, argument]).unwrap_err();
            assert_eq!(refused, [argument.0], "{argument:?}");
        }
    }

    #[test]
    fn a_secret_header_is_not_shown() {
        let secret = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush");
        let settings = otlp(&[ENDPOINT, secret]).unwrap().unwrap();
        let shown = serde_json::to_string(&settings).unwrap();
        assert!(shown.contains("authorization") && !shown.contains("hush"));
    }
}
