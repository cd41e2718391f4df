use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use super::{Cache, Limits, Place};
use crate::fixture::{ask, ask_with};
use crate::query::Query;
use crate::reply::tests::{a, said, soa};

const HERE: Place = Place(1);

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn one(name: &str, ttl: u32) -> Vec<u8> {
    let message = said(name, ResponseCode::NoError, &[a(name, ttl)], &[]);
    message.to_vec().unwrap()
}

/// The lifetime of the first record that comes out for a query of these bytes.
fn out(cache: &mut Cache, place: Place, asked: &[u8], seconds: f64) -> Option<u32> {
    let query = Query::read(asked).unwrap();
    let bytes = cache.get(place, &query, at(seconds))?;
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.id, query.id());
    assert_eq!(
        &bytes[12..12 + query.question().len()],
        query.question(),
        "as it was asked"
    );
    message.all_sections().next().map(|record| record.ttl)
}

#[test]
fn an_answer_comes_out_until_it_is_over_with_what_is_left_of_its_time() {
    let mut cache = Cache::default();
    let asked = ask("web.example", RecordType::A);
    cache.put(
        HERE,
        &Query::read(&asked).unwrap(),
        &one("web.example", 10),
        at(100.0),
    );
    let mut other = ask("WEB.Example", RecordType::A);
    other[0] = 0x77;
    assert_eq!(out(&mut cache, HERE, &asked, 100.0), Some(10));
    assert_eq!(
        out(&mut cache, HERE, &other, 100.2),
        Some(9),
        "never longer than it is true"
    );
    assert_eq!(out(&mut cache, HERE, &asked, 109.5), Some(0));
    assert_eq!(out(&mut cache, HERE, &asked, 110.0), None);
}

#[test]
fn a_denial_comes_out_until_the_zone_says() {
    let mut cache = Cache::default();
    let asked = ask("web.example", RecordType::A);
    let denial = said("web.example", ResponseCode::NXDomain, &[], &[soa(60, 20)]);
    let denial = denial.to_vec().unwrap();
    cache.put(HERE, &Query::read(&asked).unwrap(), &denial, at(0.0));
    assert_eq!(out(&mut cache, HERE, &asked, 19.0), Some(41));
    assert_eq!(out(&mut cache, HERE, &asked, 20.0), None);
}

#[test]
fn another_question_or_place_is_another_answer() {
    let mut cache = Cache::default();
    let asked = ask("web.example", RecordType::A);
    cache.put(
        HERE,
        &Query::read(&asked).unwrap(),
        &one("web.example", 10),
        at(0.0),
    );
    let mut not_recursive = asked.clone();
    not_recursive[2] = 0;
    let mut validating = asked.clone();
    validating[3] |= 0x20;
    let others = [
        ask("web.example", RecordType::AAAA),
        ask("wed.example", RecordType::A),
        ask_with("web.example", RecordType::A, 1232, false),
        ask_with("web.example", RecordType::A, 1232, true),
        not_recursive,
        validating,
    ];
    for other in others {
        assert_eq!(out(&mut cache, HERE, &other, 1.0), None, "{other:?}");
    }
    assert_eq!(out(&mut cache, Place(2), &asked, 1.0), None);
    assert_eq!(out(&mut cache, HERE, &asked, 1.0), Some(9));
}

#[test]
fn no_more_is_kept_than_the_limits_say_and_what_is_used_stays() {
    let limits = Limits {
        entries: 100,
        bytes: 1 << 20,
    };
    let mut cache = Cache::new(limits);
    let put = |cache: &mut Cache, name: &str| {
        let asked = ask(name, RecordType::A);
        cache.put(
            HERE,
            &Query::read(&asked).unwrap(),
            &one(name, 1000),
            at(0.0),
        );
    };
    let used = ask("used.example", RecordType::A);
    put(&mut cache, "used.example");
    for n in 0..1000 {
        put(&mut cache, &format!("n{n}.example"));
        assert!(
            out(&mut cache, HERE, &used, 1.0).is_some(),
            "after {n} others"
        );
        assert!(cache.size().0 <= 100);
    }
    let kept = (0..1000).filter(|n| {
        let asked = ask(&format!("n{n}.example"), RecordType::A);
        out(&mut cache, HERE, &asked, 1.0).is_some()
    });
    assert_eq!(kept.count(), 99);

    let limits = Limits {
        entries: 100,
        bytes: 500,
    };
    let mut cache = Cache::new(limits);
    for n in 0..50 {
        put(&mut cache, &format!("n{n}.example"));
        let (entries, bytes) = cache.size();
        assert!(
            bytes <= 500 && entries <= 7,
            "{entries} entries of {bytes} bytes"
        );
    }
    for _ in 0..10 {
        put(&mut cache, "n1.example");
    }
    assert!(
        cache.size().1 <= 500,
        "an answer in the place of another counts once"
    );
}
