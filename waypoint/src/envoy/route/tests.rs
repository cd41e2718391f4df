//! Route protos, compiled; and what is refused.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{DataSource, HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action as ProtoAction;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route as ProtoRoute, RouteAction,
    RouteConfiguration, RouteMatch as ProtoMatch, VirtualHost as ProtoHost, WeightedCluster,
};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration, UInt32Value};

use super::table;
use crate::envoy::at::{At, Compiled};
use crate::filter::headers::Edit;
use crate::routes::{Action, DEFAULT_TIMEOUT, Forward, GrpcTimeout, RouteTable};

fn config(action: ProtoAction) -> RouteConfiguration {
    let matcher = ProtoMatch {
        path_specifier: Some(PathSpecifier::PathSeparatedPrefix("/a".to_owned())),
        ..ProtoMatch::default()
    };
    RouteConfiguration {
        virtual_hosts: vec![ProtoHost {
            domains: vec!["*".to_owned()],
            routes: vec![ProtoRoute {
                name: "r".to_owned(),
                r#match: Some(matcher),
                action: Some(action),
                ..ProtoRoute::default()
            }],
            ..ProtoHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn to(cluster: &str) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    }
}

fn compiled(config: RouteConfiguration) -> Compiled<RouteTable> {
    let warnings = RefCell::new(Vec::new());
    table(config, &At::root("route_config", &warnings))
}

fn action(action: ProtoAction) -> Compiled<Action> {
    compiled(config(action)).map(|table| table.hosts()[0].routes[0].action.clone())
}

fn forward(route: RouteAction) -> Compiled<Forward> {
    action(ProtoAction::Route(route)).map(|action| match action {
        Action::Forward(forward) => *forward,
        other => panic!("{other:?}"),
    })
}

fn weighted(weights: &[(&str, u32)]) -> RouteAction {
    let weight = |(name, weight): &(&str, u32)| ClusterWeight {
        name: (*name).to_owned(),
        weight: Some(UInt32Value { value: *weight }),
        ..ClusterWeight::default()
    };
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: weights.iter().map(weight).collect(),
            ..WeightedCluster::default()
        })),
        ..RouteAction::default()
    }
}

fn option(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    }
}

#[test]
fn forwarding_has_envoys_defaults_and_takes_what_is_given() {
    let plain = forward(to("c")).unwrap();
    assert_eq!(plain.timeout, Some(DEFAULT_TIMEOUT));
    assert_eq!(plain.grpc_timeout, GrpcTimeout::Ignored);
    assert_eq!(plain.missing_cluster, 503);
    assert!(plain.retry.is_none() && plain.path.is_none() && plain.host.is_none());

    #[expect(deprecated, reason = "Istio sets the deprecated field")]
    let given = RouteAction {
        timeout: Some(ProtoDuration {
            seconds: 3,
            nanos: 500_000_000,
        }),
        max_grpc_timeout: Some(ProtoDuration::default()),
        cluster_not_found_response_code: 2,
        prefix_rewrite: "/b".to_owned(),
        host_rewrite_specifier: Some(HostRewriteSpecifier::HostRewriteLiteral("h".to_owned())),
        retry_policy: Some(RetryPolicy {
            retry_on: "503,5xx,retriable-status-codes".replace("503,", ""),
            retriable_status_codes: vec![429],
            per_try_timeout: Some(ProtoDuration {
                seconds: 1,
                nanos: 0,
            }),
            ..RetryPolicy::default()
        }),
        ..to("c")
    };
    let given = forward(given).unwrap();
    assert_eq!(given.timeout, Some(Duration::from_millis(3500)));
    assert_eq!(given.grpc_timeout, GrpcTimeout::Honoured);
    assert_eq!(given.missing_cluster, 500);
    assert_eq!(given.host.unwrap(), "h");
    let retry = given.retry.unwrap();
    assert!(retry.on.server_error && retry.on.statuses && !retry.on.connect_failure);
    assert_eq!(
        (retry.retries, retry.statuses, retry.reselect),
        (1, vec![429], 0)
    );
    assert_eq!(retry.per_try_timeout, Some(Duration::from_secs(1)));
    assert_eq!(retry.backoff_cap, Duration::from_millis(250));

    let weights = forward(weighted(&[("a", 90), ("b", 0), ("c", 10)])).unwrap();
    let names: Vec<_> = weights
        .destinations()
        .map(|(d, w)| (&*d.cluster, w))
        .collect();
    assert_eq!(names, [("a", 90), ("c", 10)]);
}

#[test]
fn redirects_and_fixed_answers_are_taken_over() {
    let empty_path = RedirectAction {
        host_redirect: "new".to_owned(),
        response_code: 1,
        path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect(String::new())),
        ..RedirectAction::default()
    };
    let Action::Redirect(redirect) = action(ProtoAction::Redirect(empty_path)).unwrap() else {
        panic!()
    };
    assert_eq!((redirect.status.as_u16(), redirect.path), (302, None));
    let respond = |status, length| {
        action(ProtoAction::DirectResponse(DirectResponseAction {
            status,
            body: Some(DataSource {
                specifier: Some(Specifier::InlineString("x".repeat(length))),
                ..DataSource::default()
            }),
            ..DirectResponseAction::default()
        }))
    };
    assert!(matches!(respond(500, 4096), Ok(Action::Respond(_))));
    assert!(respond(500, 4097).unwrap_err().reason.contains("4097"));
    assert!(respond(99, 0).is_err());
    let file = DataSource {
        specifier: Some(Specifier::Filename("/etc/passwd".to_owned())),
        ..DataSource::default()
    };
    let reads = DirectResponseAction {
        status: 200,
        body: Some(file),
        ..DirectResponseAction::default()
    };
    assert!(action(ProtoAction::DirectResponse(reads)).is_err());
}

#[test]
fn header_changes_go_from_the_route_outwards_and_remove_first() {
    let mut config = config(ProtoAction::Route(to("c")));
    config.request_headers_to_add = vec![option("table", "1")];
    config.virtual_hosts[0].request_headers_to_add = vec![option("host-level", "1")];
    let route = &mut config.virtual_hosts[0].routes[0];
    route.request_headers_to_add = vec![option("route", "%REQ(:path)%")];
    route.request_headers_to_remove = vec!["gone".to_owned()];
    let table = compiled(config).unwrap();
    let names: Vec<String> = table.hosts()[0].routes[0]
        .request_edits
        .iter()
        .map(|edit| match edit {
            Edit::Remove(name) => format!("-{name}"),
            Edit::Put { name, .. } => name.to_string(),
        })
        .collect();
    assert_eq!(names, ["-gone", "route", "host-level", "table"]);
}

#[test]
fn what_is_not_understood_is_refused_with_its_path() {
    let mirror = RouteAction {
        request_mirror_policies: vec![RequestMirrorPolicy::default()],
        ..to("c")
    };
    let negative = RouteAction {
        timeout: Some(ProtoDuration {
            seconds: -1,
            nanos: 0,
        }),
        ..to("c")
    };
    let words = RouteAction {
        retry_policy: Some(RetryPolicy {
            retry_on: "sometimes".to_owned(),
            ..RetryPolicy::default()
        }),
        ..to("c")
    };
    let header = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::ClusterHeader("x".to_owned())),
        ..RouteAction::default()
    };
    let cases = [
        (mirror, "unsupported fields [30]"),
        (negative, "timeout"),
        (words, "sometimes"),
        (header, "cluster specifier"),
        (weighted(&[("a", 0)]), "no weight"),
        (RouteAction::default(), "no cluster"),
    ];
    for (route, hint) in cases {
        let text = forward(route).unwrap_err().to_string();
        assert!(
            text.contains(r#"routes["r"]"#) && text.contains(hint),
            "{text}"
        );
    }

    let broken = |change: fn(&mut ProtoRoute)| {
        let mut config = config(ProtoAction::Route(to("c")));
        change(&mut config.virtual_hosts[0].routes[0]);
        compiled(config).unwrap_err().to_string()
    };
    assert!(broken(|route| route.action = None).contains("no action"));
    assert!(broken(|route| route.r#match = None).contains("no match"));
    let fault = |route: &mut ProtoRoute| {
        let name = "envoy.filters.http.fault".to_owned();
        route.typed_per_filter_config = HashMap::from([(name, Any::default())]);
    };
    assert!(broken(fault).contains("envoy.filters.http.fault"));
    let pseudo = |route: &mut ProtoRoute| {
        route.request_headers_to_add = vec![option(":path", "/x")];
    };
    assert!(broken(pseudo).contains("may not be changed"));
    let format = |route: &mut ProtoRoute| {
        route.request_headers_to_add = vec![option("x", "%CEL(a)%")];
    };
    assert!(broken(format).contains("CEL"));
    let mut twice = config(ProtoAction::Route(to("c")));
    twice.virtual_hosts.push(twice.virtual_hosts[0].clone());
    assert!(compiled(twice).unwrap_err().reason.contains("listed twice"));
}
