//! Gateway API `HTTPRoute`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An `HTTPRoute`: how requests to its parents are matched, changed and split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// Metadata; the creation time decides between routes of equal precedence.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: HttpRouteSpec,
    /// What is known about it.
    pub status: Option<Value>,
}

/// What a route asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// What it attaches to; in a mesh, Services.
    pub parent_refs: Option<Vec<ParentRef>>,
    /// Hosts; ignored for Service parents, where the service is the host.
    pub hostnames: Option<Vec<String>>,
    /// Its rules; none means one rule that matches all.
    pub rules: Option<Vec<Rule>>,
}

/// What a route attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// API group; `gateway.networking.k8s.io` when absent, the empty string for core.
    pub group: Option<String>,
    /// `Gateway` when absent.
    pub kind: Option<String>,
    /// The route's own namespace when absent.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// A listener of the parent.
    pub section_name: Option<String>,
    /// One port of the parent; all when absent.
    pub port: Option<u16>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// A name, used in logs.
    pub name: Option<String>,
    /// Any of these; none matches every path.
    pub matches: Option<Vec<Match>>,
    /// What is done to the request and the response.
    pub filters: Option<Vec<Filter>>,
    /// Where it goes.
    pub backend_refs: Option<Vec<BackendRef>>,
    /// How long it may take.
    pub timeouts: Option<Timeouts>,
    /// When it is tried again.
    pub retry: Option<Retry>,
    /// Not supported.
    pub session_persistence: Option<Value>,
}

/// Conditions on a request; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Path; prefix `/` when absent.
    pub path: Option<PathMatch>,
    /// Headers.
    pub headers: Option<Vec<NamedMatch>>,
    /// Query parameters.
    pub query_params: Option<Vec<NamedMatch>>,
    /// Method, in capitals.
    pub method: Option<String>,
}

/// A condition on the path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// Prefix when absent.
    #[serde(rename = "type")]
    pub kind: Option<PathMatchKind>,
    /// `/` when absent.
    pub value: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PathMatchKind {
    /// The whole path.
    Exact,
    /// Whole segments from the start.
    #[default]
    PathPrefix,
    /// RE2 over the whole path.
    RegularExpression,
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedMatch {
    /// Exact when absent.
    #[serde(rename = "type")]
    pub kind: Option<ValueMatchKind>,
    /// The header or parameter.
    pub name: String,
    /// The value or pattern.
    pub value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueMatchKind {
    /// The whole value.
    #[default]
    Exact,
    /// RE2 over the whole value.
    RegularExpression,
}

/// Something done to a request or a response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Which of the members below is meant.
    #[serde(rename = "type")]
    pub kind: FilterKind,
    /// For [`FilterKind::RequestHeaderModifier`].
    pub request_header_modifier: Option<HeaderModifier>,
    /// For [`FilterKind::ResponseHeaderModifier`].
    pub response_header_modifier: Option<HeaderModifier>,
    /// For [`FilterKind::RequestMirror`].
    pub request_mirror: Option<Value>,
    /// For [`FilterKind::RequestRedirect`].
    pub request_redirect: Option<RequestRedirect>,
    /// For [`FilterKind::URLRewrite`].
    pub url_rewrite: Option<UrlRewrite>,
    /// For [`FilterKind::CORS`].
    pub cors: Option<Value>,
    /// For [`FilterKind::ExternalAuth`].
    pub external_auth: Option<Value>,
    /// For [`FilterKind::ExtensionRef`].
    pub extension_ref: Option<Value>,
}

/// The kinds of filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterKind {
    /// Changes request headers.
    #[default]
    RequestHeaderModifier,
    /// Changes response headers.
    ResponseHeaderModifier,
    /// Sends a copy elsewhere; not supported.
    RequestMirror,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host and path.
    URLRewrite,
    /// Cross-origin rules; not supported.
    CORS,
    /// Asks somebody else; not supported.
    ExternalAuth,
    /// Somebody else's filter; not supported.
    ExtensionRef,
}

/// Changes to headers; set, then add, then remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Replace, or add when absent.
    pub set: Option<Vec<Header>>,
    /// Append.
    pub add: Option<Vec<Header>>,
    /// Remove.
    pub remove: Option<Vec<String>>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A redirect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// `http` or `https`; unchanged when absent.
    pub scheme: Option<String>,
    /// Unchanged when absent.
    pub hostname: Option<String>,
    /// Unchanged when absent.
    pub path: Option<PathModifier>,
    /// By scheme, or the request's, when absent.
    pub port: Option<u16>,
    /// 302 when absent.
    pub status_code: Option<u16>,
}

/// A rewrite.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UrlRewrite {
    /// New host.
    pub hostname: Option<String>,
    /// New path.
    pub path: Option<PathModifier>,
}

/// How a path is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// Which of the two is meant.
    #[serde(rename = "type")]
    pub kind: PathModifierKind,
    /// The new path.
    pub replace_full_path: Option<String>,
    /// What stands in place of the matched prefix.
    pub replace_prefix_match: Option<String>,
}

/// The kinds of path change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathModifierKind {
    /// All of the path.
    #[default]
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// Where a part of the requests goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// The empty string (core) when absent.
    pub group: Option<String>,
    /// `Service` when absent.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// The route's own namespace when absent.
    pub namespace: Option<String>,
    /// Required for a Service.
    pub port: Option<u16>,
    /// 1 when absent.
    pub weight: Option<u32>,
    /// Filters for this backend only.
    pub filters: Option<Vec<Filter>>,
}

/// Limits on time, as Gateway API durations such as `10s`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// For the whole request; `0s` is none.
    pub request: Option<String>,
    /// For one try.
    pub backend_request: Option<String>,
}

/// When a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Answers that are tried again.
    pub codes: Option<Vec<u16>>,
    /// How often.
    pub attempts: Option<u32>,
    /// Least time between tries.
    pub backoff: Option<String>,
}
