use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ambit_objects::{Name, Objects};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action as RbacAction;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use prost::Message;

use super::Waypoint;
use super::wire::IpMatcher;
use crate::config::Mesh;
use crate::translate::{Resources, translate};

const SHOP: &str = include_str!("../../../tests/shop.yaml");

fn resources(text: &str) -> Resources {
    let objects = Arc::new(Objects::from_text(Path::new("test.yaml"), text));
    translate(objects, Mesh::default()).1
}

fn waypoint(resources: &Resources) -> &Waypoint {
    &resources.waypoints[&Name::new("shop", "waypoint")]
}

fn decoded<T: Message + Default>(all: &BTreeMap<String, bytes::Bytes>, name: &str) -> T {
    T::decode(
        all.get(name)
            .unwrap_or_else(|| panic!("{name} of {:?}", all.keys()))
            .clone(),
    )
    .unwrap()
}

fn chain(waypoint: &Waypoint, name: &str) -> FilterChain {
    let listener: Listener = decoded(&waypoint.listeners, "main_internal");
    listener
        .filter_chains
        .into_iter()
        .find(|chain| chain.name == name)
        .unwrap()
}

fn manager(chain: &FilterChain) -> HttpConnectionManager {
    let Some(ConfigType::TypedConfig(config)) = &chain.filters.last().unwrap().config_type else {
        panic!()
    };
    HttpConnectionManager::decode(config.value.as_slice()).unwrap()
}

fn routes(waypoint: &Waypoint, name: &str) -> Vec<Route> {
    let Some(RouteSpecifier::RouteConfig(config)) = manager(&chain(waypoint, name)).route_specifier
    else {
        panic!()
    };
    config.virtual_hosts[0].routes.clone()
}

fn forward(route: &Route) -> &RouteAction {
    match route.action.as_ref().unwrap() {
        Action::Route(action) => action,
        other => panic!("{other:?}"),
    }
}

const CART: &str = "inbound-vip|80|http|cart.shop.svc.cluster.local";

#[test]
fn a_waypoint_gets_istiods_names() {
    let resources = resources(SHOP);
    let waypoint = waypoint(&resources);
    let names = |all: &BTreeMap<String, bytes::Bytes>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&waypoint.listeners),
        ["connect_originate", "connect_terminate", "main_internal"]
    );
    let services = [
        CART,
        "inbound-vip|7000|http|plain.shop.svc.cluster.local",
        "inbound-vip|7000|tcp|plain.shop.svc.cluster.local",
        "inbound-vip|7002|http|plain.shop.svc.cluster.local",
        "inbound-vip|80|http|local.shop.svc.cluster.local",
        "inbound-vip|8080|http|guest.other.svc.cluster.local",
        "inbound-vip|9000|tcp|cart.shop.svc.cluster.local",
        "outbound|80||web.shop.svc.cluster.local",
    ];
    let mut with_endpoints: Vec<String> = services.iter().map(ToString::to_string).collect();
    with_endpoints.sort();
    assert_eq!(names(&waypoint.endpoints), with_endpoints);
    let mut clusters = with_endpoints;
    clusters.extend(["connect_originate", "encap", "main_internal"].map(str::to_owned));
    clusters.sort();
    assert_eq!(names(&waypoint.clusters), clusters);
    let main: Listener = decoded(&waypoint.listeners, "main_internal");
    let chains: Vec<&str> = main
        .filter_chains
        .iter()
        .map(|chain| chain.name.as_str())
        .collect();
    assert_eq!(chains.len(), 9, "{chains:?}");
    assert_eq!(chains[chains.len() - 2..], ["direct-tcp", "direct-http"]);
    assert!(main.filter_chain_matcher.is_some());
}

#[test]
fn the_matcher_names_each_service_by_its_addresses() {
    let resources = resources(SHOP);
    let main: Listener = decoded(&waypoint(&resources).listeners, "main_internal");
    use envoy_types::pb::xds::r#type::matcher::v3::matcher::MatcherType;
    use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::TreeType;
    let Some(MatcherType::MatcherTree(tree)) = main.filter_chain_matcher.unwrap().matcher_type
    else {
        panic!()
    };
    let Some(TreeType::CustomMatch(custom)) = tree.tree_type else {
        panic!()
    };
    let config = custom.typed_config.unwrap();
    assert_eq!(
        config.type_url,
        "type.googleapis.com/xds.type.matcher.v3.IPMatcher"
    );
    let ips = IpMatcher::decode(config.value.as_slice()).unwrap();
    let ranges: Vec<String> = ips
        .range_matchers
        .iter()
        .flat_map(|one| &one.ranges)
        .map(|range| {
            format!(
                "{}/{}",
                range.address_prefix,
                range.prefix_len.as_ref().unwrap().value
            )
        })
        .collect();
    assert_eq!(
        ranges,
        [
            "10.96.0.5/32",
            "10.96.0.2/32",
            "fd00::2/128",
            "10.96.0.4/32",
            "10.96.0.6/32"
        ]
    );
}

#[test]
fn endpoints_go_over_hbone_exactly_when_the_pod_takes_it() {
    let resources = resources(SHOP);
    let endpoints = |name: &str| -> Vec<LbEndpoint> {
        let list: ClusterLoadAssignment = decoded(&waypoint(&resources).endpoints, name);
        assert_eq!(list.cluster_name, name);
        list.endpoints
            .into_iter()
            .flat_map(|place| place.lb_endpoints)
            .collect()
    };
    let address = |endpoint: &LbEndpoint| {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
            panic!()
        };
        endpoint.address.clone().unwrap().address.unwrap()
    };
    let cart = endpoints(CART);
    assert_eq!(cart.len(), 1);
    let AddressKind::EnvoyInternalAddress(to) = address(&cart[0]) else {
        panic!()
    };
    assert_eq!(to.endpoint_id, "10.0.1.3:8080");
    let metadata = &cart[0].metadata.as_ref().unwrap().filter_metadata;
    assert!(metadata.contains_key("envoy.filters.listener.original_dst"));
    assert!(metadata.contains_key("istio"));
    // Not ready, and only one of the two services wants such.
    assert_eq!(
        endpoints("inbound-vip|80|http|local.shop.svc.cluster.local"),
        []
    );
    let plain = endpoints("inbound-vip|7000|tcp|plain.shop.svc.cluster.local");
    let AddressKind::SocketAddress(to) = address(&plain[0]) else {
        panic!()
    };
    assert_eq!(to.address, "10.0.1.4");
}

#[test]
fn a_route_becomes_rules_in_the_order_of_precedence() {
    let resources = resources(SHOP);
    let routes = routes(waypoint(&resources), CART);
    let paths: Vec<String> = routes
        .iter()
        .map(|route| {
            match route
                .r#match
                .as_ref()
                .unwrap()
                .path_specifier
                .as_ref()
                .unwrap()
            {
                PathSpecifier::Path(path) => format!("= {path}"),
                PathSpecifier::Prefix(path) => format!("{path}*"),
                PathSpecifier::PathSeparatedPrefix(path) => format!("{path}/*"),
                PathSpecifier::SafeRegex(regex) => format!("~ {}", regex.regex),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(
        paths,
        [
            "= /exact",
            "/away/*",
            "/api/*",
            "/old/*",
            "/*",
            "~ /r/[0-9]+"
        ]
    );
    assert_eq!(routes[0].name, "exact");
    assert_eq!(routes[4].name, "shop.cart.0");

    let exact = routes[0].r#match.as_ref().unwrap();
    assert_eq!(exact.headers[0].name, ":method");
    let api = routes[2].r#match.as_ref().unwrap();
    let headers: Vec<&str> = api
        .headers
        .iter()
        .map(|header| header.name.as_str())
        .collect();
    assert_eq!(headers, ["b", "x-user"]);
    assert_eq!(api.query_parameters[0].name, "q");

    let set = &routes[0].request_headers_to_add[0];
    assert_eq!(set.header.as_ref().unwrap().value, "50%%");
    assert_eq!(routes[0].request_headers_to_remove, ["x-gone"]);
    assert_eq!(routes[0].response_headers_to_add.len(), 1);
    let action = forward(&routes[0]);
    assert_eq!(action.timeout.as_ref().unwrap().seconds, 10);
    let retry = action.retry_policy.as_ref().unwrap();
    assert_eq!(retry.num_retries.as_ref().unwrap().value, 3);
    assert!(retry.retry_on.ends_with(",retriable-status-codes"));
    assert_eq!(retry.per_try_timeout.as_ref().unwrap().seconds, 2);

    let old = forward(&routes[3]);
    assert_eq!(
        old.regex_rewrite
            .as_ref()
            .unwrap()
            .pattern
            .as_ref()
            .unwrap()
            .regex,
        "^/old(/?)(.*)"
    );
    assert_eq!(old.regex_rewrite.as_ref().unwrap().substitution, "/\\2");
    assert!(matches!(&routes[1].action, Some(Action::Redirect(_))));
    let Some(ClusterSpecifier::WeightedClusters(split)) = &forward(&routes[4]).cluster_specifier
    else {
        panic!()
    };
    let weights: Vec<(&str, u32)> = split
        .clusters
        .iter()
        .map(|one| (one.name.as_str(), one.weight.as_ref().unwrap().value))
        .collect();
    assert_eq!(
        weights,
        [(CART, 90), ("outbound|80||web.shop.svc.cluster.local", 10)]
    );
}

#[test]
fn a_port_without_routes_sends_everything_to_its_service() {
    let resources = resources(SHOP);
    let name = "inbound-vip|8080|http|guest.other.svc.cluster.local";
    let routes = routes(waypoint(&resources), name);
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].name, "default");
    let action = forward(&routes[0]);
    assert_eq!(
        action.cluster_specifier,
        Some(ClusterSpecifier::Cluster(name.to_owned()))
    );
    assert_eq!(action.timeout.as_ref().unwrap().seconds, 0);
    assert_eq!(
        action
            .retry_policy
            .as_ref()
            .unwrap()
            .num_retries
            .as_ref()
            .unwrap()
            .value,
        2
    );
    let cluster: Cluster = decoded(&waypoint(&resources).clusters, name);
    assert_eq!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()))
    );
    assert_eq!(
        cluster.typed_extension_protocol_options.len(),
        1,
        "its port is HTTP/2"
    );
}

fn http_rules(waypoint: &Waypoint, name: &str) -> Vec<(RbacAction, Vec<String>)> {
    let manager = manager(&chain(waypoint, name));
    let filters = manager.http_filters.iter();
    filters
        .filter(|filter| filter.name == "envoy.filters.http.rbac")
        .map(|filter| {
            let Some(http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
                panic!()
            };
            let rules = Rbac::decode(config.value.as_slice())
                .unwrap()
                .rules
                .unwrap();
            let mut names: Vec<String> = rules.policies.keys().cloned().collect();
            names.sort();
            (RbacAction::try_from(rules.action).unwrap(), names)
        })
        .collect()
}

#[test]
fn policies_are_filters_of_the_chains_they_target_deny_first() {
    let resources = resources(SHOP);
    let waypoint = waypoint(&resources);
    let callers = vec![
        "ns[shop]-policy[callers]-rule[0]".to_owned(),
        "ns[shop]-policy[callers]-rule[1]".to_owned(),
    ];
    let no_delete = vec!["ns[shop]-policy[no-delete]-rule[0]".to_owned()];
    assert_eq!(
        http_rules(waypoint, CART),
        [
            (RbacAction::Deny, no_delete),
            (RbacAction::Allow, callers.clone())
        ]
    );
    assert_eq!(
        http_rules(
            waypoint,
            "inbound-vip|8080|http|guest.other.svc.cluster.local"
        ),
        [(RbacAction::Allow, callers)]
    );
    // On a TCP port the ALLOW's rule of paths allows nothing, and the DENY goes without methods.
    let tcp = chain(waypoint, "inbound-vip|9000|tcp|cart.shop.svc.cluster.local");
    let rules: Vec<(i32, usize)> = tcp.filters[..tcp.filters.len() - 1]
        .iter()
        .map(|filter| {
            let Some(ConfigType::TypedConfig(config)) = &filter.config_type else {
                panic!()
            };
            let rules = NetworkRbac::decode(config.value.as_slice())
                .unwrap()
                .rules
                .unwrap();
            (rules.action, rules.policies.len())
        })
        .collect();
    assert_eq!(
        rules,
        [(RbacAction::Deny.into(), 1), (RbacAction::Allow.into(), 1)]
    );
}

/// The routes and findings when the example's route is replaced by this rule.
fn with_rule(rule: &str) -> (Vec<Route>, Vec<String>) {
    let route = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec: {{parentRefs: [{{group: \"\", kind: Service, name: local}}], rules: [{rule}]}}\n"
    );
    let resources = resources(&format!("{SHOP}{route}"));
    let told = resources.findings.iter().map(ToString::to_string).collect();
    (
        routes(
            waypoint(&resources),
            "inbound-vip|80|http|local.shop.svc.cluster.local",
        ),
        told,
    )
}

#[test]
fn a_rule_that_cannot_be_carried_out_answers_500_and_is_told() {
    let backend = "backendRefs: [{name: cart, port: 80}]";
    let table: &[(String, &str)] = &[
        (
            "{}".to_owned(),
            "backendRefs: no backend has a weight above 0",
        ),
        (
            "{backendRefs: [{name: cart, port: 80, weight: 0}]}".to_owned(),
            "no backend has a weight",
        ),
        (
            format!("{{filters: [{{type: RequestMirror}}], {backend}}}"),
            "filters[0].type: filter RequestMirror is not supported here",
        ),
        (
            format!("{{filters: [{{type: ExtensionRef}}], {backend}}}"),
            "filter ExtensionRef is not supported",
        ),
        (
            format!("{{timeouts: {{request: soon}}, {backend}}}"),
            "timeouts.request: \"soon\" is not a duration",
        ),
        (
            format!(
                "{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: \"a b\", value: c}}]}}}}], {backend}}}"
            ),
            "requestHeaderModifier.set[0].name: \"a b\" is no header name",
        ),
        (
            format!(
                "{{filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: a, value: \"x\\ny\"}}]}}}}], {backend}}}"
            ),
            "a header value has no control characters",
        ),
        (
            format!(
                "{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /b}}}}}}], {backend}}}"
            ),
            "a prefix can be replaced only where one is matched",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}".to_owned(),
            "200 is not a redirect",
        ),
    ];
    for (rule, expected) in table {
        let (routes, told) = with_rule(rule);
        assert_eq!(routes.len(), 1, "{rule}");
        let Some(Action::DirectResponse(answer)) = &routes[0].action else {
            panic!("{rule}")
        };
        assert_eq!(answer.status, 500);
        assert!(
            told.iter().any(|one| one.contains(expected)),
            "{told:#?}\n{expected}"
        );
    }
}

#[test]
fn a_match_that_cannot_be_read_takes_no_traffic() {
    let backend = "backendRefs: [{name: cart, port: 80}]";
    let table: &[(&str, &str)] = &[
        (
            "{path: {type: RegularExpression, value: \"(\"}}",
            "path.value: \"(\" is not an RE2 pattern",
        ),
        (
            "{path: {type: RegularExpression, value: \"a(?=b)\"}}",
            "is not an RE2 pattern",
        ),
        (
            "{path: {value: a}}",
            "path.value: \"a\" is not an absolute path",
        ),
        ("{method: get}", "method: \"get\" is not a method"),
        (
            "{headers: [{name: \"a:\", value: b}]}",
            "headers[0].name: \"a:\" is no name",
        ),
    ];
    for (one, expected) in table {
        let (routes, told) = with_rule(&format!("{{matches: [{one}], {backend}}}"));
        assert_eq!(routes, [], "{one}");
        assert!(
            told.iter().any(|one| one.contains(expected)),
            "{told:#?}\n{expected}"
        );
    }
}

#[test]
fn a_backend_that_is_not_there_keeps_its_share() {
    let backends =
        "backendRefs: [{name: cart, port: 80, weight: 1}, {name: gone, port: 80, weight: 3}]";
    let (routes, told) = with_rule(&format!("{{{backends}}}"));
    let Some(ClusterSpecifier::WeightedClusters(split)) = &forward(&routes[0]).cluster_specifier
    else {
        panic!()
    };
    let names: Vec<&str> = split.clusters.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, [CART, "UnknownService"]);
    assert!(
        told.iter()
            .any(|one| one.contains("there is no Service shop/gone")),
        "{told:?}"
    );
    for (backend, why) in [
        ("{name: cart}", "needs a port"),
        ("{name: cart, port: 81}", "has no port 81"),
        ("{name: cart, port: 9000}", "is not HTTP"),
        (
            "{name: guest, namespace: other, port: 8080}",
            "needs a ReferenceGrant",
        ),
        (
            "{kind: Bucket, group: x, name: b, port: 1}",
            "backend kind Bucket",
        ),
    ] {
        let (routes, told) = with_rule(&format!("{{backendRefs: [{backend}]}}"));
        let unknown = Some(ClusterSpecifier::Cluster("UnknownService".to_owned()));
        assert_eq!(forward(&routes[0]).cluster_specifier, unknown, "{backend}");
        assert!(told.iter().any(|one| one.contains(why)), "{told:?}\n{why}");
    }
}

#[test]
fn prefixes_are_replaced_without_losing_or_doubling_slashes() {
    let rewrite = |matched: &str, replacement: &str| {
        let rule = format!(
            "{{matches: [{{path: {{value: {matched}}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {replacement}}}}}}}], backendRefs: [{{name: cart, port: 80}}]}}"
        );
        let (routes, _) = with_rule(&rule);
        let action = forward(&routes[0]);
        match &action.regex_rewrite {
            Some(regex) => {
                let pattern = regex.pattern.as_ref().unwrap().regex.clone();
                (pattern, regex.substitution.clone())
            }
            None => (String::new(), action.prefix_rewrite.clone()),
        }
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(rewrite("/a", "/b"), pair("", "/b"));
    assert_eq!(rewrite("/a/", "/b/"), pair("", "/b"));
    assert_eq!(rewrite("/a.c", "/"), pair("^/a\\.c(/?)(.*)", "/\\2"));
    assert_eq!(rewrite("/", "/b"), pair("^/(.*)", "/b/\\1"));
    assert_eq!(rewrite("/", "/"), pair("", ""));
}

#[test]
fn routes_and_policies_without_a_waypoint_are_told() {
    let text = format!(
        "{SHOP}---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: other}}\nspec: {{parentRefs: [{{group: \"\", kind: Service, name: cart, namespace: shop}}, {{name: gw}}]}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{{group: \"\", kind: Service, name: web}}, {{kind: GatewayClass, name: istio-waypoint}}, {{kind: Pod, name: a}}]}}\n"
    );
    let resources = resources(&text);
    let told: Vec<String> = resources.findings.iter().map(ToString::to_string).collect();
    for expected in [
        "HTTPRoute other/r: spec.parentRefs[0]: has no effect: a route of another namespace does not apply to Service shop/cart",
        "HTTPRoute other/r: spec.parentRefs[1]: is not a Service; it has no effect in a mesh",
        "AuthorizationPolicy shop/p: spec.targetRefs: not enforced on Service shop/web: it has no waypoint",
        "AuthorizationPolicy shop/p: spec.targetRefs: not enforced on GatewayClass istio-waypoint: only a policy of the root namespace may be attached to a class",
        "AuthorizationPolicy shop/p: spec.targetRefs: not enforced on Pod shop/a: targets are Services, Gateways and GatewayClasses",
    ] {
        assert!(told.contains(&expected.to_owned()), "{told:#?}\n{expected}");
    }
}
