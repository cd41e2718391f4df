//! Tests of path normalisation.

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::{Canonical, PathRefused, canonical};
use crate::plan::{EscapedSlashes, PathNormalization};

const BASE: PathNormalization = PathNormalization {
    normalize: true,
    merge_slashes: false,
    escaped_slashes: EscapedSlashes::Keep,
};

fn base(path: &str) -> (String, Option<String>) {
    let Canonical {
        path_and_query,
        strict,
        ..
    } = canonical(path, BASE).unwrap();
    (path_and_query.into_owned(), strict)
}

#[test]
fn paths_are_brought_into_one_form_and_ambiguous_ones_get_a_strict_reading() {
    let cases = [
        ("/", "/", None),
        ("/a/b?c=/../d", "/a/b?c=/../d", None),
        ("/a/./b", "/a/b", None),
        ("/a/../b", "/b", None),
        ("/../../b", "/b", None),
        ("/a/..", "/", None),
        ("/a/.", "/a/", None),
        ("/%61dmin", "/admin", None),
        ("/%2e%2e/admin", "/admin", None),
        ("/a/%2E%2e/admin", "/admin", None),
        ("/.hidden", "/.hidden", None),
        ("/a\\b", "/a/b", None),
        ("//admin", "//admin", Some("/admin")),
        ("/x//admin", "/x//admin", Some("/x/admin")),
        ("/x%2Fadmin", "/x%2Fadmin", Some("/x/admin")),
        ("/x/..%2fadmin", "/x/..%2fadmin", Some("/admin")),
        ("/x%5Cadmin", "/x%5Cadmin", Some("/x/admin")),
        ("/admin;a=b", "/admin;a=b", Some("/admin")),
        ("/admin;a=b/c;d", "/admin;a=b/c;d", Some("/admin/c")),
        ("/x/..;/admin", "/x/..;/admin", Some("/admin")),
        ("/a%40b", "/a%40b", Some("/a@b")),
        ("/a%20b", "/a%20b", Some("/a b")),
        ("/a%252e", "/a%252e", Some("/a%2e")),
        ("/%C3%A9", "/%C3%A9", None),
        ("*", "*", None),
    ];
    for (from, wanted, strict) in cases {
        let wanted = (wanted.to_owned(), strict.map(str::to_owned));
        assert_eq!(base(from), wanted, "{from}");
    }
}

#[test]
fn the_control_plane_decides_about_slashes() {
    let with = |merge_slashes, escaped_slashes| PathNormalization {
        merge_slashes,
        escaped_slashes,
        ..BASE
    };
    let merged = canonical("//a///b?x=//", with(true, EscapedSlashes::Keep)).unwrap();
    assert_eq!(merged.path_and_query, "/a/b?x=//");
    assert_eq!(merged.strict, None);
    let decoded = canonical("/a%2Fb%5cc/%2e%2e", with(false, EscapedSlashes::Decode)).unwrap();
    assert_eq!(decoded.path_and_query, "/a/b/");
    assert!(!decoded.redirect);
    let redirected = canonical("/a%2fb", with(false, EscapedSlashes::DecodeAndRedirect)).unwrap();
    assert!(redirected.redirect);
    let rejected = canonical("/a%2fb", with(false, EscapedSlashes::Reject));
    assert_eq!(rejected, Err(PathRefused::EscapedSlash));
    let off = PathNormalization::default();
    assert_eq!(canonical("/a/../b", off).unwrap().path_and_query, "/a/../b");
    assert_eq!(
        canonical("/a/../b", off).unwrap().strict.as_deref(),
        Some("/b")
    );
}

#[test]
fn refuses_paths_without_a_safe_reading() {
    let cases = [
        ("a", PathRefused::Relative),
        ("", PathRefused::Relative),
        ("/a%", PathRefused::Escape),
        ("/a%2", PathRefused::Escape),
        ("/a%zz", PathRefused::Escape),
        ("/a%00", PathRefused::Control),
        ("/a%0d%0aX: y", PathRefused::Control),
        ("/a\u{7f}", PathRefused::Control),
        ("/a#b", PathRefused::Fragment),
    ];
    for (path, wanted) in cases {
        assert_eq!(canonical(path, BASE), Err(wanted), "{path:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn normalising_twice_is_normalising_once(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "/", ".", "..", "a", "%2e", "%2E", "%2f", "%5c", "\\", ";x", "%41", "%25", "?",
            ]),
            0..12,
        ),
        merge in any::<bool>(),
        decode in any::<bool>(),
    ) {
        let path = format!("/{}", parts.concat());
        let escaped_slashes =
            if decode { EscapedSlashes::Decode } else { EscapedSlashes::Keep };
        let settings = PathNormalization { merge_slashes: merge, escaped_slashes, ..BASE };
        let once = canonical(&path, settings).unwrap();
        let twice = canonical(&once.path_and_query, settings).unwrap();
        // One level of escaping is gone for good only where `%25` hid nothing.
        if !path.contains("%25") {
            assert_eq!(twice.path_and_query, once.path_and_query);
            assert_eq!(twice.strict, once.strict);
        }
        let plain = once.path_and_query.split('?').next().unwrap();
        assert!(!plain.split('/').any(|segment| segment == "." || segment == ".."), "{plain}");
    }
}
