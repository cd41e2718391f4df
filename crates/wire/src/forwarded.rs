//! The `forwarded` header of a CONNECT: which client and which service it is about.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::Invalid;
use crate::limits::FORWARDED_MAX;

/// The two parameters in use, of the first element of the header (RFC 7239).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client. Informative: it grants nothing.
    pub client: Option<SocketAddr>,
    /// Host name of the service the client addressed. Informative: it chooses telemetry labels.
    pub host: Option<Arc<str>>,
}

impl Forwarded {
    /// Reads a header value. Unknown parameters are skipped; so is a `for` that is no address with a port.
    ///
    /// # Errors
    ///
    /// When it is too long, is not printable ASCII, or a parameter is not `key=value`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > FORWARDED_MAX {
            return Err(Invalid::TooLong {
                limit: FORWARDED_MAX,
            });
        }
        let printable = bytes.iter().all(|b| matches!(b, 0x20..=0x7e));
        let text = std::str::from_utf8(bytes).ok().filter(|_| printable);
        let text = text.ok_or(Invalid::Malformed("forwarded"))?;
        // Neither an address nor a host name holds a comma or a semicolon, so quotes need not be tracked.
        let first = text.split(',').next().unwrap_or_default();
        let mut forwarded = Self::default();
        for parameter in first
            .split(';')
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            let (key, value) = parameter
                .split_once('=')
                .ok_or(Invalid::Malformed("forwarded"))?;
            let value = unquote(value)?;
            if key.eq_ignore_ascii_case("for") {
                forwarded.client = value.parse().ok().map(canonical);
            } else if key.eq_ignore_ascii_case("host") && !value.is_empty() {
                forwarded.host = Some(value.into());
            }
        }
        Ok(forwarded)
    }
}

fn unquote(value: &str) -> Result<&str, Invalid> {
    let Some(inner) = value.strip_prefix('"') else {
        let plain = !value.contains('"');
        return plain
            .then_some(value)
            .ok_or(Invalid::Malformed("forwarded"));
    };
    let inner = inner
        .strip_suffix('"')
        .filter(|text| !text.contains(['"', '\\']));
    inner.ok_or(Invalid::Malformed("forwarded"))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    // Rebuilt from its two parts, so that a zone or a flow label of an IPv6 address is gone.
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
            separator = ";";
        }
        match &self.host {
            Some(host) => write!(f, "{separator}host={host}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Forwarded;

    #[test]
    fn writes_the_form_of_the_contract() {
        let forwarded = Forwarded {
            client: Some("10.0.0.1:1234".parse().unwrap()),
            host: Some("web.shop.svc.cluster.local".into()),
        };
        let text = forwarded.to_string();
        assert_eq!(
            text,
            "for=\"10.0.0.1:1234\";host=web.shop.svc.cluster.local"
        );
        assert_eq!(Forwarded::parse(text.as_bytes()), Ok(forwarded));
    }

    #[test]
    fn reads_what_others_write() {
        let cases: [(&str, Option<&str>, Option<&str>); 8] = [
            ("", None, None),
            ("for=\"[2001:db8::1]:80\"", Some("[2001:db8::1]:80"), None),
            (
                "For=10.0.0.1:80;HOST=\"a.b\"",
                Some("10.0.0.1:80"),
                Some("a.b"),
            ),
            ("for=\"[::ffff:10.0.0.1]:80\"", Some("10.0.0.1:80"), None),
            ("for=_hidden;host=a", None, Some("a")),
            ("proto=http;by=x; host=a", None, Some("a")),
            ("host=a, host=b", None, Some("a")),
            ("host=", None, None),
        ];
        for (text, client, host) in cases {
            let forwarded = Forwarded::parse(text.as_bytes()).unwrap();
            assert_eq!(
                forwarded.client,
                client.map(|text| text.parse().unwrap()),
                "{text}"
            );
            assert_eq!(forwarded.host.as_deref(), host, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_list_of_parameters() {
        let long = "host=".to_owned() + &"a".repeat(2000);
        for text in [
            "x",
            "host=\"a",
            "host=a\"",
            "host=\"a\\\"b\"",
            "host=\u{e4}",
            "host=a\n",
            &long,
        ] {
            assert!(Forwarded::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
