//! Walking over a message in place: where its question ends and where its records lie.

/// Bytes of the header (RFC 1035 section 4.1.1).
pub const HEADER: usize = 12;
/// Longest name on the wire (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

/// Record types that are looked at by number.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Start of authority, which says how long a "there is none" holds.
    pub const SOA: u16 = 6;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Pseudo record of EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Incremental transfer of a zone.
    pub const IXFR: u16 = 251;
    /// Transfer of a zone.
    pub const AXFR: u16 = 252;
}

/// The Internet's class.
pub const CLASS_IN: u16 = 1;

/// Bits of the header's flags.
pub mod flag {
    /// The message is an answer.
    pub const ANSWER: u16 = 0x8000;
    /// What kind of message it is; 0 is a query.
    pub const OPCODE: u16 = 0x7800;
    /// It was cut to fit.
    pub const TRUNCATED: u16 = 0x0200;
    /// Ask others too.
    pub const RECURSION_DESIRED: u16 = 0x0100;
    /// Do not validate.
    pub const CHECKING_DISABLED: u16 = 0x0010;
    /// The answer's code.
    pub const CODE: u16 = 0x000f;
}

/// The message does not hold what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is malformed")]
pub struct Malformed;

/// The number at `at`, in network order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let end = at.checked_add(2).ok_or(Malformed)?;
    let both = bytes.get(at..end).and_then(|both| both.try_into().ok());
    both.map(u16::from_be_bytes).ok_or(Malformed)
}

/// The number at `at`, in network order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let end = at.checked_add(4).ok_or(Malformed)?;
    let all = bytes.get(at..end).and_then(|all| all.try_into().ok());
    all.map(u32::from_be_bytes).ok_or(Malformed)
}

/// Writes a number; nothing where there is no room.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let end = at.saturating_add(value.len());
    if let Some(place) = bytes.get_mut(at..end) {
        place.copy_from_slice(value);
    }
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Chosen by whoever asks.
    pub id: u16,
    /// See [`flag`].
    pub flags: u16,
    /// Questions.
    pub questions: u16,
    /// Records in the answer, authority and additional section.
    pub records: [u16; 3],
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// There are fewer than [`HEADER`] bytes.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(Self {
            id: u16_at(bytes, 0)?,
            flags: u16_at(bytes, 2)?,
            questions: u16_at(bytes, 4)?,
            records: [u16_at(bytes, 6)?, u16_at(bytes, 8)?, u16_at(bytes, 10)?],
        })
    }

    /// Whether all bits of `wanted` are set.
    #[must_use]
    pub fn has(&self, wanted: u16) -> bool {
        self.flags & wanted == wanted
    }

    /// The answer's code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.flags & flag::CODE
    }
}

/// The end of the name at `at`, and whether it ends in a pointer. Where that leads is not looked at.
fn name(bytes: &[u8], at: usize) -> Result<(usize, bool), Malformed> {
    let mut here = at;
    loop {
        let length = *bytes.get(here).ok_or(Malformed)?;
        match length {
            0 => return Ok((here + 1, false)),
            1..=63 => here += 1 + usize::from(length),
            192..=255 if here + 1 < bytes.len() => return Ok((here + 2, true)),
            _ => return Err(Malformed),
        }
        if here - at >= LONGEST_NAME {
            return Err(Malformed);
        }
    }
}

/// The end of the name at `at`.
pub(crate) fn name_end(bytes: &[u8], at: usize) -> Result<usize, Malformed> {
    name(bytes, at).map(|(end, _)| end)
}

/// The end of the only question's name, type and class. The name stands in full: there is nothing before it that a
/// pointer could lead to.
///
/// # Errors
/// It does not, or there are fewer bytes.
pub fn question_end(bytes: &[u8]) -> Result<usize, Malformed> {
    match name(bytes, HEADER)? {
        (end, false) if end + 4 <= bytes.len() => Ok(end + 4),
        _ => Err(Malformed),
    }
}

/// Which section a record is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who knows.
    Authority,
    /// What helps.
    Additional,
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its section.
    pub section: Section,
    /// Where its owner's name begins.
    pub start: usize,
    /// Where its type begins; class, lifetime and length follow.
    pub fixed: usize,
    /// Its type.
    pub kind: u16,
    /// Its class; of an OPT record the size of datagrams.
    pub class: u16,
    /// Its lifetime in seconds; of an OPT record code, version and flags.
    pub ttl: u32,
    /// Where its data begins.
    pub data: usize,
    /// Where it ends.
    pub end: usize,
}

impl Record {
    /// Where its lifetime lies.
    #[must_use]
    pub fn ttl_at(&self) -> usize {
        self.fixed + 4
    }
}

/// The records of a message whose questions end at `at`.
pub fn records<'a>(bytes: &'a [u8], header: &Header, at: usize) -> Records<'a> {
    let [answers, authorities, additionals] = header.records;
    Records {
        bytes,
        at,
        left: [
            (Section::Answer, answers),
            (Section::Authority, authorities),
            (Section::Additional, additionals),
        ],
    }
}

/// Iterates over the records of a message. After an error there are no more.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    left: [(Section, u16); 3],
}

impl Records<'_> {
    /// Where the next record would begin: after the last one, the end of the message.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    fn read(&self, section: Section) -> Result<Record, Malformed> {
        let (bytes, start) = (self.bytes, self.at);
        let fixed = name_end(bytes, start)?;
        let data = fixed + 10;
        let end = data + usize::from(u16_at(bytes, fixed + 8)?);
        if end > bytes.len() {
            return Err(Malformed);
        }
        Ok(Record {
            section,
            start,
            fixed,
            kind: u16_at(bytes, fixed)?,
            class: u16_at(bytes, fixed + 2)?,
            ttl: u32_at(bytes, fixed + 4)?,
            data,
            end,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (section, left) = self.left.iter_mut().find(|(_, left)| *left > 0)?;
        *left -= 1;
        let section = *section;
        let read = self.read(section);
        match &read {
            Ok(record) => self.at = record.end,
            Err(Malformed) => self.left.iter_mut().for_each(|(_, left)| *left = 0),
        }
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER, Malformed, name_end, question_end};

    #[test]
    fn finds_the_end_of_a_name_and_refuses_what_is_none() {
        let long: Vec<u8> = [[63; 64].as_slice(); 4].concat();
        let table: &[(&[u8], Result<usize, Malformed>)] = &[
            (b"\0", Ok(1)),
            (b"\x01a\x02bc\0", Ok(6)),
            (b"\xc0\x0c", Ok(2)),
            (b"\x01a\xc0\0", Ok(4)),
            (b"", Err(Malformed)),
            (b"\x02a", Err(Malformed)),
            (b"\xc0", Err(Malformed)),
            (b"\x40aaaa\0", Err(Malformed)),
            (&long, Err(Malformed)),
        ];
        for (bytes, expected) in table {
            assert_eq!(name_end(bytes, 0), *expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_question_stands_in_full() {
        let with = |name: &[u8]| {
            let mut bytes = vec![0; HEADER];
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&[0, 1, 0, 1]);
            bytes
        };
        assert_eq!(question_end(&with(b"\x01a\0")), Ok(HEADER + 7));
        assert_eq!(question_end(&with(b"\0")), Ok(HEADER + 5));
        assert_eq!(question_end(&with(b"\xc0\0")), Err(Malformed));
        assert_eq!(question_end(&with(b"\x01a\xc0\0")), Err(Malformed));
        assert_eq!(question_end(&with(b"\x01a\0")[..18]), Err(Malformed));
    }
}
