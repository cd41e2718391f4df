//! `HttpConnectionManager` of a service port → [`HttpChain`].

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as ProtoMutation;
use envoy_types::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3::HeaderMutation;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use http::HeaderValue;

use crate::envoy::at::{
    At, Compiled, holds, ignore_rest, nothing_left, timeout, type_name, unpack,
};
use crate::envoy::matching::{header_name, put};
use crate::envoy::{logging, metrics, route, rules};
use crate::filter::Filter;
use crate::filter::headers::Edit;
use crate::plan::{
    CONNECTION_IDLE_TIMEOUT, ClientCert, EscapedSlashes, HttpChain, HttpSettings, MAX_HEADER_BYTES,
    MAX_HEADERS, Name, PathNormalization, Reporter, Underscores,
};

/// Largest header block we are willing to read, whatever the configuration says (Envoy's own cap).
const HEADER_BYTES_CAP: u32 = 8192;

pub(crate) fn chain(
    name: &Name,
    mut proto: HttpConnectionManager,
    at: &At<'_>,
) -> Compiled<HttpChain> {
    match CodecType::try_from(proto.codec_type) {
        Ok(CodecType::Auto | CodecType::Http1 | CodecType::Http2) => proto.codec_type = 0,
        _ => return Err(at.refuse("has a codec that is not supported")),
    }
    let filters = http_filters(
        std::mem::take(&mut proto.http_filters),
        &at.field("http_filters"),
    )?;
    let routes = match proto.route_specifier.take() {
        Some(RouteSpecifier::RouteConfig(config)) => {
            route::table(config, &at.field("route_config"))?
        }
        Some(RouteSpecifier::Rds(_)) => return Err(at.refuse("RDS is not supported")),
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            return Err(at.refuse("scoped routes are not supported"));
        }
        None => return Err(at.refuse("has no routes")),
    };
    let logs = logging::access_logs(&std::mem::take(&mut proto.access_log), at);
    let mut settings = settings(&mut proto, at)?;
    settings.suppress_envoy_headers = filters.suppress_envoy_headers;
    nothing_left(&proto, at)?;
    Ok(HttpChain {
        name: Arc::clone(name),
        settings,
        filters: filters.filters,
        routes,
        logs,
        reporter: filters.reporter,
    })
}

/// Takes the settings out of the proto, and drops what has no influence here.
fn settings(proto: &mut HttpConnectionManager, at: &At<'_>) -> Compiled<HttpSettings> {
    let mut settings = HttpSettings {
        path: path(proto, at)?,
        server: server(proto, at)?,
        client_cert: client_cert(proto, at)?,
        generate_request_id: proto.generate_request_id.take().is_none_or(|on| on.value),
        append_forwarded_port: std::mem::take(&mut proto.append_x_forwarded_port),
        proxy_100_continue: std::mem::take(&mut proto.proxy_100_continue),
        ..HttpSettings::default()
    };
    settings.stream_idle_timeout = timeout(
        proto.stream_idle_timeout.take().as_ref(),
        Some(STREAM_IDLE_TIMEOUT),
        &at.field("stream_idle_timeout"),
    )?;
    settings.request_timeout = timeout(
        proto.request_timeout.take().as_ref(),
        None,
        &at.field("request_timeout"),
    )?;
    settings.request_headers_timeout = timeout(
        proto.request_headers_timeout.take().as_ref(),
        None,
        &at.field("request_headers_timeout"),
    )?;
    if let Some(common) = proto.common_http_protocol_options.take() {
        common_options(
            common,
            &mut settings,
            &at.field("common_http_protocol_options"),
        )?;
    }
    if let Some(mut http1) = proto.http_protocol_options.take() {
        settings.accept_http_10 = std::mem::take(&mut http1.accept_http_10);
        ignore_rest(&http1, &at.field("http_protocol_options"));
    }
    if let Some(mut http2) = proto.http2_protocol_options.take() {
        settings.max_streams = http2.max_concurrent_streams.take().map(|max| max.value);
        ignore_rest(&http2, &at.field("http2_protocol_options"));
    }
    settings.max_header_bytes = match proto.max_request_headers_kb.take() {
        Some(limit) => usize::try_from(limit.value.min(HEADER_BYTES_CAP)).unwrap_or(60) * 1024,
        None => MAX_HEADER_BYTES,
    };
    let upgrades = std::mem::take(&mut proto.upgrade_configs);
    for upgrade in upgrades {
        if upgrade.enabled.is_none_or(|enabled| enabled.value) {
            if !upgrade.filters.is_empty() {
                return Err(at
                    .field("upgrade_configs")
                    .refuse("filters are not supported"));
            }
            settings
                .upgrades
                .push(Name::from(upgrade.upgrade_type.to_ascii_lowercase()));
        }
    }
    if proto.use_remote_address.take().is_some_and(|on| on.value) {
        return Err(at.refuse("use_remote_address is not supported"));
    }
    // Names, tracing (trace headers are passed on in any case) and tuning without effect here.
    proto.stat_prefix.clear();
    if proto
        .tracing
        .take()
        .is_some_and(|tracing| tracing.provider.is_some())
    {
        at.field("tracing").warn("spans are not reported");
    }
    proto.request_id_extension = None;
    proto.drain_timeout = None;
    proto.delayed_close_timeout = None;
    proto.internal_address_config = None;
    proto.set_current_client_cert_details = None;
    proto.http1_safe_max_connection_duration = false;
    proto.access_log_options = None;
    Ok(settings)
}

/// Envoy's default limit of silence on a stream.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

fn path(proto: &mut HttpConnectionManager, at: &At<'_>) -> Compiled<PathNormalization> {
    let action = std::mem::take(&mut proto.path_with_escaped_slashes_action);
    let escaped_slashes = match PathWithEscapedSlashesAction::try_from(action) {
        Ok(
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged,
        ) => EscapedSlashes::Keep,
        Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => EscapedSlashes::DecodeAndRedirect,
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::Decode,
        Err(_) => return Err(at.refuse("has an unknown path_with_escaped_slashes_action")),
    };
    Ok(PathNormalization {
        normalize: proto.normalize_path.take().is_some_and(|on| on.value),
        merge_slashes: std::mem::take(&mut proto.merge_slashes),
        escaped_slashes,
    })
}

fn server(proto: &mut HttpConnectionManager, at: &At<'_>) -> Compiled<Option<HeaderValue>> {
    let name = std::mem::take(&mut proto.server_name);
    let name = if name.is_empty() {
        "envoy"
    } else {
        name.as_str()
    };
    let how = std::mem::take(&mut proto.server_header_transformation);
    match ServerHeaderTransformation::try_from(how) {
        Ok(ServerHeaderTransformation::Overwrite) => HeaderValue::from_str(name)
            .map(Some)
            .map_err(|_| at.refuse("server_name is no header value")),
        Ok(ServerHeaderTransformation::PassThrough) => Ok(None),
        _ => Err(at.refuse("has an unsupported server_header_transformation")),
    }
}

fn client_cert(proto: &mut HttpConnectionManager, at: &At<'_>) -> Compiled<ClientCert> {
    let how = std::mem::take(&mut proto.forward_client_cert_details);
    match ForwardClientCertDetails::try_from(how) {
        Ok(ForwardClientCertDetails::Sanitize) => Ok(ClientCert::Remove),
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => Ok(ClientCert::Forward),
        // The others depend on a TLS connection, and what is inside HBONE is none: Envoy drops the
        // header then.
        Ok(_) => Ok(ClientCert::Remove),
        Err(_) => Err(at.refuse("has an unknown forward_client_cert_details")),
    }
}

fn common_options(
    mut proto: HttpProtocolOptions,
    settings: &mut HttpSettings,
    at: &At<'_>,
) -> Compiled<()> {
    settings.idle_timeout = timeout(
        proto.idle_timeout.take().as_ref(),
        Some(CONNECTION_IDLE_TIMEOUT),
        &at.field("idle_timeout"),
    )?;
    settings.max_connection_duration = timeout(
        proto.max_connection_duration.take().as_ref(),
        None,
        &at.field("max_connection_duration"),
    )?;
    settings.max_stream_duration = timeout(
        proto.max_stream_duration.take().as_ref(),
        None,
        &at.field("max_stream_duration"),
    )?;
    settings.max_headers = proto.max_headers_count.take().map_or(MAX_HEADERS, |count| {
        usize::try_from(count.value).unwrap_or(MAX_HEADERS)
    });
    let action = std::mem::take(&mut proto.headers_with_underscores_action);
    settings.underscores = match HeadersWithUnderscoresAction::try_from(action) {
        Ok(HeadersWithUnderscoresAction::Allow) => Underscores::Allow,
        Ok(HeadersWithUnderscoresAction::RejectRequest) => Underscores::Reject,
        Ok(HeadersWithUnderscoresAction::DropHeader) => Underscores::Drop,
        Err(_) => return Err(at.refuse("has an unknown headers_with_underscores_action")),
    };
    ignore_rest(&proto, at);
    Ok(())
}

/// The compiled filter list.
#[derive(Default)]
pub(crate) struct Filters {
    pub(crate) filters: Vec<Filter>,
    pub(crate) reporter: Option<Arc<Reporter>>,
    pub(crate) suppress_envoy_headers: bool,
}

pub(crate) fn http_filters(list: Vec<HttpFilter>, at: &At<'_>) -> Compiled<Filters> {
    let mut out = Filters::default();
    let last = list
        .len()
        .checked_sub(1)
        .ok_or_else(|| at.refuse("has no router"))?;
    for (index, filter) in list.into_iter().enumerate() {
        let name = filter.name.clone();
        let at = at.key("filter", &name);
        if filter.disabled {
            continue;
        }
        let config = match filter.config_type {
            Some(http_filter::ConfigType::TypedConfig(config)) => config,
            _ if filter.is_optional => continue,
            Some(http_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(at.refuse("extension discovery is not supported"));
            }
            None => return Err(at.refuse("has no config")),
        };
        let is_router = holds::<Router>(&config);
        if is_router != (index == last) {
            return Err(at.refuse("the router must be the last filter and the only one"));
        }
        match http_filter(&config, &mut out, &at) {
            Err(refusal) if !filter.is_optional || is_known(&config) => return Err(refusal),
            Err(refusal) => at.warn(format_args!("optional and left out: {}", refusal.reason)),
            Ok(()) => {}
        }
    }
    Ok(out)
}

/// Filters that may not be skipped even if marked optional: they are understood and malformed.
fn is_known(config: &Any) -> bool {
    holds::<Rbac>(config) || holds::<HeaderMutation>(config)
}

pub(crate) fn http_filter(config: &Any, out: &mut Filters, at: &At<'_>) -> Compiled<()> {
    if holds::<Rbac>(config) {
        if let Some(rules) = rules::http_filter(config, at)? {
            out.filters.push(Filter::Rules(Arc::new(rules)));
        }
        return Ok(());
    }
    if holds::<HeaderMutation>(config) {
        out.filters.push(mutation(unpack(config, at)?, at)?);
        return Ok(());
    }
    if holds::<Router>(config) {
        let router: Router = unpack(config, at)?;
        out.suppress_envoy_headers = router.suppress_envoy_headers;
        return Ok(());
    }
    if let Some(reporter) = metrics::reporter(config, at)? {
        out.reporter = Some(Arc::new(reporter));
        return Ok(());
    }
    if metrics::is_peer_discovery(config, at)? || holds::<GrpcStats>(config) {
        // Both only feed the metrics, and ours are fed in any case.
        return Ok(());
    }
    // Both do nothing without per-route settings, which are refused with their route.
    if holds::<HttpFault>(config) {
        return nothing_left(&unpack::<HttpFault>(config, at)?, at);
    }
    if holds::<Cors>(config) {
        return nothing_left(&unpack::<Cors>(config, at)?, at);
    }
    Err(at.refuse(format_args!(
        "filter {} is not supported",
        type_name(config)
    )))
}

fn mutation(mut proto: HeaderMutation, at: &At<'_>) -> Compiled<Filter> {
    let mut mutations = proto.mutations.take().unwrap_or_default();
    proto.most_specific_header_mutations_wins = false;
    nothing_left(&proto, at)?;
    let request = std::mem::take(&mut mutations.request_mutations);
    let response = std::mem::take(&mut mutations.response_mutations);
    nothing_left(&mutations, at)?;
    let compile = |list: Vec<ProtoMutation>, name| -> Compiled<Vec<Edit>> {
        let list = list.into_iter().enumerate();
        list.map(|(index, one)| one_mutation(one, &at.index(name, index)))
            .collect()
    };
    Ok(Filter::Headers {
        request: compile(request, "request_mutations")?,
        response: compile(response, "response_mutations")?,
    })
}

fn one_mutation(proto: ProtoMutation, at: &At<'_>) -> Compiled<Edit> {
    match proto.action {
        Some(Action::Remove(name)) => Ok(Edit::Remove(header_name(&name, at)?)),
        Some(Action::Append(option)) => put(&option, at),
        Some(Action::RemoveOnMatch(_)) => Err(at.refuse("remove_on_match is not supported")),
        None => Err(at.refuse("has no action")),
    }
}
