//! The authority of a CONNECT request: what the client wants to reach.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::Invalid;
use crate::limits::{AUTHORITY_MAX, HOST_MAX};

/// An address or a host name, with a port that is never 0.
///
/// An IPv4 address mapped into IPv6 is read as the IPv4 address, and a host name in lower case: there is one form of each target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `1.2.3.4:80` or `[2001:db8::1]:80`.
    Socket(SocketAddr),
    /// `name.example:80`.
    Host {
        /// Host name, lower case, without a final dot.
        host: Arc<str>,
        /// Port, not 0.
        port: u16,
    },
}

impl Authority {
    /// Reads the bytes of an `:authority` or `Host` value.
    ///
    /// # Errors
    ///
    /// When it is too long, has no port or port 0, has user information or a zone, or its host is neither an address nor a name of
    /// letters, digits, `-`, `_` and `.` (or `*` as the whole first label).
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > AUTHORITY_MAX {
            return Err(Invalid::TooLong {
                limit: AUTHORITY_MAX,
            });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Invalid::Malformed("host"))?;
        let (host, port) = text.rsplit_once(':').ok_or(Invalid::Missing("port"))?;
        let port = parse_port(port)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(Invalid::Malformed("host"))?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| Invalid::Malformed("host"))?;
            return Ok(Self::Socket(SocketAddr::new(ip.to_canonical(), port)));
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Socket(SocketAddr::new(
                std::net::IpAddr::V4(ip),
                port,
            )));
        }
        Self::host(host, port)
    }

    /// A target by name.
    ///
    /// # Errors
    ///
    /// When the port is 0 or the name has other characters than [`Authority::parse`] takes.
    pub fn host(host: &str, port: u16) -> Result<Self, Invalid> {
        if port == 0 {
            return Err(Invalid::Malformed("port"));
        }
        if host.len() > HOST_MAX {
            return Err(Invalid::TooLong { limit: HOST_MAX });
        }
        check_host(host)?;
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            host.to_ascii_lowercase().into()
        } else {
            host.into()
        };
        Ok(Self::Host { host, port })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Socket(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }

    /// The address, when it is one.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Host { .. } => None,
        }
    }
}

/// Decimal digits only: `u16::from_str` would take a sign.
fn parse_port(text: &str) -> Result<u16, Invalid> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let port = if digits { text.parse().ok() } else { None };
    port.filter(|&port| port != 0)
        .ok_or(Invalid::Malformed("port"))
}

fn check_host(host: &str) -> Result<(), Invalid> {
    let labels = host.strip_prefix("*.").unwrap_or(host);
    let permitted = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let valid = labels
        .split('.')
        .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(permitted));
    // A name whose last label is a number is an address written wrong, never a name (WHATWG URL, section 3.5).
    let last = labels.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|b| b.is_ascii_digit());
    if valid && !numeric {
        Ok(())
    } else {
        Err(Invalid::Malformed("host"))
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl FromStr for Authority {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Authority;

    #[test]
    fn reads_one_form_of_each_target() {
        let cases = [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[ff06::c3]:80", "[ff06::c3]:80"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            (
                "Web.Shop.svc.cluster.local:8080",
                "web.shop.svc.cluster.local:8080",
            ),
            ("*.example.com:443", "*.example.com:443"),
            ("a_b-c:65535", "a_b-c:65535"),
        ];
        for (text, expected) in cases {
            let authority: Authority = text.parse().unwrap();
            assert_eq!(authority.to_string(), expected, "{text}");
            assert_eq!(expected.parse::<Authority>().unwrap(), authority);
        }
    }

    #[test]
    fn refuses_what_is_not_a_target_with_a_port() {
        let long = "a".repeat(64) + ".example:80";
        let longer = "a.".repeat(200) + "b:80";
        let cases = [
            "",
            ":",
            ":80",
            "a",
            "a:",
            "a:0",
            "a:+1",
            "a:-1",
            "a:65536",
            "a:080000",
            "a:1a",
            "::1:80",
            "[::1]",
            "[::1:80",
            "[::1%1]:80",
            "[10.0.0.1]:80",
            "[]:80",
            "user@a:80",
            "a b:80",
            "a/b:80",
            "a..b:80",
            ".a:80",
            "a.:80",
            "1.2.3:80",
            "1.2.3.4.5:80",
            "0x7f.1:80",
            "01.2.3.4:80",
            "*:80",
            "a.*:80",
            "a\0:80",
            "ä:80",
            &long,
            &longer,
        ];
        for text in cases {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
        assert!(Authority::parse(b"\xff\xfe:80").is_err());
    }
}
