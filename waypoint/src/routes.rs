//! Routes, compiled: a table of hosts, each with a list of routes of which the first match wins.
//!
//! Precedence is the control plane's: hosts by exact name, then longest suffix wildcard, then
//! longest prefix wildcard, then `*`; routes in the order given (Envoy's semantics).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::filter::headers::Edit;
use crate::filter::redirect::Redirect;
use crate::filter::rewrite::PathRewrite;
use crate::plan::Name;
use crate::routes::matching::RouteMatch;
use crate::subject::Subject;

pub mod matching;

/// Hosts and their routes. Immutable.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    hosts: Vec<VirtualHost>,
    exact: HashMap<Name, usize>,
    /// `*.example.com` as `.example.com`, longest first.
    suffixes: Vec<(Name, usize)>,
    /// `api.*` as `api.`, longest first.
    prefixes: Vec<(Name, usize)>,
    any: Option<usize>,
}

/// A host name claimed twice in one table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host {0:?} is listed twice")]
pub struct HostTwice(pub String);

/// The routes of one set of host names.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// The control plane's name of it.
    pub name: Name,
    /// In order of precedence.
    pub routes: Vec<Arc<Route>>,
}

impl RouteTable {
    /// Adds the routes for these host names (`a.example`, `*.example`, `a.*` or `*`; with a port if
    /// clients send one).
    ///
    /// # Errors
    /// If one of the names is in the table already.
    pub fn add(&mut self, host: VirtualHost, domains: &[String]) -> Result<(), HostTwice> {
        let at = self.hosts.len();
        self.hosts.push(host);
        for domain in domains {
            let domain = domain.to_ascii_lowercase();
            let taken = if domain == "*" {
                self.any.replace(at).is_some()
            } else if let Some(suffix) = domain.strip_prefix('*') {
                insert_longest_first(&mut self.suffixes, suffix, at)
            } else if let Some(prefix) = domain.strip_suffix('*') {
                insert_longest_first(&mut self.prefixes, prefix, at)
            } else {
                self.exact.insert(Name::from(domain.as_str()), at).is_some()
            };
            if taken {
                return Err(HostTwice(domain));
            }
        }
        Ok(())
    }

    /// The first route that matches, in the host that matches best. `None` is a 404.
    #[must_use]
    pub fn find(&self, subject: &Subject<'_>) -> Option<&Arc<Route>> {
        self.host(subject.authority)?
            .routes
            .iter()
            .find(|route| route.matcher.matches(subject))
    }

    fn host(&self, authority: &str) -> Option<&VirtualHost> {
        let at = self
            .exact
            .get(authority)
            .copied()
            .or_else(|| {
                let found = self.suffixes.iter().find(|(suffix, _)| {
                    authority.len() > suffix.len() && authority.ends_with(&**suffix)
                });
                found.map(|(_, at)| *at)
            })
            .or_else(|| {
                let found = self.prefixes.iter().find(|(prefix, _)| {
                    authority.len() > prefix.len() && authority.starts_with(&**prefix)
                });
                found.map(|(_, at)| *at)
            })
            .or(self.any)?;
        self.hosts.get(at)
    }

    /// All hosts in the order given, for the admin page.
    #[must_use]
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }
}

/// Says whether the same text was there already.
fn insert_longest_first(list: &mut Vec<(Name, usize)>, text: &str, at: usize) -> bool {
    if list.iter().any(|(known, _)| &**known == text) {
        return true;
    }
    let place = list.partition_point(|(known, _)| known.len() >= text.len());
    list.insert(place, (Name::from(text), at));
    false
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Name for logs (`%ROUTE_NAME%`); may be empty.
    pub name: Name,
    /// When it applies.
    pub matcher: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Changes to request headers: of the route, its host and the table, in the order to apply.
    pub request_edits: Vec<Edit>,
    /// Changes to response headers, local answers included.
    pub response_edits: Vec<Edit>,
    /// Name of the trace span.
    pub operation: Option<Name>,
}

/// What a route does with a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send it on.
    Forward(Box<Forward>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with this.
    Respond(Respond),
}

/// A fixed answer.
#[derive(Debug, Clone)]
pub struct Respond {
    /// Status of the answer.
    pub status: StatusCode,
    /// Body; `text/plain` unless a header change says otherwise.
    pub body: Bytes,
}

/// Where and how a request is sent on.
#[derive(Debug, Clone)]
pub struct Forward {
    destinations: Vec<(u64, Destination)>,
    /// Status when the chosen cluster does not exist: 503, or 500 for Gateway API routes.
    pub missing_cluster: StatusCode,
    /// Change of the path.
    pub path: Option<PathRewrite>,
    /// New host, unless the destination has one of its own.
    pub host: Option<HeaderValue>,
    /// Tell the upstream the old host in `x-forwarded-host` when the host is changed.
    pub append_forwarded_host: bool,
    /// From the end of the request to the end of the response, all tries together. `None`: no
    /// limit. On expiry: 504.
    pub timeout: Option<Duration>,
    /// What a gRPC client's own `grpc-timeout` may do.
    pub grpc_timeout: GrpcTimeout,
    /// No byte in either direction for so long ends the request; overrides the chain's setting.
    pub idle_timeout: Option<Duration>,
    /// When to try again. `None`: never.
    pub retry: Option<RetryPolicy>,
}

/// One cluster that a route may choose.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Name of the cluster; may not exist.
    pub cluster: Name,
    /// New host for requests that go here.
    pub host: Option<HeaderValue>,
    /// Applied before the route's.
    pub request_edits: Vec<Edit>,
    /// Applied before the route's.
    pub response_edits: Vec<Edit>,
}

impl Destination {
    /// A cluster without any changes.
    #[must_use]
    pub fn plain(cluster: Name) -> Self {
        Self {
            cluster,
            host: None,
            request_edits: Vec::new(),
            response_edits: Vec::new(),
        }
    }
}

impl Forward {
    /// Forwards to these destinations by weight; weights of 0 are left out. `None` if nothing is
    /// left. Everything else is Envoy's default: 15 s timeout, 503 for a missing cluster.
    #[must_use]
    pub fn to(destinations: impl IntoIterator<Item = (Destination, u32)>) -> Option<Self> {
        let mut sum = 0u64;
        let destinations: Vec<_> = destinations
            .into_iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(destination, weight)| {
                sum += u64::from(weight);
                (sum, destination)
            })
            .collect();
        (!destinations.is_empty()).then_some(Self {
            destinations,
            missing_cluster: StatusCode::SERVICE_UNAVAILABLE,
            path: None,
            host: None,
            append_forwarded_host: false,
            timeout: Some(DEFAULT_TIMEOUT),
            grpc_timeout: GrpcTimeout::Ignored,
            idle_timeout: None,
            retry: None,
        })
    }

    /// Chooses by weight with one uniformly random number.
    #[must_use]
    pub fn choose(&self, random: u64) -> Option<&Destination> {
        let total = self.destinations.last().map_or(1, |(sum, _)| *sum);
        let point = random % total;
        let at = self.destinations.partition_point(|(sum, _)| *sum <= point);
        self.destinations
            .get(at)
            .map(|(_, destination)| destination)
    }

    /// All destinations with their weights.
    pub fn destinations(&self) -> impl Iterator<Item = (&Destination, u64)> {
        let mut before = 0;
        self.destinations.iter().map(move |(sum, destination)| {
            let weight = sum - before;
            before = *sum;
            (destination, weight)
        })
    }
}

/// Envoy's timeout of a route that does not give one.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a gRPC client's `grpc-timeout` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcTimeout {
    /// Nothing; the route's timeout counts.
    Ignored,
    /// It replaces the route's timeout.
    Honoured,
    /// It replaces the route's timeout, up to this long.
    UpTo(Duration),
}

/// When and how to try a request again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Conditions, any of which allows another try.
    pub on: RetryOn,
    /// Tries after the first.
    pub retries: u32,
    /// Limit of one try. `None`: only the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Statuses that count for [`RetryOn::statuses`].
    pub statuses: Vec<u16>,
    /// Prefer endpoints not tried yet; look for one so many times.
    pub reselect: u32,
    /// First back-off step. Doubles up to [`RetryPolicy::backoff_cap`], with full jitter.
    pub backoff: Duration,
    /// Longest back-off.
    pub backoff_cap: Duration,
}

/// Envoy's first back-off step; the cap is ten times as long.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// Conditions for another try, after Envoy's `retry_on` words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of independent named conditions"
)]
pub struct RetryOn {
    /// `5xx`: any 5xx, or no answer at all.
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: no answer (disconnect, reset, timeout of the try).
    pub reset: bool,
    /// `reset-before-request`: as `reset`, if no request byte went out.
    pub reset_before_request: bool,
    /// `connect-failure`: no connection to the endpoint.
    pub connect_failure: bool,
    /// `refused-stream`: HTTP/2 `REFUSED_STREAM`.
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `retriable-status-codes`: a status in [`RetryPolicy::statuses`].
    pub statuses: bool,
    /// `cancelled`: gRPC status 1.
    pub grpc_cancelled: bool,
    /// `deadline-exceeded`: gRPC status 4.
    pub grpc_deadline_exceeded: bool,
    /// `internal`: gRPC status 13.
    pub grpc_internal: bool,
    /// `resource-exhausted`: gRPC status 8.
    pub grpc_resource_exhausted: bool,
    /// `unavailable`: gRPC status 14.
    pub grpc_unavailable: bool,
}

#[cfg(test)]
mod tests;
