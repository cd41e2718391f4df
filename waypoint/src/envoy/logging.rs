//! Access-log settings → [`AccessLog`].
//!
//! Logs have no influence on what is allowed: a sink that we do not have is left out with a warning.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLog as ProtoLog, AccessLogFilter, ComparisonFilter,
};
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format as ProtoFormat;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};

use crate::envoy::at::{At, Compiled, holds, type_name, unpack};
use crate::envoy::route::inline;
use crate::format::Format;
use crate::plan::{AccessLog, LogFilter, LogFormat, LogTarget, Name};

/// Comparison operators of Envoy's `ComparisonFilter`.
const EQ: i32 = 0;
const GE: i32 = 1;
const LE: i32 = 2;
const NE: i32 = 3;

pub(crate) fn access_logs(protos: &[ProtoLog], at: &At<'_>) -> Vec<AccessLog> {
    protos
        .iter()
        .enumerate()
        .filter_map(|(index, proto)| {
            let at = at.index("access_log", index);
            match access_log(proto, &at) {
                Ok(log) => Some(log),
                Err(refusal) => {
                    at.warn(format_args!("is left out: {}", refusal.reason));
                    None
                }
            }
        })
        .collect()
}

fn access_log(proto: &ProtoLog, at: &At<'_>) -> Compiled<AccessLog> {
    let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(at.refuse("has no config"));
    };
    if !holds::<FileAccessLog>(config) {
        return Err(at.refuse(format_args!("{} is not supported", type_name(config))));
    }
    let file: FileAccessLog = unpack(config, at)?;
    let to = match file.path.as_str() {
        "/dev/stdout" => LogTarget::Stdout,
        "/dev/stderr" => LogTarget::Stderr,
        other => return Err(at.refuse(format_args!("file {other:?} is not written here"))),
    };
    let only = proto
        .filter
        .as_ref()
        .map_or(Ok(LogFilter::Always), |f| filter(f, at))?;
    Ok(AccessLog {
        to,
        format: format(file.access_log_format, at)?,
        only,
    })
}

fn format(proto: Option<AccessLogFormat>, at: &At<'_>) -> Compiled<LogFormat> {
    let text = |text: &str| {
        Format::parse(text)
            .map(LogFormat::Text)
            .map_err(|error| at.refuse(error))
    };
    #[expect(deprecated, reason = "older control planes send the old fields")]
    match proto {
        None => Ok(LogFormat::Default),
        Some(AccessLogFormat::Format(format)) if format.is_empty() => Ok(LogFormat::Default),
        Some(AccessLogFormat::Format(format)) => text(&format),
        Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
            self::json(&json, at)
        }
        Some(AccessLogFormat::LogFormat(format)) => match format.format {
            None => Ok(LogFormat::Default),
            Some(ProtoFormat::TextFormat(format)) => text(&format),
            Some(ProtoFormat::TextFormatSource(source)) => {
                let bytes = inline(source, at)?;
                text(std::str::from_utf8(&bytes).map_err(|_| at.refuse("is not UTF-8"))?)
            }
            Some(ProtoFormat::JsonFormat(json)) => self::json(&json, at),
        },
    }
}

fn json(fields: &Struct, at: &At<'_>) -> Compiled<LogFormat> {
    let mut out = fields
        .fields
        .iter()
        .map(|(key, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Format::parse(text)
                .map(|format| (Name::from(key.as_str()), format))
                .map_err(|error| at.key("json_format", key).refuse(error)),
            _ => Err(at
                .key("json_format", key)
                .refuse("only strings are supported")),
        })
        .collect::<Compiled<Vec<_>>>()?;
    // The wire carries a map: an order of our own makes lines comparable.
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(LogFormat::Json(out))
}

fn filter(proto: &AccessLogFilter, at: &At<'_>) -> Compiled<LogFilter> {
    let unsupported = || Err(at.refuse("has a filter that is not supported"));
    match &proto.filter_specifier {
        None => Ok(LogFilter::Always),
        Some(FilterSpecifier::StatusCodeFilter(status)) => {
            let (op, value) = comparison(status.comparison.as_ref());
            let value = u16::try_from(value).unwrap_or(u16::MAX);
            match op {
                EQ => Ok(LogFilter::Status(value, value)),
                GE => Ok(LogFilter::Status(value, u16::MAX)),
                LE => Ok(LogFilter::Status(0, value)),
                NE => Ok(LogFilter::Any(vec![
                    LogFilter::Status(0, value.saturating_sub(1)),
                    LogFilter::Status(value.saturating_add(1), u16::MAX),
                ])),
                _ => unsupported(),
            }
        }
        Some(FilterSpecifier::DurationFilter(took)) => match comparison(took.comparison.as_ref()) {
            (GE, value) => Ok(LogFilter::LongerThan(Duration::from_millis(value.into()))),
            _ => unsupported(),
        },
        Some(FilterSpecifier::ResponseFlagFilter(flags)) => Ok(LogFilter::Flags(
            flags
                .flags
                .iter()
                .map(|flag| Name::from(flag.as_str()))
                .collect(),
        )),
        Some(FilterSpecifier::AndFilter(all)) => Ok(LogFilter::All(
            all.filters
                .iter()
                .map(|f| filter(f, at))
                .collect::<Compiled<_>>()?,
        )),
        Some(FilterSpecifier::OrFilter(any)) => Ok(LogFilter::Any(
            any.filters
                .iter()
                .map(|f| filter(f, at))
                .collect::<Compiled<_>>()?,
        )),
        // Nobody health-checks through a waypoint.
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => Ok(LogFilter::Always),
        Some(_) => unsupported(),
    }
}

fn comparison(proto: Option<&ComparisonFilter>) -> (i32, u32) {
    let value = proto
        .and_then(|proto| proto.value.as_ref())
        .map_or(0, |value| value.default_value);
    (proto.map_or(EQ, |proto| proto.op), value)
}
