//! Why a connection ended: one closed list, from which log, metric and status code follow.

use std::fmt;

use serde::{Serialize, Serializer};

/// The one outcome of a connection or of a stream in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It was carried to its end.
    Ok,

    /// A DENY policy matched.
    PolicyDenied,
    /// ALLOW policies apply and none matched.
    NotAllowed,
    /// A policy that applies is not known or cannot be evaluated, so the connection is refused.
    PolicyUnresolved,
    /// It was permitted once, and a later change forbids it.
    PolicyChanged,

    /// The workload whose connection this is, is not known.
    UnknownSource,
    /// The workload that the connection arrived for is not known.
    UnknownDestination,
    /// The control plane was asked what the destination is, and did not say in time.
    Undiscovered,
    /// The service has no endpoint that may be used.
    NoHealthyUpstream,
    /// The service or its endpoint does not have the port.
    PortUnresolved,
    /// A waypoint is to be passed and it cannot be found.
    WaypointUnresolved,
    /// The destination is in another network, which cannot be reached.
    GatewayUnresolved,
    /// The destination is in another network, and its service names no identity to expect there.
    NobodyExpected,
    /// The destination has a host name only, and it was not resolved.
    HostnameUnresolved,
    /// The destination is one of the proxy's own ports.
    SelfCall,

    /// The request of a tunnel is no CONNECT.
    NotConnect,
    /// The authority of a CONNECT cannot be read.
    BadAuthority,
    /// The authority of a CONNECT names something that is not behind the address it was sent to.
    AuthorityMismatch,
    /// The peer broke the protocol in another way.
    BadRequest,

    /// There is no valid certificate for the identity in question.
    CertificateUnavailable,
    /// The TLS handshake failed.
    HandshakeFailed,
    /// The TLS handshake did not end in time.
    HandshakeTimeout,
    /// The peer proved an identity other than those expected.
    PeerIdentityMismatch,
    /// A certificate in use was revoked.
    Revoked,
    /// A certificate in use expired.
    Expired,

    /// HTTP/2 could not be set up.
    TunnelFailed,
    /// The tunnel closed before the stream was answered.
    TunnelClosed,
    /// The tunnel's end said that it did not act on the CONNECT: it is leaving, or has no room.
    TunnelRefused,
    /// The tunnel's end did not answer the CONNECT in time.
    TunnelTimeout,
    /// The tunnel's end answered the CONNECT with this status.
    RefusedByPeer(u16),

    /// The connection onward was refused or is impossible.
    DialFailed,
    /// The connection onward was not made in time.
    DialTimeout,
    /// The connection onward to the tunnel port of a workload was not made in time; often a network policy forbids that port.
    TunnelPortTimeout,

    /// The far side reset it.
    PeerReset,
    /// The near side reset it.
    LocalReset,
    /// An I/O error ended it.
    Io,
    /// It was idle for too long.
    IdleTimeout,

    /// The proxy stops, or stopped serving the pod, and the time to finish was over.
    Drained,
    /// A limit of the proxy was reached.
    Overloaded,
    /// The proxy is at fault.
    Bug,
}

/// Flag of an outcome that is no failure.
pub const NO_FLAG: &str = "-";

impl Reason {
    /// Was it carried to its end.
    #[must_use]
    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }

    /// The value of the label `response_flags` in Istio's metrics.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            // A connection cut by a drain or ended by either application is no failure of the mesh.
            Self::Ok | Self::Drained | Self::PeerReset | Self::LocalReset | Self::IdleTimeout => {
                NO_FLAG
            }
            Self::PolicyDenied
            | Self::NotAllowed
            | Self::PolicyUnresolved
            | Self::PolicyChanged => "DENY",
            Self::HandshakeFailed | Self::HandshakeTimeout => "TLS_FAILURE",
            Self::PeerIdentityMismatch | Self::CertificateUnavailable | Self::Expired => {
                "IDENTITY_ERROR"
            }
            Self::Revoked => "CERT_REVOKED",
            Self::TunnelFailed => "H2_HANDSHAKE_FAILURE",
            Self::TunnelPortTimeout => "NETWORK_POLICY",
            Self::UnknownSource
            | Self::UnknownDestination
            | Self::Undiscovered
            | Self::NoHealthyUpstream
            | Self::PortUnresolved
            | Self::WaypointUnresolved
            | Self::GatewayUnresolved
            | Self::NobodyExpected
            | Self::HostnameUnresolved
            | Self::SelfCall
            | Self::NotConnect
            | Self::BadAuthority
            | Self::AuthorityMismatch
            | Self::BadRequest
            | Self::TunnelClosed
            | Self::TunnelRefused
            | Self::TunnelTimeout
            | Self::RefusedByPeer(_)
            | Self::DialFailed
            | Self::DialTimeout
            | Self::Io
            | Self::Overloaded
            | Self::Bug => "CONNECT",
        }
    }

    /// The status that answers a CONNECT. Once a tunnel stream is established no status can be sent any more.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::NotConnect | Self::BadAuthority | Self::AuthorityMismatch | Self::BadRequest => {
                400
            }
            // 401, not 403: what Istio's node proxy answers.
            Self::PolicyDenied
            | Self::NotAllowed
            | Self::PolicyUnresolved
            | Self::PolicyChanged
            | Self::Revoked
            | Self::Expired => 401,
            _ => 503,
        }
    }

    /// What happened, for the `error` key of the access log. Also says where to look where that helps.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::PolicyDenied => "explicitly denied by a policy",
            Self::NotAllowed => "allow policies exist, but none allowed",
            Self::PolicyUnresolved => "a policy of the workload is not known yet",
            Self::PolicyChanged => "connection closed due to policy change",
            Self::UnknownSource => "unknown source",
            Self::UnknownDestination => "unknown destination",
            Self::Undiscovered => "the control plane did not say what the destination is",
            Self::NoHealthyUpstream => "no healthy upstream",
            Self::PortUnresolved => "service port has no target",
            Self::WaypointUnresolved => "unknown waypoint",
            Self::GatewayUnresolved => "destination network cannot be reached",
            Self::NobodyExpected => "the service names no identity to expect in the other network",
            Self::HostnameUnresolved => "destination has no address",
            Self::SelfCall => "attempted recursive call to the proxy",
            Self::NotConnect => "method is not CONNECT",
            Self::BadAuthority => "invalid CONNECT authority",
            Self::AuthorityMismatch => "ip mismatch",
            Self::BadRequest => "invalid request",
            Self::CertificateUnavailable => "no certificate for the workload",
            Self::HandshakeFailed => "tls handshake failed",
            Self::HandshakeTimeout => "tls handshake timed out",
            Self::PeerIdentityMismatch => "peer has an unexpected identity",
            Self::Revoked => "certificate revoked",
            Self::Expired => "certificate expired",
            Self::TunnelFailed => "http2 handshake failed",
            Self::TunnelClosed => "tunnel closed",
            Self::TunnelRefused => "tunnel takes no more streams",
            Self::TunnelTimeout => "tunnel request timed out",
            Self::RefusedByPeer(_) => "http status",
            Self::DialFailed => "connection failed",
            Self::DialTimeout => "connection timed out",
            Self::TunnelPortTimeout => {
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008"
            }
            Self::PeerReset => "connection reset by the far side",
            Self::LocalReset => "connection reset by the near side",
            Self::Io => "i/o error",
            Self::IdleTimeout => "connection was idle for too long",
            Self::Drained => "connection closed by drain",
            Self::Overloaded => "a limit of the proxy was reached",
            Self::Bug => "internal error",
        }
    }

    /// Does it say something of the one tunnel, and nothing of its end: a new tunnel there may do.
    #[must_use]
    pub fn of_the_tunnel(self) -> bool {
        matches!(self, Self::TunnelClosed | Self::TunnelRefused)
    }

    /// May a connection attempt with this outcome be tried again elsewhere: nothing reached an application.
    #[must_use]
    pub fn retriable(self) -> bool {
        matches!(
            self,
            Self::HostnameUnresolved
                | Self::DialFailed
                | Self::DialTimeout
                | Self::TunnelPortTimeout
                | Self::TunnelFailed
                | Self::TunnelClosed
                | Self::TunnelRefused
                | Self::HandshakeFailed
                | Self::HandshakeTimeout
                | Self::RefusedByPeer(503)
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefusedByPeer(status) => write!(f, "{}: {status}", self.message()),
            _ => f.write_str(self.message()),
        }
    }
}

impl std::error::Error for Reason {}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn answers_with_the_statuses_of_the_contract() {
        let cases = [
            (Reason::Ok, 200, "-"),
            (Reason::NotConnect, 400, "CONNECT"),
            (Reason::AuthorityMismatch, 400, "CONNECT"),
            (Reason::PolicyDenied, 401, "DENY"),
            (Reason::NotAllowed, 401, "DENY"),
            (Reason::PolicyUnresolved, 401, "DENY"),
            (Reason::UnknownDestination, 503, "CONNECT"),
            (Reason::DialFailed, 503, "CONNECT"),
            (Reason::TunnelPortTimeout, 503, "NETWORK_POLICY"),
            (Reason::HandshakeFailed, 503, "TLS_FAILURE"),
            (Reason::Drained, 503, "-"),
        ];
        for (reason, status, flag) in cases {
            assert_eq!(
                (reason.status(), reason.flag()),
                (status, flag),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn says_the_status_a_peer_refused_with() {
        assert_eq!(Reason::RefusedByPeer(503).to_string(), "http status: 503");
    }
}
