//! The program against servers that answer what they are told to.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: it stops at what it does not expect"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

/// A server that gives the same answer to every request; its URL.
fn server(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).unwrap();
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .unwrap();
        }
    });
    url
}

fn ambitctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ambitctl"))
        .args(arguments)
        .output()
        .unwrap()
}

fn failure(arguments: &[&str]) -> String {
    let output = ambitctl(arguments);
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

const DUMP: &str = r#"{"workloads": [{"name": "web", "namespace": "shop", "protocol": "HBONE"}]}"#;

#[test]
fn answers_as_a_table_and_as_json() {
    let url = server("200 OK", DUMP);
    let table = ambitctl(&["workloads", "--ztunnel", &url]);
    assert!(table.status.success());
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.starts_with("NAMESPACE   POD NAME"), "{text}");
    assert!(text.contains("shop        web"), "{text}");
    let json = ambitctl(&["workloads", "-o", "json", "--ztunnel", &url]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value.pointer("/0/protocol").unwrap(), "HBONE");
}

#[test]
fn what_went_wrong_is_said_in_one_line() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let refused = failure(&["workloads", "--ztunnel", &format!("http://{closed}")]);
    assert!(
        refused.contains("nothing answers at http://127.0.0.1"),
        "{refused}"
    );
    assert!(refused.contains("--netns"), "{refused}");
    let text = failure(&["workloads", "--ztunnel", &server("200 OK", "hello")]);
    assert!(text.contains("not JSON"), "{text}");
    let missing = failure(&[
        "workloads",
        "--ztunnel",
        &server("404 Not Found", "no such thing\n"),
    ]);
    assert!(missing.contains("no such thing"), "{missing}");
    let secure = failure(&["workloads", "--ztunnel", "https://127.0.0.1:1"]);
    assert!(secure.contains("plain http"), "{secure}");
    let nowhere = failure(&["--netns", "no-such-namespace", "workloads"]);
    assert!(
        nowhere.contains("/run/netns/no-such-namespace"),
        "{nowhere}"
    );
    for text in [refused, text, missing, secure, nowhere] {
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    }
}

#[test]
fn a_pod_is_explained_although_its_agent_cannot_be_asked() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let agent = format!("http://{closed}");
    let url = server("200 OK", DUMP);
    let output = ambitctl(&["explain", "shop/web", "--ztunnel", &url, "--agent", &agent]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("reached over   HBONE"), "{text}");
    assert!(text.contains("the agent could not be asked"), "{text}");
}
