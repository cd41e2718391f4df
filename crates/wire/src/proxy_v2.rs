//! The PROXY protocol, version 2: who is behind a connection, told to the application in front of its bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::Invalid;
use crate::limits::PROXY_V2_MAX;

/// The twelve bytes every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const FIXED: usize = 16;
/// Version 2, command LOCAL: the sender speaks for itself.
const LOCAL: u8 = 0x20;
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// TCP over IPv4.
const TCP4: u8 = 0x11;
/// TCP over IPv6.
const TCP6: u8 = 0x21;
/// Type of the field that holds the peer's SPIFFE identity (Istio's choice, within the range left to applications).
const IDENTITY: u8 = 0xd0;
/// Type of the field that holds the host name of the service that was addressed (likewise).
const SERVICE: u8 = 0xd1;

/// A header of a proxied TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The client.
    pub source: SocketAddr,
    /// What the client addressed.
    pub destination: SocketAddr,
    /// The verified identity of the client.
    pub identity: Option<Arc<str>>,
    /// The host name of the service that the client addressed.
    pub service: Option<Arc<str>>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A header that takes `length` bytes. `None` when the sender speaks for itself (a health check).
    Header {
        /// The addresses, the identity and the service.
        header: Option<Header>,
        /// Bytes it takes.
        length: usize,
    },
    /// The beginning of one; at least this many bytes are needed in all.
    NeedMore(usize),
}

impl Header {
    /// The bytes to send. Addresses of two families are both written as IPv6.
    ///
    /// # Errors
    ///
    /// When the identity or the service makes it longer than [`PROXY_V2_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, Invalid> {
        const TOO_LONG: Invalid = Invalid::TooLong {
            limit: PROXY_V2_MAX,
        };
        let mut body = Vec::with_capacity(128);
        let family = match (
            self.source.ip().to_canonical(),
            self.destination.ip().to_canonical(),
        ) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                body.extend_from_slice(&source.octets());
                body.extend_from_slice(&destination.octets());
                TCP4
            }
            (source, destination) => {
                body.extend_from_slice(&v6(source).octets());
                body.extend_from_slice(&v6(destination).octets());
                TCP6
            }
        };
        body.extend_from_slice(&self.source.port().to_be_bytes());
        body.extend_from_slice(&self.destination.port().to_be_bytes());
        for (kind, text) in [(IDENTITY, &self.identity), (SERVICE, &self.service)] {
            let Some(text) = text else { continue };
            let length = u16::try_from(text.len()).map_err(|_| TOO_LONG)?;
            body.push(kind);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        let length = u16::try_from(body.len()).map_err(|_| TOO_LONG)?;
        if FIXED + body.len() > PROXY_V2_MAX {
            return Err(TOO_LONG);
        }
        let mut bytes = Vec::with_capacity(FIXED + body.len());
        bytes.extend_from_slice(&SIGNATURE);
        bytes.extend_from_slice(&[PROXY, family]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.append(&mut body);
        Ok(bytes)
    }
}

/// Reads the first bytes of a connection. Fields other than the identity and the service are skipped.
///
/// # Errors
///
/// When they are no header of this version for TCP, or it is longer than [`PROXY_V2_MAX`].
pub fn decode(bytes: &[u8]) -> Result<Decoded, Invalid> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes.get(..known) != SIGNATURE.get(..known) {
        return Err(Invalid::Malformed("signature"));
    }
    let Some((
        [
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            command,
            family,
            high,
            low,
        ],
        rest,
    )) = bytes.split_first_chunk::<FIXED>()
    else {
        return Ok(Decoded::NeedMore(FIXED));
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if FIXED + length > PROXY_V2_MAX {
        return Err(Invalid::TooLong {
            limit: PROXY_V2_MAX,
        });
    }
    let proxied = match *command {
        LOCAL => false,
        PROXY => true,
        command if command >> 4 == 2 => return Err(Invalid::Unsupported("command")),
        _ => return Err(Invalid::Unsupported("version")),
    };
    let Some(body) = rest.get(..length) else {
        return Ok(Decoded::NeedMore(FIXED + length));
    };
    let header = if proxied {
        Some(decode_body(*family, body)?)
    } else {
        None
    };
    Ok(Decoded::Header {
        header,
        length: FIXED + length,
    })
}

fn decode_body(family: u8, body: &[u8]) -> Result<Header, Invalid> {
    const SHORT: Invalid = Invalid::Malformed("addresses");
    let (source, destination, rest) = match family {
        TCP4 => {
            let (source, rest) = body.split_first_chunk::<4>().ok_or(SHORT)?;
            let (destination, rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
            (IpAddr::from(*source), IpAddr::from(*destination), rest)
        }
        TCP6 => {
            let (source, rest) = body.split_first_chunk::<16>().ok_or(SHORT)?;
            let (destination, rest) = rest.split_first_chunk::<16>().ok_or(SHORT)?;
            (IpAddr::from(*source), IpAddr::from(*destination), rest)
        }
        _ => return Err(Invalid::Unsupported("address family")),
    };
    let ([a, b, c, d], fields) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let (identity, service) = decode_fields(fields)?;
    Ok(Header {
        source: SocketAddr::new(source.to_canonical(), u16::from_be_bytes([*a, *b])),
        destination: SocketAddr::new(destination.to_canonical(), u16::from_be_bytes([*c, *d])),
        identity,
        service,
    })
}

/// The texts of the two fields we know.
type Fields = (Option<Arc<str>>, Option<Arc<str>>);

fn decode_fields(mut fields: &[u8]) -> Result<Fields, Invalid> {
    const MALFORMED: Invalid = Invalid::Malformed("field");
    let (mut identity, mut service) = (None, None);
    while !fields.is_empty() {
        let ([kind, high, low], rest) = fields.split_first_chunk::<3>().ok_or(MALFORMED)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(MALFORMED)?;
        let known = match *kind {
            IDENTITY => Some(("identity", &mut identity)),
            SERVICE => Some(("service", &mut service)),
            _ => None,
        };
        if let Some((name, field)) = known {
            let text = std::str::from_utf8(value).map_err(|_| Invalid::Malformed(name))?;
            if field.replace(Arc::from(text)).is_some() {
                return Err(Invalid::Malformed(name));
            }
        }
        fields = rest;
    }
    Ok((identity, service))
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::{Decoded, Header, decode};

    fn header(source: &str, destination: &str, identity: Option<&str>) -> Header {
        Header {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            identity: identity.map(Into::into),
            service: None,
        }
    }

    fn to_service(mut header: Header, service: &str) -> Header {
        header.service = Some(service.into());
        header
    }

    #[test]
    fn writes_the_bytes_of_the_specification() {
        let bytes = header("10.0.0.1:258", "10.0.0.2:80", Some("ab"))
            .encode()
            .unwrap();
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\x0a\0\0\x01\x0a\0\0\x02\x01\x02\0\x50\xd0\0\x02ab";
        assert_eq!(bytes, expected);
        let named = to_service(header("10.0.0.1:258", "10.0.0.2:80", Some("ab")), "c.d");
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x17\x0a\0\0\x01\x0a\0\0\x02\x01\x02\0\x50\xd0\0\x02ab\xd1\0\x03c.d";
        assert_eq!(named.encode().unwrap(), expected);
    }

    #[test]
    fn reads_what_it_writes_from_any_number_of_first_bytes() {
        for header in [
            header("10.0.0.1:1", "10.0.0.2:2", None),
            header(
                "[2001:db8::1]:1",
                "[2001:db8::2]:2",
                Some("spiffe://td/ns/a/sa/b"),
            ),
            header("10.0.0.1:1", "[2001:db8::2]:2", Some("")),
            to_service(header("10.0.0.1:1", "10.0.0.2:2", None), "cart.shop.svc"),
            to_service(
                header("10.0.0.1:1", "10.0.0.2:2", Some("spiffe://td/ns/a/sa/b")),
                "cart.shop.svc",
            ),
        ] {
            let mut bytes = header.encode().unwrap();
            let length = bytes.len();
            for end in 0..length {
                let Ok(Decoded::NeedMore(needed)) = decode(&bytes[..end]) else {
                    panic!("{end} bytes are not enough");
                };
                assert!(needed > end && needed <= length);
            }
            bytes.extend_from_slice(b"payload");
            assert_eq!(
                decode(&bytes),
                Ok(Decoded::Header {
                    header: Some(header),
                    length
                })
            );
        }
    }

    #[test]
    fn takes_a_health_check_of_the_sender_itself() {
        let bytes = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x01x";
        assert_eq!(
            decode(bytes),
            Ok(Decoded::Header {
                header: None,
                length: 17
            })
        );
    }

    #[test]
    fn refuses_other_bytes() {
        let good = header("10.0.0.1:1", "10.0.0.2:2", Some("ab"))
            .encode()
            .unwrap();
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let twice = [&with(15, 0x16)[..], &good[28..]].concat();
        let mut services = with(15, 0x16);
        services[28] = 0xd1;
        services.extend_from_slice(b"\xd1\0\x02cd");
        let cases = [
            b"GET / HTTP/1.1".to_vec(),
            with(12, 0x11), // version 1
            with(12, 0x22), // unknown command
            with(13, 0x12), // datagrams
            with(13, 0x31), // unix sockets
            with(14, 0xff), // longer than the limit
            with(15, 0x0b), // addresses cut off
            with(15, 0x0e), // field cut off
            with(30, 0xff), // field longer than the header
            with(31, 0xff), // identity is no text
            twice,
            services,
        ];
        for bytes in cases {
            assert!(decode(&bytes).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn refuses_to_write_an_identity_that_does_not_fit() {
        let long = "a".repeat(5000);
        assert!(
            header("10.0.0.1:1", "10.0.0.2:2", Some(&long))
                .encode()
                .is_err()
        );
    }
}
