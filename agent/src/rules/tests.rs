use super::{Action, Chain, Match, Options, Rule, capture, drain};

fn of(options: &Options, chain: Chain) -> Vec<Rule> {
    capture(options)
        .rules
        .into_iter()
        .filter(|rule| rule.chain == chain)
        .collect()
}

#[test]
fn every_rule_stands_in_a_chain_of_its_set() {
    for dns in [false, true] {
        for inbound in [false, true] {
            let options = Options {
                inbound,
                dns,
                probes: true,
                virtual_interfaces: vec!["vm0".into()],
                ..Options::default()
            };
            let set = capture(&options);
            for rule in &set.rules {
                assert!(set.chains.contains(&rule.chain), "{rule:?}");
            }
            let mut names: Vec<_> = set.chains.iter().map(|chain| chain.name()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), set.chains.len(), "a chain twice");
        }
    }
}

#[test]
fn whatever_is_redirected_is_also_guarded() {
    let set = capture(&Options::default());
    for guard in [Chain::GuardIn, Chain::GuardOut] {
        let last = set.rules.iter().rfind(|rule| rule.chain == guard).unwrap();
        assert_eq!(last.then, Action::Drop);
        assert!(last.when.contains(&Match::NotRedirected));
        assert!(
            !last.when.contains(&Match::V4),
            "the guard covers both families"
        );
    }
}

#[test]
fn without_ipv6_only_ipv4_is_redirected_and_the_guard_still_covers_both() {
    let options = Options {
        ipv6: false,
        ..Options::default()
    };
    for rule in of(&options, Chain::In)
        .iter()
        .chain(&of(&options, Chain::Out))
    {
        assert!(rule.when.contains(&Match::V4), "{rule:?}");
    }
    for rule in of(&options, Chain::GuardIn)
        .iter()
        .chain(&of(&options, Chain::GuardOut))
    {
        assert!(!rule.when.contains(&Match::V4), "{rule:?}");
    }
}

#[test]
fn a_pod_that_bypasses_inbound_capture_keeps_the_tagging_pair() {
    let options = Options {
        inbound: false,
        ..Options::default()
    };
    assert_eq!(of(&options, Chain::In), Vec::new());
    assert_eq!(of(&options, Chain::GuardIn), Vec::new());
    assert_eq!(of(&options, Chain::MarkOut).len(), 3);
    assert_eq!(of(&options, Chain::Out).len(), 1);
}

#[test]
fn dns_is_left_alone_unless_asked_for() {
    let quiet = capture(&Options::default());
    assert!(!quiet.chains.contains(&Chain::RawIn));
    assert!(
        !quiet
            .rules
            .iter()
            .any(|rule| rule.when.contains(&Match::ToPort(53)))
    );
    let options = Options {
        dns: true,
        ..Options::default()
    };
    let out = of(&options, Chain::Out);
    assert_eq!(out.len(), 3);
    assert_eq!(
        out[2].then,
        Action::Redirect(super::OUTBOUND_PORT),
        "DNS comes first"
    );
}

#[test]
fn probes_pass_only_when_the_exemption_is_on() {
    let is_probe = |rule: &Rule| rule.when.iter().any(|m| matches!(m, Match::From(_)));
    assert!(!capture(&Options::default()).rules.iter().any(is_probe));
    let options = Options {
        probes: true,
        ..Options::default()
    };
    assert_eq!(
        capture(&options)
            .rules
            .iter()
            .filter(|rule| is_probe(rule))
            .count(),
        4
    );
    let options = Options {
        inbound: false,
        probes: true,
        ..Options::default()
    };
    assert!(
        !capture(&options).rules.iter().any(is_probe),
        "nothing to be exempted from"
    );
}

#[test]
fn what_the_proxy_sends_to_the_application_has_a_zone_of_its_own_to_the_end() {
    for set in [capture(&Options::default()), drain()] {
        let zoned = |rule: &&Rule| rule.then == Action::ZoneOneWay(super::PROXY_ZONE);
        let rule = set.rules.iter().find(zoned).unwrap();
        assert_eq!(rule.chain, Chain::RawOut);
        assert!(rule.when.contains(&Match::ProxyMark(true)));
    }
}

#[test]
fn draining_redirects_nothing_and_drops_nothing() {
    let set = drain();
    assert!(set.chains.contains(&Chain::In) && set.chains.contains(&Chain::Out));
    for rule in &set.rules {
        assert!(
            !matches!(rule.then, Action::Redirect(_) | Action::Drop),
            "{rule:?}"
        );
    }
}
