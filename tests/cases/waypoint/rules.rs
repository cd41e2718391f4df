//! L7 authorization that changes while requests flow. What rules allow and deny stands in `requests.rs`
//! and `framing.rs`.

use ambit_tests::world::World;
use http::{Method, Version};

use super::{WORLD, serve};

/// A policy of a service.
pub fn policy_of(service: &str, name: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: mesh}}\nspec:\n  targetRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  action: {action}\n  rules:\n{rules}\n"
    )
}

/// A policy of service `ruled`.
pub fn policy(name: &str, action: &str, rules: &str) -> String {
    policy_of("ruled", name, action, rules)
}

/// Waits until a request to service `ruled` gets this status.
pub fn wait(world: &World, client: &str, method: &Method, path: &str, wanted: u16) {
    let url = format!("http://ruled.mesh{path}");
    let what = format!("{method} {path} of {client} gets {wanted}");
    world.eventually(&what, || {
        let answer = world.pod(client).request(method.clone(), &url, &[]);
        answer.is_ok_and(|answer| answer.status == wanted)
    });
}

#[test]
fn a_new_rule_holds_on_connections_that_are_open_and_ends_with_its_policy() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let mut connections = [Version::HTTP_11, Version::HTTP_2].map(|version| {
        let client = world.pod("mesh/client");
        client.http("ruled.mesh:80", version).unwrap()
    });
    let mut status = |path: &str| {
        connections.each_mut().map(|connection| {
            let answer = connection.send(Method::GET, path, &[], "");
            answer.map_or(0, |answer| answer.status.as_u16())
        })
    };
    assert_eq!(status("/admin"), [200, 200]);
    let deny = policy("deny", "DENY", "  - to: [{operation: {paths: [/admin]}}]");
    let applied = world.apply_for_now("rules", &deny);
    world.eventually("the rule is in force", || status("/admin") == [403, 403]);
    assert_eq!(status("/open"), [200, 200]);
    drop(applied);
    world.eventually("the rule is gone", || status("/admin") == [200, 200]);
}
