//! Requests as bytes and as frames: what two servers could read in two ways is refused, or passed on
//! in the one way that everybody reads alike.
//!
//! What must never happen holds for every case here, whatever its row says: what the application
//! behind the proxy is sent has one reading ([`ambit_tests::apps::heard`]).

use super::case::{Ask, Case, Pairs};

/// What it is, bytes of HTTP/1, the statuses of their answers, and what reached the application:
/// method, path, host and body of each request. A last, sound request follows them and is answered
/// with 200 where the connection goes on.
///
/// `{P}` stands for the first lines of a POST, `{C}` for the head of one in chunks, `{G}` for the
/// first lines of a GET, `{S}` for a smuggled request, `{n}` for the case.
#[rustfmt::skip]
const BYTES: &[(&str, &str, &str, &str)] = &[
    ("a length", "{P}content-length: 5\r\n\r\nhello", "200 200", POSTED),
    ("chunks", "{P}transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "200 200", POSTED),
    ("white space around a length", "{P}content-length: \t5 \r\n\r\nhello", "200 200", POSTED),
    ("chunks in capitals", "{P}TRANSFER-ENCODING: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 200", POSTED),
    ("a tab before chunked", "{P}transfer-encoding:\tchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 200", POSTED),
    ("an empty line first", "\r\n{G}\r\n", "200 200", GOT),
    ("two requests at once", "{G}\r\n{G}\r\n", "200 200 200", "GET /{n} [framing.mesh] \"\"; GET /{n} [framing.mesh] \"\""),
    ("GET with a body", "{G}content-length: 5\r\n\r\nhello", "200 200", "GET /{n} [framing.mesh] \"hello\""),
    ("GET with chunks", "{G}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 200", "GET /{n} [framing.mesh] \"hello\""),
    ("a body that looks like a request", "{P}content-length: 4\r\n\r\nGET ", "200 200", "POST /{n} [framing.mesh] \"GET \""),
    ("a length and chunks", "{P}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("chunks and a length", "{P}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("chunks and no length", "{P}transfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("two lengths that differ", "{P}content-length: 0\r\ncontent-length: 5\r\n\r\n{S}", "400", ""),
    ("two lengths that agree", "{P}content-length: 5\r\ncontent-length: 5\r\n\r\nhello", "400", ""),
    ("a list of lengths", "{P}content-length: 5, 5\r\n\r\nhello", "400", ""),
    ("a length with plus", "{P}content-length: +5\r\n\r\nhello", "400", ""),
    ("a length with minus", "{P}content-length: -5\r\n\r\nhello", "400", ""),
    ("a length with a space", "{P}content-length: 0 5\r\n\r\nhello", "400", ""),
    ("a length in hexadecimal", "{P}content-length: 0x5\r\n\r\nhello", "400", ""),
    ("no length at all", "{P}content-length:\r\n\r\nhello", "400", ""),
    ("a length beyond all bounds", "{P}content-length: 18446744073709551621\r\n\r\nhello", "400", ""),
    ("chunked and identity", "{P}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("identity and a length", "{P}transfer-encoding: identity\r\ncontent-length: 5\r\n\r\nhello", "400", ""),
    ("identity", "{P}transfer-encoding: identity\r\n\r\n", "501", ""),
    ("gzip and chunked", "{P}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("chunked twice", "{P}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("chunked, then identity", "{P}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("a coding that ends like chunked", "{P}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("chunked with a parameter", "{P}transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("a vertical tab before chunked", "{P}transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("a space before the colon", "{P}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("a folded line", "{P}x-folded: a\r\n b: c\r\ncontent-length: 0\r\n\r\n", "400", ""),
    ("a folded coding", "{P}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("a space before the first field", "POST /{n} HTTP/1.1\r\n host: framing.mesh\r\n\r\n", "400", ""),
    ("a bare line feed between fields", "{P}x-a: b\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{S}", "400", ""),
    ("bare line feeds", "GET /{n} HTTP/1.1\nhost: framing.mesh\n\n", "400", ""),
    ("a bare carriage return", "{G}x-a: b\rtransfer-encoding: chunked\r\n\r\n", "400", ""),
    ("NUL in a value", "{G}x-a: b\0c\r\n\r\n", "400", ""),
    ("NUL in a name", "{G}x-\0a: b\r\n\r\n", "400", ""),
    ("a control character in a value", "{G}x-a: b\x01c\r\n\r\n", "400", ""),
    ("a line without a colon", "{G}x-a\r\n\r\n", "400", ""),
    ("a field without a name", "{G}: a\r\n\r\n", "400", ""),
    ("a name with a space", "{G}x a: b\r\n\r\n", "400", ""),
    ("two hosts", "{G}host: other.mesh\r\n\r\n", "400", ""),
    ("two hosts that agree", "{G}host: framing.mesh\r\n\r\n", "400", ""),
    ("no host", "GET /{n} HTTP/1.1\r\n\r\n", "400", ""),
    ("an empty host", "GET /{n} HTTP/1.1\r\nhost:\r\n\r\n", "400", ""),
    ("a list of hosts", "GET /{n} HTTP/1.1\r\nhost: framing.mesh, other.mesh\r\n\r\n", "400", ""),
    ("a host with a user", "GET /{n} HTTP/1.1\r\nhost: a@framing.mesh\r\n\r\n", "400", ""),
    ("a host with a path", "GET /{n} HTTP/1.1\r\nhost: framing.mesh/a\r\n\r\n", "400", ""),
    ("a whole URL", "GET http://framing.mesh/{n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "200 200", GOT),
    ("a whole URL of another host", "GET http://other.mesh/{n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("a method in small letters", "get /{n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("a method of no list", "BREW /{n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "200 200", "BREW /{n} [framing.mesh] \"\""),
    ("two spaces in the first line", "GET  /{n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("a tab in the first line", "GET\t/{n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("a space in the path", "GET /{n} /b HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("a fragment", "GET /{n}#a HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("an escaped NUL", "GET /{n}%00 HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("half an escape", "GET /{n}%2 HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("a path that is none", "GET {n} HTTP/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("HTTP/0.9", "GET /{n}\r\n", "400", ""),
    ("HTTP/1.0", "GET /{n} HTTP/1.0\r\nhost: framing.mesh\r\n\r\n", "426", ""),
    ("HTTP/1.0 with chunks", "POST /{n} HTTP/1.0\r\nhost: framing.mesh\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{S}", "501", ""),
    ("HTTP/2 in a line of HTTP/1", "GET /{n} HTTP/2.0\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("http/1.1 in small letters", "GET /{n} http/1.1\r\nhost: framing.mesh\r\n\r\n", "400", ""),
    ("CONNECT", "CONNECT other.mesh:80 HTTP/1.1\r\nhost: other.mesh:80\r\n\r\n", "404", ""),
    ("a chunk that overflows", "{C}ffffffffffffffff1\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk of nearly all there is", "{C}fffffffffffffffe\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk with minus", "{C}-5\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk with plus", "{C}+5\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk in 0x", "{C}0x5\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk without a length", "{C}\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk that is longer than it says", "{C}3\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a chunk ended by a line feed", "{C}5\r\nhello\n0\r\n\r\n{S}", "400", ""),
    ("a chunk's length ended by a line feed", "{C}5\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("zeros before a chunk's length", "{C}005\r\nhello\r\n0000\r\n\r\n", "200 200", POSTED),
    ("an extension of a chunk", "{C}5;a=b\r\nhello\r\n0;c\r\n\r\n", "200 200", POSTED),
    ("an extension with a line feed", "{C}5;a\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("an extension with a carriage return", "{C}5;a\rb\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("an extension without end", "{C}5;{8k}{8k}{8k}\r\nhello\r\n0\r\n\r\n{S}", "400", ""),
    ("a trailer", "{C}5\r\nhello\r\n0\r\nx-trailer: a\r\n\r\n", "200 200", POSTED),
    ("a trailer that is a length", "{C}5\r\nhello\r\n0\r\ncontent-length: 0\r\n\r\n", "200 200", POSTED),
    ("a trailer without a colon", "{C}5\r\nhello\r\n0\r\nx-trailer\r\n\r\n{S}", "400", ""),
    ("connection names the length", "{P}connection: content-length\r\ncontent-length: 5\r\n\r\nhello", "200 200", POSTED),
    ("connection names the coding", "{P}connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 200", POSTED),
    ("a promise to go on", "{P}expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello", "100 200 200", POSTED),
    ("a request that cannot be read behind one that can", "{G}\r\n{P}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{S}", "200 400", GOT),
    ("a head of 70 KB", "{G}x-a: {8k}{8k}{8k}{8k}{8k}{8k}{8k}{8k}{8k}\r\n\r\n", "431", ""),
    ("two hundred fields", "{G}{fields}\r\n", "431", ""),
    ("HTTP/2 asked for in HTTP/1", "{G}connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "200 200", GOT),
];

const POSTED: &str = "POST /{n} [framing.mesh] \"hello\"";
const GOT: &str = "GET /{n} [framing.mesh] \"\"";

/// Spellings of paths and fields on a service where `/admin`, what is below it, and `x-role: root`
/// are denied; the statuses.
#[rustfmt::skip]
const SPELLINGS: &[(&str, &str)] = &[
    ("/admin", "403 200"),
    ("/admin?x", "403 200"),
    ("/admin/", "403 200"),
    ("/admin/x", "403 200"),
    ("/%61dmin", "403 200"),
    ("/./admin", "403 200"),
    ("/x/../admin", "403 200"),
    ("/x/%2e%2e/admin", "403 200"),
    ("/x/%2E%2E/admin", "403 200"),
    ("/x/..%2fadmin", "403 200"),
    ("/admin/../admin", "403 200"),
    ("/admin/.", "403 200"),
    ("//admin", "403 200"),
    ("/.//admin", "403 200"),
    ("/admin//users", "403 200"),
    ("/admin%2fusers", "403 200"),
    ("/admin%5cusers", "403 200"),
    ("/admin\\users", "403 200"),
    ("/admin;x=y", "403 200"),
    ("/admin;/x", "403 200"),
    ("http://spelled.mesh/admin", "403 200"),
    ("http://spelled.mesh//admin", "403 200"),
    ("/administrator", "200 200"),
    ("/ADMIN", "200 200"),
    ("/x/admin", "200 200"),
    ("/%2561dmin", "200 200"),
    ("/ HTTP/1.1\r\nX-ROLE: root\r\nx-b: ", "403 200"),
    ("/ HTTP/1.1\r\nx-role: guest\r\nx-role: root\r\nx-b: ", "403 200"),
    ("/ HTTP/1.1\r\nx-role:root\r\nx-b: ", "403 200"),
    ("/ HTTP/1.1\r\nx-role: \troot \t\r\nx-b: ", "403 200"),
    ("/ HTTP/1.1\r\nx-role: ROOT\r\nx-b: ", "200 200"),
];

/// See [`FRAMES`].
type Frames = (
    &'static str,
    &'static [(&'static str, &'static str)],
    Option<&'static str>,
    &'static str,
    &'static str,
);

/// Fields of HTTP/2 that replace or follow those of a sound request (`=` before a name that exists:
/// one more of it; `-`: not at all), its body, the outcome, and what reached the application.
#[rustfmt::skip]
const FRAMES: &[Frames] = &[
    ("sound", &[], None, "200", TWO),
    ("a length that holds", &[("content-length", "5")], Some("hello"), "200", TWO_BODY),
    ("no length", &[], Some("hello"), "200", TWO_BODY),
    ("a length too long", &[("content-length", "6")], Some("hello"), "refused", ""),
    ("a length too short", &[("content-length", "4")], Some("hello"), "refused", ""),
    ("a length without a body", &[("content-length", "4")], None, "refused", ""),
    ("two lengths that differ", &[("content-length", "5"), ("content-length", "0")], Some("hello"), "refused", ""),
    ("two lengths that differ, the second right", &[("content-length", "0"), ("content-length", "5")], Some("hello"), "refused", ""),
    ("two lengths that agree", &[("content-length", "5"), ("content-length", "5")], Some("hello"), "400", ""),
    ("a list of lengths", &[("content-length", "5, 5")], Some("hello"), "refused", ""),
    ("a length with plus", &[("content-length", "+5")], Some("hello"), "refused", ""),
    ("connection", &[("connection", "close")], None, "refused", ""),
    ("transfer-encoding", &[("transfer-encoding", "chunked")], Some("0\r\n\r\n"), "refused", ""),
    ("upgrade", &[("upgrade", "websocket")], None, "refused", ""),
    ("keep-alive", &[("keep-alive", "1")], None, "refused", ""),
    ("proxy-connection", &[("proxy-connection", "close")], None, "refused", ""),
    ("te: trailers", &[("te", "trailers")], None, "200", TWO),
    ("te: gzip", &[("te", "gzip")], None, "refused", ""),
    ("te: trailers, chunked", &[("te", "trailers, chunked")], None, "refused", ""),
    ("a line end in the path", &[(":path", "/{n} HTTP/1.1\r\nx-a: b")], None, "refused", ""),
    ("a space in the path", &[(":path", "/{n} HTTP/1.1")], None, "refused", ""),
    ("a line end in a value", &[("x-a", "b\r\nx-c: d")], None, "refused", ""),
    ("a line feed in a value", &[("x-a", "b\ntransfer-encoding: chunked")], None, "refused", ""),
    ("NUL in a value", &[("x-a", "b\0c")], None, "refused", ""),
    ("a line end in a name", &[("x-a: b\r\nx-c", "d")], None, "refused", ""),
    ("a colon in a name", &[("transfer-encoding:chunked", "b")], None, "refused", ""),
    ("a space in a name", &[("x a", "b")], None, "refused", ""),
    ("a name in capitals", &[("X-A", "b")], None, "refused", ""),
    ("an empty name", &[("", "b")], None, "refused", ""),
    ("a line end in the method", &[(":method", "GET /{n} HTTP/1.1\r\nx-a: b\r\n\r\nGET")], None, "refused", ""),
    ("a space in the method", &[(":method", "GET /{n}-x HTTP/1.1")], None, "refused", ""),
    ("a method in small letters", &[(":method", "get")], None, "400", ""),
    ("a line end in the authority", &[(":authority", "framing.mesh\r\nx-a: b")], None, "refused", ""),
    ("a user in the authority", &[(":authority", "a@framing.mesh")], None, "400", ""),
    ("a host that differs", &[("host", "other.mesh")], None, "400", ""),
    ("a host that agrees", &[("host", "framing.mesh")], None, "200", TWO),
    ("a host alone", &[("-:authority", ""), ("host", "framing.mesh")], None, "200", TWO),
    ("two hosts", &[("-:authority", ""), ("host", "framing.mesh"), ("host", "other.mesh")], None, "400", ""),
    ("no host", &[("-:authority", "")], None, "400", ""),
    ("no path", &[("-:path", "")], None, "refused", ""),
    ("no method", &[("-:method", "")], None, "refused", ""),
    ("no scheme", &[("-:scheme", "")], None, "refused", ""),
    ("an empty path", &[(":path", "")], None, "refused", ""),
    ("a path without a slash", &[(":path", "{n}")], None, "refused", ""),
    ("a path with a host", &[(":path", "http://other.mesh/{n}")], None, "refused", ""),
    ("two paths", &[("=:path", "/{n}-other")], None, "refused", ""),
    ("two authorities", &[("=:authority", "other.mesh")], None, "refused", ""),
    ("an unknown pseudo field", &[(":x", "y")], None, "refused", ""),
    ("a pseudo field behind another", &[("x-a", "b"), ("=:path", "/{n}")], None, "refused", ""),
    ("CONNECT", &[(":method", "CONNECT"), ("-:path", ""), ("-:scheme", "")], None, "404", ""),
    ("CONNECT to a protocol", &[(":method", "CONNECT"), (":protocol", "websocket")], None, "refused", ""),
];

const TWO: &str = "GET /{n} [framing.mesh] \"\"";
const TWO_BODY: &str = "GET /{n} [framing.mesh] \"hello\"";

/// All of them.
pub fn cases() -> Vec<Case> {
    let bytes = BYTES.iter().map(|(what, bytes, statuses, reached)| {
        case(
            format!("bytes: {what}"),
            Ask::Bytes {
                to: "framing.mesh:80",
                text: spell(bytes),
            },
            &[("statuses", statuses), ("reached", reached)],
        )
    });
    let spellings = SPELLINGS.iter().map(|(spelling, statuses)| {
        let text = format!("GET {spelling} HTTP/1.1\r\nhost: spelled.mesh\r\n\r\n");
        let to = "spelled.mesh:80";
        case(
            format!("spelling: {}", spelling.escape_debug()),
            Ask::Bytes { to, text },
            &[("statuses", statuses)],
        )
    });
    let frames = FRAMES.iter().map(|(what, fields, body, outcome, reached)| {
        case(
            format!("frames: {what}"),
            Ask::Frames {
                to: "framing.mesh:80",
                fields: complete(fields),
                body: body.map(str::to_owned),
            },
            &[("outcome", outcome), ("reached", reached)],
        )
    });
    bytes.chain(spellings).chain(frames).collect()
}

fn case(what: String, ask: Ask, holds: &[(&str, &str)]) -> Case {
    let holds = holds
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Case {
        what,
        from: "mesh/client",
        ask,
        holds: holds.collect(),
    }
}

/// Writes the abbreviations of [`BYTES`] out.
fn spell(bytes: &str) -> String {
    let host = "host: framing.mesh\r\n";
    let fields: String = (0..200).map(|n| format!("x-{n}: a\r\n")).collect();
    bytes
        .replace("{C}", "{P}transfer-encoding: chunked\r\n\r\n")
        .replace("{P}", &format!("POST /{{n}} HTTP/1.1\r\n{host}"))
        .replace("{G}", &format!("GET /{{n}} HTTP/1.1\r\n{host}"))
        .replace(
            "{S}",
            &format!("GET /{{n}}-smuggled HTTP/1.1\r\n{host}\r\n"),
        )
        .replace("{8k}", &"a".repeat(8 * 1024))
        .replace("{fields}", &fields)
}

/// A sound request's fields, changed as [`FRAMES`] says.
fn complete(changes: &[(&str, &str)]) -> Pairs {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut fields = vec![
        pair(":method", "GET"),
        pair(":scheme", "http"),
        pair(":authority", "framing.mesh"),
        pair(":path", "/{n}"),
    ];
    for (name, value) in changes {
        if let Some(name) = name.strip_prefix('-') {
            fields.retain(|(of, _)| of != name);
        } else if let Some(name) = name.strip_prefix('=') {
            fields.push(pair(name, value));
        } else if let Some(at) = fields
            .iter()
            .position(|(of, _)| of == name && of.starts_with(':'))
        {
            fields[at].1 = (*value).to_owned();
        } else {
            fields.push(pair(name, value));
        }
    }
    fields
}
