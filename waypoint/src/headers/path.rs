//! One canonical form of a path, for rules, routes and the upstream alike.
//!
//! Canonical means RFC 3986: escapes of unreserved characters decoded, backslashes turned, dot
//! segments removed; with the control plane's settings also escaped slashes decoded and slashes
//! merged. The query is never touched. What goes upstream is the canonical form, so nobody behind us
//! sees another one.
//!
//! Some spellings stay ambiguous even then, because the protocol allows servers to differ: `%2F`,
//! `//`, `;x=y`, and escapes of reserved characters. For those the *strict* reading is computed, which
//! a lenient server could arrive at, and rules hold under both readings.

use std::borrow::Cow;

use crate::plan::{EscapedSlashes, PathNormalization};

/// A canonical path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical<'a> {
    /// Path and query, as they go upstream. Borrowed when nothing had to change.
    pub path_and_query: Cow<'a, str>,
    /// The path as a lenient server could read it, if that differs.
    pub strict: Option<String>,
    /// The control plane wants the client sent to this spelling instead of forwarding it.
    pub redirect: bool,
}

/// Why a path is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathRefused {
    /// It does not start with a slash.
    #[error("path does not start with a slash")]
    Relative,
    /// A `%` without two hexadecimal digits.
    #[error("path has a malformed escape")]
    Escape,
    /// A NUL or another control character, escaped or not.
    #[error("path has a control character")]
    Control,
    /// A `#`.
    #[error("path has a fragment")]
    Fragment,
    /// An escaped slash where the control plane forbids them.
    #[error("path has an escaped slash")]
    EscapedSlash,
}

/// Brings a path into canonical form. `*` (of `OPTIONS *`) is left as it is.
///
/// # Errors
/// If it has no safe reading, or one that the settings forbid.
pub fn canonical(
    path_and_query: &str,
    settings: PathNormalization,
) -> Result<Canonical<'_>, PathRefused> {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    if path == "*" {
        return Ok(unchanged(path_and_query));
    }
    if !path.starts_with('/') {
        return Err(PathRefused::Relative);
    }
    if path_and_query.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(PathRefused::Control);
    }
    if path_and_query.contains('#') {
        return Err(PathRefused::Fragment);
    }
    if is_plain(path) {
        return Ok(unchanged(path_and_query));
    }
    check_escapes(path)?;
    let escaped_slash = has_escaped_slash(path);
    if escaped_slash && settings.escaped_slashes == EscapedSlashes::Reject {
        return Err(PathRefused::EscapedSlash);
    }
    let decode_slashes = matches!(
        settings.escaped_slashes,
        EscapedSlashes::Decode | EscapedSlashes::DecodeAndRedirect
    );
    let mut new = Cow::Borrowed(path);
    if decode_slashes && escaped_slash {
        new = Cow::Owned(decode(&new, |byte| matches!(byte, b'/' | b'\\')));
    }
    if settings.normalize {
        let decoded = decode(&new, is_unreserved).replace('\\', "/");
        new = Cow::Owned(remove_dots(&decoded));
    }
    if settings.merge_slashes {
        new = Cow::Owned(merge_slashes(&new));
    }
    let strict = Some(strict(&new)).filter(|strict| *strict != *new);
    let redirect = escaped_slash && settings.escaped_slashes == EscapedSlashes::DecodeAndRedirect;
    let path_and_query = match (new, query) {
        (new, _) if new == path => Cow::Borrowed(path_and_query),
        (new, None) => Cow::Owned(new.into_owned()),
        (new, Some(query)) => Cow::Owned(format!("{new}?{query}")),
    };
    Ok(Canonical {
        path_and_query,
        strict,
        redirect,
    })
}

fn unchanged(path_and_query: &str) -> Canonical<'_> {
    Canonical {
        path_and_query: Cow::Borrowed(path_and_query),
        strict: None,
        redirect: false,
    }
}

/// Nothing in it that could be read in two ways or has to change.
fn is_plain(path: &str) -> bool {
    let special = |byte| matches!(byte, b'%' | b'\\' | b';');
    let mut before = b' ';
    path.bytes().all(|byte| {
        let doubtful = special(byte) || before == b'/' && matches!(byte, b'/' | b'.');
        before = byte;
        !doubtful
    })
}

/// The value of an escape at the start of `rest`, which begins with `%`.
fn escape(rest: &[u8]) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    match rest {
        [b'%', high, low, ..] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

fn check_escapes(path: &str) -> Result<(), PathRefused> {
    let bytes = path.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'%' {
            match bytes.get(at..).and_then(escape) {
                None => return Err(PathRefused::Escape),
                Some(value) if value.is_ascii_control() => return Err(PathRefused::Control),
                Some(_) => {}
            }
        }
    }
    Ok(())
}

fn has_escaped_slash(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut at = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'%')
        .map(|(at, _)| at);
    at.any(|at| matches!(bytes.get(at..).and_then(escape), Some(b'/' | b'\\')))
}

/// Decodes the escapes of some ASCII characters; everything else stays as written.
fn decode(path: &str, which: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let taken = match escape(from.as_bytes()) {
            Some(value) if value.is_ascii() && which(value) => {
                out.push(char::from(value));
                3
            }
            _ => {
                out.push('%');
                1
            }
        };
        rest = from.get(taken..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 5.2.4 for an absolute path. Going above the root stays at the root.
fn remove_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.split('/').skip(1) {
        ends_open = false;
        match segment {
            "." => ends_open = true,
            ".." => {
                segments.pop();
                ends_open = true;
            }
            other => segments.push(other),
        }
    }
    let mut out = String::with_capacity(path.len() + 1);
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_open || out.is_empty() {
        out.push('/');
    }
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

/// Everything decoded that is a visible character, parameters cut, slashes merged, dots removed.
fn strict(path: &str) -> String {
    let decoded = decode(path, |byte| (0x20..0x7f).contains(&byte)).replace('\\', "/");
    let mut cut = String::with_capacity(decoded.len());
    for (at, segment) in decoded.split('/').enumerate() {
        if at > 0 {
            cut.push('/');
        }
        cut.push_str(segment.split(';').next().unwrap_or_default());
    }
    remove_dots(&merge_slashes(&cut))
}

#[cfg(test)]
mod tests;
