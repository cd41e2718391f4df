//! Tests of header checks.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{HeadersRefused, check, check_method, remote, request_id, strip_hop_by_hop, take_host};
use crate::plan::{HttpSettings, Underscores};

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let entry = |(name, value): &(&'static str, &'static str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    let mut out = HeaderMap::new();
    for (name, value) in list.iter().map(entry) {
        out.append(name, value);
    }
    out
}

#[test]
fn a_request_has_exactly_one_host_in_canonical_form() {
    /// `host` headers, host of the request target, what becomes of them.
    type Case = (
        &'static [&'static str],
        Option<&'static str>,
        Result<&'static str, HeadersRefused>,
    );
    let cases: &[Case] = &[
        (&["Cart"], None, Ok("cart")),
        (&["cart.shop.:8080"], None, Ok("cart.shop:8080")),
        (&["[FD00::1]:80"], None, Ok("[fd00::1]:80")),
        (&["cart"], Some("CART"), Ok("cart")),
        (&[], Some("cart:80"), Ok("cart:80")),
        (&["cart"], Some("other"), Err(HeadersRefused::Host)),
        (&["cart", "cart"], None, Err(HeadersRefused::Host)),
        (&["cart,admin"], None, Err(HeadersRefused::Host)),
        (&["user@cart"], None, Err(HeadersRefused::Host)),
        (&["cart:99999"], None, Err(HeadersRefused::Host)),
        (&["cart:"], None, Err(HeadersRefused::Host)),
        (&["cart.."], None, Err(HeadersRefused::Host)),
        (&[""], None, Err(HeadersRefused::Host)),
        (&[], None, Err(HeadersRefused::Host)),
    ];
    for (hosts, target, wanted) in cases {
        let list: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        let mut map = headers(&list);
        let target = target.map(|target| target.parse().unwrap());
        let got = take_host(&mut map, target.as_ref());
        assert_eq!(
            got.as_deref().map_err(|e| *e),
            *wanted,
            "{hosts:?} {target:?}"
        );
        assert!(got.is_err() || !map.contains_key("host"));
    }
}

#[test]
fn headers_of_one_hop_do_not_travel() {
    let mut map = headers(&[
        ("connection", "close, x-mine"),
        ("x-mine", "1"),
        ("keep-alive", "5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "trailers, deflate"),
        ("x-other", "2"),
    ]);
    strip_hop_by_hop(&mut map);
    let mut left: Vec<_> = map
        .iter()
        .map(|(n, v)| format!("{n}={}", v.to_str().unwrap()))
        .collect();
    left.sort();
    assert_eq!(left, ["te=trailers", "x-other=2"]);
}

#[test]
fn http2_requests_with_connection_headers_are_refused() {
    let settings = HttpSettings::default();
    for (name, value, wanted) in [
        ("connection", "close", false),
        ("transfer-encoding", "chunked", false),
        ("te", "gzip", false),
        ("te", "trailers", true),
        ("x", "y", true),
    ] {
        let got = check(&mut headers(&[(name, value)]), true, &settings);
        assert_eq!(got.is_ok(), wanted, "{name}: {value}");
        assert!(check(&mut headers(&[(name, value)]), false, &settings).is_ok());
    }
}

#[test]
fn underscores_are_treated_as_the_control_plane_says() {
    let with = |underscores| HttpSettings {
        underscores,
        ..HttpSettings::default()
    };
    let mut map = headers(&[("x_y", "1"), ("z", "2")]);
    assert!(check(&mut map, false, &with(Underscores::Allow)).is_ok());
    assert_eq!(map.len(), 2);
    assert!(check(&mut map, false, &with(Underscores::Reject)).is_err());
    assert!(check(&mut map, false, &with(Underscores::Drop)).is_ok());
    assert_eq!(map.len(), 1);
}

#[test]
fn the_last_forwarded_address_is_the_remote_one() {
    let source = "10.0.0.1".parse().unwrap();
    let cases: &[(&[&'static str], &str)] = &[
        (&[], "10.0.0.1"),
        (&["1.1.1.1, 2.2.2.2"], "2.2.2.2"),
        (&["1.1.1.1", "3.3.3.3"], "3.3.3.3"),
        (&["garbage"], "10.0.0.1"),
    ];
    for (values, wanted) in cases {
        let list: Vec<_> = values
            .iter()
            .map(|value| ("x-forwarded-for", *value))
            .collect();
        assert_eq!(remote(&headers(&list), source).to_string(), *wanted);
    }
}

#[test]
fn a_request_id_is_made_once_and_is_a_uuid() {
    let mut map = HeaderMap::new();
    request_id(&mut map, &mut || u64::MAX);
    assert_eq!(map["x-request-id"], "ffffffff-ffff-4fff-bfff-ffffffffffff");
    request_id(&mut map, &mut || 0);
    assert_eq!(map["x-request-id"], "ffffffff-ffff-4fff-bfff-ffffffffffff");
}

#[test]
fn methods_of_http_have_their_case_and_others_are_free() {
    for (method, sound) in [
        ("GET", true),
        ("DELETE", true),
        ("BREW", true),
        ("brew", true),
        ("get", false),
        ("Delete", false),
        ("cONNECT", false),
    ] {
        let method = method.parse().unwrap();
        assert_eq!(check_method(&method).is_ok(), sound, "{method}");
    }
}

#[test]
fn a_request_has_at_most_one_length_and_it_is_a_number() {
    for (lengths, sound) in [
        (&[][..], true),
        (&["5"], true),
        (&["5", "5"], false),
        (&["5", "0"], false),
        (&["5, 5"], false),
        (&["+5"], false),
        (&[""], false),
    ] {
        let mut list = headers(&[]);
        for length in lengths {
            list.append("content-length", HeaderValue::from_static(length));
        }
        let checked = check(&mut list, true, &HttpSettings::default());
        assert_eq!(checked.is_ok(), sound, "{lengths:?}");
    }
}
