//! A CONNECT request.

use ambit_wire::authority::Authority;
use http::{HeaderMap, Method};

use crate::engine::Message;

/// What a stream is opened with: where it goes and what is said about it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where the bytes are to go.
    pub authority: Authority,
    /// Everything else: baggage, trace, forwarding.
    pub headers: HeaderMap,
}

/// A request that is no CONNECT to an authority. It was answered with status 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Another method.
    #[error("method is not CONNECT")]
    Method,
    /// Extended CONNECT (RFC 8441), or one with a path.
    #[error("CONNECT has more than an authority")]
    Extended,
    /// The authority is missing or is neither an address nor a host with a port.
    #[error("authority cannot be read")]
    Authority,
}

impl Request {
    /// Reads the head of a request (RFC 9113 8.5: CONNECT has an authority and nothing else).
    pub(crate) fn from_message(message: Message) -> Result<Self, Malformed> {
        if message.method != Some(Method::CONNECT) {
            return Err(Malformed::Method);
        }
        if message.extended {
            return Err(Malformed::Extended);
        }
        let authority = message.authority.ok_or(Malformed::Authority)?;
        let authority = Authority::parse(&authority).map_err(|_| Malformed::Authority)?;
        Ok(Self {
            authority,
            headers: message.headers,
        })
    }
}
