//! What an expression says, and what is none.

use std::time::Duration;

use proptest::prelude::proptest;

use super::{Filter, LONGEST};
use crate::access::{Direction, Endpoint, Record};

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn record<'a>(error: Option<&'a &'a str>, identity: &'a &'a str) -> Record<'a> {
    Record {
        source_address: Some("10.0.0.1:4000".parse().unwrap()),
        source: Endpoint {
            workload: "web-1",
            namespace: "shop",
            identity: Some(identity),
            cluster: "east",
        },
        destination_address: Some("10.0.0.2:15008".parse().unwrap()),
        service: "cart.shop.svc.cluster.local",
        direction: Direction::Inbound,
        bytes_sent: 10,
        bytes_received: 2000,
        duration: Duration::from_millis(1500),
        error: error.map(|error| error as &dyn crate::access::Shown),
        ..Record::default()
    }
}

#[test]
fn tests_every_field_and_operator() {
    let denied = "explicitly denied by: shop/x";
    for (expression, succeeded, failed) in [
        (r#"src.addr == "10.0.0.1:4000""#, true, true),
        (r#"src.workload startsWith "web""#, true, true),
        (r#"src.workload endsWith "-2""#, false, false),
        (r#"src.namespace != "shop""#, false, false),
        (r#"src.identity contains "/sa/web""#, true, true),
        (r#"src.cluster == "east""#, true, true),
        (r#"dst.addr endsWith ":15008""#, true, true),
        (r#"dst.hbone_addr == """#, true, true),
        (
            r#"dst.service == "cart.shop.svc.cluster.local""#,
            true,
            true,
        ),
        (r#"dst.workload == """#, true, true),
        (r#"dst.namespace == "shop""#, false, false),
        (r#"dst.identity != """#, false, false),
        (r#"dst.cluster == """#, true, true),
        (r#"direction == "inbound""#, true, true),
        (r#"error != """#, false, true),
        (r#"error contains "denied""#, false, true),
        ("bytes_sent == 10", true, true),
        ("bytes_sent != 10", false, false),
        ("bytes_recv > 1999", true, true),
        ("bytes_recv >= 2001", false, false),
        ("bytes_recv < 2000", false, false),
        ("bytes_recv <= 2000", true, true),
        ("duration >= 1500ms", true, true),
        ("duration > 1s", true, true),
        ("duration < 1m", true, true),
        ("duration > 1h", false, false),
    ] {
        let filter = Filter::parse(expression).unwrap();
        let identity = IDENTITY;
        assert_eq!(
            filter.admits(&record(None, &identity)),
            succeeded,
            "{expression}"
        );
        let failure = record(Some(&denied), &identity);
        assert_eq!(filter.admits(&failure), failed, "{expression}");
    }
}

#[test]
fn and_binds_before_or_and_parentheses_before_both() {
    let (yes, no) = (r#"direction == "inbound""#, r#"direction == "outbound""#);
    let identity = IDENTITY;
    for (expression, holds) in [
        (format!("{yes} || {no} && {no}"), true),
        (format!("({yes} || {no}) && {no}"), false),
        (format!("!{no} && {yes}"), true),
        (format!("!({yes} || {no})"), false),
        (format!("!!{yes}"), true),
        (format!("{no}||{no}||{yes}"), true),
        (format!(" ( {yes} ) \n&& {yes} "), true),
    ] {
        let filter = Filter::parse(&expression).unwrap();
        assert_eq!(
            filter.admits(&record(None, &identity)),
            holds,
            "{expression}"
        );
    }
}

#[test]
fn texts_may_hold_quotes_and_other_alphabets() {
    let filter = Filter::parse(r#"error == "say \"é\\\"""#).unwrap();
    let (error, identity) = ("say \"é\\\"", IDENTITY);
    assert!(filter.admits(&record(Some(&error), &identity)));
}

#[test]
fn says_where_and_what_is_wrong() {
    for (expression, at, word) in [
        ("", 1, "expected a field"),
        ("nonsense == 1", 1, "`nonsense`"),
        ("bytes_sent = 1", 12, "field of numbers"),
        ("bytes_sent == \"1\"", 15, "number"),
        ("bytes_sent == 99999999999999999999", 15, "below 2^64"),
        ("duration > 10", 14, "unit"),
        ("duration > 10 s", 14, "unit"),
        ("duration > 10sx", 14, "unit"),
        ("error > \"x\"", 7, "`startsWith`"),
        ("error == x", 10, "double quotes"),
        ("error == \"x", 11, "closing quote"),
        (r#"error == "\n""#, 11, "`\\`"),
        (r#"error == "é" error"#, 14, "the end"),
        (r#"(error == "x""#, 14, "`)`"),
        (r#"error == "x" &&"#, 16, "expected a field"),
        (r#"error == "x" & error == "y""#, 14, "the end"),
    ] {
        let error = Filter::parse(expression).unwrap_err();
        assert_eq!(error.at, at, "{expression}: {error}");
        assert!(error.problem.contains(word), "{expression}: {error}");
    }
}

#[test]
fn length_depth_and_number_of_tests_are_bounded() {
    let test = "bytes_sent>1";
    for (expression, word) in [
        (format!("{}{test}", " ".repeat(LONGEST)), "longer"),
        (format!("{}{test}", "!".repeat(17)), "deep"),
        (format!("{}{test}", "(".repeat(1000)), "deep"),
        (vec![test; 65].join("||"), "tests"),
    ] {
        let error = Filter::parse(&expression).unwrap_err();
        assert!(error.problem.contains(word), "{error}");
    }
    assert!(Filter::parse(&vec![test; 64].join("||")).is_ok());
    assert!(Filter::parse(&format!("{}{test}", "!".repeat(16))).is_ok());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,64}") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn nothing_near_the_grammar_makes_it_panic(
        parts in proptest::collection::vec(
            proptest::sample::select(vec![
                "error", "duration", "bytes_sent", "==", "<", "!", "&&", "||", "(", ")", "\"x\"", "\"", "\\", "5", "5s", " ", "é",
            ]),
            0..12,
        )
    ) {
        let text = parts.concat();
        if let Ok(filter) = Filter::parse(&text) {
            let identity = IDENTITY;
            let _ = filter.admits(&record(None, &identity));
        }
    }
}
