//! Path templates of rules: `/v1/{*}/items/{**}`.
//!
//! `{*}` stands for one path segment of at least one character, `{**}` for any rest, slashes and
//! nothing included. No regular expression is made of them.

use std::fmt;

/// A compiled template.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    /// What comes before the open end, segment by segment.
    head: Vec<Segment>,
    /// What follows `{**}`; `None` if there is no `{**}`.
    tail: Option<Box<str>>,
}

#[derive(Clone, PartialEq, Eq)]
enum Segment {
    /// These very bytes, slashes included.
    Text(Box<str>),
    /// One segment.
    One,
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path template {0:?}: {1}")]
pub struct TemplateError(String, &'static str);

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// If it does not start with a slash, has an operator that is not a whole segment, more than
    /// one `{**}`, or a `{*}` after it.
    pub fn new(text: &str) -> Result<Self, TemplateError> {
        let fail = |why| TemplateError(text.to_owned(), why);
        if !text.starts_with('/') {
            return Err(fail("must start with a slash"));
        }
        let mut head = Vec::new();
        let mut tail: Option<String> = None;
        let mut literal = String::new();
        for segment in text.split('/').skip(1) {
            if let Some(tail) = &mut tail {
                if segment.contains(['{', '}', '*']) {
                    return Err(fail("nothing but text may follow {**}"));
                }
                tail.push('/');
                tail.push_str(segment);
                continue;
            }
            literal.push('/');
            match segment {
                "*" | "{*}" => {
                    head.push(Segment::Text(std::mem::take(&mut literal).into()));
                    head.push(Segment::One);
                }
                "**" | "{**}" => {
                    head.push(Segment::Text(std::mem::take(&mut literal).into()));
                    tail = Some(String::new());
                }
                _ if segment.contains(['{', '}', '*']) => {
                    return Err(fail("an operator must be a whole segment"));
                }
                _ => literal.push_str(segment),
            }
        }
        if !literal.is_empty() {
            head.push(Segment::Text(literal.into()));
        }
        Ok(Self {
            head,
            tail: tail.map(Into::into),
        })
    }

    /// Whether a path (without query) fits. Allocates nothing.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for segment in &self.head {
            match segment {
                Segment::Text(text) => match rest.strip_prefix(&**text) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Segment::One => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    if end == 0 {
                        return false;
                    }
                    rest = rest.get(end..).unwrap_or_default();
                }
            }
        }
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => rest.ends_with(&**tail),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.head {
            match segment {
                Segment::Text(text) => f.write_str(text)?,
                Segment::One => f.write_str("{*}")?,
            }
        }
        match &self.tail {
            Some(tail) => write!(f, "{{**}}{tail}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn templates_match_whole_segments_and_rests() {
        let cases = [
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{*}/c", "/a//c", false),
            ("/a/{*}/c", "/a/b/b/c", false),
            ("/a/{*}/c", "/a/b/c/", false),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a/b/c", true),
            ("/a/{**}", "/a", false),
            ("/{**}/end", "/x/y/end", true),
            ("/{**}/end", "/end", false),
            ("/{*}/x/{**}", "/1/x/2/3", true),
            ("/{*}/x/{**}", "/1/y/2/3", false),
            ("/plain.*", "/plainXX", false),
        ];
        for (template, path, wanted) in cases {
            match Template::new(template) {
                Ok(compiled) => assert_eq!(compiled.matches(path), wanted, "{template} {path}"),
                Err(error) => assert!(!wanted, "{error}"),
            }
        }
    }

    #[test]
    fn refuses_templates_that_are_not_understood() {
        for bad in [
            "a",
            "/a{*}",
            "/{**}/{*}",
            "/{**}/{**}",
            "/{name}",
            "/{a=*}",
            "/a*",
        ] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
    }
}
