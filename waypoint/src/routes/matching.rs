//! The pure matchers that routes and rules share: strings, headers, queries, paths.
//!
//! # Invariants
//! - Matching works on bytes: a value that is not UTF-8 is matched like any other, so a negative
//!   match cannot be escaped with one.
//! - Nothing but an explicit regular expression of the control plane is ever compiled as one.
//! - A header that occurs several times matches if any one of its values does; inverted, if none
//!   does. (Envoy's behaviour, and the one that a second header cannot slip past a DENY.)

use std::fmt;

use http::HeaderName;
use regex::bytes::{Regex, RegexBuilder};

use crate::plan::Name;
use crate::subject::Subject;

/// Upper bound of a compiled expression, in bytes. Istio lets RE2 programs grow to 32,768
/// instructions; an instruction costs us about 32 bytes.
const REGEX_SIZE_LIMIT: usize = 1 << 20;
/// Cache of the lazy automaton per expression and thread. Enough for realistic header values;
/// beyond it matching falls back to a slower engine, never to an error.
const REGEX_CACHE_LIMIT: usize = 256 << 10;
/// Longest expression accepted, before any work is spent on it.
const REGEX_TEXT_LIMIT: usize = 16 << 10;

/// A regular expression that must match the whole value.
#[derive(Clone)]
pub struct FullRegex {
    text: Name,
    compiled: Regex,
}

/// Why a regular expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// Longer than we are willing to compile.
    #[error("regular expression longer than {REGEX_TEXT_LIMIT} bytes")]
    TooLong,
    /// Syntax, or too large when compiled.
    #[error("regular expression {0:?}: {1}")]
    Invalid(String, String),
}

fn compile(text: &str) -> Result<Regex, RegexError> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(REGEX_SIZE_LIMIT)
        .dfa_size_limit(REGEX_CACHE_LIMIT)
        .build()
        .map_err(|error| RegexError::Invalid(text.to_owned(), error.to_string()))
}

impl FullRegex {
    /// Compiles an expression in the syntax that RE2 and Rust's engine share. Classes such as `\w`
    /// and `\d` are ASCII, as in RE2.
    ///
    /// # Errors
    /// If it is malformed, too long, or too large when compiled.
    pub fn new(text: &str) -> Result<Self, RegexError> {
        if text.len() > REGEX_TEXT_LIMIT {
            return Err(RegexError::TooLong);
        }
        // Alone first: `a)|(b` must not become valid by our wrapping it.
        compile(text)?;
        let compiled = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Self {
            text: Name::from(text),
            compiled,
        })
    }

    /// Whether the whole value matches.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.compiled.is_match(value)
    }
}

impl fmt::Debug for FullRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for FullRegex {}

/// A regular expression that may match anywhere, with a substitution (`\1` names a group).
#[derive(Clone)]
pub struct Substitution {
    text: Name,
    compiled: Regex,
    replacement: Vec<Piece>,
    replacement_text: Name,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Group(usize),
}

/// Why a substitution was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubstitutionError {
    /// The expression.
    #[error(transparent)]
    Pattern(#[from] RegexError),
    /// The replacement names a group the expression has not got, or ends in a backslash.
    #[error("substitution {0:?} does not fit its pattern")]
    Replacement(String),
}

impl Substitution {
    /// Compiles a pattern and its replacement.
    ///
    /// # Errors
    /// If the pattern is malformed or too large, or the replacement does not fit it.
    pub fn new(pattern: &str, replacement: &str) -> Result<Self, SubstitutionError> {
        if pattern.len() > REGEX_TEXT_LIMIT {
            return Err(RegexError::TooLong.into());
        }
        let compiled = compile(pattern)?;
        let pieces = parse_replacement(replacement, compiled.captures_len())
            .ok_or_else(|| SubstitutionError::Replacement(replacement.to_owned()))?;
        Ok(Self {
            text: Name::from(pattern),
            compiled,
            replacement: pieces,
            replacement_text: Name::from(replacement),
        })
    }

    /// Replaces every match. `None` when nothing matched.
    #[must_use]
    pub fn apply(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(value.len());
        let mut rest = 0;
        for captures in self.compiled.captures_iter(value) {
            let whole = captures.get(0)?;
            out.extend_from_slice(value.get(rest..whole.start())?);
            for piece in &self.replacement {
                match piece {
                    Piece::Text(text) => out.extend_from_slice(text),
                    Piece::Group(at) => {
                        if let Some(group) = captures.get(*at) {
                            out.extend_from_slice(group.as_bytes());
                        }
                    }
                }
            }
            rest = whole.end();
        }
        if rest == 0 && out.is_empty() && !self.compiled.is_match(value) {
            return None;
        }
        out.extend_from_slice(value.get(rest..)?);
        Some(out)
    }
}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{}/", self.text, self.replacement_text)
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.replacement_text == other.replacement_text
    }
}

impl Eq for Substitution {}

fn parse_replacement(text: &str, groups: usize) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            literal.push(byte);
            continue;
        }
        match bytes.next()? {
            digit @ b'0'..=b'9' => {
                let group = usize::from(digit - b'0');
                if group >= groups {
                    return None;
                }
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Group(group));
            }
            b'\\' => literal.push(b'\\'),
            _ => return None,
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Some(pieces)
}

/// A test of one string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringMatch {
    test: StringTest,
    /// ASCII case only; the pattern is lower case then. Does not apply to expressions.
    ignore_case: bool,
}

/// The kinds of string test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringTest {
    /// The whole value.
    Exact(Box<[u8]>),
    /// Its beginning.
    Prefix(Box<[u8]>),
    /// Its end.
    Suffix(Box<[u8]>),
    /// Somewhere in it.
    Contains(Box<[u8]>),
    /// The whole value, by expression.
    Regex(FullRegex),
}

impl StringMatch {
    /// A test, optionally blind to ASCII case.
    #[must_use]
    pub fn new(test: StringTest, ignore_case: bool) -> Self {
        let lower = |text: Box<[u8]>| {
            if ignore_case {
                text.to_ascii_lowercase().into_boxed_slice()
            } else {
                text
            }
        };
        let test = match test {
            StringTest::Exact(text) => StringTest::Exact(lower(text)),
            StringTest::Prefix(text) => StringTest::Prefix(lower(text)),
            StringTest::Suffix(text) => StringTest::Suffix(lower(text)),
            StringTest::Contains(text) => StringTest::Contains(lower(text)),
            StringTest::Regex(regex) => StringTest::Regex(regex),
        };
        Self { test, ignore_case }
    }

    /// Exactly this text.
    #[must_use]
    pub fn exact(text: &str) -> Self {
        Self::new(StringTest::Exact(text.as_bytes().into()), false)
    }

    /// Length of the text looked for; `None` for an expression.
    #[must_use]
    pub fn pattern_length(&self) -> Option<usize> {
        match &self.test {
            StringTest::Exact(text)
            | StringTest::Prefix(text)
            | StringTest::Suffix(text)
            | StringTest::Contains(text) => Some(text.len()),
            StringTest::Regex(_) => None,
        }
    }

    /// Whether the value passes. Allocates nothing.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        let same = |part: &[u8], pattern: &[u8]| {
            if self.ignore_case {
                part.eq_ignore_ascii_case(pattern)
            } else {
                part == pattern
            }
        };
        match &self.test {
            StringTest::Exact(pattern) => same(value, pattern),
            StringTest::Prefix(pattern) => value
                .get(..pattern.len())
                .is_some_and(|part| same(part, pattern)),
            StringTest::Suffix(pattern) => value
                .len()
                .checked_sub(pattern.len())
                .and_then(|from| value.get(from..))
                .is_some_and(|part| same(part, pattern)),
            StringTest::Contains(pattern) if self.ignore_case => {
                pattern.is_empty() || value.windows(pattern.len()).any(|part| same(part, pattern))
            }
            StringTest::Contains(pattern) => memchr::memmem::find(value, pattern).is_some(),
            StringTest::Regex(regex) => regex.matches(value),
        }
    }
}

/// The header a matcher looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:authority` (and `host`)
    Authority,
    /// `:path`, with the query
    Path,
    /// `:scheme`
    Scheme,
    /// Any other.
    Named(HeaderName),
}

/// A test of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Which header.
    pub key: HeaderKey,
    /// What about it.
    pub test: HeaderTest,
    /// The opposite. A missing header passes no value test, inverted or not.
    pub invert: bool,
    /// A missing header counts as one with an empty value.
    pub missing_as_empty: bool,
}

/// What is tested about a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderTest {
    /// It is there (`true`) or not there.
    Present(bool),
    /// One of its values.
    Value(StringMatch),
    /// One of its values as a number: at least `.0`, less than `.1`.
    Range(i64, i64),
}

impl HeaderMatch {
    /// Whether the request passes. Allocates nothing.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        if let HeaderTest::Present(wanted) = self.test {
            return (self.present(subject) == wanted) != self.invert;
        }
        let mut present = false;
        let any = match &self.key {
            HeaderKey::Named(name) => subject.headers.get_all(name).iter().any(|value| {
                present = true;
                self.value_passes(value.as_bytes())
            }),
            key => {
                let value = pseudo(key, subject);
                present = !value.is_empty();
                present && self.value_passes(value.as_bytes())
            }
        };
        match (present, self.missing_as_empty) {
            (true, _) => any != self.invert,
            (false, true) => self.value_passes(b"") != self.invert,
            (false, false) => false,
        }
    }

    fn present(&self, subject: &Subject<'_>) -> bool {
        match &self.key {
            HeaderKey::Named(name) => subject.headers.contains_key(name),
            key => !pseudo(key, subject).is_empty(),
        }
    }

    fn value_passes(&self, value: &[u8]) -> bool {
        match &self.test {
            HeaderTest::Present(wanted) => *wanted,
            HeaderTest::Value(test) => test.matches(value),
            HeaderTest::Range(low, high) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*low..*high).contains(&number)),
        }
    }
}

fn pseudo<'a>(key: &HeaderKey, subject: &Subject<'a>) -> &'a str {
    match key {
        HeaderKey::Method => subject.method,
        HeaderKey::Authority => subject.authority,
        HeaderKey::Path => subject.path_and_query,
        HeaderKey::Scheme => subject.scheme,
        HeaderKey::Named(_) => "",
    }
}

/// A test of one query parameter: its first value, not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatch {
    /// Name of the parameter, compared byte for byte.
    pub name: Name,
    /// What about it.
    pub test: QueryTest,
}

/// What is tested about a query parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryTest {
    /// It is there (`true`) or not there.
    Present(bool),
    /// Its value; a parameter without `=` has an empty one.
    Value(StringMatch),
}

impl QueryMatch {
    /// Whether the query passes. Allocates nothing.
    #[must_use]
    pub fn matches(&self, query: Option<&str>) -> bool {
        let value = query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .find_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name == &*self.name).then_some(value)
            });
        match &self.test {
            QueryTest::Present(wanted) => value.is_some() == *wanted,
            QueryTest::Value(test) => value.is_some_and(|value| test.matches(value.as_bytes())),
        }
    }
}

/// A test of the path without query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Its beginning, byte for byte: `/foo` also matches `/foobar`.
    Prefix(StringMatch),
    /// All of it.
    Exact(StringMatch),
    /// Its beginning, up to the end or a slash: `/foo` matches `/foo` and `/foo/bar`.
    Separated {
        /// The prefix itself, without a trailing slash.
        prefix: Box<str>,
        /// Blind to ASCII case.
        ignore_case: bool,
    },
    /// All of it, by expression.
    Regex(FullRegex),
}

impl PathMatch {
    /// Whether the path passes. Allocates nothing.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Prefix(test) | Self::Exact(test) => test.matches(path.as_bytes()),
            Self::Separated {
                prefix,
                ignore_case,
            } => {
                let Some((start, rest)) = path.split_at_checked(prefix.len()) else {
                    return false;
                };
                let same = if *ignore_case {
                    start.eq_ignore_ascii_case(prefix)
                } else {
                    start == &**prefix
                };
                same && (rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.matches(path.as_bytes()),
        }
    }

    /// How much of a path that matches this is the matched part, in bytes.
    #[must_use]
    pub fn matched_length(&self, path: &str) -> usize {
        let length = match self {
            Self::Prefix(test) => test.pattern_length().unwrap_or(path.len()),
            Self::Separated { prefix, .. } => prefix.len(),
            Self::Exact(_) | Self::Regex(_) => path.len(),
        };
        length.min(path.len())
    }
}

/// When a route applies: all of it must pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// Headers and pseudo headers.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// Only gRPC requests (`content-type: application/grpc…`).
    pub grpc: bool,
}

impl RouteMatch {
    /// Whether the request passes. Allocates nothing.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        self.path.matches(subject.path())
            && (!self.grpc || is_grpc(subject.headers))
            && self.headers.iter().all(|header| header.matches(subject))
            && self
                .query
                .iter()
                .all(|query| query.matches(subject.query()))
    }
}

/// Whether a message says that it is gRPC, by its content type.
#[must_use]
pub fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| {
            let rest = value.as_bytes().strip_prefix(b"application/grpc");
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
}

#[cfg(test)]
mod tests;
