use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

crate::series! {
    struct Sample {
        opened: Counter = ("test_opened", "Opened."),
        closed: Counter = ("test_closed", "Closed."),
        took: Histogram[&[1.0, 5.0]] = ("test_took", "Took."),
    }
}

crate::series! {
    struct Alone {
        live: Gauge = ("test_live", "Live."),
        seen: Counter = ("test_seen", "Seen."),
    }
}

fn small(sets: usize) -> Registry {
    Registry::new(Limits {
        sets,
        idle: Duration::from_secs(60),
    })
}

#[test]
fn writes_the_prometheus_text_format() {
    let registry = small(8);
    let family = registry.family::<Sample>();
    let held = family.resolve(|labels| labels.open("who", "a"));
    held.opened.add(2);
    held.took.observe(1.0);
    held.took.observe(9.0);
    let alone = registry.single::<Alone>();
    alone.live.dec();
    let expected = r#"# HELP test_opened_total Opened.
# TYPE test_opened_total counter
test_opened_total{who="a"} 2
# HELP test_took Took.
# TYPE test_took histogram
test_took_bucket{who="a",le="1"} 1
test_took_bucket{who="a",le="5"} 1
test_took_bucket{who="a",le="+Inf"} 2
test_took_sum{who="a"} 10
test_took_count{who="a"} 2
# HELP test_live Live.
# TYPE test_live gauge
test_live -1
# HELP test_seen_total Seen.
# TYPE test_seen_total counter
test_seen_total 0
"#;
    assert_eq!(registry.render(Format::Text), expected);
}

#[test]
fn writes_openmetrics_with_family_names_and_an_end() {
    let registry = small(8);
    registry
        .family::<Sample>()
        .resolve(|labels| labels.open("who", "a"))
        .opened
        .inc();
    registry.information("build", "Build.", |labels| labels.closed("component", "x"));
    let expected = "# HELP test_opened Opened.\n# TYPE test_opened counter\n\
        test_opened_total{who=\"a\"} 1\n# HELP build Build.\n# TYPE build gauge\n\
        build{component=\"x\"} 1\n# EOF\n";
    assert_eq!(registry.render(Format::OpenMetrics), expected);
}

#[test]
fn leaves_out_a_computed_gauge_without_a_value() {
    let registry = small(8);
    let descriptor = Descriptor {
        name: "g",
        help: "G.",
        kind: Kind::Gauge,
    };
    registry.computed(descriptor, || None);
    assert_eq!(registry.render(Format::Text), "");
}

#[test]
fn a_full_family_counts_into_the_overflow_set() {
    let registry = small(2);
    let family = registry.family::<Sample>();
    let resolve = |who: &str| {
        family.resolve(|labels| {
            labels.closed("reporter", "source");
            labels.open("who", who);
        })
    };
    let _held = [resolve("a"), resolve("b")];
    resolve("c").opened.inc();
    resolve("d").opened.inc();
    resolve("a").opened.inc();
    assert_eq!(family.sets(), 3, "two sets and one overflow set");
    let text = registry.render(Format::Text);
    assert!(
        text.contains("test_opened_total{reporter=\"source\",who=\"_overflow\"} 2\n"),
        "{text}"
    );
    assert!(
        text.contains("test_opened_total{reporter=\"source\",who=\"a\"} 1\n"),
        "{text}"
    );
}

#[test]
fn a_set_expires_only_when_nobody_holds_it() {
    let registry = small(8);
    let family = registry.family::<Sample>();
    let held = family.resolve(|labels| labels.open("who", "held"));
    drop(family.resolve(|labels| labels.open("who", "left")));
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(registry.expire(at(0)), 0, "seen idle for the first time");
    assert_eq!(registry.expire(at(59)), 0);
    assert_eq!(registry.expire(at(61)), 1);
    assert_eq!(family.sets(), 1);
    drop(held);
    assert_eq!(registry.expire(at(100)), 0);
    drop(family.resolve(|labels| labels.open("who", "held")));
    assert_eq!(registry.expire(at(161)), 0, "used again meanwhile");
    assert_eq!(registry.expire(at(222)), 1);
}

#[test]
fn a_registry_says_how_many_sets_it_has_and_how_many_expired() {
    let registry = small(8);
    registry.show_itself();
    let family = registry.family::<Sample>();
    let _held = family.resolve(|labels| labels.open("who", "held"));
    drop(family.resolve(|labels| labels.open("who", "left")));
    let shows = |sets, expired| {
        let text = registry.render(Format::Text);
        text.contains(&format!("\nambit_metrics_label_sets {sets}\n"))
            && text.contains("\nambit_metrics_label_sets_limit 8\n")
            && text.contains(&format!(
                "\nambit_metrics_label_sets_expired_total {expired}\n"
            ))
    };
    assert!(shows(2, 0));
    let start = Instant::now();
    registry.expire(start);
    registry.expire(start + Duration::from_secs(61));
    assert!(shows(1, 1));
}

#[tokio::test(start_paused = true)]
async fn idle_sets_go_where_nobody_scrapes_too() {
    let limits = Limits {
        sets: 8,
        idle: LEAST_IDLE,
    };
    assert!(limits.look() < limits.idle);
    assert!(Limits::default().look() < Limits::default().idle);
    let registry = Registry::new(limits);
    let family = registry.family::<Sample>();
    drop(family.resolve(|labels| labels.open("who", "left")));
    let looking = tokio::spawn(registry.keep_expiring());
    // One look finds it idle, and one finds it idle for long.
    tokio::time::sleep(3 * limits.idle).await;
    assert_eq!(family.sets(), 0);
    looking.abort();
}

#[test]
fn a_large_family_is_read_in_pieces() {
    let registry = small(4096);
    let family = registry.family::<Sample>();
    let value = "v".repeat(200);
    for n in 0..1000 {
        family
            .resolve(|labels| labels.open("n", &format!("{n}{value}")))
            .opened
            .add(n + 1);
    }
    let pieces: Vec<_> = registry.exposition(Format::Text).collect();
    assert!(pieces.len() > 4, "{} pieces", pieces.len());
    assert!(pieces.iter().all(|piece| piece.len() < 64 * 1024));
    let text = registry.render(Format::Text);
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("test_opened_total{"))
            .count(),
        1000
    );
    assert_eq!(text.matches("# TYPE test_opened_total").count(), 1);
}

#[test]
fn threads_lose_no_count() {
    let registry = small(8);
    let family = registry.family::<Sample>();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let family = family.clone();
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    let set = family.resolve(|labels| labels.open("who", "all"));
                    set.opened.inc();
                    set.took.observe(0.5);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let set = family.resolve(|labels| labels.open("who", "all"));
    assert_eq!(set.opened.value(), 4000);
    assert_eq!((set.took.count(), set.took.sum()), (4000, 2000.0));
}

proptest! {
    #[test]
    fn any_label_value_leaves_every_line_well_formed(values in prop::collection::vec(".*", 1..8)) {
        let registry = small(64);
        let family = registry.family::<Sample>();
        for value in &values {
            family.resolve(|labels| labels.open("v", value)).opened.inc();
        }
        let text = registry.render(Format::Text);
        let samples: Vec<_> =
            text.split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        for line in &samples {
            let whole = line.starts_with("test_opened_total{v=\"") && line.ends_with("\"} 1");
            prop_assert!(whole || line.ends_with(char::is_numeric), "{}", line);
        }
        prop_assert_eq!(samples.len(), family.sets());
    }
}

#[test]
fn registries_share_state_between_clones() {
    let registry = small(8);
    let other = registry.clone();
    let shared = Arc::new(registry.single::<Alone>());
    shared.seen.inc();
    assert!(other.render(Format::Text).contains("test_seen_total 1\n"));
}
