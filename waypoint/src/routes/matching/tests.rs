//! Tests of the pure matchers.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    FullRegex, HeaderKey, HeaderMatch, HeaderTest, PathMatch, QueryMatch, QueryTest, RegexError,
    StringMatch, StringTest, Substitution, is_grpc,
};
use crate::plan::Name;
use crate::subject::test::subject;

fn string(kind: &str, pattern: &str, ignore_case: bool) -> StringMatch {
    let bytes = pattern.as_bytes().into();
    let test = match kind {
        "exact" => StringTest::Exact(bytes),
        "prefix" => StringTest::Prefix(bytes),
        "suffix" => StringTest::Suffix(bytes),
        "contains" => StringTest::Contains(bytes),
        _ => StringTest::Regex(FullRegex::new(pattern).unwrap()),
    };
    StringMatch::new(test, ignore_case)
}

#[test]
fn strings_match_by_their_kind() {
    let cases: &[(&str, &str, bool, &[u8], bool)] = &[
        ("exact", "Ab", false, b"Ab", true),
        ("exact", "Ab", false, b"ab", false),
        ("exact", "Ab", true, b"aB", true),
        ("exact", "", false, b"", true),
        ("prefix", "Ab", false, b"Abc", true),
        ("prefix", "Ab", true, b"aBc", true),
        ("prefix", "Abc", true, b"ab", false),
        ("suffix", ".b", false, b"a.b", true),
        ("suffix", ".b", true, b"a.B", true),
        ("suffix", "long", false, b"g", false),
        ("contains", "b", false, b"abc", true),
        ("contains", "B", true, b"abc", true),
        ("contains", "", true, b"", true),
        ("contains", "x", false, b"abc", false),
        ("regex", "a.*", false, b"abc", true),
        ("regex", "b", false, b"abc", false),
        ("regex", "a|ab", false, b"ab", true),
        ("regex", "a.c", false, b"a\xffc", true),
        ("regex", ".*", false, b"\xff\xfe", true),
        ("regex", r"\d+", false, b"123", true),
        ("regex", "(?i)AB", false, b"ab", true),
        // Other kinds never become expressions.
        ("exact", "a.c", false, b"abc", false),
        ("prefix", ".*", false, b"abc", false),
    ];
    for (kind, pattern, ignore_case, value, wanted) in cases {
        let test = string(kind, pattern, *ignore_case);
        assert_eq!(test.matches(value), *wanted, "{kind} {pattern:?} {value:?}");
    }
}

#[test]
fn malformed_and_huge_expressions_are_refused() {
    for bad in ["(", "a)|(b", "[", r"\p{Greek}", "(?x)a#"] {
        assert!(
            matches!(FullRegex::new(bad), Err(RegexError::Invalid(..))),
            "{bad}"
        );
    }
    assert!(matches!(
        FullRegex::new("((a{500}){500}){5}"),
        Err(RegexError::Invalid(..))
    ));
    assert_eq!(
        FullRegex::new(&"a".repeat(20_000)),
        Err(RegexError::TooLong)
    );
    for (pattern, replacement) in [("a", r"\1"), ("a", r"\"), ("a", r"\x"), ("(", "x")] {
        assert!(
            Substitution::new(pattern, replacement).is_err(),
            "{pattern} {replacement}"
        );
    }
}

#[test]
fn substitutions_replace_every_match() {
    let cases = [
        ("b", "x", "abab", Some("axax")),
        ("(a)(b)", r"\2\1\\", "ab", Some(r"ba\")),
        ("z", "x", "ab", None),
        ("^", "x", "ab", Some("xab")),
        ("a*", "", "aaa", Some("")),
    ];
    for (pattern, replacement, value, wanted) in cases {
        let got = Substitution::new(pattern, replacement)
            .unwrap()
            .apply(value.as_bytes());
        assert_eq!(
            got.as_deref(),
            wanted.map(str::as_bytes),
            "{pattern} {value}"
        );
    }
}

fn header(test: HeaderTest, invert: bool, missing_as_empty: bool) -> HeaderMatch {
    let key = HeaderKey::Named(HeaderName::from_static("x"));
    HeaderMatch {
        key,
        test,
        invert,
        missing_as_empty,
    }
}

#[test]
fn any_value_of_a_header_counts_and_an_inverted_match_wants_none() {
    let value = || HeaderTest::Value(string("exact", "a", false));
    // values, test, invert, missing as empty, wanted
    let cases: &[(&[&'static str], HeaderTest, bool, bool, bool)] = &[
        (&["a"], value(), false, false, true),
        (&["b", "a"], value(), false, false, true),
        (&["b"], value(), false, false, false),
        (&["b"], value(), true, false, true),
        (&["b", "a"], value(), true, false, false),
        (&[], value(), false, false, false),
        (&[], value(), true, false, false),
        (&[], value(), true, true, true),
        (
            &[],
            HeaderTest::Value(string("exact", "", false)),
            false,
            true,
            true,
        ),
        (&["a"], HeaderTest::Present(true), false, false, true),
        (&["a"], HeaderTest::Present(true), true, false, false),
        (&[], HeaderTest::Present(true), true, false, true),
        (&[], HeaderTest::Present(false), false, false, true),
        (&["5"], HeaderTest::Range(5, 6), false, false, true),
        (&["6"], HeaderTest::Range(5, 6), false, false, false),
        (&["x"], HeaderTest::Range(5, 6), false, false, false),
        // A comma does not make two values.
        (&["a,b"], value(), false, false, false),
    ];
    for (values, test, invert, missing, wanted) in cases {
        let mut headers = HeaderMap::new();
        for value in *values {
            headers.append("x", HeaderValue::from_static(value));
        }
        let matcher = header(test.clone(), *invert, *missing);
        assert_eq!(
            matcher.matches(&subject(&headers)),
            *wanted,
            "{values:?} {matcher:?}"
        );
    }
}

#[test]
fn pseudo_headers_are_headers_too() {
    let headers = HeaderMap::new();
    let subject = subject(&headers);
    let with = |key, text| HeaderMatch {
        key,
        test: HeaderTest::Value(string("exact", text, true)),
        invert: false,
        missing_as_empty: false,
    };
    assert!(with(HeaderKey::Method, "get").matches(&subject));
    assert!(with(HeaderKey::Authority, "CART:80").matches(&subject));
    assert!(with(HeaderKey::Path, "/").matches(&subject));
    assert!(with(HeaderKey::Scheme, "http").matches(&subject));
    assert!(!with(HeaderKey::Scheme, "https").matches(&subject));
}

#[test]
fn the_first_value_of_a_query_parameter_counts_undecoded() {
    let value = |text| QueryTest::Value(string("exact", text, false));
    let cases = [
        (Some("a=1&b=2"), value("2"), true),
        (Some("b=1&b=2"), value("2"), false),
        (Some("b"), value(""), true),
        (Some("b"), QueryTest::Present(true), true),
        (Some("bb=2"), QueryTest::Present(true), false),
        (Some("a"), QueryTest::Present(false), true),
        (None, QueryTest::Present(true), false),
        (None, QueryTest::Present(false), true),
        (Some("b=%32"), value("2"), false),
    ];
    for (query, test, wanted) in cases {
        let matcher = QueryMatch {
            name: Name::from("b"),
            test,
        };
        assert_eq!(matcher.matches(query), wanted, "{query:?} {matcher:?}");
    }
}

#[test]
fn paths_match_by_bytes_by_segments_or_whole() {
    let prefix = |text, ignore| PathMatch::Prefix(string("prefix", text, ignore));
    let separated = |text: &str, ignore_case| PathMatch::Separated {
        prefix: text.into(),
        ignore_case,
    };
    let cases = [
        (prefix("/foo", false), "/foobar", true, 4),
        (prefix("/foo", true), "/FOO/x", true, 4),
        (
            PathMatch::Exact(string("exact", "/foo", false)),
            "/foo/",
            false,
            5,
        ),
        (separated("/foo", false), "/foo", true, 4),
        (separated("/foo", false), "/foo/bar", true, 4),
        (separated("/foo", false), "/foobar", false, 4),
        (separated("/foo", true), "/Foo/bar", true, 4),
        (separated("/foo", false), "/fo", false, 3),
        (separated("/é", false), "/ab", false, 3),
        (
            PathMatch::Regex(FullRegex::new("/f.o").unwrap()),
            "/foo",
            true,
            4,
        ),
        (
            PathMatch::Regex(FullRegex::new("/f.o").unwrap()),
            "/foo/",
            false,
            5,
        ),
    ];
    for (matcher, path, wanted, length) in cases {
        assert_eq!(matcher.matches(path), wanted, "{matcher:?} {path}");
        assert_eq!(matcher.matched_length(path), length, "{matcher:?} {path}");
    }
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (value, wanted) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x=y", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(value));
        assert_eq!(is_grpc(&headers), wanted, "{value}");
    }
}
