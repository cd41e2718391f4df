//! The rules in real network namespaces, tried with real connections. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test program: it stops at what it does not expect, and waits as a person would"
)]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[path = "pair/pair.rs"]
mod pair;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use ambit_agent::nftables::{Owner, State};
use ambit_agent::redirect::{self, Mode};
use ambit_agent::rules::{
    HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, Options, PROBE_V4, PROXY_MARK, TAG_MARK,
};
use ambit_agent::sockets;
use pair::{Pair, Reply};

const APP: u16 = 8080;

fn owner() -> Owner {
    Owner::new("node-1", "/manifests".as_ref(), "uid-1")
}

fn install(pair: &Pair, mode: Mode, options: &Options) {
    redirect::install(&pair.pod, mode, options, &owner()).unwrap();
}

fn state(pair: &Pair, mode: Mode, options: &Options) -> State {
    redirect::inspect(&pair.pod, mode, options, &owner()).unwrap()
}

/// A pod whose application and proxy ports each say which they are.
fn enrolled(name: &str, options: &Options) -> Pair {
    let pair = Pair::new(name);
    pair.serve_in_pod(APP, "application");
    for (port, name) in [
        (OUTBOUND_PORT, "outbound"),
        (INBOUND_PORT, "inbound"),
        (HBONE_PORT, "hbone"),
    ] {
        pair.serve_in_pod(port, name);
    }
    pair.serve_in_client(APP, "peer");
    install(&pair, Mode::Capture, options);
    pair
}

#[test]
fn inbound_outbound_and_hbone_reach_the_ports_of_the_proxy() {
    let pair = enrolled("basic", &Options::default());
    for (pod, client) in pair.addresses() {
        assert_eq!(
            pair.ask_from_client((pod, APP)),
            Reply::From("inbound"),
            "{pod}"
        );
        assert_eq!(
            pair.ask_from_client((pod, HBONE_PORT)),
            Reply::From("hbone"),
            "{pod}"
        );
        assert_eq!(
            pair.ask_from_pod((client, APP)),
            Reply::From("outbound"),
            "{client}"
        );
    }
}

#[test]
fn connections_to_itself_and_over_loopback_are_left_alone() {
    let pair = enrolled("self", &Options::default());
    let own: Vec<IpAddr> = pair.addresses().into_iter().map(|(pod, _)| pod).collect();
    let local = ["127.0.0.1", "127.0.0.2", "::1"].map(|text| text.parse().unwrap());
    for address in own.into_iter().chain(local) {
        assert_eq!(
            pair.ask_from_pod((address, APP)),
            Reply::From("application"),
            "{address}"
        );
    }
}

#[test]
fn what_carries_the_mark_of_the_proxy_goes_where_it_wants() {
    let pair = enrolled("mark", &Options::default());
    for (_, client) in pair.addresses() {
        assert_eq!(
            pair.marked((client, APP), PROXY_MARK),
            Reply::From("peer"),
            "{client}"
        );
        assert_eq!(
            pair.marked((client, APP), 0x1000 | PROXY_MARK),
            Reply::From("peer")
        );
        assert_eq!(
            pair.marked((client, APP), 0x2),
            Reply::From("outbound"),
            "{client}"
        );
        assert_ne!(
            pair.marked((client, APP), TAG_MARK),
            Reply::From("peer"),
            "stays on lo"
        );
    }
}

#[test]
fn the_proxy_reaches_the_application_with_the_address_of_the_client() {
    let pair = enrolled("source", &Options::default());
    for (pod, client) in pair.addresses() {
        let seen = pair.spoofed(client, SocketAddr::new(pod, APP), PROXY_MARK);
        assert_eq!(seen, Reply::From("application"), "{client} -> {pod}");
    }
}

#[test]
fn the_applications_end_has_the_tag_so_that_its_answers_are_routed_once() {
    let pair = enrolled("tag", &Options::default());
    let mut open = Vec::new();
    for (pod, client) in pair.addresses() {
        let stream = pair.open_spoofed(client, SocketAddr::new(pod, APP), PROXY_MARK);
        open.extend(stream);
    }
    for stream in &mut open {
        assert_eq!(echo(stream), "application");
    }
    let ends = pair.in_pod(&format!("ss -Htne state all sport = :{APP}"));
    let tagged = ends.lines().filter(|end| end.contains("fwmark:0x111"));
    assert_eq!(tagged.count(), 2, "one of each family in\n{ends}");
}

#[test]
fn where_the_kernel_does_not_tag_the_applications_end_answers_return_all_the_same() {
    let pair = enrolled("untag", &Options::default());
    pair.in_pod("sysctl -qw net.ipv4.tcp_fwmark_accept=0");
    for (pod, client) in pair.addresses() {
        let seen = pair.spoofed(client, SocketAddr::new(pod, APP), PROXY_MARK);
        assert_eq!(seen, Reply::From("application"), "{client} -> {pod}");
    }
}

#[test]
fn connections_that_were_redirected_are_not_tagged() {
    let pair = enrolled("plain", &Options::default());
    // What the proxy accepts carries its mark too.
    pair.in_pod("nft add table inet test");
    pair.in_pod("nft add chain inet test out '{ type filter hook output priority -160; }'");
    let of_proxy = format!("tcp sport {OUTBOUND_PORT} oif lo meta mark set {PROXY_MARK}");
    pair.in_pod(&format!("nft add rule inet test out {of_proxy}"));
    for (_, client) in pair.addresses() {
        let mut outbound = pair.open_from_pod(SocketAddr::new(client, APP));
        for _ in 0..3 {
            assert_eq!(echo(&mut outbound), "outbound");
        }
    }
    let rules = pair.in_pod("nft list chain inet ambit mark-out");
    let copies = rules.lines().find(|rule| rule.contains("set ct mark"));
    assert!(copies.unwrap().contains("packets 0 "), "{rules}");
}

#[test]
fn a_closed_proxy_refuses_and_nothing_slips_past_it() {
    let pair = Pair::new("closed");
    pair.serve_in_pod(APP, "application");
    pair.serve_in_client(APP, "peer");
    install(&pair, Mode::Capture, &Options::default());
    for (pod, client) in pair.addresses() {
        assert_eq!(pair.ask_from_client((pod, APP)), Reply::Nothing, "{pod}");
        assert_eq!(pair.ask_from_pod((client, APP)), Reply::Nothing, "{client}");
    }
}

#[test]
fn without_ipv6_redirection_ipv6_is_cut_off_and_not_let_past() {
    let pair = enrolled(
        "six",
        &Options {
            ipv6: false,
            ..Options::default()
        },
    );
    for (pod, client) in pair.addresses() {
        let (inbound, outbound) = if pod.is_ipv4() {
            (Reply::From("inbound"), Reply::From("outbound"))
        } else {
            (Reply::Nothing, Reply::Nothing)
        };
        assert_eq!(pair.ask_from_client((pod, APP)), inbound, "{pod}");
        assert_eq!(pair.ask_from_pod((client, APP)), outbound, "{client}");
    }
}

#[test]
fn loopback_without_ipv6_means_ipv6_is_cut_off() {
    let pair = Pair::new("lo6");
    pair.serve_in_pod(APP, "application");
    pair.in_pod("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    install(&pair, Mode::Capture, &Options::default());
    assert_eq!(
        state(&pair, Mode::Capture, &Options::default()),
        State::Same
    );
    let (pod, client) = pair.addresses()[1];
    assert!(pod.is_ipv6());
    assert_eq!(pair.ask_from_client((pod, APP)), Reply::Nothing);
    assert_eq!(pair.ask_from_pod((client, APP)), Reply::Nothing);
}

#[test]
fn a_pod_that_bypasses_inbound_capture_takes_inbound_itself() {
    let pair = enrolled(
        "bypass",
        &Options {
            inbound: false,
            ..Options::default()
        },
    );
    for (pod, client) in pair.addresses() {
        assert_eq!(pair.ask_from_client((pod, APP)), Reply::From("application"));
        assert_eq!(pair.ask_from_pod((client, APP)), Reply::From("outbound"));
        let seen = pair.spoofed(client, SocketAddr::new(pod, APP), PROXY_MARK);
        assert_eq!(seen, Reply::From("application"), "the tagging pair works");
    }
}

#[test]
fn probes_of_the_node_pass_only_when_the_exemption_is_on() {
    for probes in [false, true] {
        let pair = enrolled(
            "probe",
            &Options {
                probes,
                ..Options::default()
            },
        );
        pair.in_client(&format!("ip address add {PROBE_V4}/32 dev eth0"));
        pair.in_pod(&format!("ip route add {PROBE_V4}/32 dev eth0"));
        let (pod, _) = pair.addresses()[0];
        let expected = if probes { "application" } else { "inbound" };
        let reply = pair.ask_from_client_as(IpAddr::V4(PROBE_V4), SocketAddr::new(pod, APP));
        assert_eq!(reply, Reply::From(expected));
        assert_eq!(
            pair.ask_from_client((pod, APP)),
            Reply::From("inbound"),
            "others do not pass"
        );
    }
}

#[test]
fn interfaces_of_virtual_machines_are_outbound() {
    let options = Options {
        virtual_interfaces: vec!["eth0".into()],
        ..Options::default()
    };
    let pair = enrolled("vm", &options);
    let (pod, _) = pair.addresses()[0];
    assert_eq!(pair.ask_from_client((pod, APP)), Reply::From("outbound"));
}

#[test]
fn connections_that_were_open_before_live_through_enrolment_and_removal() {
    let pair = Pair::new("open");
    pair.serve_in_pod(APP, "application");
    pair.serve_in_client(APP, "peer");
    let (pod, client) = pair.addresses()[0];
    let mut inbound = pair.open_from_client(SocketAddr::new(pod, APP));
    let mut outbound = pair.open_from_pod(SocketAddr::new(client, APP));
    let mut exchange = |when: &str| {
        assert_eq!(echo(&mut inbound), "application", "inbound {when}");
        assert_eq!(echo(&mut outbound), "peer", "outbound {when}");
    };
    exchange("before");
    install(&pair, Mode::Capture, &Options::default());
    exchange("while captured");
    install(&pair, Mode::Drain, &Options::default());
    exchange("while draining");
    redirect::remove(&pair.pod).unwrap();
    exchange("after");
}

#[test]
fn redirected_connections_live_on_while_draining_and_new_ones_are_not_redirected() {
    let pair = enrolled("drain", &Options::default());
    let (pod, client) = pair.addresses()[0];
    let mut inbound = pair.open_from_client(SocketAddr::new(pod, APP));
    let mut outbound = pair.open_from_pod(SocketAddr::new(client, APP));
    assert_eq!(echo(&mut inbound), "inbound");
    assert_eq!(echo(&mut outbound), "outbound");
    install(&pair, Mode::Drain, &Options::default());
    assert_eq!(state(&pair, Mode::Drain, &Options::default()), State::Same);
    assert_eq!(echo(&mut inbound), "inbound");
    assert_eq!(echo(&mut outbound), "outbound");
    assert_eq!(pair.ask_from_client((pod, APP)), Reply::From("application"));
    assert_eq!(pair.ask_from_pod((client, APP)), Reply::From("peer"));
}

#[test]
fn sockets_of_redirected_connections_are_seen_until_they_end() {
    let pair = enrolled("seen", &Options::default());
    let seen = |expected: usize, what: &str| {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let found = sockets::redirected(&pair.pod).unwrap();
            if found == expected {
                return;
            }
            assert!(Instant::now() < end, "{what}: {found}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    seen(0, "none at first");
    for (pod, client) in pair.addresses() {
        let mut tunnel = pair.open_from_client(SocketAddr::new(pod, HBONE_PORT));
        assert_eq!(echo(&mut tunnel), "hbone");
        seen(0, "a tunnel needs no rules");
        let mut inward = pair.open_from_client(SocketAddr::new(pod, APP));
        assert_eq!(echo(&mut inward), "inbound");
        seen(1, "one came in");
        let mut outward = pair.open_from_pod(SocketAddr::new(client, APP));
        assert_eq!(echo(&mut outward), "outbound");
        seen(2, "one went out");
        drop((inward, outward));
        seen(0, "they ended");
        let mut own = pair.open_marked(SocketAddr::new(client, APP), PROXY_MARK);
        assert_eq!(echo(&mut own), "peer");
        seen(1, "the proxy's own to an application");
        drop(own);
        seen(0, "it ended too");
    }
}

#[test]
fn a_stray_segment_before_the_first_one_opens_no_way_past_the_proxy() {
    // A connection from before enrolment that the server closed is in TIME_WAIT; a segment of it makes the kernel
    // track it again, untranslated; a new connection with the same ports must still not get past.
    let pair = Pair::new("stray");
    pair.serve_in_pod(APP, "application");
    let (pod, _) = pair.addresses()[0];
    let to = SocketAddr::new(pod, APP);
    let mut first = pair.open_from_client_port(to, 40_001);
    assert_eq!(echo(&mut first), "application");
    install(&pair, Mode::Capture, &Options::default());
    // The last segments of the old connection are such strays.
    pair.close_at_server(first);
    let second = pair.try_from_client_port(to, 40_001);
    assert_ne!(second, Reply::From("application"));
}

#[test]
fn nothing_is_left_after_removal_and_removal_twice_is_fine() {
    let pair = enrolled(
        "gone",
        &Options {
            dns: true,
            probes: true,
            ..Options::default()
        },
    );
    pair.in_pod("nft add table inet somebody-else");
    redirect::remove(&pair.pod).unwrap();
    redirect::remove(&pair.pod).unwrap();
    let left = pair.in_pod("nft list ruleset");
    assert!(
        left.contains("somebody-else") && !left.contains("ambit"),
        "{left}"
    );
    for family in ["-4", "-6"] {
        let rules = pair.in_pod(&format!("ip {family} rule"));
        assert!(!rules.contains("32764"), "{rules}");
        let routes = pair.in_pod(&format!("ip {family} route show table all"));
        assert!(!routes.contains("table 100"), "{routes}");
    }
    assert_eq!(
        state(&pair, Mode::Capture, &Options::default()),
        State::Absent
    );
    assert_eq!(redirect::owner(&pair.pod).unwrap(), None);
    let taken = pair.in_pod("sysctl -n net.ipv4.tcp_fwmark_accept");
    assert_eq!(taken.trim(), "0");
}

#[test]
fn installing_again_changes_nothing_and_the_owner_is_kept() {
    let options = Options {
        dns: true,
        probes: true,
        virtual_interfaces: vec!["vm0".into()],
        ..Options::default()
    };
    let pair = Pair::new("again");
    install(&pair, Mode::Capture, &options);
    let strip = |text: String| text.lines().map(without_counters).collect::<Vec<_>>();
    let before = strip(pair.in_pod("nft list ruleset"));
    assert_eq!(state(&pair, Mode::Capture, &options), State::Same);
    install(&pair, Mode::Capture, &options);
    assert_eq!(strip(pair.in_pod("nft list ruleset")), before);
    assert_eq!(redirect::owner(&pair.pod).unwrap(), Some(Some(owner())));
    assert_eq!(pair.in_pod("ip rule").matches("32764").count(), 1);
}

#[test]
fn every_way_of_tampering_is_seen_and_mended() {
    let options = Options::default();
    let pair = Pair::new("tamper");
    let ways = [
        "nft delete table inet ambit",
        "nft flush table inet ambit",
        "nft flush ruleset",
        "nft flush chain inet ambit redirect-in",
        "nft delete chain inet ambit guard-in",
        "nft add rule inet ambit redirect-out tcp dport 80 accept",
        "nft insert rule inet ambit redirect-in accept",
        "nft add chain inet ambit extra",
        "nft add table inet ambit '{ flags dormant; }'",
        "ip rule del pref 32764",
        "ip route flush table 100",
        "ip -6 rule del pref 32764",
    ];
    for way in ways {
        install(&pair, Mode::Capture, &options);
        assert_eq!(
            state(&pair, Mode::Capture, &options),
            State::Same,
            "before {way}"
        );
        pair.in_pod(way);
        assert_ne!(
            state(&pair, Mode::Capture, &options),
            State::Same,
            "after {way}"
        );
    }
    install(&pair, Mode::Capture, &options);
    assert_eq!(state(&pair, Mode::Capture, &options), State::Same);
}

#[test]
fn the_rules_read_as_intended_in_the_words_of_nft() {
    let pair = Pair::new("words");
    install(&pair, Mode::Capture, &Options::default());
    let text: Vec<_> = pair
        .in_pod("nft list ruleset")
        .lines()
        .map(without_counters)
        .collect();
    let text = text.join("\n");
    for line in [
        "type nat hook prerouting priority dstnat; policy accept;",
        "type route hook output priority mangle; policy accept;",
        "iif != \"lo\" tcp flags syn / syn,rst,ack tcp dport != 15008 redirect to :15006",
        "oif != \"lo\" tcp flags syn / syn,rst,ack meta mark & 0x00000fff != 0x00000539 redirect to :15001",
        "meta mark & 0x00000fff != 0x00000539 ct mark & 0x00000fff == 0x00000111 meta mark set ct mark",
    ] {
        assert!(text.contains(line), "{line}\nnot in\n{text}");
    }
}

fn without_counters(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "counter" {
            // counter packets N bytes N
            words.by_ref().take(4).for_each(drop);
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

fn echo(stream: &mut TcpStream) -> String {
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn the_tools_that_these_tests_need_are_there() {
    for tool in ["ip", "nft"] {
        assert!(
            Command::new(tool).arg("-V").output().is_ok(),
            "{tool} is not installed"
        );
    }
}
