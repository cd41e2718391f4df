//! Request → answer, for our waypoint and, with the same resources, for Envoy in its place.

use ambit_tests::http::Answer;
use ambit_tests::pod::Pod;
use http::Method;

/// One request and what is expected of its answer.
pub struct Case {
    /// What the case shows.
    pub what: &'static str,
    method: Method,
    url: &'static str,
    headers: &'static [(&'static str, &'static str)],
    status: u16,
    /// What the answer holds: see [`Case::finds`].
    holds: &'static [(&'static str, &'static str)],
}

const fn case(
    what: &'static str,
    method: Method,
    url: &'static str,
    headers: &'static [(&'static str, &'static str)],
    status: u16,
    holds: &'static [(&'static str, &'static str)],
) -> Case {
    Case {
        what,
        method,
        url,
        headers,
        status,
        holds,
    }
}

const V1: &[(&str, &str)] = &[("json/name", "v1")];
const V2: &[(&str, &str)] = &[("json/name", "v2")];

/// Every case on services `shop` and `narrow`.
pub const CASES: &[Case] = &[
    case(
        "the last rule takes the rest",
        Method::GET,
        "http://shop.mesh/other",
        &[],
        200,
        V1,
    ),
    case(
        "exact path",
        Method::GET,
        "http://shop.mesh/exact",
        &[],
        200,
        V2,
    ),
    case(
        "exact path ignores the query",
        Method::GET,
        "http://shop.mesh/exact?a=b",
        &[],
        200,
        V2,
    ),
    case(
        "exact path is no prefix",
        Method::GET,
        "http://shop.mesh/exact/no",
        &[],
        200,
        V1,
    ),
    case(
        "path prefix",
        Method::GET,
        "http://shop.mesh/prefix/x",
        &[],
        200,
        V2,
    ),
    case(
        "a prefix ends at a slash",
        Method::GET,
        "http://shop.mesh/prefixed",
        &[],
        200,
        V1,
    ),
    case(
        "a longer prefix wins",
        Method::GET,
        "http://shop.mesh/prefix/deeper/x",
        &[],
        200,
        V1,
    ),
    case(
        "regular expression",
        Method::GET,
        "http://narrow.mesh/re/42",
        &[],
        200,
        V2,
    ),
    case(
        "regular expressions match whole paths",
        Method::GET,
        "http://narrow.mesh/re/42x",
        &[],
        404,
        &[],
    ),
    case(
        "a regular expression goes behind every prefix",
        Method::GET,
        "http://shop.mesh/re/42",
        &[],
        200,
        V1,
    ),
    case(
        "header",
        Method::GET,
        "http://shop.mesh/",
        &[("x-tester", "yes")],
        200,
        V2,
    ),
    case(
        "header names ignore case",
        Method::GET,
        "http://shop.mesh/",
        &[("X-TESTER", "yes")],
        200,
        V2,
    ),
    case(
        "header values do not",
        Method::GET,
        "http://shop.mesh/",
        &[("x-tester", "Yes")],
        200,
        V1,
    ),
    case(
        "header by regular expression",
        Method::GET,
        "http://shop.mesh/",
        &[("x-number", "77")],
        200,
        V2,
    ),
    case(
        "header not by half of one",
        Method::GET,
        "http://shop.mesh/",
        &[("x-number", "77a")],
        200,
        V1,
    ),
    case(
        "query",
        Method::GET,
        "http://shop.mesh/?side=b",
        &[],
        200,
        V2,
    ),
    case(
        "another query",
        Method::GET,
        "http://shop.mesh/?side=c&b=side",
        &[],
        200,
        V1,
    ),
    case("method", Method::PUT, "http://shop.mesh/", &[], 200, V2),
    case(
        "path and header",
        Method::GET,
        "http://shop.mesh/both",
        &[("x-both", "1")],
        200,
        V2,
    ),
    case(
        "path without its header",
        Method::GET,
        "http://shop.mesh/both",
        &[],
        200,
        V1,
    ),
    case(
        "an exact path goes before a header",
        Method::GET,
        "http://shop.mesh/exact",
        &[("x-tester", "no")],
        200,
        V2,
    ),
    case(
        "redirect",
        Method::GET,
        "http://shop.mesh/redirect/me?q=1",
        &[],
        301,
        &[("header/location", "http://moved.example/there?q=1")],
    ),
    case(
        "rewrite of host and prefix",
        Method::GET,
        "http://shop.mesh/rewrite/this?q=1",
        &[],
        200,
        &[
            ("json/path", "/written/this"),
            ("json/query", "q=1"),
            ("json/host", "inner.example"),
        ],
    ),
    case(
        "request headers set, added and removed",
        Method::GET,
        "http://shop.mesh/headers",
        &[("x-set", "old"), ("x-removed", "gone")],
        200,
        &[
            ("json/headers/x-set", "new"),
            ("json/headers/x-added", "more"),
            ("json/headers/x-removed", ""),
        ],
    ),
    case(
        "response headers set and removed",
        Method::GET,
        "http://shop.mesh/headers",
        &[],
        200,
        &[("header/x-answer", "shaped"), ("header/content-type", "")],
    ),
    case(
        "a request keeps its trace",
        Method::GET,
        "http://shop.mesh/",
        &[("x-request-id", "7a7a7a7a-1111-4222-8333-444444444444")],
        200,
        &[(
            "json/headers/x-request-id",
            "7a7a7a7a-1111-4222-8333-444444444444",
        )],
    ),
    case(
        "what only a proxy may say is stripped",
        Method::GET,
        "http://shop.mesh/",
        &[
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-forwarded-client-cert", "By=me"),
        ],
        200,
        &[
            ("json/headers/x-envoy-upstream-rq-timeout-ms", ""),
            ("json/headers/x-forwarded-client-cert", ""),
        ],
    ),
    case(
        "an answer's status passes",
        Method::GET,
        "http://shop.mesh/status/418",
        &[],
        418,
        V1,
    ),
    case(
        "the only path",
        Method::GET,
        "http://narrow.mesh/only",
        &[],
        200,
        V1,
    ),
    case(
        "no route",
        Method::GET,
        "http://narrow.mesh/else",
        &[],
        404,
        &[("body", "")],
    ),
    case(
        "no endpoint",
        Method::GET,
        "http://shop.mesh/empty",
        &[],
        503,
        &[("body", "no healthy upstream")],
    ),
    case(
        "no answer in time",
        Method::GET,
        "http://shop.mesh/delay/5000",
        &[],
        504,
        &[("body", "upstream request timeout")],
    ),
    case(
        "an answer in time",
        Method::GET,
        "http://shop.mesh/delay/20",
        &[],
        200,
        V1,
    ),
    case(
        "a backend that does not exist",
        Method::GET,
        "http://shop.mesh/missing",
        &[],
        500,
        &[("body", "")],
    ),
    case(
        "the server is the waypoint",
        Method::GET,
        "http://shop.mesh/",
        &[],
        200,
        &[
            ("header/server", "istio-envoy"),
            ("json/host", "shop.mesh"),
            ("json/headers/x-forwarded-proto", "http"),
        ],
    ),
    case(
        "an endpoint that does not listen",
        Method::GET,
        "http://shop.mesh/shut",
        &[],
        503,
        &[],
    ),
];

impl Case {
    /// Sends the request.
    pub fn ask(&self, client: &Pod) -> Result<Answer, String> {
        client
            .request(self.method.clone(), self.url, self.headers)
            .map_err(|error| format!("{error:#}"))
    }

    /// Sends the request and compares.
    pub fn check(&self, client: &Pod) -> Result<(), String> {
        let answer = self.ask(client)?;
        if answer.status != self.status {
            return Err(format!("status {}: {}", answer.status, answer.text()));
        }
        for (place, wanted) in self.holds {
            let found = finds(&answer, place);
            if found != *wanted {
                return Err(format!("{place} is `{found}`, not `{wanted}`"));
            }
        }
        Ok(())
    }
}

/// `body`, `header/NAME`, or `json/PATH` of what the application tells; empty if absent.
fn finds(answer: &Answer, place: &str) -> String {
    match place.split_once('/') {
        None => answer.text(),
        Some(("header", name)) => answer.header(name).to_owned(),
        Some((_, path)) => match answer.json().pointer(&format!("/{path}")) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        },
    }
}
