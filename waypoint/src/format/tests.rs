//! Tests of format strings.

use super::{Command, Format, FormatError, HeaderRef, Plain, Values};

struct Some1;

impl Values for Some1 {
    fn append(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        let text = match command {
            Command::Request(HeaderRef::Path, None) => "/a?b",
            Command::Request(HeaderRef::Named(name), Some(HeaderRef::Path)) if name == "x" => "/x",
            Command::Plain(Plain::ResponseCode) => "200",
            Command::PeerPrincipal => "peer",
            Command::StartTime(Some(format)) if &**format == "%s" => "12",
            _ => return false,
        };
        out.extend_from_slice(text.as_bytes());
        true
    }
}

#[test]
fn formats_render_values_limits_and_missing_ones() {
    let cases = [
        ("plain", "plain"),
        ("100%%", "100%"),
        ("[%REQ(:PATH)%]", "[/a?b]"),
        ("%REQ(X?:path)%", "/x"),
        ("%REQ(:path):2%", "/a"),
        ("%RESPONSE_CODE% %RESPONSE_FLAGS%", "200 -"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "peer"),
        ("%FILTER_STATE(io.istio.peer_principal:PLAIN)%", "peer"),
        ("%REQ(missing):5%", "-"),
    ];
    for (format, wanted) in cases {
        let mut out = Vec::new();
        Format::parse(format).unwrap().render(&Some1, "-", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), wanted, "{format}");
    }
}

#[test]
fn istios_default_access_log_format_is_understood() {
    let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
        %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
        \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
        %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
        \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
        %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
        %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    assert!(Format::parse(text).is_ok());
}

#[test]
fn what_is_unknown_or_unfinished_is_refused() {
    let unknown = |text: &str| FormatError::Unknown(text.to_owned());
    let cases = [
        ("%NOPE%", unknown("NOPE")),
        ("%CEL(request.path)%", unknown("CEL(request.path)")),
        ("%FILTER_STATE(other)%", unknown("FILTER_STATE(other)")),
        ("%PROTOCOL(x)%", unknown("PROTOCOL(x)")),
        ("%REQ%", unknown("REQ")),
        ("100%", FormatError::Unfinished("100%".into())),
        ("%REQ(x", FormatError::Unfinished("%REQ(x".into())),
        ("%REQ(x):y%", FormatError::Unfinished("%REQ(x):y%".into())),
        ("%REQ(a b)%", FormatError::Header("a b".into())),
    ];
    for (format, wanted) in cases {
        assert_eq!(Format::parse(format), Err(wanted), "{format}");
    }
}

#[test]
fn constants_and_single_commands_are_told_apart() {
    assert_eq!(Format::parse("a%%b").unwrap().constant(), Some("a%b"));
    assert_eq!(Format::parse("").unwrap().constant(), Some(""));
    assert_eq!(Format::parse("a%DURATION%").unwrap().constant(), None);
    let single = Format::parse("%DURATION%").unwrap();
    assert_eq!(single.single(), Some(&Command::Plain(Plain::Duration)));
}
