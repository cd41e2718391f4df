//! Requests that steps 1 and 2 refuse: why, and the answer that ends their connection.

use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Response, StatusCode, Version};

use super::{Exchange, finish};
use crate::body::ResponseBody;
use crate::guard::{Refusal, Signals, is_placeholder};
use crate::headers::HeadersRefused;
use crate::headers::path::PathRefused;
use crate::plan::HttpChain;
use crate::record::Record;
use crate::respond::Reply;

/// Answers a request that steps 1 and 2 refuse, and writes down what it said. Its connection ends:
/// whoever sent it may not mean what we take for the next request.
pub(super) fn misread(
    chain: &HttpChain,
    reply: Reply,
    parts: &http::request::Parts,
    exchange: &Exchange,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    // In the place of what the guard refuses stands a request of its own.
    if guard_refusal(parts, exchange).is_none() {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str));
        let path = parts.uri.path_and_query();
        record.request(
            &parts.method,
            host.unwrap_or_default(),
            path.map_or("/", http::uri::PathAndQuery::as_str),
            parts.version,
            &parts.headers,
        );
    }
    let ends = parts.version != Version::HTTP_2 && !reply.status.is_redirection();
    let mut response = finish(chain, reply.into_response(record));
    if ends {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Why the guard refused what this request stands for, if it did.
pub(super) fn guard_refusal(parts: &http::request::Parts, exchange: &Exchange) -> Option<Refusal> {
    let refusal = exchange.signals.as_ref()?.refusal()?;
    // Sound requests may still come before the one that was refused.
    (refusal.is_of_body() || is_placeholder(parts)).then_some(refusal)
}

/// The answer to a request of which nothing came: if its body could not be read, that is why.
pub(super) fn unread(exchange: &Exchange, reply: Reply) -> Reply {
    let refusal = exchange.signals.as_ref().and_then(Signals::refusal);
    match refusal.filter(|refusal| refusal.is_of_body()) {
        Some(refusal) => refused_by_guard(refusal),
        None => reply,
    }
}

pub(super) fn refused_by_guard(refusal: Refusal) -> Reply {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    Reply::bad_request(status, refusal.details())
}

pub(super) fn refused(refused: HeadersRefused) -> Reply {
    let status = match refused {
        HeadersRefused::TooMany => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        HeadersRefused::Host
        | HeadersRefused::ConnectionHeader
        | HeadersRefused::Length
        | HeadersRefused::Method
        | HeadersRefused::Underscore => StatusCode::BAD_REQUEST,
    };
    Reply::bad_request(status, refused.to_string().replace(' ', "_"))
}

pub(super) fn path_refused(refused: &PathRefused) -> Reply {
    Reply::bad_request(
        StatusCode::BAD_REQUEST,
        refused.to_string().replace(' ', "_"),
    )
}
