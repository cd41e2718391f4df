//! The matcher of `main_internal`: address, then port, then, where nobody says what is spoken, the
//! first bytes.

use std::collections::HashMap;
use std::net::IpAddr;

use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::{
    ApplicationProtocolInput, DestinationIpInput, DestinationPortInput,
};
use envoy_types::pb::google::protobuf::{Any, StringValue};
use envoy_types::pb::xds::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Outcome;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch};

use super::chain::{DIRECT_HTTP, DIRECT_TCP};
use super::pack::{IP_MATCHER, PLAIN, any};
use super::served::{Protocol, Served, Service};
use super::wire::{IpMatcher, IpRangeMatcher, number};

/// HTTP as the inspector names it, quoted as Envoy's input gives it.
const HTTP: [&str; 2] = ["'h2c'", "'http/1.1'"];

/// `None` when nothing is served.
pub(super) fn matcher(served: &Served<'_>) -> Option<Matcher> {
    let mut range_matchers: Vec<IpRangeMatcher> = served
        .services
        .iter()
        .filter(|service| !service.addresses.is_empty() && !service.ports.is_empty())
        .map(|service| IpRangeMatcher {
            ranges: service
                .addresses
                .iter()
                .map(|address| range(*address))
                .collect(),
            on_match: Some(next(ports(service))),
        })
        .collect();
    if !served.pods.is_empty() {
        range_matchers.push(IpRangeMatcher {
            ranges: served.pods.iter().map(|address| range(*address)).collect(),
            on_match: Some(next(sniff(DIRECT_HTTP, DIRECT_TCP))),
        });
    }
    if range_matchers.is_empty() {
        return None;
    }
    let ips = IpMatcher { range_matchers };
    Some(tree(
        extension("ip", any(&DestinationIpInput::default(), &PLAIN)),
        TreeType::CustomMatch(extension("ip", any(&ips, &IP_MATCHER))),
        None,
    ))
}

fn ports(service: &Service) -> Matcher {
    let map: HashMap<String, OnMatch> = service
        .ports
        .iter()
        .map(|port| {
            let (http, tcp) = (
                service.chain(port.number, true),
                service.chain(port.number, false),
            );
            let outcome = match port.protocol {
                Protocol::Http1 | Protocol::Http2 => chain(&http),
                Protocol::Tcp => chain(&tcp),
                Protocol::Unknown => next(sniff(&http, &tcp)),
            };
            (port.number.to_string(), outcome)
        })
        .collect();
    let input = extension("port", any(&DestinationPortInput::default(), &PLAIN));
    tree(input, TreeType::ExactMatchMap(MatchMap { map }), None)
}

fn sniff(http: &str, tcp: &str) -> Matcher {
    let map = HTTP
        .iter()
        .map(|protocol| ((*protocol).to_owned(), chain(http)))
        .collect();
    let input = any(&ApplicationProtocolInput::default(), &PLAIN);
    tree(
        extension("application-protocol", input),
        TreeType::ExactMatchMap(MatchMap { map }),
        Some(chain(tcp)),
    )
}

fn tree(input: TypedExtensionConfig, branches: TreeType, rest: Option<OnMatch>) -> Matcher {
    Matcher {
        on_no_match: rest.map(Box::new),
        matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(input),
            tree_type: Some(branches),
        })),
    }
}

fn next(matcher: Matcher) -> OnMatch {
    OnMatch {
        on_match: Some(Outcome::Matcher(Box::new(matcher))),
        ..OnMatch::default()
    }
}

fn chain(name: &str) -> OnMatch {
    let named = any(
        &StringValue {
            value: name.to_owned(),
        },
        &PLAIN,
    );
    OnMatch {
        on_match: Some(Outcome::Action(extension(name, named))),
        ..OnMatch::default()
    }
}

fn extension(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(config),
    }
}

fn range(address: IpAddr) -> CidrRange {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = number(length);
    CidrRange {
        address_prefix: address.to_string(),
        prefix_len,
    }
}
