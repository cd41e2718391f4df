//! Where Envoy answers otherwise than ours, on purpose. Each row stands in `docs/compatibility.md`,
//! under the same name, with what either does and why.

/// A case, and the names of the facts that differ.
type Differs = (&'static str, &'static [&'static str]);

/// The row's name in the document; which facts of which cases differ. `*` is every fact.
pub const DIFFERENCES: &[(&str, &[Differs])] = &[
    (
        "POST, PUT or OPTIONS without a body or a length",
        &[
            ("method", LENGTH),
            ("a longer prefix before everything else", LENGTH),
            ("the method before headers", LENGTH),
            ("a shorter prefix at last", LENGTH),
            ("OPTIONS is a method", LENGTH),
        ],
    ),
    (
        "an endpoint that refuses the tunnel's stream",
        &[
            ("an endpoint whose node refuses", FLAGS),
            ("an endpoint whose node refuses, HTTP/2", FLAGS),
        ],
    ),
    (
        "an upgrade that is denied",
        &[(
            "upgrade: a websocket that is denied",
            &["answer: connection"],
        )],
    ),
    (
        "an upgraded stream that its client ends",
        &[
            ("upgrade: websocket", FLAGS),
            ("upgrade: WebSocket in capitals", FLAGS),
        ],
    ),
    (
        "spellings such as `//admin`, `/admin%2fusers`, `/admin;x` against a DENY of `/admin` and `/admin/*`",
        &[
            ("spelling: /x/..%2fadmin", BYTES),
            ("spelling: //admin", BYTES),
            ("spelling: /.//admin", BYTES),
            ("spelling: /admin%2fusers", BYTES),
            ("spelling: /admin%5cusers", BYTES),
            ("spelling: /admin;x=y", BYTES),
            ("spelling: /admin;/x", BYTES),
            ("spelling: http://spelled.mesh//admin", BYTES),
        ],
    ),
    (
        "a host in doubt",
        &[
            ("bytes: two hosts", BYTES),
            ("bytes: two hosts that agree", BYTES),
            ("bytes: an empty host", BYTES),
            ("bytes: a host with a user", BYTES),
            ("bytes: a whole URL of another host", BYTES),
            ("frames: a host that differs", ALL),
        ],
    ),
    (
        "no host, two, one with a user, or two lengths over HTTP/2",
        &[
            ("frames: a user in the authority", ALL),
            ("frames: two hosts", ALL),
            ("frames: no host", ALL),
            ("frames: two lengths that agree", ALL),
        ],
    ),
    (
        "a line that is folded, or ends other than in CR LF",
        &[
            ("bytes: a folded line", BYTES),
            ("bytes: a folded coding", BYTES),
            ("bytes: a bare line feed between fields", BYTES),
            ("bytes: bare line feeds", BYTES),
            ("bytes: a bare carriage return", BYTES),
        ],
    ),
    (
        "white space in the request line",
        &[
            ("bytes: two spaces in the first line", BYTES),
            ("bytes: a tab in the first line", BYTES),
        ],
    ),
    (
        "chunks that end elsewhere than they say, or have 16 KB of extensions",
        &[
            ("bytes: a chunk that is longer than it says", BYTES),
            ("bytes: a chunk ended by a line feed", BYTES),
            ("bytes: an extension without end", BYTES),
        ],
    ),
    (
        "a chunk of nearly 2⁶⁴ bytes",
        &[("bytes: a chunk of nearly all there is", BYTES)],
    ),
    (
        "half an escape in a path",
        &[("bytes: half an escape", BYTES)],
    ),
    (
        "a method that is none of the known ones",
        &[("bytes: a method of no list", BYTES)],
    ),
    (
        "a method in the wrong case over HTTP/2",
        &[("frames: a method in small letters", ALL)],
    ),
    (
        "versions other than HTTP/1.1 in a line that is malformed besides",
        &[
            ("bytes: HTTP/0.9", BYTES),
            ("bytes: HTTP/1.0 with chunks", BYTES),
            ("bytes: HTTP/2 in a line of HTTP/1", BYTES),
        ],
    ),
];

const LENGTH: &[&str] = &["upstream: content-length"];
const FLAGS: &[&str] = &["log: response_flags"];
const BYTES: &[&str] = &["statuses", "reached"];
const ALL: &[&str] = &["*"];

/// The row under which a case's fact may differ.
pub fn row(case: &str, fact: &str) -> Option<&'static str> {
    let allows =
        |(of, facts): &Differs| *of == case && facts.iter().any(|one| *one == "*" || *one == fact);
    DIFFERENCES
        .iter()
        .find(|(_, cases)| cases.iter().any(allows))
        .map(|(row, _)| *row)
}
