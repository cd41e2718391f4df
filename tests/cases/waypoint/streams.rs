//! gRPC and upgrades: what stays open both ways.

use super::case::{Ask, Case};

/// See [`CALLS`].
type Calls = (
    &'static str,
    &'static str,
    &'static str,
    usize,
    [&'static str; 5],
);

/// gRPC: what, whom, method, messages; the status, the message and how many came back, and the log.
#[rustfmt::skip]
const CALLS: &[Calls] = &[
    ("one message", "h2.mesh:81", "/shop.Cart/Add", 1, ["0", "", "1", "200", "-"]),
    ("a stream both ways", "h2.mesh:81", "/shop.Cart/Watch", 50, ["0", "", "50", "200", "-"]),
    ("a stream through HTTP/2 by name", "h2.mesh:80", "/shop.Cart/Watch", 5, ["0", "", "5", "200", "-"]),
    ("a call that fails", "h2.mesh:81", "/shop.Cart/Fail", 0, ["5", "no such cart", "0", "200", "-"]),
    ("no endpoint", "shop.mesh:80", "/empty", 0, ["14", "no healthy upstream", "0", "200", "UH"]),
    ("no route", "narrow.mesh:80", "/shop.Cart/Add", 0, ["12", "", "0", "200", "NR"]),
    ("no answer in time", "shop.mesh:80", "/hang", 0, ["14", "upstream request timeout", "0", "200", "UT"]),
    ("denied", "guarded.mesh:80", "/shop.Cart/Add", 0, ["7", "RBAC: access denied", "0", "200", "-"]),
];

/// Upgrades: what, whom, protocol; the status, the messages that came back, and the log.
#[rustfmt::skip]
const UPGRADES: &[(&str, &str, &str, [&str; 4])] = &[
    ("websocket", "shop.mesh:80", "websocket", ["101", "20", "101", "-"]),
    ("WebSocket in capitals", "shop.mesh:80", "WebSocket", ["101", "20", "101", "-"]),
    ("a protocol of no list", "shop.mesh:80", "smtp", ["403", "", "403", "-"]),
    ("a websocket that is denied", "guarded.mesh:80", "websocket", ["403", "", "403", "-"]),
];

/// All of them.
pub fn cases() -> Vec<Case> {
    let calls = CALLS.iter().map(|(what, to, path, messages, holds)| {
        let names = [
            "grpc-status",
            "grpc-message",
            "messages",
            "log: response_code",
        ];
        let ask = Ask::Grpc {
            to,
            path,
            messages: *messages,
        };
        case(format!("gRPC: {what}"), ask, &names, holds)
    });
    let upgrades = UPGRADES.iter().map(|(what, to, protocol, holds)| {
        let names = ["status", "echoed", "log: response_code"];
        case(
            format!("upgrade: {what}"),
            Ask::Upgrade { to, protocol },
            &names,
            holds,
        )
    });
    calls.chain(upgrades).collect()
}

fn case(what: String, ask: Ask, names: &[&str], holds: &[&str]) -> Case {
    let names = names.iter().chain(&["log: response_flags"]);
    let pairs = names.zip(holds);
    Case {
        what,
        from: "mesh/client",
        ask,
        holds: pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    }
}
