use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use proptest::prelude::{any, prop, proptest};

use super::{age, fit, forwarded, is_answer, lifetime};
use crate::fixture::{ask, ask_with, name, question};
use crate::query::Query;

pub(crate) fn a(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, 1)))
}

pub(crate) fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(
        name("ns.example"),
        name("root.example"),
        1,
        2,
        3,
        4,
        minimum,
    );
    Record::from_rdata(name("example"), ttl, RData::SOA(data))
}

/// What a server says to a query for `asked`.
pub(crate) fn said(
    asked: &str,
    code: ResponseCode,
    answers: &[Record],
    authority: &[Record],
) -> Message {
    let mut message = question(asked, RecordType::A);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_answers(answers.iter().cloned());
    message.add_authorities(authority.iter().cloned());
    message
}

#[test]
fn a_forwarded_query_differs_in_its_id_alone() {
    let bytes = ask_with("A.example", RecordType::TXT, 1232, true);
    let query = Query::read(&bytes).unwrap();
    let sent = forwarded(&query, 0xbeef);
    assert_eq!(sent[..2], [0xbe, 0xef]);
    assert_eq!(sent[2..], bytes[2..]);
}

#[test]
fn only_what_answers_the_question_is_an_answer() {
    let bytes = ask("Web.example", RecordType::A);
    let query = Query::read(&bytes).unwrap();
    let good = said(
        "web.example",
        ResponseCode::NoError,
        &[a("web.example", 5)],
        &[],
    );
    let message = |change: &dyn Fn(&mut Message)| {
        let mut message = good.clone();
        change(&mut message);
        message.to_vec().unwrap()
    };
    let of = |asked| {
        said(asked, ResponseCode::NoError, &[], &[])
            .to_vec()
            .unwrap()
    };
    let no_question = |code| {
        message(&|m| {
            m.queries.clear();
            m.answers.clear();
            m.metadata.response_code = code;
        })
    };
    let table = [
        ("the answer", message(&|_| {}), true),
        (
            "NXDOMAIN",
            message(&|m| m.metadata.response_code = ResponseCode::NXDomain),
            true,
        ),
        ("another id", message(&|m| m.metadata.id = 1), false),
        ("a query", bytes.clone(), false),
        ("another name", of("wed.example"), false),
        ("a longer name", of("web.examples"), false),
        (
            "another type",
            {
                let mut message = question("web.example", RecordType::AAAA);
                message.metadata.message_type = MessageType::Response;
                message.to_vec().unwrap()
            },
            false,
        ),
        (
            "a failure without a question",
            no_question(ResponseCode::FormErr),
            true,
        ),
        (
            "an answer without a question",
            no_question(ResponseCode::NoError),
            false,
        ),
        (
            "a denial without a question",
            no_question(ResponseCode::NXDomain),
            false,
        ),
        ("nothing", Vec::new(), false),
        ("a header cut short", message(&|_| {})[..11].to_vec(), false),
    ];
    for (what, answer, expected) in table {
        assert_eq!(is_answer(&query, 0x1234, &answer), expected, "{what}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, read row by row")]
fn an_answer_holds_as_long_as_its_shortest_record_and_a_denial_as_the_zone_says() {
    const NAME: &str = "web.example";
    let alias = Record::from_rdata(name(NAME), 50, RData::CNAME(CNAME(name("b.example"))));
    let ok = ResponseCode::NoError;
    let none = ResponseCode::NXDomain;
    let table = [
        ("one record", said(NAME, ok, &[a(NAME, 60)], &[]), Some(60)),
        (
            "the shortest of two",
            said(NAME, ok, &[a(NAME, 60), a(NAME, 7)], &[]),
            Some(7),
        ),
        (
            "an authority record counts",
            said(NAME, ok, &[a(NAME, 60)], &[a("ns.example", 9)]),
            Some(9),
        ),
        ("zero", said(NAME, ok, &[a(NAME, 0)], &[]), None),
        (
            "the first bit set",
            said(NAME, ok, &[a(NAME, 1 << 31)], &[]),
            None,
        ),
        (
            "longer than anybody",
            said(NAME, ok, &[a(NAME, 1_000_000)], &[]),
            Some(86_400),
        ),
        (
            "no such name",
            said(NAME, none, &[], &[soa(60, 20)]),
            Some(20),
        ),
        (
            "no such name, a short record",
            said(NAME, none, &[], &[soa(10, 20)]),
            Some(10),
        ),
        (
            "no such name for ever",
            said(NAME, none, &[], &[soa(90_000, 90_000)]),
            Some(3_600),
        ),
        ("no such name, no zone", said(NAME, none, &[], &[]), None),
        (
            "no such type",
            said(NAME, ok, &[], &[soa(30, 40)]),
            Some(30),
        ),
        ("no such type, no zone", said(NAME, ok, &[], &[]), None),
        (
            "an alias to nothing",
            said(NAME, ok, std::slice::from_ref(&alias), &[soa(60, 20)]),
            Some(20),
        ),
        (
            "an alias to no such name",
            said(NAME, none, &[alias], &[soa(60, 20)]),
            Some(20),
        ),
        (
            "a failure",
            said(NAME, ResponseCode::ServFail, &[], &[soa(60, 60)]),
            None,
        ),
        (
            "a refusal",
            said(NAME, ResponseCode::Refused, &[], &[]),
            None,
        ),
        (
            "a cut one",
            {
                let mut message = said(NAME, ok, &[a(NAME, 60)], &[]);
                message.metadata.truncation = true;
                message
            },
            None,
        ),
        (
            "to another question",
            said("other.example", ok, &[a(NAME, 60)], &[]),
            None,
        ),
        (
            "with a further code",
            {
                let mut message = said(NAME, ResponseCode::BADVERS, &[a(NAME, 60)], &[]);
                message.set_edns(Edns::new());
                message
            },
            None,
        ),
        (
            "with EDNS",
            {
                let mut message = said(NAME, ok, &[a(NAME, 60)], &[]);
                message.set_edns(Edns::new());
                message
            },
            Some(60),
        ),
    ];
    let bytes = ask(NAME, RecordType::A);
    let query = Query::read(&bytes).unwrap();
    for (what, message, expected) in table {
        let answer = message.to_vec().unwrap();
        assert_eq!(lifetime(&query, &answer), expected, "{what}");
    }
    let mut longer = said(NAME, ok, &[a(NAME, 60)], &[]).to_vec().unwrap();
    longer.push(0);
    assert_eq!(
        lifetime(&query, &longer),
        None,
        "bytes that belong to nothing"
    );
    longer.truncate(40);
    assert_eq!(lifetime(&query, &longer), None, "cut on the way");
    let answer = said(NAME, ok, &[a(NAME, 60)], &[]).to_vec().unwrap();
    for (what, changed) in [("a query", 0x80), ("of another kind", 0x28)] {
        let mut other = answer.clone();
        other[2] ^= changed;
        assert_eq!(lifetime(&query, &other), None, "{what}");
    }
}

#[test]
fn every_record_ages_but_edns() {
    let mut message = said(
        "web.example",
        ResponseCode::NoError,
        &[a("web.example", 60), a("web.example", 5)],
        &[soa(30, 77)],
    );
    message.add_additional(a("ns.example", 8));
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true);
    message.set_edns(edns);
    let mut bytes = message.to_vec().unwrap();
    age(&mut bytes, 6);
    let aged = Message::from_vec(&bytes).unwrap();
    let lifetimes: Vec<u32> = aged.all_sections().map(|record| record.ttl).collect();
    assert_eq!(lifetimes, [54, 0, 24, 2]);
    assert_eq!(aged.edns, message.edns);
}

#[test]
fn what_does_not_fit_says_so_and_keeps_question_and_edns() {
    let text = TXT::new(vec!["x".repeat(200); 4]);
    let record = Record::from_rdata(name("web.example"), 60, RData::TXT(text));
    let mut message = said(
        "web.example",
        ResponseCode::NoError,
        &[record],
        &[soa(60, 60)],
    );
    let plain = message.to_vec().unwrap();
    assert_eq!(
        fit(plain.clone(), plain.len()),
        plain,
        "what fits is as it was"
    );
    let cut = Message::from_vec(&fit(plain, 512)).unwrap();
    assert!(cut.truncation && cut.answers.is_empty() && cut.authorities.is_empty());
    assert_eq!(
        (cut.id, cut.queries.as_slice()),
        (0x1234, message.queries.as_slice())
    );
    message.set_edns(Edns::new());
    let cut = Message::from_vec(&fit(message.to_vec().unwrap(), 512)).unwrap();
    assert!(cut.truncation && cut.answers.is_empty());
    assert_eq!(cut.edns, message.edns);
}

proptest! {
    #[test]
    fn garbage_is_no_answer_and_ages_without_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        seconds in any::<u32>(),
        limit in 0usize..600,
    ) {
        let asked = ask("web.example", RecordType::A);
        let query = Query::read(&asked).unwrap();
        let _ = is_answer(&query, 0x1234, &bytes);
        let _ = lifetime(&query, &bytes);
        age(&mut bytes, seconds);
        let length = bytes.len();
        let fitted = fit(bytes, limit);
        assert!(fitted.len() <= length.max(12));
    }

    #[test]
    fn what_the_library_wrote_ages_as_the_library_reads_it(
        lifetimes in prop::collection::vec(0u32..100_000, 1..20), seconds in 0u32..100_000,
    ) {
        let records: Vec<_> = lifetimes.iter().map(|ttl| a("web.example", *ttl)).collect();
        let mut bytes = said("web.example", ResponseCode::NoError, &records, &[]).to_vec().unwrap();
        age(&mut bytes, seconds);
        let aged = Message::from_vec(&bytes).unwrap();
        let found: Vec<u32> = aged.answers.iter().map(|record| record.ttl).collect();
        let expected: Vec<u32> = lifetimes.iter().map(|ttl| ttl.saturating_sub(seconds)).collect();
        assert_eq!(found, expected);
    }
}
