//! Where a connection would go, as people write it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::dump::Dump;

/// A name or an address, perhaps with a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// As written, without the port.
    pub name: String,
    /// The port.
    pub port: Option<u16>,
}

/// Not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not NAME.NAMESPACE:PORT, NAMESPACE/NAME:PORT or ADDRESS:PORT")]
pub struct NotATarget(String);

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                name: address.ip().to_string(),
                port: Some(address.port()),
            });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self {
                name: address.to_string(),
                port: None,
            });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (
                name,
                Some(port.parse().map_err(|_| NotATarget(text.to_owned()))?),
            ),
            None => (text, None),
        };
        if name.is_empty() || name.contains(':') {
            return Err(NotATarget(text.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            port,
        })
    }
}

impl Target {
    /// The path of the question to the node proxy, for a connection of this pod.
    #[must_use]
    pub fn question(&self, dump: &Dump, namespace: &str, pod: &str) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let source = encode(&format!("{namespace}/{pod}"));
        let destination = encode(&self.resolved(dump, namespace));
        let port = self
            .port
            .map(|port| format!("&port={port}"))
            .unwrap_or_default();
        format!("/debug/explain?src={source}&dst={destination}{port}")
    }

    /// The full name of a service that is written as inside a cluster: `name`, `name.namespace`, `name.namespace.svc`.
    fn resolved(&self, dump: &Dump, namespace: &str) -> String {
        if self.name.contains('/') || self.name.parse::<IpAddr>().is_ok() {
            return self.name.clone();
        }
        let short = |service: &crate::dump::Service| {
            let base = format!("{}.{}", service.name, service.namespace);
            let same = service.name == self.name && service.namespace == namespace;
            same || self.name == base || self.name == format!("{base}.svc")
        };
        let exact = dump
            .services
            .iter()
            .find(|service| service.hostname == self.name);
        let found = exact.or_else(|| dump.services.iter().find(|service| short(service)));
        found.map_or_else(|| self.name.clone(), |service| service.hostname.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Target;
    use crate::dump::Dump;

    #[test]
    fn names_and_addresses_are_read_with_and_without_a_port() {
        let table = [
            ("payments.shop:80", "payments.shop", Some(80)),
            ("payments", "payments", None),
            ("shop/web:8080", "shop/web", Some(8080)),
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("10.0.0.1", "10.0.0.1", None),
            ("[fd00::1]:80", "fd00::1", Some(80)),
            ("[fd00::1]", "fd00::1", None),
            ("fd00::1", "fd00::1", None),
        ];
        for (text, name, port) in table {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.name.as_str(), target.port), (name, port), "{text}");
        }
        for text in ["", ":80", "a:b", "a:99999", "a:b:1"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn short_names_mean_the_service_as_seen_from_the_pod() {
        let dump = Dump::read(json!({"services": [
            {"name": "cart", "namespace": "shop", "hostname": "cart.shop.svc.cluster.local"},
        ]}))
        .unwrap();
        let full = "dst=cart%2Eshop%2Esvc%2Ecluster%2Elocal";
        for text in [
            "cart",
            "cart.shop",
            "cart.shop.svc",
            "cart.shop.svc.cluster.local",
        ] {
            let question = text
                .parse::<Target>()
                .unwrap()
                .question(&dump, "shop", "web");
            assert!(question.ends_with(full), "{text}: {question}");
        }
        let question = "cart:80"
            .parse::<Target>()
            .unwrap()
            .question(&dump, "other", "web");
        assert!(
            question.ends_with("src=other%2Fweb&dst=cart&port=80"),
            "{question}"
        );
    }
}
