//! One request, from its first header byte to its one log record. Read this first.
//!
//! # Steps
//! One function is these steps, top to bottom; each is a function of its own here or in the module
//! named. Whatever a step returns early with is an answer of `respond.rs`, and steps 12 and 13
//! happen for every request, whichever step ended it.
//!
//! 1. `read`: request line and headers as hyper gave them. Refuse what is ambiguous before anything
//!    else looks at it: conflicting lengths, two hosts, bad names.
//! 2. `canonical`: one form of method, host and path, which everything after this sees and which goes
//!    upstream; drop hop-by-hop and untrusted headers, set `x-forwarded-proto`, `x-request-id`.
//! 3. `subject`: borrow a [`crate::subject::Subject`] from the canonical request and its connection.
//! 4. `route`: [`crate::routes::RouteTable::find`] of the chain in the plan loaded for this request.
//!    None: 404, flag `NR`.
//! 5. `filters`: [`crate::plan::HttpChain::filters`] in order; [`crate::rules::Rules::check`] answers
//!    403. Filters run also when there is no route, so that a refused request learns nothing.
//! 6. `act`: redirect and direct response answer here.
//! 7. `destination`: by weight ([`crate::routes::Forward::choose`]); its cluster from the plan. None:
//!    503 (or 500), flag `NC`.
//! 8. `rewrite`: path and host; then header changes of destination, route, host, table.
//! 9. `attempt` ([`crate::routes::RetryPolicy`]): choose an endpoint, connect (HBONE or plain), send,
//!    wait for response headers, within the deadline; maybe again.
//! 10. `upgrade`: websocket, once both ends agreed.
//! 11. `respond`: response header changes, `server`, `x-envoy-upstream-service-time`; then stream the
//!     body.
//! 12. `count`: metrics, once, when the stream has ended.
//! 13. `log`: one access-log record, once, when the stream has ended.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, DATE, HOST, SERVER, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;

use crate::attempt::{self, Answer};
use crate::body::{RequestBody, ResponseBody};
use crate::filter::Filter;
use crate::filter::headers::{Edit, apply};
use crate::format::{Command, HeaderRef, Values};
use crate::guard::Signals;
use crate::headers::path;
use crate::headers::{self, names};
use crate::plan::{Cluster, HttpChain, HttpSettings, Plan, Target};
use crate::record::Record;
use crate::respond::Reply;
use crate::routes::{Action, Destination, Forward, Route};
use crate::rules::Verdict;
use crate::serve::{Connection, Shared};
use crate::server::UpgradeSlot;
use crate::subject::{Strict, Subject};

mod misread;

use misread::{guard_refusal, misread, path_refused, refused, refused_by_guard, unread};

/// What a server hands to each of its requests.
#[derive(Debug)]
pub struct Exchange {
    /// The thread's.
    pub shared: Rc<Shared>,
    /// The stream's.
    pub connection: Rc<Connection>,
    /// The chain that the stream was accepted with; requests look for a newer one.
    pub chain: Arc<HttpChain>,
    /// The guard's, for HTTP/1.
    pub signals: Option<Signals>,
    /// Where an upgrade is left for the server.
    pub upgrade: UpgradeSlot,
}

/// A request after step 2: everything in canonical form.
#[derive(Debug)]
struct Canonical {
    method: Method,
    version: Version,
    scheme: &'static str,
    authority: String,
    path_and_query: String,
    strict: Option<String>,
    headers: HeaderMap,
    remote: IpAddr,
    /// `upgrade: websocket` and the like, lower case.
    upgrade: Option<HeaderValue>,
}

impl Canonical {
    /// Step 3.
    fn subject<'a>(&'a self, connection: &'a Connection) -> Subject<'a> {
        Subject {
            connection: connection.facts(),
            remote: self.remote,
            method: self.method.as_str(),
            scheme: self.scheme,
            authority: &self.authority,
            path_and_query: &self.path_and_query,
            headers: &self.headers,
            strict: self.strict.as_deref().map(|path| Strict { path }),
        }
    }
}

/// Serves one request. Always answers.
pub async fn serve(exchange: Rc<Exchange>, request: Request<Incoming>) -> Response<ResponseBody> {
    let plan = exchange.shared.plan.load_full();
    let chain = chain_now(&plan, &exchange);
    let mut record = Record::begin(&exchange.shared, &exchange.connection, &chain);
    let (mut parts, body) = request.into_parts();
    let body = RequestBody::new(body, Rc::clone(record.progress()));
    // 1, 2
    let mut canonical = match canonical(&mut parts, &chain, &exchange) {
        Ok(canonical) => canonical,
        Err(reply) => return misread(&chain, reply, &parts, &exchange, record),
    };
    record.request(
        &canonical.method,
        &canonical.authority,
        &canonical.path_and_query,
        canonical.version,
        &canonical.headers,
    );
    // 3, 4, 5, 6
    let decided = decide(&chain, &exchange.connection, &canonical, &mut record);
    let (route, forward) = match decided {
        Ok(Decided::Forward(route)) => (Arc::clone(&route), route),
        Ok(Decided::Answer(route, reply)) => {
            let mut response = reply.into_response(record);
            edit_response(
                &route.response_edits,
                &mut response,
                &canonical,
                &exchange.connection,
            );
            return finish(&chain, response);
        }
        Err(reply) => return finish(&chain, reply.into_response(record)),
    };
    let Action::Forward(forward) = &forward.action else {
        return finish(&chain, Reply::no_route().into_response(record));
    };
    // 7
    let (destination, cluster) = match destination(&plan, forward) {
        Ok(found) => found,
        Err(reply) => return finish(&chain, reply.into_response(record)),
    };
    record.cluster(&cluster);
    // 8
    let original = canonical.path_and_query.clone();
    if let Err(reply) = rewrite(
        &mut canonical,
        &route,
        forward,
        destination,
        &exchange.connection,
    ) {
        return finish(&chain, reply.into_response(record));
    }
    // 9, 10
    let sending = attempt::Sending {
        exchange: &exchange,
        forward,
        cluster: &cluster,
        head: head(&canonical),
        version: canonical.version,
        upgrade: canonical.upgrade.is_some(),
    };
    let mut response = match Box::pin(attempt::run(sending, body, record)).await {
        Answer::Upstream(response) => *response,
        Answer::Local(reply, record) => unread(&exchange, reply).into_response(record),
    };
    // 11
    canonical.path_and_query = original;
    edit_response(
        &destination.response_edits,
        &mut response,
        &canonical,
        &exchange.connection,
    );
    edit_response(
        &route.response_edits,
        &mut response,
        &canonical,
        &exchange.connection,
    );
    chain_response_edits(&chain, &mut response, &canonical, &exchange.connection);
    finish(&chain, response)
}

/// The chain that serves this stream's destination now. A destination that is no longer served as
/// HTTP keeps its last chain for the requests of streams that are already open.
fn chain_now(plan: &Plan, exchange: &Exchange) -> Arc<HttpChain> {
    match plan.target(exchange.connection.destination()) {
        Some(Target::Http(chain) | Target::Sniff { http: chain, .. }) => Arc::clone(chain),
        Some(Target::Tcp(_) | Target::Refused(_)) | None => Arc::clone(&exchange.chain),
    }
}

/// Steps 1 and 2. What is refused stays in `parts`.
fn canonical(
    parts: &mut http::request::Parts,
    chain: &HttpChain,
    exchange: &Exchange,
) -> Result<Canonical, Reply> {
    if let Some(refusal) = guard_refusal(parts, exchange) {
        return Err(refused_by_guard(refusal));
    }
    let settings = &chain.settings;
    let (method, uri, version) = (&parts.method, &parts.uri, parts.version);
    let headers = &mut parts.headers;
    headers::check_method(method).map_err(refused)?;
    if *method == Method::CONNECT {
        let mut reply = Reply::bad_request(StatusCode::NOT_FOUND, "connect_is_not_served");
        reply.body = bytes::Bytes::new();
        return Err(reply);
    }
    let http2 = version == Version::HTTP_2;
    if version == Version::HTTP_10 && !settings.accept_http_10 {
        return Err(Reply::bad_request(
            StatusCode::UPGRADE_REQUIRED,
            "low_version",
        ));
    }
    headers::check(headers, http2, settings).map_err(refused)?;
    let authority = headers::take_host(headers, uri.authority()).map_err(refused)?;
    let upgrade = upgrade_of(headers, http2);
    if let Some(wanted) = &upgrade {
        let listed = settings
            .upgrades
            .iter()
            .any(|name| wanted.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
        if !listed {
            let mut reply = Reply::bad_request(StatusCode::FORBIDDEN, "upgrade_failed");
            reply.flag = None;
            reply.body = bytes::Bytes::new();
            return Err(reply);
        }
    }
    let made = canonical_path(method, uri, settings)?;
    headers::strip_hop_by_hop(headers);
    headers::strip_untrusted(headers, settings);
    let remote = headers::remote(headers, exchange.connection.source().ip());
    let scheme = headers::scheme(headers);
    if settings.generate_request_id {
        headers::request_id(headers, &mut || fastrand::u64(..));
    }
    if settings.append_forwarded_port && !headers.contains_key(names::X_FORWARDED_PORT) {
        let port = HeaderValue::from(exchange.connection.destination().port());
        headers.insert(names::X_FORWARDED_PORT, port);
    }
    Ok(Canonical {
        version,
        scheme,
        authority,
        path_and_query: made.path_and_query.into_owned(),
        strict: made.strict,
        method: std::mem::take(&mut parts.method),
        headers: std::mem::take(&mut parts.headers),
        remote,
        upgrade,
    })
}

/// The path of step 2.
fn canonical_path<'a>(
    method: &Method,
    uri: &'a Uri,
    settings: &HttpSettings,
) -> Result<path::Canonical<'a>, Reply> {
    let asked = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    // An asterisk is the whole server (OPTIONS *), and no path.
    let made = if asked == "*" && method == Method::OPTIONS {
        path::Canonical {
            path_and_query: "*".into(),
            strict: None,
            redirect: false,
        }
    } else {
        path::canonical(asked, settings.path).map_err(|refusal| path_refused(&refusal))?
    };
    if made.redirect {
        let location = HeaderValue::try_from(made.path_and_query.as_ref());
        let location = location.map_err(|_| {
            Reply::bad_request(StatusCode::BAD_REQUEST, "path_normalization_failed")
        })?;
        return Err(Reply::redirect(
            StatusCode::TEMPORARY_REDIRECT,
            location,
            "path_normalization_redirect",
        ));
    }
    Ok(made)
}

/// The protocol that an HTTP/1 request asks to switch to. HTTP/2 is none: RFC 9113 section 3.1 took that
/// upgrade back, so that it is ignored.
fn upgrade_of(headers: &HeaderMap, http2: bool) -> Option<HeaderValue> {
    if http2 {
        return None;
    }
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if asks {
        let wanted = headers.get(UPGRADE)?;
        (!wanted.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| wanted.clone())
    } else {
        None
    }
}

/// What a route makes of a request.
enum Decided {
    Forward(Arc<Route>),
    Answer(Arc<Route>, Reply),
}

/// Steps 3 to 6.
fn decide(
    chain: &HttpChain,
    connection: &Connection,
    canonical: &Canonical,
    record: &mut Record,
) -> Result<Decided, Reply> {
    let subject = canonical.subject(connection);
    let route = chain.routes.find(&subject);
    if let Some(route) = route {
        record.route(route);
    }
    for filter in &chain.filters {
        match filter {
            Filter::Rules(rules) => {
                if let Verdict::Denied(policy) = rules.check(&subject) {
                    return Err(Reply::denied(policy.map(|name| &**name)));
                }
            }
            // Applied when the request is sent and when it is answered.
            Filter::Headers { .. } => {}
        }
    }
    let route = route.ok_or_else(Reply::no_route)?;
    match &route.action {
        Action::Forward(_) => Ok(Decided::Forward(Arc::clone(route))),
        Action::Respond(respond) => {
            let reply = Reply::direct(respond.status, respond.body.clone());
            Ok(Decided::Answer(Arc::clone(route), reply))
        }
        Action::Redirect(redirect) => {
            let location = redirect.location(
                canonical.scheme,
                &canonical.authority,
                &canonical.path_and_query,
                &route.matcher.path,
            );
            let location = location.and_then(|text| HeaderValue::try_from(text).ok());
            let location = location.ok_or_else(|| {
                Reply::bad_request(StatusCode::BAD_REQUEST, "redirect_cannot_be_written")
            })?;
            let reply = Reply::redirect(redirect.status, location, "direct_response");
            Ok(Decided::Answer(Arc::clone(route), reply))
        }
    }
}

/// Step 7.
fn destination<'a>(
    plan: &Plan,
    forward: &'a Forward,
) -> Result<(&'a Destination, Arc<Cluster>), Reply> {
    let missing = || Reply::no_cluster(forward.missing_cluster);
    let destination = forward.choose(fastrand::u64(..)).ok_or_else(missing)?;
    let cluster = plan.cluster(&destination.cluster).ok_or_else(missing)?;
    Ok((destination, Arc::clone(cluster)))
}

/// Step 8.
fn rewrite(
    canonical: &mut Canonical,
    route: &Route,
    forward: &Forward,
    destination: &Destination,
    connection: &Connection,
) -> Result<(), Reply> {
    // Values of header changes speak of the request as it came.
    let mut headers = std::mem::take(&mut canonical.headers);
    for edits in [&destination.request_edits, &route.request_edits] {
        if !edits.is_empty() {
            let before = headers.clone();
            apply(
                edits,
                &mut headers,
                &RequestValues {
                    canonical,
                    headers: &before,
                    connection,
                    status: None,
                },
            );
        }
    }
    canonical.headers = headers;
    if let Some(path) = &forward.path {
        let new = path.apply(&canonical.path_and_query, &route.matcher.path);
        let new =
            new.ok_or_else(|| Reply::bad_request(StatusCode::BAD_REQUEST, "path_rewrite_failed"))?;
        let old = std::mem::replace(&mut canonical.path_and_query, new);
        if let Ok(old) = HeaderValue::try_from(old) {
            canonical.headers.insert(names::X_ENVOY_ORIGINAL_PATH, old);
        }
    }
    let host = destination.host.as_ref().or(forward.host.as_ref());
    if let Some(host) = host.and_then(|host| host.to_str().ok()) {
        let old = std::mem::replace(&mut canonical.authority, host.to_owned());
        if let Ok(old) = HeaderValue::try_from(old) {
            if forward.append_forwarded_host {
                canonical
                    .headers
                    .append(names::X_FORWARDED_HOST, old.clone());
            }
            canonical.headers.insert(names::X_ENVOY_ORIGINAL_HOST, old);
        }
    }
    Ok(())
}

/// The head that goes upstream: the canonical request, whatever its last version of HTTP.
fn head(canonical: &Canonical) -> Request<()> {
    let mut request = Request::new(());
    request.method_mut().clone_from(&canonical.method);
    request.headers_mut().clone_from(&canonical.headers);
    let uri = Uri::builder()
        .scheme(canonical.scheme)
        .authority(canonical.authority.as_str())
        .path_and_query(canonical.path_and_query.as_str())
        .build();
    // What is canonical is legal; a host out of a rewrite may not be, and then the upstream says 400.
    *request.uri_mut() = uri.unwrap_or_default();
    if let Ok(host) = HeaderValue::try_from(canonical.authority.as_str()) {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(upgrade) = &canonical.upgrade {
        request.headers_mut().insert(UPGRADE, upgrade.clone());
        request
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    request
}

/// Step 11: header changes of the route.
fn edit_response(
    edits: &[Edit],
    response: &mut Response<ResponseBody>,
    canonical: &Canonical,
    connection: &Connection,
) {
    if edits.is_empty() {
        return;
    }
    let status = response.status();
    let values = RequestValues {
        canonical,
        headers: &canonical.headers,
        connection,
        status: Some(status),
    };
    apply(edits, response.headers_mut(), &values);
}

/// Step 11: header changes of the chain.
fn chain_response_edits(
    chain: &HttpChain,
    response: &mut Response<ResponseBody>,
    canonical: &Canonical,
    connection: &Connection,
) {
    for filter in &chain.filters {
        if let Filter::Headers {
            response: edits, ..
        } = filter
        {
            edit_response(edits, response, canonical, connection);
        }
    }
}

/// Step 11: what every answer carries; and the record learns its head.
fn finish(chain: &HttpChain, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if let Some(server) = &chain.settings.server {
        response.headers_mut().insert(SERVER, server.clone());
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::strip_hop_by_hop(response.headers_mut());
    }
    // The server adds one of its own.
    if !response.headers().contains_key(DATE) {
        response.headers_mut().remove(DATE);
    }
    let (status, headers) = (response.status(), response.headers().clone());
    response.body_mut().responded(status, &headers);
    response
}

/// Values of `%…%` commands in header changes.
struct RequestValues<'a> {
    canonical: &'a Canonical,
    headers: &'a HeaderMap,
    connection: &'a Connection,
    status: Option<StatusCode>,
}

impl Values for RequestValues<'_> {
    fn append(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        let mut put = |value: Option<&[u8]>| {
            if let Some(value) = value {
                out.extend_from_slice(value);
            }
            value.is_some()
        };
        let canonical = self.canonical;
        let header = |header: &HeaderRef| match header {
            HeaderRef::Method => Some(canonical.method.as_str().as_bytes()),
            HeaderRef::Path => Some(canonical.path_and_query.as_bytes()),
            HeaderRef::Authority => Some(canonical.authority.as_bytes()),
            HeaderRef::Scheme => Some(canonical.scheme.as_bytes()),
            HeaderRef::Status => None,
            HeaderRef::Named(name) => self.headers.get(name).map(HeaderValue::as_bytes),
        };
        match command {
            Command::Request(first, other) | Command::RequestWithoutQuery(first, other) => {
                put(header(first).or_else(|| other.as_ref().and_then(header)))
            }
            Command::PeerPrincipal => put(self.connection.peer().map(str::as_bytes)),
            Command::LocalPrincipal => put(Some(self.connection.local().as_bytes())),
            Command::Plain(crate::format::Plain::ResponseCode) => put(self
                .status
                .as_ref()
                .map(|status| status.as_str().as_bytes())),
            Command::Plain(
                crate::format::Plain::DownstreamRemoteAddressWithoutPort
                | crate::format::Plain::DownstreamDirectRemoteAddressWithoutPort,
            ) => put(Some(self.connection.source().ip().to_string().as_bytes())),
            Command::Plain(_)
            | Command::Response(..)
            | Command::Trailer(..)
            | Command::StartTime(_) => false,
        }
    }
}

/// Whether an answer of an endpoint switched protocols; the record is told by the caller.
pub(crate) fn switched(response: &Response<Incoming>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
}
