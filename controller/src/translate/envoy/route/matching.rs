//! Matches of a rule.

use std::collections::BTreeMap;
use std::time::Duration;

use ambit_objects::kinds::route::{Match, NamedMatch, PathMatch, PathMatchKind, ValueMatchKind};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use super::super::wire::on;
use super::Invalid;

/// Longest pattern: the Gateway API allows 1024 for a path and 4096 for a header.
const MAX_PATTERN: usize = 4096;

pub(super) fn matcher(one: &Match) -> Result<RouteMatch, Invalid> {
    let mut headers = by_name("headers", one.headers.as_deref(), |name| {
        let name = name.to_ascii_lowercase();
        is_header_name(&name).then_some(name)
    })?;
    if let Some(method) = &one.method {
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(Invalid::new(
                "method",
                format!("{method:?} is not a method"),
            ));
        }
        headers.push((":method".to_owned(), exact(method)));
    }
    let parameters = by_name("queryParams", one.query_params.as_deref(), |name| {
        Some(name.to_owned())
    })?;
    Ok(RouteMatch {
        path_specifier: Some(path(&one.path.clone().unwrap_or_default())?),
        case_sensitive: on(),
        headers: headers
            .into_iter()
            .map(|(name, value)| header(name, value))
            .collect(),
        query_parameters: parameters
            .into_iter()
            .map(|(name, value)| QueryParameterMatcher {
                name,
                query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(
                    value,
                )),
            })
            .collect(),
        ..RouteMatch::default()
    })
}

fn path(path: &PathMatch) -> Result<PathSpecifier, Invalid> {
    let value = path.value.as_deref().unwrap_or("/");
    let kind = path.kind.unwrap_or_default();
    if kind == PathMatchKind::RegularExpression {
        return Ok(PathSpecifier::SafeRegex(pattern("path.value", value)?));
    }
    if !value.starts_with('/') || value.contains(['?', '#']) {
        return Err(Invalid::new(
            "path.value",
            format!("{value:?} is not an absolute path"),
        ));
    }
    Ok(match kind {
        PathMatchKind::Exact => PathSpecifier::Path(value.to_owned()),
        _ => match prefix(value) {
            "" => PathSpecifier::Prefix("/".to_owned()),
            prefix => PathSpecifier::PathSeparatedPrefix(prefix.to_owned()),
        },
    })
}

/// A path prefix without the slash at its end, which means nothing.
pub(super) fn prefix(value: &str) -> &str {
    value.trim_end_matches('/')
}

/// Conditions sorted by name; of two with one name the first counts.
fn by_name(
    what: &str,
    list: Option<&[NamedMatch]>,
    name: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, StringMatcher)>, Invalid> {
    let mut found = BTreeMap::new();
    for (index, one) in list.unwrap_or_default().iter().enumerate() {
        let field = format!("{what}[{index}]");
        let invalid = || {
            Invalid::new(
                format!("{field}.name"),
                format!("{:?} is no name", one.name),
            )
        };
        let name = name(&one.name)
            .filter(|name| !name.is_empty())
            .ok_or_else(invalid)?;
        let value = match one.kind.unwrap_or_default() {
            ValueMatchKind::Exact => exact(&one.value),
            ValueMatchKind::RegularExpression => {
                let pattern = pattern(&format!("{field}.value"), &one.value)?;
                string(MatchPattern::SafeRegex(pattern))
            }
        };
        found.entry(name).or_insert(value);
    }
    Ok(found.into_iter().collect())
}

/// A pattern that RE2 takes too: a proxy refuses the whole listener for one that it does not.
fn pattern(field: &str, text: &str) -> Result<RegexMatcher, Invalid> {
    let invalid = |message: String| Err(Invalid::new(field, message));
    if text.len() > MAX_PATTERN {
        return invalid(format!("a pattern of more than {MAX_PATTERN} bytes"));
    }
    // Set operations inside brackets, and flags of its own, are what this syntax has beyond RE2.
    let beyond = ["&&", "--", "~~", "(?x", "(?u", "(?R", "(?-u"];
    if beyond.iter().any(|operator| text.contains(operator)) || regex::Regex::new(text).is_err() {
        return invalid(format!("{text:?} is not an RE2 pattern"));
    }
    Ok(RegexMatcher {
        regex: text.to_owned(),
        ..RegexMatcher::default()
    })
}

fn exact(text: &str) -> StringMatcher {
    string(MatchPattern::Exact(text.to_owned()))
}

pub(in super::super) fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

pub(in super::super) fn header(name: String, value: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
        ..HeaderMatcher::default()
    }
}

/// A token of RFC 9110 5.6.2.
pub(in super::super) fn is_header_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}

/// A Gateway API duration: one to four numbers with units, such as `1m30s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    for _ in 0..4 {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        // Five digits at most, says GEP-2257.
        let (number, after) = rest
            .split_at_checked(digits)
            .filter(|(n, _)| n.len() <= 5)?;
        let number: u64 = number.parse().ok()?;
        let unit = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit)?;
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = after;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::duration;
    use std::time::Duration;

    #[test]
    fn reads_gateway_durations() {
        let table: &[(&str, Option<u64>)] = &[
            ("0s", Some(0)),
            ("10ms", Some(10)),
            ("1m30s", Some(90_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("", None),
            ("1", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
        ];
        for (text, milliseconds) in table {
            assert_eq!(
                duration(text),
                milliseconds.map(Duration::from_millis),
                "{text}"
            );
        }
    }
}
