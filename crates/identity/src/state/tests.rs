use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn validity(from: SystemTime, life: Duration) -> Validity {
    Validity {
        not_before: from,
        not_after: from + life,
    }
}

#[test]
fn goes_through_its_phases() {
    let t0 = start();
    let mut life = Life::new(t0);
    assert_eq!((life.phase(t0), life.due(t0)), (Phase::Absent, Some(t0)));
    assert!(!life.is_failing(t0));
    life.begin();
    assert_eq!((life.phase(t0), life.due(t0)), (Phase::Requesting, None));
    life.issued(validity(t0, 24 * HOUR), t0, 100);
    assert_eq!(life.phase(t0), Phase::Valid);
    let renewal = life.due(t0).unwrap();
    assert_eq!(renewal, t0 + 12 * HOUR);
    life.begin();
    assert_eq!(life.phase(renewal), Phase::Renewing);
    life.failed(renewal, 0);
    assert_eq!(
        life.phase(renewal),
        Phase::Valid,
        "a failed renewal keeps it in use"
    );
    assert!(!life.is_failing(renewal));
    let end = t0 + 24 * HOUR;
    assert_eq!(life.phase(end - Duration::from_secs(1)), Phase::Valid);
    assert_eq!(life.phase(end), Phase::Expired);
    life.begin();
    assert_eq!(life.phase(end), Phase::Expired);
    life.failed(end, 0);
    assert!(life.is_failing(end));
    life.begin();
    life.issued(validity(end, 24 * HOUR), end, 0);
    assert_eq!(life.phase(end), Phase::Valid);
}

#[test]
fn failures_without_a_certificate_come_back_soon_and_never_at_once() {
    let mut now = start();
    let mut life = Life::new(now);
    let mut waits = Vec::new();
    for _ in 0..10 {
        life.begin();
        life.failed(now, 1024);
        assert!(life.is_failing(now));
        let due = life.due(now).unwrap();
        waits.push(due.duration_since(now).unwrap().as_millis());
        now = due;
        assert!(
            !life.is_failing(now),
            "at its time the attempt is no longer failing"
        );
    }
    assert_eq!(
        waits,
        [250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000, 15000]
    );
}

#[test]
fn a_failing_renewal_does_not_sleep_past_the_end() {
    let t0 = start();
    let mut life = Life::new(t0);
    life.begin();
    life.issued(validity(t0, HOUR), t0, 0);
    for _ in 0..10 {
        life.begin();
        life.failed(t0 + HOUR / 2, 1024);
    }
    let near = t0 + HOUR - Duration::from_secs(20);
    life.begin();
    life.failed(near, 1024);
    assert_eq!(life.due(near), Some(t0 + HOUR));
}

#[test]
fn an_absurd_lifetime_does_not_spin() {
    let t0 = start();
    for (from, to) in [(t0, t0), (t0 + HOUR, t0), (t0 - HOUR, t0 - HOUR / 2)] {
        let mut life = Life::new(t0);
        life.begin();
        life.issued(
            Validity {
                not_before: from,
                not_after: to,
            },
            t0,
            0,
        );
        assert!(life.due(t0).unwrap() >= t0 + LEAST_LIFE);
    }
}

#[test]
fn a_clock_that_is_set_back_strands_nobody() {
    let (wrong, right) = (start() + 10_000 * HOUR, start());
    // Nothing could be had while the clock was wrong.
    let mut life = Life::new(wrong);
    life.begin();
    life.failed(wrong, 0);
    assert_eq!(life.due(right), Some(right));
    assert!(!life.is_failing(right));
    // What was had is renewed.
    life.begin();
    life.issued(validity(wrong, HOUR), wrong, 0);
    assert_eq!(life.due(right), Some(right));
    // A clock that is only corrected changes nothing.
    let corrected = wrong - Duration::from_secs(30);
    assert!(life.due(corrected).unwrap() > wrong);
}

#[test]
fn a_clock_that_is_behind_its_authority_does_not_put_renewal_off() {
    let ours = start();
    let mut life = Life::new(ours);
    life.begin();
    life.issued(validity(ours + 1000 * HOUR, HOUR), ours, 100);
    assert_eq!(life.due(ours), Some(ours + HOUR / 2));
}

proptest! {
    #[test]
    fn renews_between_40_and_50_percent(seconds in 10u64..10_000_000, random: u64) {
        let t0 = start();
        let mut life = Life::new(t0);
        life.begin();
        life.issued(validity(t0, Duration::from_secs(seconds)), t0, random);
        let after = life.due(t0).unwrap().duration_since(t0).unwrap().as_secs_f64();
        let share = after / seconds as f64;
        prop_assert!((0.399..=0.501).contains(&share), "{share}");
    }

    #[test]
    fn every_failure_leaves_a_pause(
        steps in prop::collection::vec((any::<u64>(), any::<bool>(), 1u64..200), 1..100),
    ) {
        let mut now = start();
        let mut life = Life::new(now);
        for (random, succeed, seconds) in steps {
            life.begin();
            if succeed {
                life.issued(validity(now, Duration::from_secs(seconds)), now, random);
            } else {
                life.failed(now, random);
            }
            let due = life.due(now).unwrap();
            prop_assert!(due >= now + URGENT.0 / 2);
            prop_assert!(due <= now + CALM.1);
            now = due;
        }
    }
}

#[test]
fn what_is_told_of_is_asked_for_only_when_nothing_was_told() {
    let t0 = start();
    for random in [0, 50, 100, u64::MAX] {
        let mut life = Life::new(t0);
        life.begin();
        life.followed(validity(t0, HOUR), t0, random);
        assert_eq!(life.phase(t0), Phase::Valid);
        let wait = life.due(t0).unwrap().duration_since(t0).unwrap();
        assert!((HOUR * 6 / 10..=HOUR * 7 / 10).contains(&wait), "{wait:?}");
    }
    // The same again and again: more often towards the end, and never in a spin.
    let mut life = Life::new(t0);
    let end = t0 + HOUR;
    let mut looks = 0;
    let mut now = t0;
    while now < end {
        life.begin();
        life.followed(validity(t0, HOUR), now, 0);
        let due = life.due(now).unwrap();
        assert!(due >= now + LEAST_LIFE);
        now = due;
        looks += 1;
    }
    assert!(looks < 20, "{looks}");
    assert_eq!(life.phase(now), Phase::Expired);
}

#[test]
fn a_stream_that_is_lost_is_a_failure_unless_another_is_under_way() {
    let t0 = start();
    let mut life = Life::new(t0);
    life.begin();
    life.followed(validity(t0, HOUR), t0, 0);
    life.lost(t0, 1024);
    assert_eq!(life.phase(t0), Phase::Valid, "it stays in use");
    assert_eq!(life.due(t0), Some(t0 + Duration::from_secs(1)));
    life.lost(t0, 1024);
    assert_eq!(life.due(t0), Some(t0 + Duration::from_secs(2)));
    life.begin();
    life.lost(t0, 0);
    assert_eq!(life.due(t0), None, "the attempt that runs goes on alone");
    life.hasten(t0);
    assert_eq!(life.due(t0), None);
    life.failed(t0, 0);
    life.hasten(t0);
    assert_eq!(life.due(t0), Some(t0));
}
