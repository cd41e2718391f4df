//! TLS contexts of HBONE: which trust domains may be at the other end.
//!
//! Keys and roots never come from here: the contexts must name the workload's own certificate
//! (`default`) and root (`ROOTCA`), which the certificate client provides.

use envoy_types::pb::envoy::config::core::v3::TransportSocket;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Any;

use crate::envoy::at::{At, Compiled, nothing_left, unpack_strict};
use crate::plan::Name;

/// The names under which Istio's agent serves the workload's own certificate and root.
const OWN_CERTIFICATE: &str = "default";
const OWN_ROOT: &str = "ROOTCA";
/// Every HBONE connection is HTTP/2.
const ALPN: &str = "h2";

/// The `typed_config` of a transport socket.
pub(crate) fn socket_config<'a>(
    socket: Option<&'a TransportSocket>,
    at: &At<'_>,
) -> Compiled<&'a Any> {
    match socket.and_then(|socket| socket.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(config)) => Ok(config),
        None => Err(at.refuse("has no transport socket")),
    }
}

/// Trust domains that may connect to `connect_terminate`. Empty: only our own.
pub(crate) fn downstream(socket: Option<&TransportSocket>, at: &At<'_>) -> Compiled<Vec<Name>> {
    let mut context: DownstreamTlsContext = unpack_strict(socket_config(socket, at)?, at)?;
    if !context
        .require_client_certificate
        .take()
        .is_some_and(|on| on.value)
    {
        return Err(at
            .field("require_client_certificate")
            .refuse("must be true"));
    }
    // No session is ever resumed here.
    context.disable_stateful_session_resumption = false;
    let common = context.common_tls_context.take();
    nothing_left(&context, at)?;
    common_context(common.unwrap_or_default(), &at.field("common_tls_context"))
}

/// Trust domains that `connect_originate` may connect to. Empty: only our own.
pub(crate) fn upstream(socket: Option<&TransportSocket>, at: &At<'_>) -> Compiled<Vec<Name>> {
    let mut context: UpstreamTlsContext = unpack_strict(socket_config(socket, at)?, at)?;
    let common = context.common_tls_context.take();
    nothing_left(&context, at)?;
    common_context(common.unwrap_or_default(), &at.field("common_tls_context"))
}

fn common_context(mut common: CommonTlsContext, at: &At<'_>) -> Compiled<Vec<Name>> {
    // Ours is TLS 1.3 with fixed cipher suites and key exchange: never weaker than what is asked.
    common.tls_params = None;
    let alpn = std::mem::take(&mut common.alpn_protocols);
    if !alpn.is_empty() && !alpn.iter().any(|protocol| protocol == ALPN) {
        return Err(at.field("alpn_protocols").refuse("must offer h2"));
    }
    for secret in std::mem::take(&mut common.tls_certificate_sds_secret_configs) {
        if secret.name != OWN_CERTIFICATE {
            return Err(at
                .key("tls_certificate_sds_secret_configs", &secret.name)
                .refuse("is not served here"));
        }
    }
    let context = match common.validation_context_type.take() {
        Some(ValidationContextType::CombinedValidationContext(mut combined)) => {
            let root = combined.validation_context_sds_secret_config.take();
            if root.is_none_or(|root| root.name != OWN_ROOT) {
                return Err(at.refuse("must be verified by the mesh's own root"));
            }
            let context = combined
                .default_validation_context
                .take()
                .unwrap_or_default();
            nothing_left(&combined, &at.field("combined_validation_context"))?;
            context
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(root))
            if root.name == OWN_ROOT =>
        {
            CertificateValidationContext::default()
        }
        _ => return Err(at.refuse("must be verified by the mesh's own root")),
    };
    nothing_left(&common, at)?;
    trust_domains(context, &at.field("validation_context"))
}

fn trust_domains(mut context: CertificateValidationContext, at: &At<'_>) -> Compiled<Vec<Name>> {
    let names = std::mem::take(&mut context.match_typed_subject_alt_names);
    nothing_left(&context, at)?;
    let mut domains = Vec::new();
    for (index, matcher) in names.iter().enumerate() {
        let at = at.index("match_typed_subject_alt_names", index);
        let domain = trust_domain(matcher)
            .ok_or_else(|| at.refuse("is no prefix of a SPIFFE trust domain"))?;
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    Ok(domains)
}

/// `spiffe://td/` and anything narrower names the trust domain `td`. The names are alternatives, and
/// Istio always lists the whole domain beside the narrower ones.
fn trust_domain(matcher: &SubjectAltNameMatcher) -> Option<Name> {
    let text = match matcher.matcher.as_ref()?.match_pattern.as_ref()? {
        MatchPattern::Prefix(text) => text,
        _ => return None,
    };
    let (domain, _) = text.strip_prefix("spiffe://")?.split_once('/')?;
    let is_uri = matcher.san_type == SanType::Uri as i32;
    (is_uri && !domain.is_empty()).then(|| Name::from(domain))
}
