use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::{any, prop, proptest};

use super::{ClientEdns, Fault, Query};
use crate::Transport;
use crate::fixture::{ask, ask_with, question};

#[test]
fn reads_what_is_asked() {
    let bytes = ask("WEB.Shop", RecordType::A);
    let query = Query::read(&bytes).unwrap();
    assert_eq!(query.id(), 0x1234);
    assert_eq!(query.name(), Some("web.shop"), "lower case, no last dot");
    assert_eq!((query.kind(), query.class()), (1, 1));
    assert_eq!(query.asks_ipv6(), Some(false));
    assert_eq!((query.edns(), query.is_plain()), (None, true));
    assert_eq!(query.question(), b"\x03WEB\x04Shop\0\0\x01\0\x01");
    assert_eq!(query.limit(Transport::Udp), 512);
    assert_eq!(query.limit(Transport::Tcp), 65_535);

    let bytes = ask_with("a", RecordType::AAAA, 1232, true);
    let query = Query::read(&bytes).unwrap();
    assert_eq!(query.asks_ipv6(), Some(true));
    let expected = ClientEdns {
        payload: 1232,
        dnssec_ok: true,
        version: 0,
        options: false,
    };
    assert_eq!((query.edns(), query.is_plain()), (Some(expected), true));
    assert_eq!(query.limit(Transport::Udp), 1232);
    let bytes = ask_with("a", RecordType::TXT, 100, false);
    let query = Query::read(&bytes).unwrap();
    assert_eq!(query.limit(Transport::Udp), 512, "no less than a plain one");
    assert_eq!(query.asks_ipv6(), None);
}

#[test]
fn a_query_with_options_or_signatures_is_for_one_server_alone() {
    let mut bytes = ask_with("a", RecordType::A, 1232, false);
    let length = bytes.len();
    // A cookie (RFC 7873): code 10, eight bytes.
    bytes[length - 1] = 12;
    bytes.extend_from_slice(b"\0\x0a\0\x0812345678");
    let query = Query::read(&bytes).unwrap();
    assert!(!query.is_plain() && query.edns().unwrap().options);
    let mut bytes = ask("a", RecordType::A);
    bytes.push(0);
    let query = Query::read(&bytes).unwrap();
    assert!(!query.is_plain(), "what follows the message is kept, too");
}

#[test]
fn names_that_text_cannot_write_plainly_have_no_text() {
    let table: &[(&[u8], Option<&str>)] = &[
        (b"\x03a.b\0", None),
        (b"\x03a\\b\0", None),
        (b"\x02a\xff\0", None),
        (b"\x03a b\0", None),
        (b"\x04_tcp\x01a\0", Some("_tcp.a")),
        (b"\x01*\x01a\0", Some("*.a")),
        (b"\0", Some("")),
    ];
    for (name, expected) in table {
        let mut bytes = ask("a", RecordType::A);
        bytes.splice(12..15, name.iter().copied());
        let query = Query::read(&bytes).unwrap();
        assert_eq!(query.name(), *expected, "{name:?}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, read row by row")]
fn what_is_no_query_is_told_so() {
    let good = ask("a", RecordType::A);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let two_opts = {
        let mut bytes = ask_with("a", RecordType::A, 1232, false);
        let opt = bytes[bytes.len() - 11..].to_vec();
        bytes.extend(opt);
        bytes[11] = 2;
        bytes
    };
    let table = [
        (
            "an answer",
            changed(2, 0x81),
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
        (
            "NOTIFY",
            changed(2, 0x20),
            Fault::NotAQuery,
            ResponseCode::NotImp,
        ),
        (
            "UPDATE",
            changed(2, 0x28),
            Fault::NotAQuery,
            ResponseCode::NotImp,
        ),
        (
            "opcode 9",
            changed(2, 0x48),
            Fault::NotAQuery,
            ResponseCode::NotImp,
        ),
        (
            "no question",
            changed(5, 0),
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
        (
            "two questions",
            changed(5, 2),
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
        (
            "a missing record",
            changed(11, 1),
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
        (
            "a pointer",
            changed(12, 0xc0),
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
        (
            "two OPT records",
            two_opts,
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
        (
            "an end too early",
            good[..16].to_vec(),
            Fault::Malformed,
            ResponseCode::FormErr,
        ),
    ];
    for (what, bytes, fault, code) in table {
        assert_eq!(Query::read(&bytes).unwrap_err(), fault, "{what}");
        let said = fault.answer(&bytes).unwrap();
        let said = Message::from_vec(&said).unwrap();
        assert_eq!((said.id, said.response_code), (0x1234, code), "{what}");
        assert_eq!(said.op_code, OpCode::from_u8(bytes[2] >> 3 & 15), "{what}");
        assert!(said.recursion_available, "{what}");
    }
    assert_eq!(Query::read(&good[..11]).unwrap_err(), Fault::Foreign);
    assert_eq!(Fault::Foreign.answer(&good[..11]), None);
}

#[test]
fn a_refusal_repeats_the_question_and_edns() {
    let bytes = ask_with("WEB.shop", RecordType::A, 100, true);
    let refused = Query::read(&bytes).unwrap().refuse(ResponseCode::ServFail);
    let message = Message::from_vec(&refused).unwrap();
    assert_eq!(message.response_code, ResponseCode::ServFail);
    assert!(message.recursion_desired && message.recursion_available && !message.authoritative);
    assert_eq!(message.queries, question("WEB.shop", RecordType::A).queries);
    assert!(
        refused.windows(4).any(|four| four == b"\x03WEB"),
        "letters as they came"
    );
    let edns = message.edns.as_ref().unwrap();
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (512, true));
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        match Query::read(&bytes) {
            Ok(query) => assert!(!query.refuse(ResponseCode::ServFail).is_empty()),
            Err(fault) => assert_eq!(fault.answer(&bytes).is_none(), bytes.len() < 12),
        }
    }

    #[test]
    fn what_the_library_reads_as_a_query_is_one(
        change in 0usize..60, to in any::<u8>(), payload in any::<u16>(),
    ) {
        let mut bytes = ask_with("a.bc.def", RecordType::A, payload, true);
        let length = bytes.len();
        bytes[change % length] = to;
        let ours = Query::read(&bytes);
        if let Ok(message) = Message::from_vec(&bytes)
            && message.queries.len() == 1
            && message.op_code == OpCode::Query
            && let Ok(query) = ours
        {
            assert_eq!(query.kind(), u16::from(message.queries[0].query_type()));
            assert_eq!(query.edns().is_some(), message.edns.is_some());
        }
    }
}
