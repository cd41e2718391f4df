//! Envoy's string, header, query and address matchers → ours.

use envoy_types::pb::envoy::config::core::v3::{
    CidrRange, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::envoy::at::{At, Compiled};
use crate::filter::headers::{Edit, EditValue, PutMode};
use crate::format::Format;
use crate::plan::Name;
use crate::routes::matching::{
    FullRegex, HeaderKey, HeaderMatch, HeaderTest, QueryMatch, QueryTest, StringMatch, StringTest,
};

pub(crate) fn regex(matcher: &RegexMatcher, at: &At<'_>) -> Compiled<FullRegex> {
    FullRegex::new(&matcher.regex).map_err(|error| at.refuse(error))
}

pub(crate) fn string(matcher: &StringMatcher, at: &At<'_>) -> Compiled<StringMatch> {
    let bytes = |text: &String| text.as_bytes().into();
    let test = match &matcher.match_pattern {
        None => return Err(at.refuse("matches nothing in particular")),
        Some(MatchPattern::Exact(text)) => StringTest::Exact(bytes(text)),
        Some(MatchPattern::Prefix(text)) => StringTest::Prefix(bytes(text)),
        Some(MatchPattern::Suffix(text)) => StringTest::Suffix(bytes(text)),
        Some(MatchPattern::Contains(text)) => StringTest::Contains(bytes(text)),
        Some(MatchPattern::SafeRegex(matcher)) => StringTest::Regex(regex(matcher, at)?),
        Some(MatchPattern::Custom(custom)) => {
            return Err(at.refuse(format_args!("unsupported string matcher {:?}", custom.name)));
        }
    };
    Ok(StringMatch::new(test, matcher.ignore_case))
}

#[expect(deprecated, reason = "control planes still send the deprecated kinds")]
pub(crate) fn header(matcher: &HeaderMatcher, at: &At<'_>) -> Compiled<HeaderMatch> {
    let key = match matcher.name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":authority" | "host" => HeaderKey::Authority,
        ":path" => HeaderKey::Path,
        ":scheme" => HeaderKey::Scheme,
        other => HeaderKey::Named(header_name(other, at)?),
    };
    let literal = |test: StringTest| HeaderTest::Value(StringMatch::new(test, false));
    let bytes = |text: &String| text.as_bytes().into();
    let test = match &matcher.header_match_specifier {
        // Envoy: no specifier means presence.
        None => HeaderTest::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderTest::Present(*present),
        Some(HeaderMatchSpecifier::ExactMatch(text)) => literal(StringTest::Exact(bytes(text))),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => literal(StringTest::Prefix(bytes(text))),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => literal(StringTest::Suffix(bytes(text))),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            literal(StringTest::Contains(bytes(text)))
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => {
            literal(StringTest::Regex(regex(matcher, at)?))
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            HeaderTest::Value(string(matcher, &at.field("string_match"))?)
        }
        Some(HeaderMatchSpecifier::RangeMatch(range)) => HeaderTest::Range(range.start, range.end),
    };
    Ok(HeaderMatch {
        key,
        test,
        invert: matcher.invert_match,
        missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

pub(crate) fn query(matcher: &QueryParameterMatcher, at: &At<'_>) -> Compiled<QueryMatch> {
    if matcher.name.is_empty() {
        return Err(at.refuse("has no name"));
    }
    let test = match &matcher.query_parameter_match_specifier {
        None => QueryTest::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => QueryTest::Present(*present),
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            QueryTest::Value(string(matcher, at)?)
        }
    };
    Ok(QueryMatch {
        name: Name::from(matcher.name.as_str()),
        test,
    })
}

/// An address range. Host bits are cleared, as Envoy does.
pub(crate) fn cidr(prefix: &str, length: Option<u32>, at: &At<'_>) -> Compiled<IpNet> {
    let address: std::net::IpAddr = prefix
        .parse()
        .map_err(|_| at.refuse(format_args!("{prefix:?} is no IP address")))?;
    let length = u8::try_from(length.unwrap_or(0)).unwrap_or(u8::MAX);
    let net = IpNet::new(address, length)
        .map_err(|_| at.refuse(format_args!("{prefix}/{length} is no address range")))?;
    // Addresses are matched in their canonical form, so a mapped range would never match.
    match (net, address.to_canonical()) {
        (IpNet::V6(_), std::net::IpAddr::V4(_)) => {
            Err(at.refuse(format_args!("{prefix} is an IPv4 address written as IPv6")))
        }
        _ => Ok(net.trunc()),
    }
}

pub(crate) fn cidr_range(range: &CidrRange, at: &At<'_>) -> Compiled<IpNet> {
    cidr(
        &range.address_prefix,
        range.prefix_len.map(|length| length.value),
        at,
    )
}

pub(crate) fn header_name(name: &str, at: &At<'_>) -> Compiled<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| at.refuse(format_args!("{name:?} is no header name")))
}

/// A header that header changes may touch: neither a pseudo header nor `host`.
fn editable(name: &str, at: &At<'_>) -> Compiled<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(at.refuse(format_args!("{name:?} may not be changed this way")));
    }
    header_name(name, at)
}

/// The changes of one level: removals first, as Envoy does.
pub(crate) fn edits(
    add: &[HeaderValueOption],
    remove: &[String],
    at: &At<'_>,
    out: &mut Vec<Edit>,
) -> Compiled<()> {
    for name in remove {
        out.push(Edit::Remove(editable(name, at)?));
    }
    for (index, option) in add.iter().enumerate() {
        out.push(put(option, &at.index("headers_to_add", index))?);
    }
    Ok(())
}

pub(crate) fn put(option: &HeaderValueOption, at: &At<'_>) -> Compiled<Edit> {
    let header = option
        .header
        .as_ref()
        .ok_or_else(|| at.refuse("has no header"))?;
    let name = editable(&header.key, at)?;
    let text = if header.raw_value.is_empty() {
        header.value.as_str()
    } else {
        std::str::from_utf8(&header.raw_value)
            .map_err(|_| at.refuse("has a value that is not UTF-8"))?
    };
    let format = Format::parse(text).map_err(|error| at.refuse(error))?;
    let value = match format.constant() {
        Some(text) => EditValue::Constant(
            HeaderValue::from_str(text).map_err(|_| at.refuse("has an illegal value"))?,
        ),
        None => EditValue::Made(format),
    };
    #[expect(deprecated, reason = "older control planes send the old field")]
    let append = option.append;
    let mode = match (append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(append), _) if append.value => PutMode::Append,
        (Some(_), _) => PutMode::Overwrite,
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => PutMode::Append,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => PutMode::IfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => PutMode::Overwrite,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => PutMode::OverwriteIfPresent,
        (None, Err(_)) => return Err(at.refuse("has an unknown append_action")),
    };
    Ok(Edit::Put {
        name,
        value,
        mode,
        keep_empty: option.keep_empty_value,
    })
}
