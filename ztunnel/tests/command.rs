//! The program as a command: what it says, and what it refuses to start with.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::Duration;

use tokio::time::timeout;

fn ztunnel(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn says_how_to_use_it_and_which_version_it_is() {
    for asked in ["help", "--help"] {
        let answer = ztunnel(&[asked], &[]);
        assert!(answer.status.success());
        assert!(String::from_utf8_lossy(&answer.stdout).contains("XDS_ADDRESS"));
    }
    for asked in ["version", "--version"] {
        let answer = ztunnel(&[asked], &[]);
        assert!(answer.status.success());
        assert!(answer.stdout.starts_with(b"ztunnel "));
    }
    assert!(!ztunnel(&["sing"], &[]).status.success());
}

#[test]
fn refuses_wrong_settings_by_name_all_at_once() {
    let answer = ztunnel(
        &["proxy", "ztunnel"],
        &[
            ("SECRET_TTL", "soon"),
            ("TLS12_ENABLED", "true"),
            ("XDS_ADDRESS", "http://a:1"),
        ],
    );
    assert!(!answer.status.success());
    let said = String::from_utf8_lossy(&answer.stderr);
    for name in ["SECRET_TTL", "TLS12_ENABLED", "XDS_ADDRESS"] {
        assert!(said.contains(name), "{said}");
    }
}

#[tokio::test]
async fn a_port_of_its_own_that_is_taken_is_named_and_it_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let ports = format!("{{\"proxyAdminPort\":{}}}", address.port());
    let ending = tokio::process::Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .args(["proxy", "ztunnel"])
        .env_clear()
        .envs([("LOCAL_XDS", "{}"), ("PROXY_CONFIG", &ports)])
        .kill_on_drop(true)
        .output();
    let answer = timeout(Duration::from_secs(20), ending).await.unwrap();
    let answer = answer.unwrap();
    assert_eq!(answer.status.code(), Some(1));
    let said = String::from_utf8_lossy(&answer.stderr);
    assert!(said.contains(&address.to_string()), "{said}");
    assert!(said.contains("admin"), "{said}");
}
