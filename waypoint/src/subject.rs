//! What routes and rules may look at: one request (or one connection) as plain borrowed values.
//!
//! # Invariants
//! Everything in here is canonical already: the same method, host and path go to the route, the
//! rules and the upstream. Where a server behind us could read the path or host differently than
//! we do, [`Strict`] carries that other reading, and the rules hold under both.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

/// The connection that a request or a byte stream arrived on.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// SPIFFE URI of the verified peer; `None` for a connection without a certificate.
    pub peer: Option<&'a str>,
    /// SPIFFE URI of this waypoint.
    pub local: &'a str,
    /// Address the HBONE connection came from: the client's own, as the node proxy keeps it.
    pub source: SocketAddr,
    /// Destination the client named in its CONNECT.
    pub destination: SocketAddr,
    /// Name the client asked for in TLS, when the inner protocol is TLS and was looked at.
    pub server_name: Option<&'a str>,
}

/// One request. For a byte stream, [`Subject::of_connection`].
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Where it came from.
    pub connection: Connection<'a>,
    /// Client address as far as it is known: the last `x-forwarded-for` entry, else the source.
    pub remote: IpAddr,
    /// Method, exactly as sent.
    pub method: &'a str,
    /// `http` or `https`, out of `x-forwarded-proto`.
    pub scheme: &'a str,
    /// Host with port if one was sent; lower case, without a trailing dot.
    pub authority: &'a str,
    /// Canonical path with the query.
    pub path_and_query: &'a str,
    /// Request headers without pseudo headers and `host`.
    pub headers: &'a HeaderMap,
    /// How a lenient server could read the same request, when that differs.
    pub strict: Option<Strict<'a>>,
}

/// The reading of a lenient server: escaped slashes decoded, slashes merged, path parameters cut,
/// port cut off the host.
#[derive(Debug, Clone, Copy)]
pub struct Strict<'a> {
    /// Path without query.
    pub path: &'a str,
}

impl<'a> Subject<'a> {
    /// What rules see of a byte stream: everything about HTTP is empty.
    #[must_use]
    pub fn of_connection(connection: Connection<'a>, no_headers: &'a HeaderMap) -> Self {
        Self {
            remote: connection.source.ip(),
            connection,
            method: "",
            scheme: "",
            authority: "",
            path_and_query: "",
            headers: no_headers,
            strict: None,
        }
    }

    /// Path without the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.path_and_query
            .split_once('?')
            .map_or(self.path_and_query, |(path, _)| path)
    }

    /// Query without the `?`; `None` if there is none.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.path_and_query.split_once('?').map(|(_, query)| query)
    }
}

/// A subject for the tests of other modules.
#[cfg(test)]
pub(crate) mod test {
    use http::HeaderMap;

    use super::{Connection, Subject};

    /// `GET http://cart:80/` from 10.0.0.1 by `a/b`, to 10.1.0.1:80.
    pub(crate) fn subject(headers: &HeaderMap) -> Subject<'_> {
        Subject {
            connection: Connection {
                peer: Some("spiffe://cluster.local/ns/a/sa/b"),
                local: "spiffe://cluster.local/ns/shop/sa/waypoint",
                source: "10.0.0.1:4000".parse().unwrap(),
                destination: "10.1.0.1:80".parse().unwrap(),
                server_name: None,
            },
            remote: "10.0.0.1".parse().unwrap(),
            method: "GET",
            scheme: "http",
            authority: "cart:80",
            path_and_query: "/",
            headers,
            strict: None,
        }
    }
}
