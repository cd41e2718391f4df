//! L7 authorization: what is allowed, and that no spelling of a path or header gets round it.

use std::io::{Read, Write};

use ambit_tests::pod::Pod;
use ambit_tests::world::World;
use http::{Method, StatusCode};

use super::{WAYPOINT, WORLD, serve};

/// A policy of service `ruled`.
pub fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: mesh}}\nspec:\n  targetRefs: [{{group: \"\", kind: Service, name: ruled}}]\n  action: {action}\n  rules:\n{rules}\n"
    )
}

pub fn status(client: &Pod, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
    let url = format!("http://ruled.mesh{path}");
    client
        .request(method, &url, headers)
        .map_or(0, |answer| answer.status.as_u16())
}

/// From whom, what, with which headers, and the status it gets.
type Case<'a> = (&'a Pod, Method, &'a str, &'a [(&'a str, &'a str)], u16);

/// Waits until a request gets this status.
pub fn wait(world: &World, client: &str, method: &Method, path: &str, wanted: u16) {
    world.eventually(
        &format!("{method} {path} of {client} gets {wanted}"),
        || status(world.pod(client), method.clone(), path, &[]) == wanted,
    );
}

#[test]
fn allow_is_by_method_path_header_and_principal_and_deny_goes_before_it() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let allow = policy(
        "allow",
        "ALLOW",
        "  - from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]\n    to: [{operation: {methods: [GET], paths: [/open*, /admin]}}]\n  - when: [{key: \"request.headers[x-key]\", values: [secret]}]",
    );
    let deny = policy("deny", "DENY", "  - to: [{operation: {paths: [/admin*]}}]");
    let _applied = world.apply_for_now("rules", &(allow + &deny));
    wait(&world, "mesh/client", &Method::GET, "/closed", 403);
    wait(&world, "mesh/client", &Method::GET, "/open", 200);
    let (client, other) = (world.pod("mesh/client"), world.pod("mesh/other"));
    let key: &[(&str, &str)] = &[("x-key", "secret")];
    let cases: [Case<'_>; 9] = [
        (client, Method::GET, "/open", &[], 200),
        (client, Method::GET, "/open/more", &[], 200),
        (client, Method::DELETE, "/open", &[], 403),
        (client, Method::GET, "/closed", &[], 403),
        (other, Method::GET, "/open", &[], 403),
        (other, Method::DELETE, "/closed", key, 200),
        (other, Method::GET, "/closed", &[("x-key", "wrong")], 403),
        (client, Method::GET, "/admin", &[], 403),
        (other, Method::GET, "/admin", key, 403),
    ];
    for (from, method, path, headers, wanted) in cases {
        let found = status(from, method.clone(), path, headers);
        assert_eq!(found, wanted, "{} {method} {path} {headers:?}", from.path());
    }
    let answer = client.get("http://ruled.mesh/closed").unwrap();
    assert_eq!(answer.text(), "RBAC: access denied");
    assert_eq!(answer.header("content-type"), "text/plain");
    let fields = [
        ("path", "/closed"),
        ("response_code", "403"),
        ("response_flags", "-"),
    ];
    world.wait_records(WAYPOINT, &fields, 1);
}

#[test]
fn no_spelling_of_a_denied_path_gets_through() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let deny = policy(
        "deny",
        "DENY",
        "  - to: [{operation: {paths: [/admin, /admin/*]}}]",
    );
    let _applied = world.apply_for_now("rules", &deny);
    wait(&world, "mesh/client", &Method::GET, "/admin", 403);
    wait(&world, "mesh/client", &Method::GET, "/x/admin", 200);
    let client = world.pod("mesh/client");
    let spellings = [
        "/admin?x",
        "//admin",
        "/%61dmin",
        "/admin/",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/./admin",
        "/admin/../admin",
        "/admin%2fusers",
        "/admin//users",
        "/%41dmin/../admin",
    ];
    for path in spellings {
        let found = status(client, Method::GET, path, &[]);
        assert!(matches!(found, 400 | 403), "{path} got {found}");
    }
    // Another path is another path.
    for path in ["/administrator", "/ADMIN", "/x/admin"] {
        assert_eq!(status(client, Method::GET, path, &[]), 200, "{path}");
    }
}

/// Sends bytes as they are and reads the status of what comes back; zero if nothing does.
fn raw(client: &Pod, request: &str) -> (u16, String) {
    let mut stream = client.connect("ruled.mesh:80").unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(3)));
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    (status, text)
}

#[test]
fn rules_on_headers_see_every_value() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let deny = policy(
        "deny",
        "DENY",
        "  - when: [{key: \"request.headers[x-role]\", values: [root]}]",
    );
    let _applied = world.apply_for_now("rules", &deny);
    let client = world.pod("mesh/client");
    world.eventually("the rule, and no other, is in force", || {
        status(client, Method::GET, "/", &[("x-role", "root")]) == 403
            && status(client, Method::GET, "/", &[("x-role", "guest")]) == 200
    });
    assert_eq!(status(client, Method::GET, "/", &[("X-Role", "root")]), 403);
    let head = "GET / HTTP/1.1\r\nhost: ruled.mesh\r\nconnection: close\r\n";
    for values in [
        "x-role: guest\r\nx-role: root",
        "x-role: root\r\nx-role: guest",
    ] {
        let (found, answer) = raw(client, &format!("{head}{values}\r\n\r\n"));
        assert!(matches!(found, 400 | 403), "{values:?} got {answer}");
    }
}

#[test]
fn a_request_of_two_lengths_or_two_hosts_is_refused() {
    let world = WORLD.alone();
    let apps = serve(&world);
    let client = world.pod("mesh/client");
    let head = "POST /smuggle HTTP/1.1\r\nhost: ruled.mesh\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: ruled.mesh\r\n\r\n";
    let bad = [
        format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!(
            "{head}content-length: 0\r\ncontent-length: {}\r\n\r\n{smuggled}",
            smuggled.len()
        ),
        format!("{head}content-length: +0\r\n\r\n{smuggled}"),
        format!("{head}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}host: other.mesh\r\ncontent-length: 0\r\n\r\n"),
        format!("{head}x-folded: a\r\n b: c\r\n\r\n"),
    ];
    for request in &bad {
        let (found, answer) = raw(client, request);
        assert!(matches!(found, 0 | 400 | 501), "{request:?} got {answer:?}");
        assert!(!answer.contains("/smuggled"), "{request:?}");
    }
    assert_eq!(
        status(client, Method::GET, "/", &[]),
        StatusCode::OK.as_u16()
    );
    drop(apps);
}
