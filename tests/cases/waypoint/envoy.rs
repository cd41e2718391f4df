//! One list of scenarios, for our waypoint and for a real Envoy in its place on the same resources.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use ambit_tests::world::{Shared, World, started};

use super::case::{Case, Facts, ask_all};
use super::differences::{self, DIFFERENCES};
use super::{WORLD, framing, plan, requests, serve_all, streams};

/// The waypoint's world once more, with Envoy.
static ENVOY: Shared = Shared::new(|| started(plan("env").envoy_waypoints()));

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = requests::cases();
    cases.extend(streams::cases());
    cases.extend(framing::cases());
    cases
});

/// What was seen of each case, in their order: each world is asked once.
static OURS: LazyLock<Vec<Facts>> = LazyLock::new(|| seen(&WORLD.alone()));
static ENVOYS: LazyLock<Vec<Facts>> = LazyLock::new(|| seen(&ENVOY.alone()));

fn seen(world: &World) -> Vec<Facts> {
    let (_apps, heard) = serve_all(world);
    ask_all(world, &CASES, &heard)
}

#[test]
fn ours_answers_every_scenario_as_written_down() {
    let wrong = CASES
        .iter()
        .zip(&*OURS)
        .flat_map(|(case, facts)| case.wrong(facts));
    let wrong: Vec<String> = wrong.map(|(_, told)| told).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn envoy_answers_every_scenario_as_written_down_but_for_the_known_differences() {
    let all = CASES.iter().zip(&*ENVOYS);
    let wrong = all.flat_map(|(case, facts)| {
        let unknown = |(fact, _): &(&str, String)| differences::row(&case.what, fact).is_none();
        case.wrong(facts).into_iter().filter(unknown)
    });
    let wrong: Vec<String> = wrong.map(|(_, told)| told).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn ours_differs_from_envoy_only_where_it_is_written_down() {
    let (mut new, mut met) = (Vec::new(), BTreeSet::new());
    for ((case, ours), envoys) in CASES.iter().zip(&*OURS).zip(&*ENVOYS) {
        let names: BTreeSet<_> = ours.keys().chain(envoys.keys()).collect();
        for name in names {
            let [ours, theirs] = [ours, envoys].map(|facts| facts.get(name));
            if ours == theirs || by_chance(name) && ours.is_some() && theirs.is_some() {
                continue;
            }
            match differences::row(&case.what, name) {
                Some(_) => drop(met.insert(case.what.as_str())),
                None => new.push(format!(
                    "{}: {name}: ours {ours:?}, Envoy's {theirs:?}",
                    case.what
                )),
            }
        }
    }
    assert!(new.is_empty(), "\n{}", new.join("\n"));
    let written = DIFFERENCES.iter().flat_map(|(_, cases)| *cases);
    let gone: Vec<_> = written.filter(|(case, _)| !met.contains(case)).collect();
    assert!(gone.is_empty(), "not met any more: {gone:?}");
}

/// Header fields whose values are a matter of chance or time; that they are there counts.
fn by_chance(fact: &str) -> bool {
    let fields = [
        "date",
        "x-request-id",
        "x-envoy-upstream-service-time",
        "x-envoy-expected-rq-timeout-ms",
    ];
    fact.split_once(": ")
        .is_some_and(|(_, field)| fields.contains(&field))
}

#[test]
fn every_difference_is_explained_in_the_documentation() {
    let text = include_str!("../../../docs/compatibility.md");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let rows: BTreeSet<&str> = rows.collect();
    let missing: Vec<_> = DIFFERENCES
        .iter()
        .filter(|(row, _)| !rows.contains(row))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
