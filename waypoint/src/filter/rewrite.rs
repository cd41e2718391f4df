//! Path rewrites. The query is never touched.

use crate::routes::matching::{PathMatch, Substitution};

/// How a path is changed before it goes upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// The part that the route matched becomes this text. For a route that matches an exact path or
    /// an expression, that is the whole path.
    Prefix(Box<str>),
    /// Every match of an expression is replaced.
    Regex(Substitution),
    /// The whole path becomes this text.
    Whole(Box<str>),
}

impl PathRewrite {
    /// The new path and query, given the route's path matcher. `None`: it would not be a legal
    /// request target (a rewrite can produce one out of legal parts), answer 400.
    #[must_use]
    pub fn apply(&self, path_and_query: &str, matched: &PathMatch) -> Option<String> {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut new = match self {
            Self::Whole(text) => text.to_string(),
            Self::Prefix(text) => {
                let rest = path.get(matched.matched_length(path)..)?;
                let mut new = String::with_capacity(text.len() + rest.len() + 1);
                new.push_str(text);
                new.push_str(rest);
                new
            }
            Self::Regex(substitution) => match substitution.apply(path.as_bytes()) {
                Some(new) => String::from_utf8(new).ok()?,
                None => path.to_owned(),
            },
        };
        if !new.starts_with('/') {
            new.insert(0, '/');
        }
        if let Some(query) = query {
            new.push('?');
            new.push_str(query);
        }
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::PathRewrite;
    use crate::routes::matching::{FullRegex, PathMatch, StringMatch, StringTest, Substitution};

    #[test]
    fn rewrites_the_matched_part_and_keeps_the_query() {
        let prefix = |text: &str| {
            let test = StringTest::Prefix(text.as_bytes().into());
            PathMatch::Prefix(StringMatch::new(test, false))
        };
        let separated = |text: &str| PathMatch::Separated {
            prefix: text.into(),
            ignore_case: false,
        };
        let regex = |text: &str| PathMatch::Regex(FullRegex::new(text).unwrap());
        let with = |text: &str| PathRewrite::Prefix(text.into());
        let substitute =
            |from: &str, to: &str| PathRewrite::Regex(Substitution::new(from, to).unwrap());
        let cases = [
            (
                with("/new"),
                prefix("/old"),
                "/old/x?q=/old",
                "/new/x?q=/old",
            ),
            (with("/"), prefix("/old/"), "/old/x", "/x"),
            (with("/new"), separated("/old"), "/old", "/new"),
            (
                with("/new"),
                PathMatch::Exact(StringMatch::exact("/a")),
                "/a?b",
                "/new?b",
            ),
            (with("/new"), regex("/.*"), "/anything/at/all", "/new"),
            (
                substitute("^/old(/?)(.*)", r"/\2"),
                separated("/old"),
                "/old/x/y?z",
                "/x/y?z",
            ),
            (
                substitute("^/old(/?)(.*)", r"/\2"),
                separated("/old"),
                "/old",
                "/",
            ),
            (substitute("nothing", "x"), prefix("/"), "/stays", "/stays"),
            (
                PathRewrite::Whole("/one".into()),
                prefix("/"),
                "/a/b?c",
                "/one?c",
            ),
            (with("no-slash"), prefix("/"), "/x", "/no-slashx"),
        ];
        for (rewrite, matched, from, to) in cases {
            assert_eq!(
                rewrite.apply(from, &matched).as_deref(),
                Some(to),
                "{rewrite:?} {from}"
            );
        }
    }
}
