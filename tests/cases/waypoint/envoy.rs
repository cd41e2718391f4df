//! A real Envoy in the waypoint's place, on the same resources, asked the same requests.

use std::collections::{BTreeMap, BTreeSet};

use ambit_tests::http::Answer;
use ambit_tests::world::{Shared, started};
use http::Method;
use serde_json::{Value, json};

use super::table::CASES;
use super::{WAYPOINT, WORLD, plan, serve};

/// The waypoint's world once more, with Envoy.
static ENVOY: Shared = Shared::new(|| started(plan("env").envoy_waypoints()));

/// Path, status and flag in the log.
const LOGGED: [(&str, &str, &str); 4] = [
    ("/plain", "200", "-"),
    ("/empty", "503", "UH"),
    ("/delay/5000", "504", "UT"),
    ("/shut", "503", "*UC"),
];

#[test]
fn envoy_on_our_resources_gives_the_answers_that_ours_is_held_to() {
    let world = ENVOY.alone();
    let _apps = serve(&world);
    let wrong: Vec<String> = CASES
        .iter()
        .filter_map(|case| {
            let found = case.check(world.pod("mesh/client")).err()?;
            Some(format!("{}: {found}", case.what))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The flags of its log, too.
    let client = world.pod("mesh/client");
    for (path, code, flags) in LOGGED {
        let answer = client.get(&format!("http://shop.mesh{path}")).unwrap();
        assert_eq!(answer.status.as_str(), code, "{path}");
        let fields = [("path", path), ("response_code", code)];
        let found = world.wait_records(WAYPOINT, &fields, 1);
        assert!(
            found
                .iter()
                .all(|record| record.has(&[("response_flags", flags)])),
            "{path}: {found:?}"
        );
    }
}

#[test]
fn envoy_holds_our_rules_as_ours_does() {
    let (ours, envoy) = (WORLD.alone(), ENVOY.alone());
    let _apps = [serve(&ours), serve(&envoy)];
    let rules = super::rules::policy(
        "allow",
        "ALLOW",
        "  - from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]\n    to: [{operation: {methods: [GET], paths: [/open*]}}]\n  - when: [{key: \"request.headers[x-key]\", values: [secret]}]",
    );
    let worlds = [&ours, &envoy];
    let _applied = worlds.map(|world| world.apply_for_now("rules", &rules));
    for world in worlds {
        super::rules::wait(world, "mesh/client", &Method::GET, "/closed", 403);
    }
    for from in ["mesh/client", "mesh/other"] {
        for method in [Method::GET, Method::DELETE] {
            for path in ["/open", "/open/more", "/closed", "/x/../open", "/%6fpen"] {
                for headers in [&[][..], &[("x-key", "secret")], &[("x-key", "wrong")]] {
                    let [ours, theirs] = worlds.map(|world| {
                        super::rules::status(world.pod(from), method.clone(), path, headers)
                    });
                    assert_eq!(ours, theirs, "{from} {method} {path} {headers:?}");
                }
            }
        }
    }
}

/// What stands in `docs/compatibility.md`: which field differs, and in which case; an empty name of
/// a case is every case.
const DIFFERENCES: &[(&str, &str)] = &[("method", "upstream: content-length")];

#[test]
fn ours_differs_from_envoy_only_where_it_is_written_down() {
    let (ours, envoy) = (WORLD.alone(), ENVOY.alone());
    let _apps = [serve(&ours), serve(&envoy)];
    let (mut new, mut met) = (Vec::new(), BTreeSet::new());
    for case in CASES {
        let [ours, theirs] =
            [&ours, &envoy].map(|world| fields(&case.ask(world.pod("mesh/client"))));
        let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for name in names {
            let (ours, theirs) = (ours.get(name), theirs.get(name));
            if ours == theirs {
                continue;
            }
            let known = DIFFERENCES
                .iter()
                .find(|(what, field)| (what.is_empty() || *what == case.what) && field == name);
            match known {
                Some(known) => drop(met.insert(known)),
                None => new.push(format!(
                    "{}: {name}: ours {ours:?}, Envoy's {theirs:?}",
                    case.what
                )),
            }
        }
    }
    assert!(new.is_empty(), "{}", new.join("\n"));
    let gone: Vec<_> = DIFFERENCES
        .iter()
        .filter(|known| !met.contains(known))
        .collect();
    assert!(gone.is_empty(), "not met any more: {gone:?}");
}

/// Header fields whose values are a matter of chance or time; that they are there counts.
const BY_CHANCE: [&str; 4] = [
    "date",
    "x-request-id",
    "x-envoy-upstream-service-time",
    "x-envoy-expected-rq-timeout-ms",
];

/// Everything that can be seen of an exchange: the answer's status, header fields and body, and
/// what the application saw.
fn fields(answer: &Result<Answer, String>) -> BTreeMap<String, Value> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return BTreeMap::from([("error".to_owned(), json!(error))]),
    };
    let shown = |name: &str, value: &str| match BY_CHANCE.contains(&name) {
        true => json!("…"),
        false => json!(value),
    };
    let told = match serde_json::from_slice(&answer.body) {
        Ok(Value::Object(told)) => Some(told),
        _ => None,
    };
    let mut fields = BTreeMap::from([("status".to_owned(), json!(answer.status.as_u16()))]);
    for name in answer.headers.keys() {
        // What the application tells is compared field by field, not by its length.
        if name == "content-length" && told.is_some() {
            continue;
        }
        let values = answer.headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let value = shown(name.as_str(), &values.join(", "));
        fields.insert(format!("answer: {name}"), value);
    }
    let Some(mut told) = told else {
        fields.insert("body".to_owned(), json!(answer.text()));
        return fields;
    };
    if let Some(Value::Object(headers)) = told.remove("headers") {
        for (name, value) in headers {
            let value = shown(&name, value.as_str().unwrap_or_default());
            fields.insert(format!("upstream: {name}"), value);
        }
    }
    for (name, value) in told {
        fields.insert(format!("upstream's {name}"), value);
    }
    fields
}
