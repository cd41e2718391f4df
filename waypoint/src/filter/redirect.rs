//! Redirects: the answer's `location`.

use http::StatusCode;

use crate::filter::rewrite::PathRewrite;
use crate::routes::matching::PathMatch;

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// New scheme.
    pub scheme: Option<Box<str>>,
    /// New host.
    pub host: Option<Box<str>>,
    /// New port.
    pub port: Option<u16>,
    /// New path; `None` keeps it.
    pub path: Option<PathRewrite>,
    /// New path and query together, when the configured path carries its own query.
    pub path_and_query: Option<Box<str>>,
    /// Leave the query out.
    pub strip_query: bool,
}

impl Redirect {
    /// The absolute `location` for a request. The port the client named is kept unless host, scheme
    /// or port are replaced, and left out where it is the scheme's own.
    #[must_use]
    pub fn location(
        &self,
        scheme: &str,
        authority: &str,
        path_and_query: &str,
        matched: &PathMatch,
    ) -> Option<String> {
        let new_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let (host, port) = split_port(authority);
        let new_host = self.host.as_deref().unwrap_or(host);
        let new_port = match (self.port, &self.host) {
            (Some(port), _) => Some(port),
            (None, Some(_)) => None,
            (None, None) => port.filter(|port| {
                // A default port of the old scheme says nothing about the new one.
                new_scheme == scheme || Some(*port) != default_port(scheme)
            }),
        };
        let path = match (&self.path_and_query, &self.path) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(rewrite)) => rewrite.apply(path_and_query, matched)?,
            (None, None) => path_and_query.to_owned(),
        };
        let path = match path.split_once('?') {
            Some((path, _)) if self.strip_query => path,
            _ => path.as_str(),
        };
        Some(match new_port {
            Some(port) if Some(port) != default_port(new_scheme) => {
                format!("{new_scheme}://{new_host}:{port}{path}")
            }
            _ => format!("{new_scheme}://{new_host}{path}"),
        })
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// `host:port` apart; an IPv6 literal keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    let Some((host, port)) = authority.rsplit_once(':') else {
        return (authority, None);
    };
    let bare_v6 = host.contains(':') && !host.ends_with(']');
    match port.parse() {
        Ok(port) if !host.is_empty() && !bare_v6 => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::Redirect;
    use crate::filter::rewrite::PathRewrite;
    use crate::routes::matching::{PathMatch, StringMatch, StringTest};

    fn keep() -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: None,
            port: None,
            path: None,
            path_and_query: None,
            strip_query: false,
        }
    }

    /// A redirect with one thing changed.
    fn with(change: impl FnOnce(&mut Redirect)) -> Redirect {
        let mut redirect = keep();
        change(&mut redirect);
        redirect
    }

    #[test]
    fn location_changes_only_what_was_asked() {
        let any = PathMatch::Prefix(StringMatch::new(StringTest::Prefix((*b"/a").into()), false));
        let whole = |text: &str| Some(PathRewrite::Whole(text.into()));
        let host = with(|r| r.host = Some("new".into()));
        let https = with(|r| r.scheme = Some("https".into()));
        let path = with(|r| r.path = whole("/new"));
        let prefix = with(|r| r.path = Some(PathRewrite::Prefix("/z".into())));
        let mut stripped = path.clone();
        stripped.strip_query = true;
        let cases = [
            (keep(), "cart:8080", "/a?x=1", "http://cart:8080/a?x=1"),
            (host, "cart:8080", "/a", "http://new/a"),
            (
                with(|r| r.port = Some(9)),
                "cart:8080",
                "/a",
                "http://cart:9/a",
            ),
            (
                with(|r| r.port = Some(80)),
                "cart:8080",
                "/a",
                "http://cart/a",
            ),
            (https.clone(), "cart", "/a", "https://cart/a"),
            (https, "cart:80", "/a", "https://cart/a"),
            (path, "cart", "/a?b", "http://cart/new?b"),
            (stripped, "cart", "/a?b", "http://cart/new"),
            (prefix, "[fd00::1]:81", "/a/b", "http://[fd00::1]:81/z/b"),
            (keep(), "fd00::1", "/a", "http://fd00::1/a"),
        ];
        for (redirect, authority, path, wanted) in cases {
            let location = redirect.location("http", authority, path, &any);
            assert_eq!(location.as_deref(), Some(wanted), "{redirect:?}");
        }
    }
}
