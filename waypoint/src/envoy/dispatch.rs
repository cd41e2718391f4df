//! The matcher of `main_internal` → [`Dispatch`].

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::{
    ApplicationProtocolInput, DestinationIpInput, DestinationPortInput,
};
use envoy_types::pb::google::protobuf::{Any, StringValue};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::TreeType;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Outcome;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch};

use crate::envoy::at::{At, Compiled, Refusal, holds, nothing_left, type_name, unpack_strict};
use crate::envoy::listener::Chain;
use crate::envoy::matching::cidr;
use crate::envoy::xds::IpMatcher;
use crate::plan::{Dispatch, Name, PortMap, Target};

/// Protocols as the inspector names them. HTTP/2 by prior knowledge shows as `h2c`.
const HTTP: [&str; 3] = ["'h2c'", "'http/1.1'", "'http/1.0'"];

/// `None` stands for a chain that was refused and has no earlier version.
type Chains = BTreeMap<Name, Option<Chain>>;

pub(crate) fn dispatch(
    matcher: Matcher,
    chains: &Chains,
    refused: &mut Vec<Refusal>,
    at: &At<'_>,
) -> Compiled<Dispatch> {
    let mut out = Dispatch::default();
    let (input, tree, on_no_match) = tree(matcher, at)?;
    if on_no_match.is_some() {
        return Err(at.field("on_no_match").refuse("is not supported here"));
    }
    if !holds::<DestinationIpInput>(&input) {
        return Err(at.refuse(format_args!("input {} is not supported", type_name(&input))));
    }
    let TreeType::CustomMatch(custom) = tree else {
        return Err(at.refuse("must be an IP matcher"));
    };
    let at = at.field("custom_match");
    let config = custom
        .typed_config
        .ok_or_else(|| at.refuse("has no config"))?;
    let ips: IpMatcher = unpack_strict(&config, &at)?;
    for (index, range) in ips.range_matchers.into_iter().enumerate() {
        let at = at.index("range_matchers", index);
        if range.ranges.is_empty() {
            return Err(at.refuse("has no ranges"));
        }
        if range.exclusive {
            return Err(at.field("exclusive").refuse("is not supported"));
        }
        let ports = ports(range.on_match, chains, refused, &at)?;
        for (index, range) in range.ranges.iter().enumerate() {
            let at = at.index("ranges", index);
            let length = range.prefix_len.map(|length| length.value);
            out.add_range(cidr(&range.address_prefix, length, &at)?, ports.clone());
        }
    }
    Ok(out)
}

/// Input, branches and the rest of a matcher that must be a tree.
fn tree(mut matcher: Matcher, at: &At<'_>) -> Compiled<(Any, TreeType, Option<OnMatch>)> {
    let on_no_match = matcher.on_no_match.take().map(|rest| *rest);
    match matcher.matcher_type.take() {
        Some(MatcherType::MatcherTree(MatcherTree { input, tree_type })) => {
            let input = input.and_then(|input| input.typed_config);
            let input = input.ok_or_else(|| at.field("input").refuse("is missing"))?;
            let tree = tree_type.ok_or_else(|| at.refuse("has no branches"))?;
            Ok((input, tree, on_no_match))
        }
        Some(MatcherType::MatcherList(_)) => Err(at.refuse("matcher lists are not supported")),
        None => Err(at.refuse("is empty")),
    }
}

/// What an address does with each port.
fn ports(
    on_match: Option<OnMatch>,
    chains: &Chains,
    refused: &mut Vec<Refusal>,
    at: &At<'_>,
) -> Compiled<PortMap> {
    let matcher = match outcome(on_match, at)? {
        Outcome::Matcher(matcher) => *matcher,
        Outcome::Action(action) => {
            return Ok(PortMap::Any(target(&action, chains, refused, at)?));
        }
    };
    let (input, tree, on_no_match) = tree(matcher, at)?;
    if holds::<ApplicationProtocolInput>(&input) {
        return Ok(PortMap::Any(sniff(tree, on_no_match, chains, refused, at)?));
    }
    if !holds::<DestinationPortInput>(&input) {
        return Err(at.refuse(format_args!("input {} is not supported", type_name(&input))));
    }
    if on_no_match.is_some() {
        return Err(at.field("on_no_match").refuse("is not supported for ports"));
    }
    let TreeType::ExactMatchMap(map) = tree else {
        return Err(at.refuse("ports must be an exact match map"));
    };
    let mut out = HashMap::with_capacity(map.map.len());
    for (key, on_match) in map.map {
        let at = at.key("port", &key);
        let port: u16 = key.parse().map_err(|_| at.refuse("is no port"))?;
        let target = match outcome(Some(on_match), &at)? {
            Outcome::Action(action) => target(&action, chains, refused, &at)?,
            Outcome::Matcher(matcher) => {
                let (input, tree, on_no_match) = self::tree(*matcher, &at)?;
                if !holds::<ApplicationProtocolInput>(&input) {
                    let name = type_name(&input);
                    return Err(at.refuse(format_args!("input {name} is not supported")));
                }
                sniff(tree, on_no_match, chains, refused, &at)?
            }
        };
        out.insert(port, target);
    }
    Ok(PortMap::Listed(out))
}

fn outcome(on_match: Option<OnMatch>, at: &At<'_>) -> Compiled<Outcome> {
    let mut on_match = on_match.ok_or_else(|| at.field("on_match").refuse("is missing"))?;
    let outcome = on_match
        .on_match
        .take()
        .ok_or_else(|| at.refuse("leads nowhere"))?;
    nothing_left(&on_match, at)?;
    Ok(outcome)
}

/// Names the protocol by its first bytes: HTTP one way, everything else the other.
fn sniff(
    tree: TreeType,
    on_no_match: Option<OnMatch>,
    chains: &Chains,
    refused: &mut Vec<Refusal>,
    at: &At<'_>,
) -> Compiled<Target> {
    let TreeType::ExactMatchMap(map) = tree else {
        return Err(at.refuse("protocols must be an exact match map"));
    };
    let mut http = None;
    for (key, on_match) in map.map {
        let at = at.key("protocol", &key);
        if !HTTP.contains(&key.as_str()) {
            return Err(at.refuse("is not supported"));
        }
        let Outcome::Action(action) = outcome(Some(on_match), &at)? else {
            return Err(at.refuse("must name a chain"));
        };
        if http
            .as_ref()
            .is_some_and(|known: &TypedExtensionConfig| known.name != action.name)
        {
            return Err(at.refuse("must lead to the same chain as the other protocols"));
        }
        http = Some(action);
    }
    let http = http.ok_or_else(|| at.refuse("names no protocol"))?;
    let Outcome::Action(tcp) = outcome(on_no_match, &at.field("on_no_match"))? else {
        return Err(at.field("on_no_match").refuse("must name a chain"));
    };
    let http = target(&http, chains, refused, at)?;
    let tcp = target(&tcp, chains, refused, at)?;
    match (http, tcp) {
        (Target::Http(http), Target::Tcp(tcp)) => Ok(Target::Sniff { http, tcp }),
        // Neither half may serve what belongs to the other one.
        (Target::Refused(name), _) | (_, Target::Refused(name)) => Ok(Target::Refused(name)),
        _ => Err(at.refuse("must lead to an HTTP chain, and else to a TCP chain")),
    }
}

/// The chain that an action names.
fn target(
    action: &TypedExtensionConfig,
    chains: &Chains,
    refused: &mut Vec<Refusal>,
    at: &At<'_>,
) -> Compiled<Target> {
    let config = action.typed_config.as_ref();
    let config = config.ok_or_else(|| at.field("action").refuse("has no config"))?;
    let name: StringValue = unpack_strict(config, &at.field("action"))?;
    let name = Name::from(name.value);
    match chains.get(&name) {
        Some(Some(Chain::Tcp(chain))) => Ok(Target::Tcp(chain.clone())),
        Some(Some(Chain::Http(chain))) => Ok(Target::Http(chain.clone())),
        // Already reported with the chain.
        Some(None) => Ok(Target::Refused(name)),
        None => {
            refused.push(at.refuse(format_args!("names chain {name:?}, which does not exist")));
            Ok(Target::Refused(name))
        }
    }
}
