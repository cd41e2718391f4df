//! Tests of endpoint lists and choice.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::{Balance, Endpoint, Endpoints, Health, InFlight, Spread, Transport};

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn endpoint(last: u8, priority: u32, health: Health) -> Endpoint {
    let mut endpoint = Endpoint::new(at(last), Transport::Plain);
    endpoint.priority = priority;
    endpoint.health = health;
    endpoint
}

/// A repeatable spread of numbers.
fn numbers() -> impl FnMut() -> u64 {
    let mut state = 1u64;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    }
}

fn shares(endpoints: &Endpoints, balance: Balance, rounds: u32) -> HashMap<u8, u32> {
    let mut random = numbers();
    let mut counts = HashMap::new();
    for _ in 0..rounds {
        let chosen = endpoints.choose(balance, &[], 0, &mut random).unwrap();
        let SocketAddr::V4(address) = chosen.address else {
            panic!()
        };
        *counts.entry(address.ip().octets()[3]).or_insert(0) += 1;
    }
    counts
}

fn list(endpoints: Vec<Endpoint>) -> Endpoints {
    Endpoints::new(endpoints, Spread::default(), None)
}

#[test]
fn unhealthy_endpoints_are_used_only_in_a_panic() {
    use Health::{Draining, Healthy, Unhealthy};
    // health of endpoints 1.. → those that get traffic
    let cases: &[(&[Health], &[u8])] = &[
        (&[Healthy, Healthy], &[1, 2]),
        (&[Healthy, Unhealthy], &[1]),
        (&[Healthy, Unhealthy, Unhealthy], &[1, 2, 3]),
        (&[Healthy, Draining, Draining], &[1]),
        (&[Unhealthy, Unhealthy], &[1, 2]),
    ];
    for (health, wanted) in cases {
        let all = health
            .iter()
            .zip(1..)
            .map(|(health, last)| endpoint(last, 0, *health))
            .collect();
        let mut used: Vec<_> = shares(&list(all), Balance::Random, 300)
            .into_keys()
            .collect();
        used.sort_unstable();
        assert_eq!(used, *wanted, "{health:?}");
    }
    let no_panic = Spread {
        panic_percent: 0,
        ..Spread::default()
    };
    let dead = Endpoints::new(vec![endpoint(1, 0, Unhealthy)], no_panic, None);
    assert!(
        dead.choose(Balance::Random, &[], 0, &mut numbers())
            .is_none()
    );
    assert!(
        list(vec![])
            .choose(Balance::Random, &[], 0, &mut numbers())
            .is_none()
    );
}

#[test]
fn the_next_priority_takes_what_health_does_not_cover() {
    use Health::{Healthy, Unhealthy};
    let all = vec![
        endpoint(1, 0, Healthy),
        endpoint(2, 0, Unhealthy),
        endpoint(3, 1, Healthy),
    ];
    // 50 % × 1.4 = 70 % stay in the first priority.
    let counts = shares(&list(all), Balance::Random, 10_000);
    assert!((6_700..7_300).contains(&counts[&1]), "{counts:?}");
    assert!(!counts.contains_key(&2));
    let whole = vec![endpoint(1, 0, Healthy), endpoint(3, 1, Healthy)];
    assert_eq!(
        shares(&list(whole), Balance::Random, 100),
        HashMap::from([(1, 100)])
    );
}

#[test]
fn weights_count_for_round_robin_and_least_request() {
    let all = || {
        let mut heavy = endpoint(1, 0, Health::Healthy);
        heavy.weight = 3;
        vec![heavy, endpoint(2, 0, Health::Healthy)]
    };
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let counts = shares(&list(all()), balance, 4000);
        assert!(
            (2_800..3_200).contains(&counts[&1]),
            "{balance:?} {counts:?}"
        );
    }
    let even = (1..=4)
        .map(|last| endpoint(last, 0, Health::Healthy))
        .collect();
    let counts = shares(&list(even), Balance::RoundRobin, 400);
    assert!(counts.values().all(|count| *count == 100), "{counts:?}");
}

#[test]
fn least_request_prefers_the_less_loaded_and_load_ends_with_its_guard() {
    let all = list(vec![
        endpoint(1, 0, Health::Healthy),
        endpoint(2, 0, Health::Healthy),
    ]);
    let busy: Vec<_> = (0..5).map(|_| InFlight::begin(&all.all()[0])).collect();
    assert_eq!(all.all()[0].load(), 5);
    let counts = shares(&all, Balance::LeastRequest, 1000);
    assert!(counts[&2] > 650, "{counts:?}");
    drop(busy);
    assert_eq!(all.all()[0].load(), 0);
}

#[test]
fn a_new_list_keeps_the_load_of_endpoints_that_stay() {
    let first = list(vec![
        endpoint(1, 0, Health::Healthy),
        endpoint(2, 0, Health::Healthy),
    ]);
    let _busy = InFlight::begin(&first.all()[0]);
    let _busy_too = InFlight::begin(&first.all()[1]);
    let changed = vec![
        endpoint(1, 0, Health::Healthy),
        endpoint(2, 0, Health::Draining),
    ];
    let second = Endpoints::new(changed, Spread::default(), Some(&first));
    assert_eq!(second.all()[0].load(), 1);
    assert_eq!(second.all()[1].load(), 0);
}

#[test]
fn a_retry_goes_elsewhere_if_there_is_elsewhere() {
    let all = list(vec![
        endpoint(1, 0, Health::Healthy),
        endpoint(2, 0, Health::Healthy),
    ]);
    let mut random = numbers();
    let elsewhere = (0..1000)
        .filter(|_| {
            let chosen = all
                .choose(Balance::LeastRequest, &[at(1)], 5, &mut random)
                .unwrap();
            chosen.address == at(2)
        })
        .count();
    assert!(elsewhere > 950, "{elsewhere}");
    let only = list(vec![endpoint(1, 0, Health::Healthy)]);
    assert!(
        only.choose(Balance::LeastRequest, &[at(1)], 5, &mut random)
            .is_some()
    );
}
