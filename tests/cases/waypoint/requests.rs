//! Requests that a client library sends: routes and their precedence, what a route changes, failures,
//! rules. A table; every row is asked over HTTP/1.1 and over HTTP/2.

use http::{Method, Version};

use super::case::{Ask, Case};

/// `what | from METHOD service/path | header: value; … | status flags | facts`.
///
/// `from` is `other` where the pod is not `mesh/client`. Of the facts, separated by `;`, `=v2` is the
/// application that answered, `>name=value` a header field it saw, `<name=value` one of the answer,
/// `.path=…` and the like what else it saw; `body=…` the answer. A fact without a value is absent.
const TABLE: &str = "
the last rule takes the rest             | GET shop/other           |                    | 200 - | =v1

exact path                               | GET shop/exact           |                    | 200 - | =v2
exact path ignores the query             | GET shop/exact?a=b       |                    | 200 - | =v2; .query=a=b
exact path is no prefix                  | GET shop/exact/no        |                    | 200 - | =v1
path prefix                              | GET shop/prefix/x        |                    | 200 - | =v2
a prefix ends at a slash                 | GET shop/prefixed        |                    | 200 - | =v1
regular expression                       | GET narrow/re/42         |                    | 200 - | =v2
regular expressions match whole paths    | GET narrow/re/42x        |                    | 404 NR | body=
a regular expression is behind a prefix  | GET shop/re/42           |                    | 200 - | =v1
paths have case                          | GET shop/EXACT           |                    | 200 - | =v1
header                                   | GET shop/                | x-tester: yes      | 200 - | =v2
header values do not                     | GET shop/                | x-tester: Yes      | 200 - | =v1
header, the second value                 | GET shop/                | x-tester: no; x-tester: yes | 200 - | =v2
header by regular expression             | GET shop/                | x-number: 77       | 200 - | =v2
header not by half of one                | GET shop/                | x-number: 77a      | 200 - | =v1
query                                    | GET shop/?side=b         |                    | 200 - | =v2
another query                            | GET shop/?side=c&b=side  |                    | 200 - | =v1
a query is not decoded                   | GET shop/?side=%62       |                    | 200 - | =v1
method                                   | PUT shop/                |                    | 200 - | =v2
path and header                          | GET shop/both            | x-both: 1          | 200 - | =v2
path without its header                  | GET shop/both            |                    | 200 - | =v1

an exact path before a longer prefix     | GET order/a/b            | x-a: 1; x-b: 1     | 200 - | >x-rule=exact
a longer prefix before everything else   | POST order/a/c/d?q=1     | x-a: 1; x-b: 1     | 200 - | >x-rule=longer
the method before headers                | POST order/a?q=1         | x-a: 1; x-b: 1     | 200 - | >x-rule=method
more headers before fewer                | GET order/a?q=1&r=1      | x-a: 1; x-b: 1     | 200 - | >x-rule=two headers
headers before queries                   | GET order/a?q=1&r=1      | x-a: 1             | 200 - | >x-rule=one header
more queries before fewer                | GET order/a?q=1&r=1      |                    | 200 - | >x-rule=two queries
one query before none                    | GET order/a?q=1          |                    | 200 - | >x-rule=one query
the first of equals                      | GET order/a              |                    | 200 - | >x-rule=first
a shorter prefix at last                 | POST order/b             | x-a: 1             | 200 - | >x-rule=root

redirect of host and path                | GET shop/redirect/me?q=1 |                    | 301 - | <location=http://moved.example/there?q=1
redirect of scheme and port              | GET shop/secure/me?q=1   |                    | 302 - | <location=https://shop.mesh:8443/secure/me?q=1
redirect of a prefix                     | GET shop/old/me?q=1      |                    | 302 - | <location=http://shop.mesh/new/me?q=1
rewrite of host and prefix               | GET shop/rewrite/this?q=1 |                   | 200 - | .path=/written/this; .query=q=1; .host=inner.example; >x-envoy-original-path=/rewrite/this?q=1
rewrite of a prefix alone                | GET shop/rewrite         |                    | 200 - | .path=/written
rewrite of a prefix to nothing           | GET shop/cut/this        |                    | 200 - | .path=/this
rewrite of a prefix that is all          | GET shop/cut             |                    | 200 - | .path=/
rewrite of a whole path                  | GET shop/whole/this?q=1  |                    | 200 - | .path=/one; .query=q=1
request headers set, added and removed   | GET shop/headers         | x-set: old; x-added: some; x-removed: gone | 200 - | >x-set=new; >x-added=some, more; >x-removed=
response headers set and removed         | GET shop/headers         |                    | 200 - | <x-answer=shaped; <content-type=

a request keeps its id                   | GET shop/                | x-request-id: 7a7a7a7a-1111-4222-8333-444444444444 | 200 - | >x-request-id=7a7a7a7a-1111-4222-8333-444444444444
a trace goes on                          | GET shop/                | traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01; tracestate: a=b | 200 - | >traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01; >tracestate=a=b
what only a proxy may say is stripped    | GET shop/                | x-envoy-upstream-rq-timeout-ms: 1; x-forwarded-client-cert: By=me | 200 - | >x-envoy-upstream-rq-timeout-ms=; >x-forwarded-client-cert=
the server is the waypoint               | GET shop/                |                    | 200 - | <server=istio-envoy; .host=shop.mesh; >x-forwarded-proto=http
a repeated field stays repeated          | GET shop/                | x-two: a; x-two: b | 200 - | >x-two=a, b
an answer's status passes                | GET shop/status/418      |                    | 418 - | =v1
HEAD has no body                         | HEAD shop/               |                    | 200 - | body=
OPTIONS is a method                      | OPTIONS shop/            |                    | 200 - | .method=OPTIONS

the only path                            | GET narrow/only          |                    | 200 - | =v1
no route                                 | GET narrow/else          |                    | 404 NR | body=
no endpoint                              | GET shop/empty           |                    | 503 UH | body=no healthy upstream
no answer in time                        | GET shop/delay/5000      |                    | 504 UT | body=upstream request timeout
an answer in time                        | GET shop/delay/20        |                    | 200 - | =v1
a backend that does not exist            | GET shop/missing         |                    | 500 NC | body=
an endpoint whose node refuses           | GET shop/shut            |                    | 503 *UC | body=*reset reason: connection termination
an endpoint that refuses                 | GET shop/refused         |                    | 503 *UF | body=*reset reason: remote connection failure
an endpoint that breaks off              | GET shop/breaks          |                    | 503 *UC | body=*reset reason: connection termination

allowed by principal, method and path    | GET guarded/open         |                    | 200 - | =v1
allowed by prefix                        | GET guarded/open/more    |                    | 200 - | =v1
not with another method                  | DELETE guarded/open      |                    | 403 - | body=RBAC: access denied; <content-type=text/plain
not on another path                      | GET guarded/closed       |                    | 403 - | body=RBAC: access denied; <server=istio-envoy
not in another case                      | GET guarded/OPEN         |                    | 403 - |
not from another pod                     | other GET guarded/open   |                    | 403 - |
by a header, whoever it is               | other DELETE guarded/closed | x-key: secret   | 200 - | =v1
not by another value                     | other GET guarded/closed | x-key: Secret      | 403 - |
by one of two values                     | other GET guarded/closed | x-key: a; x-key: secret | 200 - | =v1
dots do not lead out                     | GET guarded/x/../open    |                    | 200 - | .path=/open
an escaped letter is a letter            | GET guarded/%6fpen       |                    | 200 - | .path=/open
dots do not lead in                      | GET guarded/open/../closed |                  | 403 - |
escaped dots do not lead in              | GET guarded/open/%2e%2e/closed |              | 403 - |
deny goes before allow                   | GET guarded/open/admin   |                    | 403 - | body=RBAC: access denied
deny goes before allow by header         | other GET guarded/open/admin | x-key: secret  | 403 - |
denied by a header                       | GET roles/               | x-role: root       | 403 - | body=RBAC: access denied
denied by the second of two headers      | GET roles/               | x-role: guest; x-role: root | 403 - |
denied by the first of two headers       | GET roles/               | x-role: root; x-role: guest | 403 - |
not denied by another value              | GET roles/               | x-role: guest      | 200 - |
denied by method                         | DELETE roles/            |                    | 403 - |
denied by host                           | GET roles/               | host: secret.mesh  | 403 - |
denied by host, whatever its case        | GET roles/               | host: SECRET.mesh  | 403 - |
";

/// The table's rows, over both versions.
pub fn cases() -> Vec<Case> {
    let rows = TABLE.lines().filter(|line| !line.is_empty());
    let both = rows.flat_map(|row| {
        [(Version::HTTP_11, ""), (Version::HTTP_2, ", HTTP/2")]
            .map(|(version, suffix)| case(row, version, suffix))
    });
    let lengths = [0, 1, 70_000].into_iter().map(body);
    both.chain(lengths).chain([many()]).collect()
}

fn case(row: &str, version: Version, suffix: &str) -> Case {
    let columns: Vec<&str> = row.split('|').map(str::trim).collect();
    let [what, asked, fields, status, facts] = columns[..] else {
        panic!("five columns: {row}");
    };
    let asked: Vec<&str> = asked.split(' ').collect();
    let (from, method, target) = match asked[..] {
        [method, target] => ("mesh/client", method, target),
        ["other", method, target] => ("mesh/other", method, target),
        _ => panic!("who asks what: {row}"),
    };
    let (service, path) = target.split_at(target.find('/').expect("a path"));
    let (code, flags) = status.split_once(' ').expect("status and flags");
    let mut holds = vec![
        ("status".to_owned(), code.to_owned()),
        ("log: response_code".to_owned(), code.to_owned()),
        ("log: response_flags".to_owned(), flags.to_owned()),
        ("log: records".to_owned(), "1".to_owned()),
    ];
    holds.extend(
        facts
            .split("; ")
            .filter(|fact| !fact.is_empty())
            .map(|fact| {
                let (name, value) = fact.split_once('=').expect("a fact");
                let name = match name.split_at_checked(1) {
                    None => "upstream's name".to_owned(),
                    Some((">", name)) => format!("upstream: {name}"),
                    Some(("<", name)) => format!("answer: {name}"),
                    Some((".", name)) => format!("upstream's {name}"),
                    Some(_) => name.to_owned(),
                };
                (name, value.to_owned())
            }),
    );
    let fields = fields.split("; ").filter(|field| !field.is_empty());
    let headers = fields.map(|field| {
        let (name, value) = field.split_once(": ").expect("name: value");
        (name.to_owned(), value.to_owned())
    });
    Case {
        what: format!("{what}{suffix}"),
        from,
        ask: Ask::Http {
            version,
            method: method.parse::<Method>().expect("a method"),
            to: format!("{service}.mesh:80"),
            path: path.to_owned(),
            headers: headers.collect(),
            body: String::new(),
        },
        holds,
    }
}

/// Bodies of some lengths, of HTTP/2 to an HTTP/2 server.
fn body(length: usize) -> Case {
    let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Case {
        what: format!("HTTP/2 to an HTTP/2 server, {length} bytes"),
        from: "mesh/client",
        ask: Ask::Http {
            version: Version::HTTP_2,
            method: Method::POST,
            to: "h2.mesh:80".to_owned(),
            path: "/two?x=1".to_owned(),
            headers: Vec::new(),
            body: "x".repeat(length),
        },
        holds: vec![
            fact("status", "200"),
            fact("version", "HTTP/2.0"),
            fact("upstream's version", "HTTP/2.0"),
            fact("upstream's body", &length.to_string()),
        ],
    }
}

fn many() -> Case {
    Case {
        what: "weights over 2,000 requests".to_owned(),
        from: "mesh/client",
        ask: Ask::Many {
            to: "shop.mesh:80",
            path: "/weights",
            requests: 2000,
        },
        holds: vec![("share of v2".to_owned(), "10 ± 3".to_owned())],
    }
}
