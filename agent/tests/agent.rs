//! The agent's program with real namespaces and a scripted node proxy. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test program: it stops at what it does not expect, and waits as a person would"
)]

#[path = "agent/node.rs"]
mod node;
#[expect(dead_code, reason = "each test program uses a part of it")]
#[path = "pair/pair.rs"]
mod pair;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use node::{Node, eventually};
use pair::{Pair, Reply};

const APP: u16 = 8080;

fn running(name: &str) -> (Arc<Pair>, Node) {
    let pair = Arc::new(Pair::new(name));
    pair.serve_in_pod(APP, "application");
    pair.serve_in_client(APP, "peer");
    let node = Node::new(name, &pair);
    (pair, node)
}

fn inbound(pair: &Pair) -> Reply {
    pair.ask_from_client((pair.addresses()[0].0, APP))
}

fn outbound(pair: &Pair) -> Reply {
    pair.ask_from_pod((pair.addresses()[0].1, APP))
}

#[test]
fn a_running_pod_goes_in_and_out_without_a_failed_connection_or_one_past_the_proxy() {
    let (pair, mut node) = running("load");
    node.start_agent();
    node.start_proxy();
    let announced = Arc::new(AtomicBool::new(false));
    // Connections made while the pod was announced from their beginning to their end.
    let checked = Arc::new(AtomicU32::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = [inbound as fn(&Pair) -> Reply, outbound]
        .into_iter()
        .map(|connect| {
            let (pair, announced, stop) =
                (Arc::clone(&pair), Arc::clone(&announced), Arc::clone(&stop));
            let checked = Arc::clone(&checked);
            std::thread::spawn(move || {
                let mut made = 0;
                while !stop.load(Ordering::SeqCst) {
                    let before = announced.load(Ordering::SeqCst);
                    let reply = connect(&pair);
                    let after = announced.load(Ordering::SeqCst);
                    assert_ne!(reply, Reply::Nothing, "connection {made} failed");
                    if before && after {
                        let past = [Reply::From("application"), Reply::From("peer")];
                        assert!(!past.contains(&reply), "past the proxy while announced");
                        checked.fetch_add(1, Ordering::SeqCst);
                    }
                    made += 1;
                }
                made
            })
        })
        .collect();
    for _ in 0..2 {
        node.label(&pair, Some("ambient"));
        eventually("announced", || node.status().contains("enabled"));
        announced.store(true, Ordering::SeqCst);
        assert_eq!(inbound(&pair), Reply::From("inbound"));
        assert_eq!(outbound(&pair), Reply::From("outbound"));
        let wanted = checked.load(Ordering::SeqCst) + 40;
        eventually("load while announced", || {
            checked.load(Ordering::SeqCst) >= wanted
        });
        announced.store(false, Ordering::SeqCst);
        node.label(&pair, None);
        eventually("withdrawn", || node.status().is_empty());
        eventually("removed", || pair.in_pod("nft list ruleset").is_empty());
        assert_eq!(inbound(&pair), Reply::From("application"));
        assert_eq!(outbound(&pair), Reply::From("peer"));
    }
    stop.store(true, Ordering::SeqCst);
    for thread in load {
        assert!(thread.join().unwrap() > 20, "there was load");
    }
}

#[test]
fn a_pod_is_out_as_soon_as_its_last_redirected_connection_has_ended() {
    let (pair, mut node) = running("last");
    // Longer than anything here is waited for.
    node.drain = "10m";
    node.start_agent();
    node.start_proxy();
    let (pod, client) = pair.addresses()[0];
    let into = |node: &Node| {
        node.label(&pair, Some("ambient"));
        eventually("announced", || node.status().contains("enabled"));
    };
    let redirected = || !pair.in_pod("nft list ruleset").is_empty();
    into(&node);
    // With nothing open, nothing is waited for.
    node.label(&pair, None);
    eventually("removed", || !redirected());
    into(&node);
    let mut inward = pair.open_from_client((pod, APP).into());
    let mut outward = pair.open_from_pod((client, APP).into());
    assert_eq!(echo(&mut inward), "inbound");
    assert_eq!(echo(&mut outward), "outbound");
    node.label(&pair, None);
    eventually("new ones are not redirected", || {
        inbound(&pair) == Reply::From("application") && outbound(&pair) == Reply::From("peer")
    });
    for mut open in [inward, outward] {
        // Several glances of the agent's.
        let end = Instant::now() + Duration::from_millis(600);
        while Instant::now() < end {
            let name = echo(&mut open);
            assert!(name == "inbound" || name == "outbound", "{name}");
            assert!(redirected(), "the rules stay while a connection needs them");
        }
    }
    eventually("removed", || !redirected());
}

fn echo(stream: &mut TcpStream) -> String {
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn a_pod_that_is_enrolled_from_the_start_is_cut_off_until_the_proxy_serves_it() {
    let (pair, mut node) = running("new");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    eventually("cut off", || inbound(&pair) == Reply::Nothing);
    assert_eq!(outbound(&pair), Reply::Nothing);
    eventually("pending", || node.status().contains("pending"));
    assert!(
        node.debug().contains("no node proxy is connected"),
        "{}",
        node.debug()
    );
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    assert_eq!(inbound(&pair), Reply::From("inbound"));
}

#[test]
fn a_killed_agent_leaves_the_pod_in_the_mesh_and_the_next_one_changes_nothing() {
    let (pair, mut node) = running("kill");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    let rules = || pair.in_pod("nft -a list ruleset");
    let before = rules();
    node.kill_agent();
    assert_eq!(inbound(&pair), Reply::From("inbound"));
    node.start_agent();
    eventually("known again", || {
        node.debug().contains(r#""state": "enrolled""#)
    });
    assert_eq!(
        handles(&rules()),
        handles(&before),
        "the rules were written again"
    );
    assert!(node.status().contains("enabled"));
    assert_eq!(inbound(&pair), Reply::From("inbound"));
    // And what it found it can also remove.
    node.label(&pair, None);
    eventually("removed", || pair.in_pod("nft list ruleset").is_empty());
    assert_eq!(inbound(&pair), Reply::From("application"));
}

#[test]
fn a_pod_that_left_while_the_agent_was_away_is_taken_out() {
    let (pair, mut node) = running("away");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    node.kill_agent();
    node.label(&pair, None);
    node.start_agent();
    eventually("removed", || pair.in_pod("nft list ruleset").is_empty());
    eventually("withdrawn", || node.status().is_empty());
}

#[test]
fn rules_of_a_pod_that_is_gone_for_good_are_swept_at_the_start() {
    let (pair, mut node) = running("sweep");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    node.kill_agent();
    node.remove_pod();
    node.start_agent();
    eventually("removed", || pair.in_pod("nft list ruleset").is_empty());
}

#[test]
fn the_pods_of_another_mesh_on_this_machine_are_left_alone() {
    let (pair, mut node) = running("twin");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    node.kill_agent();
    let mut twin = Node::new("twin", &pair);
    assert_eq!(twin.name(), node.name());
    twin.remove_pod();
    twin.start_agent();
    assert_eq!(inbound(&pair), Reply::From("inbound"));
}

#[test]
fn rules_that_somebody_deletes_come_back() {
    let (pair, mut node) = running("mend");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    for way in [
        "nft flush ruleset",
        "ip rule del pref 32764",
        "nft delete table inet ambit",
    ] {
        pair.in_pod(way);
        eventually(way, || {
            pair.in_pod("nft list ruleset").contains("redirect-in")
                && pair.in_pod("ip rule").contains("32764")
        });
        assert_eq!(inbound(&pair), Reply::From("inbound"), "after {way}");
    }
    eventually("counted", || {
        node.metric("nodeagent_rules_mended_total") >= 3.0
    });
}

#[test]
fn a_namespace_that_is_not_the_pods_own_is_refused_with_the_reason() {
    let (pair, mut node) = running("foreign");
    let elsewhere = Pair::new("foreign-too");
    let client = pair.client_path();
    node.write_pod(&pair, &client, &["10.99.0.1"]);
    node.label_only(Some("ambient"));
    node.start_agent();
    node.start_proxy();
    let refused = |reason: &str| eventually(reason, || node.debug().contains(reason));
    refused("no interface in");
    node.write_pod(&pair, "/proc/self/ns/net", &["127.0.0.1"]);
    refused("the host's own network namespace");
    node.write_pod(&pair, "/etc/hostname", &["10.99.0.1"]);
    refused("is not a network namespace");
    node.write_pod(&pair, &pair.pod_path(), &[]);
    refused("has no address yet");
    assert!(
        !node.status().contains("enabled"),
        "pods that cannot be enrolled are not announced"
    );
    for pair in [&*pair, &elsewhere] {
        assert_eq!(pair.in_pod("nft list ruleset"), "");
        assert_eq!(pair.in_client("nft list ruleset"), "");
    }
    node.write_pod(&pair, &pair.pod_path(), &["10.99.0.1"]);
    eventually("enrolled once it is right", || {
        node.status().contains("enabled")
    });
}

#[test]
fn a_pod_that_names_no_namespace_is_complained_of_once_and_counted_until_it_does() {
    let (pair, mut node) = running("unnamed");
    node.write_pod(&pair, "", &["10.99.0.1"]);
    node.label_only(Some("ambient"));
    node.start_agent();
    node.start_proxy();
    let reason = "no annotation ambit.io/netns";
    eventually("reported", || node.debug().contains(reason));
    eventually("tried several times", || {
        node.metric("nodeagent_reconcile_failures_total") >= 4.0
    });
    let lines = || node.log().matches(reason).count();
    eventually("logged", || lines() > 0);
    assert_eq!(lines(), 1, "{}", node.log());
    assert!((node.metric("nodeagent_pods_without_namespace") - 1.0).abs() < f64::EPSILON);
    node.write_pod(&pair, &pair.pod_path(), &["10.99.0.1"]);
    eventually("enrolled once it is named", || {
        node.status().contains("enabled")
    });
    assert!(node.metric("nodeagent_pods_without_namespace").abs() < f64::EPSILON);
}

#[test]
fn unenrol_removes_what_is_left_without_a_running_agent() {
    let (pair, mut node) = running("unenrol");
    node.label(&pair, Some("ambient"));
    node.start_agent();
    node.start_proxy();
    eventually("announced", || node.status().contains("enabled"));
    node.kill_agent();
    let other = Node::new("unenrol", &pair);
    other.unenrol(other.name());
    assert_ne!(
        pair.in_pod("nft list ruleset"),
        "",
        "a node of the same name in another mesh"
    );
    node.unenrol("another-node");
    assert_ne!(
        pair.in_pod("nft list ruleset"),
        "",
        "another node's pods are not touched"
    );
    node.unenrol(node.name());
    assert_eq!(pair.in_pod("nft list ruleset"), "");
    assert_eq!(node.status(), "");
    assert_eq!(inbound(&pair), Reply::From("application"));
}

/// The handles that the kernel gave to the rules; a rule that is written again gets another.
fn handles(text: &str) -> Vec<&str> {
    let after = text.split("# handle ").skip(1);
    after
        .filter_map(|rest| rest.split_whitespace().next())
        .collect()
}
