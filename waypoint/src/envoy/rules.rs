//! RBAC protos → [`Rules`].
//!
//! Everything in here decides what is allowed, so nothing is ignored: an unknown field, variant or
//! matcher refuses the resource.

use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy as ProtoPolicy, Principal, Rbac, SourcedMetadata, rbac::Action,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::filter_state_matcher::Matcher as FilterState;
use envoy_types::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    FilterStateMatcher, MetadataMatcher, PathMatcher,
};
use envoy_types::pb::google::protobuf::Any;

use crate::envoy::at::{At, Compiled, nothing_left, unpack_strict};
use crate::envoy::matching::{cidr_range, header, string};
use crate::plan::Name;
use crate::routes::matching::StringMatch;
use crate::rules::template::Template;
use crate::rules::{Condition, Policy, RuleAction, Rules};

/// Filter-state keys under which Istio keeps identities.
const PEER: &str = "io.istio.peer_principal";
const LOCAL: &str = "io.istio.local_principal";

/// How deep conditions may nest; the decoder's own limit is 100, and Istio nests five.
const MAX_DEPTH: usize = 32;

/// An `envoy.filters.http.rbac` filter. `None`: it only has shadow rules, which change nothing.
pub(crate) fn http_filter(config: &Any, at: &At<'_>) -> Compiled<Option<Rules>> {
    let mut filter: HttpRbac = unpack_strict(config, at)?;
    let rules = filter.rules.take();
    filter.rules_stat_prefix.clear();
    filter.shadow_rules = None;
    filter.shadow_rules_stat_prefix.clear();
    filter.track_per_rule_stats = false;
    nothing_left(&filter, at)?;
    rules
        .map(|rules| compile(rules, &at.field("rules")))
        .transpose()
}

/// An `envoy.filters.network.rbac` filter. `None`: it only has shadow rules.
pub(crate) fn network_filter(config: &Any, at: &At<'_>) -> Compiled<Option<Rules>> {
    let mut filter: NetworkRbac = unpack_strict(config, at)?;
    let rules = filter.rules.take();
    filter.stat_prefix.clear();
    filter.shadow_rules = None;
    filter.shadow_rules_stat_prefix.clear();
    // Ours are evaluated before the first byte either way, which is stricter than both kinds.
    filter.enforcement_type = 0;
    nothing_left(&filter, at)?;
    rules
        .map(|rules| compile(rules, &at.field("rules")))
        .transpose()
}

pub(crate) fn compile(mut rbac: Rbac, at: &At<'_>) -> Compiled<Rules> {
    let action = match Action::try_from(rbac.action) {
        Ok(Action::Allow) => RuleAction::Allow,
        Ok(Action::Deny) => RuleAction::Deny,
        Ok(Action::Log) => RuleAction::Log,
        Err(_) => return Err(at.refuse(format_args!("has unknown action {}", rbac.action))),
    };
    rbac.action = 0;
    let mut policies = std::mem::take(&mut rbac.policies)
        .into_iter()
        .map(|(name, proto)| policy(&name, proto, &at.key("policies", &name)))
        .collect::<Compiled<Vec<_>>>()?;
    nothing_left(&rbac, at)?;
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Rules { action, policies })
}

fn policy(name: &str, mut proto: ProtoPolicy, at: &At<'_>) -> Compiled<Policy> {
    let permissions = std::mem::take(&mut proto.permissions);
    let principals = std::mem::take(&mut proto.principals);
    nothing_left(&proto, at)?;
    if permissions.is_empty() || principals.is_empty() {
        return Err(at.refuse("needs at least one permission and one principal"));
    }
    let permissions = permissions.into_iter().enumerate();
    let principals = principals.into_iter().enumerate();
    Ok(Policy {
        name: Name::from(name),
        permissions: permissions
            .map(|(i, one)| permission(one, &at.index("permissions", i), MAX_DEPTH))
            .collect::<Compiled<_>>()?,
        principals: principals
            .map(|(i, one)| principal(one, &at.index("principals", i), MAX_DEPTH))
            .collect::<Compiled<_>>()?,
    })
}

#[expect(deprecated, reason = "Istio sends the deprecated metadata matcher")]
fn permission(proto: Permission, at: &At<'_>, depth: usize) -> Compiled<Condition> {
    let deeper = depth
        .checked_sub(1)
        .ok_or_else(|| at.refuse("is nested too deeply"))?;
    let rule = proto.rule.ok_or_else(|| at.refuse("has no rule"))?;
    Ok(match rule {
        Rule::AndRules(set) => Condition::All(permissions(set.rules, at, "and_rules", deeper)?),
        Rule::OrRules(set) => Condition::Any(permissions(set.rules, at, "or_rules", deeper)?),
        Rule::NotRule(one) => {
            Condition::Not(Box::new(permission(*one, &at.field("not_rule"), deeper)?))
        }
        Rule::Any(always) => constant(always, at)?,
        Rule::Header(matcher) => Condition::Header(header(&matcher, &at.field("header"))?),
        Rule::UrlPath(matcher) => url_path(matcher, &at.field("url_path"))?,
        Rule::UriTemplate(extension) => {
            let at = at.field("uri_template");
            let config = extension
                .typed_config
                .ok_or_else(|| at.refuse("has no config"))?;
            let config: UriTemplateMatchConfig = unpack_strict(&config, &at)?;
            let template = Template::new(&config.path_template).map_err(|e| at.refuse(e))?;
            Condition::PathTemplate(template)
        }
        Rule::DestinationIp(range) => {
            Condition::DestinationIp(cidr_range(&range, &at.field("destination_ip"))?)
        }
        Rule::DestinationPort(number) => {
            let number = port(number, &at.field("destination_port"))?;
            Condition::DestinationPort(number..=number)
        }
        Rule::DestinationPortRange(range) => {
            let at = at.field("destination_port_range");
            let bound = |value: i32| u32::try_from(value).map_err(|_| at.refuse("is negative"));
            // The end is not part of the range.
            let end = bound(range.end)?
                .checked_sub(1)
                .ok_or_else(|| at.refuse("is empty"))?;
            Condition::DestinationPort(port(bound(range.start)?, &at)?..=port(end, &at)?)
        }
        Rule::RequestedServerName(matcher) => {
            Condition::ServerName(string(&matcher, &at.field("requested_server_name"))?)
        }
        Rule::Metadata(matcher) => metadata(&matcher, &at.field("metadata"))?,
        Rule::SourcedMetadata(sourced) => sourced_metadata(sourced, &at.field("sourced_metadata"))?,
        Rule::Matcher(extension) => {
            return Err(at.refuse(format_args!("unsupported matcher {:?}", extension.name)));
        }
    })
}

fn permissions(
    list: Vec<Permission>,
    at: &At<'_>,
    name: &str,
    depth: usize,
) -> Compiled<Vec<Condition>> {
    let list = list.into_iter().enumerate();
    list.map(|(i, one)| permission(one, &at.index(name, i), depth))
        .collect()
}

#[expect(deprecated, reason = "Istio sends the deprecated metadata matcher")]
fn principal(proto: Principal, at: &At<'_>, depth: usize) -> Compiled<Condition> {
    let deeper = depth
        .checked_sub(1)
        .ok_or_else(|| at.refuse("is nested too deeply"))?;
    let identifier = proto
        .identifier
        .ok_or_else(|| at.refuse("has no identifier"))?;
    Ok(match identifier {
        Identifier::AndIds(set) => Condition::All(principals(set.ids, at, "and_ids", deeper)?),
        Identifier::OrIds(set) => Condition::Any(principals(set.ids, at, "or_ids", deeper)?),
        Identifier::NotId(one) => {
            Condition::Not(Box::new(principal(*one, &at.field("not_id"), deeper)?))
        }
        Identifier::Any(always) => constant(always, at)?,
        Identifier::Authenticated(who) => {
            let at = at.field("authenticated");
            Condition::Peer(
                who.principal_name
                    .map(|name| string(&name, &at))
                    .transpose()?,
            )
        }
        // The deprecated `source_ip` means the address as forwarded.
        Identifier::SourceIp(range) => {
            Condition::RemoteIp(cidr_range(&range, &at.field("source_ip"))?)
        }
        Identifier::DirectRemoteIp(range) => {
            Condition::SourceIp(cidr_range(&range, &at.field("direct_remote_ip"))?)
        }
        Identifier::RemoteIp(range) => {
            Condition::RemoteIp(cidr_range(&range, &at.field("remote_ip"))?)
        }
        Identifier::Header(matcher) => Condition::Header(header(&matcher, &at.field("header"))?),
        Identifier::UrlPath(matcher) => url_path(matcher, &at.field("url_path"))?,
        Identifier::Metadata(matcher) => metadata(&matcher, &at.field("metadata"))?,
        Identifier::FilterState(matcher) => filter_state(matcher, &at.field("filter_state"))?,
        Identifier::SourcedMetadata(sourced) => {
            sourced_metadata(sourced, &at.field("sourced_metadata"))?
        }
        Identifier::Custom(extension) => {
            return Err(at.refuse(format_args!("unsupported principal {:?}", extension.name)));
        }
    })
}

fn principals(
    list: Vec<Principal>,
    at: &At<'_>,
    name: &str,
    depth: usize,
) -> Compiled<Vec<Condition>> {
    let list = list.into_iter().enumerate();
    list.map(|(i, one)| principal(one, &at.index(name, i), depth))
        .collect()
}

/// `any: false` is not valid in Envoy either.
fn constant(always: bool, at: &At<'_>) -> Compiled<Condition> {
    if always {
        Ok(Condition::Constant(true))
    } else {
        Err(at.refuse("`any` must be true"))
    }
}

fn port(number: u32, at: &At<'_>) -> Compiled<u16> {
    u16::try_from(number).map_err(|_| at.refuse(format_args!("{number} is no port")))
}

fn url_path(matcher: PathMatcher, at: &At<'_>) -> Compiled<Condition> {
    match matcher.rule {
        Some(PathRule::Path(matcher)) => Ok(Condition::Path(string(&matcher, at)?)),
        None => Err(at.refuse("has no rule")),
    }
}

fn filter_state(matcher: FilterStateMatcher, at: &At<'_>) -> Compiled<Condition> {
    let test: StringMatch = match matcher.matcher {
        Some(FilterState::StringMatch(matcher)) => string(&matcher, at)?,
        Some(FilterState::AddressMatch(_)) => {
            return Err(at.refuse("address matches on filter state are not supported"));
        }
        None => return Err(at.refuse("has no matcher")),
    };
    match matcher.key.as_str() {
        PEER => Ok(Condition::Peer(Some(test))),
        LOCAL => Ok(Condition::Local(test)),
        other => Err(at.refuse(format_args!("filter state {other:?} does not exist here"))),
    }
}

/// Dynamic metadata. Only filters write it, and a chain with a filter that does (a JWT check) is
/// refused; so there never is any, and a matcher finds nothing.
fn metadata(matcher: &MetadataMatcher, at: &At<'_>) -> Compiled<Condition> {
    if matcher.filter.is_empty() || matcher.value.is_none() {
        return Err(at.refuse("is incomplete"));
    }
    Ok(Condition::Constant(matcher.invert))
}

fn sourced_metadata(sourced: SourcedMetadata, at: &At<'_>) -> Compiled<Condition> {
    match (sourced.metadata_source, sourced.metadata_matcher) {
        (0, Some(matcher)) => metadata(&matcher, at),
        _ => Err(at.refuse("only dynamic metadata is supported")),
    }
}

#[cfg(test)]
mod tests;
