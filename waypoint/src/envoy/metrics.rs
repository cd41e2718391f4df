//! Istio's own filters, which come as `TypedStruct`: metrics and the discovery of peers' names.

use envoy_types::pb::google::protobuf::{Any, Struct, Value, value::Kind};

use crate::envoy::at::{At, Compiled, decode, type_name};
use crate::envoy::xds::TypedStruct;
use crate::plan::{Name, Reporter};

/// The two names under which a `TypedStruct` travels; both have the same fields.
const TYPED_STRUCT: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

const STATS: &str = "stats.PluginConfig";
const PEER_DISCOVERY: [&str; 3] = [
    "io.istio.http.peer_metadata.Config",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "envoy.extensions.network_filters.peer_metadata.Config",
];

/// The message name in a type URL, whatever its prefix.
fn bare(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// Name and value of a `TypedStruct`, or of a plain message of the same name.
fn typed_struct(config: &Any, at: &At<'_>) -> Compiled<(String, Option<Struct>)> {
    if TYPED_STRUCT.contains(&type_name(config)) {
        let inner: TypedStruct = decode(config, at)?;
        return Ok((bare(&inner.type_url).to_owned(), inner.value));
    }
    Ok((bare(&config.type_url).to_owned(), None))
}

/// Whether this is one of the filters that look up peers. Ours are always looked up.
pub(crate) fn is_peer_discovery(config: &Any, at: &At<'_>) -> Compiled<bool> {
    Ok(PEER_DISCOVERY.contains(&typed_struct(config, at)?.0.as_str()))
}

/// The metrics filter. `None`: it is not one.
pub(crate) fn reporter(config: &Any, at: &At<'_>) -> Compiled<Option<Reporter>> {
    let (name, value) = typed_struct(config, at)?;
    if name != STATS {
        return Ok(None);
    }
    let mut reporter = Reporter::default();
    for metric in list(value.as_ref(), "metrics") {
        let Some(Kind::StructValue(metric)) = &metric.kind else {
            continue;
        };
        let name = string(metric.fields.get("name"));
        if matches!(
            metric
                .fields
                .get("drop")
                .and_then(|drop| drop.kind.as_ref()),
            Some(Kind::BoolValue(true))
        ) {
            reporter.dropped.push(Name::from(name));
        }
        for tag in list(Some(metric), "tags_to_remove") {
            reporter.removed_labels.push(Name::from(string(Some(tag))));
        }
        if metric.fields.contains_key("dimensions") {
            at.warn(format_args!(
                "custom dimensions of metric {name:?} are not computed"
            ));
        }
    }
    Ok(Some(reporter))
}

fn list<'a>(value: Option<&'a Struct>, key: &str) -> &'a [Value] {
    match value
        .and_then(|value| value.fields.get(key))
        .and_then(|value| value.kind.as_ref())
    {
        Some(Kind::ListValue(list)) => &list.values,
        _ => &[],
    }
}

fn string(value: Option<&Value>) -> &str {
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text,
        _ => "",
    }
}
