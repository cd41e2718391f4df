//! Another server's answer: is it one, how long does it hold, and how much of it may be passed on.

use crate::query::Query;
use crate::walk::{self, HEADER, Header, Malformed, Section, flag, kind, put, u16_at, u32_at};

/// Codes of answers (RFC 1035 section 4.1.1).
mod code {
    pub(super) const NO_ERROR: u16 = 0;
    pub(super) const NO_SUCH_NAME: u16 = 3;
}

/// Longest time for which "here it is" is believed, in seconds. RFC 8767 section 4 names a day to a week; a day is
/// longer than anything here lives.
const LONGEST: u32 = 86_400;
/// Longest time for which "there is none" is believed: RFC 2308 section 5 names one to three hours.
const LONGEST_NEGATIVE: u32 = 3_600;

/// The query as it is sent on: the same bytes with another id.
#[must_use]
pub fn forwarded(query: &Query<'_>, id: u16) -> Vec<u8> {
    let mut bytes = query.bytes().to_vec();
    put(&mut bytes, 0, &id.to_be_bytes());
    bytes
}

/// Gives an answer the id that its client waits for.
pub fn address_to(query: &Query<'_>, answer: &mut [u8]) {
    put(answer, 0, &query.id().to_be_bytes());
}

/// Whether `bytes` answer `query` as sent under `id`: anybody can send a datagram. Letter case may have been lost.
#[must_use]
pub fn is_answer(query: &Query<'_>, id: u16, bytes: &[u8]) -> bool {
    let Ok(header) = Header::read(bytes) else {
        return false;
    };
    if header.id != id || !is_reply(&header) {
        return false;
    }
    match header.questions {
        1 => same_question(query, bytes),
        // A server that could not read the question cannot repeat it.
        0 => header.code() != code::NO_ERROR && header.code() != code::NO_SUCH_NAME,
        _ => false,
    }
}

/// Whether it is an answer at all, and to a query of the only kind that is sent on.
fn is_reply(header: &Header) -> bool {
    header.has(flag::ANSWER) && header.flags & flag::OPCODE == 0
}

fn same_question(query: &Query<'_>, answer: &[u8]) -> bool {
    let asked = query.question();
    let end = HEADER + asked.len();
    let Some(repeated) = answer.get(HEADER..end) else {
        return false;
    };
    let names = asked.len().saturating_sub(4);
    // Lengths of labels are below the letters, so they compare as they are.
    let (name, kind) = asked.split_at(names);
    let (repeated_name, repeated_kind) = repeated.split_at(names);
    name.eq_ignore_ascii_case(repeated_name) && kind == repeated_kind
}

/// Whether the server cut it.
#[must_use]
pub fn is_truncated(answer: &[u8]) -> bool {
    u16_at(answer, 2).is_ok_and(|flags| flags & flag::TRUNCATED != 0)
}

/// Whether another server may know better: this one failed, does not do such things, or does not want to.
#[must_use]
pub fn is_refusal(answer: &[u8]) -> bool {
    const SERVER_FAILURE: u16 = 2;
    const NOT_IMPLEMENTED: u16 = 4;
    const REFUSED: u16 = 5;
    let code = Header::read(answer).map(|header| header.code());
    matches!(code, Ok(SERVER_FAILURE | NOT_IMPLEMENTED | REFUSED))
}

/// The answer within `limit` bytes: itself, or as much of it as says that it was cut. The client then asks over TCP.
#[must_use]
pub fn fit(mut answer: Vec<u8>, limit: usize) -> Vec<u8> {
    if answer.len() <= limit {
        return answer;
    }
    let Ok(header) = Header::read(&answer) else {
        return answer;
    };
    let question_end = match header.questions {
        1 => walk::question_end(&answer).unwrap_or(HEADER),
        _ => HEADER,
    };
    // What the server says of EDNS stays (RFC 6891 section 7).
    let edns = walk::records(&answer, &header, question_end)
        .flatten()
        .find(|record| record.kind == kind::OPT)
        .and_then(|record| answer.get(record.start..record.end))
        .filter(|edns| question_end + edns.len() <= limit)
        .map(<[u8]>::to_vec);
    answer.truncate(question_end);
    let questions = u16::from(question_end > HEADER);
    put(
        &mut answer,
        2,
        &(header.flags | flag::TRUNCATED).to_be_bytes(),
    );
    put(&mut answer, 4, &questions.to_be_bytes());
    put(&mut answer, 6, &[0; 4]);
    put(&mut answer, 10, &u16::from(edns.is_some()).to_be_bytes());
    answer.extend(edns.into_iter().flatten());
    answer
}

/// How many seconds `answer` holds for everybody who asks `query`; `None` when it is for this client or moment alone.
///
/// A positive answer holds as long as its shortest record; "there is none" as long as the zone says (RFC 2308), and not
/// at all where no zone says it. Failures do not hold.
#[must_use]
pub fn lifetime(query: &Query<'_>, answer: &[u8]) -> Option<u32> {
    let header = Header::read(answer).ok()?;
    let known = matches!(header.code(), code::NO_ERROR | code::NO_SUCH_NAME);
    let whole = header.questions == 1 && !header.has(flag::TRUNCATED);
    if !known || !whole || !is_reply(&header) || !query.is_plain() {
        return None;
    }
    if !same_question(query, answer) {
        return None;
    }
    holds(answer, &header)
        .ok()
        .flatten()
        .filter(|&seconds| seconds > 0)
}

fn holds(answer: &[u8], header: &Header) -> Result<Option<u32>, Malformed> {
    let mut records = walk::records(answer, header, walk::question_end(answer)?);
    let mut shortest = LONGEST;
    let mut zone_says = false;
    for record in records.by_ref() {
        let record = record?;
        if record.kind == kind::OPT {
            let [further_code, ..] = record.ttl.to_be_bytes();
            let options = record.end > record.data;
            if further_code != 0 || options {
                return Ok(None);
            }
            continue;
        }
        // RFC 2181 section 8: a lifetime with the first bit set is none.
        let lifetime = if record.ttl > u32::MAX / 2 {
            0
        } else {
            record.ttl
        };
        shortest = shortest.min(lifetime);
        if record.section == Section::Authority && record.kind == kind::SOA {
            let minimum = u32_at(answer, record.end.checked_sub(4).ok_or(Malformed)?)?;
            shortest = shortest.min(minimum);
            zone_says = true;
        }
    }
    if records.at() != answer.len() {
        return Err(Malformed);
    }
    let [answers, ..] = header.records;
    let positive = answers > 0 && header.code() == code::NO_ERROR;
    Ok(match (positive, zone_says) {
        (true, false) => Some(shortest),
        (true, true) | (false, true) => Some(shortest.min(LONGEST_NEGATIVE)),
        (false, false) => None,
    })
}

/// Takes `seconds` from the lifetime of every record.
pub(crate) fn age(answer: &mut [u8], seconds: u32) {
    let Ok(header) = Header::read(answer) else {
        return;
    };
    let Ok(question_end) = walk::question_end(answer) else {
        return;
    };
    let mut at = question_end;
    for _ in 0..header.records.iter().map(|count| u32::from(*count)).sum() {
        let one = Header {
            records: [1, 0, 0],
            ..header
        };
        let Some(Ok(record)) = walk::records(answer, &one, at).next() else {
            return;
        };
        if record.kind != kind::OPT {
            let left = record.ttl.saturating_sub(seconds);
            put(answer, record.ttl_at(), &left.to_be_bytes());
        }
        at = record.end;
    }
}

#[cfg(test)]
pub(crate) mod tests;
