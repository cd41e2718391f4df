use proptest::prelude::*;

use super::{Guard, Passed, Refusal};

const HEAD: &str = "GET / HTTP/1.1\r\nhost: a\r\n";

fn judge(text: &str) -> Passed {
    Guard::new(1024).look(text.as_bytes())
}

#[test]
fn sound_requests_pass_whole() {
    for text in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        format!("{HEAD}content-length: 3\r\n\r\nabc{HEAD}\r\n"),
        format!(
            "{HEAD}Transfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nt: v\r\n\r\n{HEAD}\r\n"
        ),
        format!("{HEAD}content-length: 0\r\n\r\n{HEAD}x-tab: a\tb\r\n\r\n"),
    ] {
        assert_eq!(judge(&text), Passed::Bytes(text.len()), "{text:?}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for (text, refusal) in [
        (
            "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            Refusal::Lengths,
        ),
        (
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            Refusal::Lengths,
        ),
        (
            "content-length: 3\r\ncontent-length: 3\r\n\r\n",
            Refusal::Lengths,
        ),
        (
            "content-length: 3\r\ncontent-length: 4\r\n\r\n",
            Refusal::Lengths,
        ),
        ("content-length: 3, 3\r\n\r\n", Refusal::Length),
        ("content-length: +3\r\n\r\n", Refusal::Length),
        ("content-length: 0x3\r\n\r\n", Refusal::Length),
        ("content-length:\r\n\r\n", Refusal::Length),
        ("transfer-encoding: identity\r\n\r\n", Refusal::Coding),
        ("transfer-encoding: gzip, chunked\r\n\r\n", Refusal::Coding),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            Refusal::Coding,
        ),
        ("transfer-encoding: \x0bchunked\r\n\r\n", Refusal::Value),
        ("transfer-encoding : chunked\r\n\r\n", Refusal::Name),
        ("x: a\r\n b\r\n\r\n", Refusal::Folding),
        ("x: a\nb: c\r\n\r\n", Refusal::LineEnd),
        ("x: a\rb\r\n\r\n", Refusal::LineEnd),
        ("x: a\n\n", Refusal::LineEnd),
        ("host: b\r\n\r\n", Refusal::Host),
        ("no colon\r\n\r\n", Refusal::Name),
        ("x: \0\r\n\r\n", Refusal::Value),
    ] {
        assert_eq!(
            judge(&format!("{HEAD}{text}")),
            Passed::Refused(0, refusal),
            "{text:?}"
        );
    }
}

#[test]
fn request_lines_have_three_words_and_a_version() {
    for line in [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET / HTTP/2.0",
        "G(T / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        " GET / HTTP/1.1",
    ] {
        let text = format!("{line}\r\nhost: a\r\n\r\n");
        assert_eq!(
            judge(&text),
            Passed::Refused(0, Refusal::RequestLine),
            "{line:?}"
        );
    }
    assert_eq!(
        judge("GET / HTTP/1.1\r\n\r\n"),
        Passed::Refused(0, Refusal::Host)
    );
}

#[test]
fn chunks_end_where_they_say() {
    let chunked = format!("{HEAD}transfer-encoding: chunked\r\n\r\n");
    for body in [
        "3\r\nabcd\r\n",
        "3\nabc\r\n",
        "-3\r\n",
        "\r\n",
        "ffffffffffffffff\r\n",
        "3\r\nabc\rx",
        "g\r\n",
    ] {
        assert!(
            matches!(judge(&format!("{chunked}{body}")), Passed::Refused(..)),
            "{body:?}"
        );
    }
}

#[test]
fn what_follows_a_refusal_never_passes_and_what_precedes_it_does() {
    let sound = format!("{HEAD}\r\n");
    let text =
        format!("{sound}{HEAD}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n{sound}");
    assert_eq!(judge(&text), Passed::Refused(sound.len(), Refusal::Lengths));
}

#[test]
fn a_head_larger_than_allowed_is_refused_before_it_ends() {
    let text = format!("{HEAD}x: {}", "a".repeat(2000));
    assert_eq!(judge(&text), Passed::Refused(0, Refusal::TooLarge));
}

#[test]
fn after_an_upgrade_everything_passes() {
    let mut guard = Guard::new(1024);
    guard.open();
    assert_eq!(guard.look(b"\x81\x05hello\n"), Passed::Bytes(8));
}

proptest! {
    /// However the bytes are cut, the verdict on them is the same.
    #[test]
    fn cutting_the_bytes_changes_nothing(cuts in prop::collection::vec(1usize..40, 1..40), bad in any::<bool>()) {
        let tail = if bad { "content-length: 1\r\ntransfer-encoding: chunked\r\n" } else { "" };
        let text = format!(
            "{HEAD}content-length: 3\r\n\r\nabc{HEAD}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1;e\r\n!\r\n0\r\na: b\r\n\r\n{HEAD}{tail}\r\n"
        );
        let whole = judge(&text);
        let (mut guard, mut shown, mut passed) = (Guard::new(1024), 0, 0);
        let mut cuts = cuts.into_iter().cycle();
        let pieces = loop {
            shown = (shown + cuts.next().unwrap()).min(text.len());
            match guard.look(&text.as_bytes()[passed..shown]) {
                Passed::Bytes(count) => passed += count,
                Passed::Refused(count, refusal) => break Passed::Refused(passed + count, refusal),
            }
            if shown == text.len() {
                break Passed::Bytes(passed);
            }
        };
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn no_bytes_panic_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Guard::new(128).look(&bytes);
    }
}
