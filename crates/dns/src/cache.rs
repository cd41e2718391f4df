//! Answers of other servers, kept for as long as they hold.
//!
//! # Theory of operation
//!
//! An answer is kept for the question *as it was asked*: all bytes of the query but its id and the letter case of the
//! name. So flags, EDNS and class need no rules of their own, and what comes out is what the server would have said,
//! with lifetimes counted down. Answers are kept for each place apart. A place is one pod with one set of servers: a
//! pod's own traffic could forge the answers to its queries, and what it forges must not reach another pod.
//!
//! Entries are in one ring for the whole node. A hand goes round when room is needed: it passes what was used since
//! its last visit, and removes what was not, or is over. So the names in use stay, however many others are asked once.
//!
//! # Invariants
//!
//! * No more than [`Limits`] says is kept.
//! * An answer never comes out later than its shortest record allows.

use std::time::Duration;

use indexmap::IndexMap;

use crate::query::Query;
use crate::reply;
use crate::walk::{HEADER, put};

/// Bounds of a cache.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Answers.
    pub entries: usize,
    /// Bytes of questions and answers together.
    pub bytes: usize,
}

/// Sixteen thousand answers of 256 bytes each: what a hundred busy pods ask within the usual minute of lifetime, in
/// about 7 MiB with the table's own share.
impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 16_384,
            bytes: 4 << 20,
        }
    }
}

/// Longer answers are not kept: one of them would push out dozens of others.
const LONGEST_ANSWER: usize = 16 * 1024;

/// A pod with one set of servers to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(pub u64);

#[derive(Debug)]
struct Entry {
    answer: Box<[u8]>,
    kept: Duration,
    until: Duration,
    used: bool,
}

/// The answers. Times are counted from any one moment, and do not go back.
#[derive(Debug, Default)]
pub struct Cache {
    limits: Limits,
    entries: IndexMap<Box<[u8]>, Entry>,
    bytes: usize,
    hand: usize,
    /// Where keys are put together.
    key: Vec<u8>,
}

impl Cache {
    /// An empty one with these bounds.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// How many answers and bytes are kept.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// The answer to `query` for a client in `place`, as if the server had just given it.
    pub fn get(&mut self, place: Place, query: &Query<'_>, now: Duration) -> Option<Vec<u8>> {
        if !query.is_plain() {
            return None;
        }
        write_key(&mut self.key, place, query);
        let entry = self.entries.get_mut(self.key.as_slice())?;
        if entry.until <= now {
            return None;
        }
        entry.used = true;
        let mut answer = entry.answer.to_vec();
        // Whole seconds that have begun, so that what comes out never holds longer than the record did.
        let kept = now.saturating_sub(entry.kept);
        let seconds = kept.as_secs() + u64::from(kept.subsec_nanos() > 0);
        reply::age(&mut answer, u32::try_from(seconds).unwrap_or(u32::MAX));
        put(&mut answer, HEADER, query.question());
        reply::address_to(query, &mut answer);
        Some(answer)
    }

    /// Keeps `answer` to `query` if it holds for more than this moment.
    pub fn put(&mut self, place: Place, query: &Query<'_>, answer: &[u8], now: Duration) {
        let Some(seconds) = reply::lifetime(query, answer) else {
            return;
        };
        if answer.len() > LONGEST_ANSWER {
            return;
        }
        write_key(&mut self.key, place, query);
        let key: Box<[u8]> = self.key.as_slice().into();
        let size = key.len() + answer.len();
        if let Some(old) = self.entries.get(&key) {
            self.bytes -= key.len() + old.answer.len();
        }
        self.bytes += size;
        let entry = Entry {
            answer: answer.into(),
            kept: now,
            until: now + Duration::from_secs(seconds.into()),
            used: false,
        };
        self.entries.insert(key, entry);
        self.tidy(now);
    }

    /// Moves the hand until there is no more than the limits allow.
    fn tidy(&mut self, now: Duration) {
        while self.entries.len() > self.limits.entries || self.bytes > self.limits.bytes {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let Some((key, entry)) = self.entries.get_index_mut(self.hand) else {
                return;
            };
            if entry.used && entry.until > now {
                entry.used = false;
                self.hand += 1;
                continue;
            }
            self.bytes -= key.len() + entry.answer.len();
            self.entries.swap_remove_index(self.hand);
            // The newest came into its place; it is looked at when the hand comes round again.
            self.hand += 1;
        }
    }
}

fn write_key(key: &mut Vec<u8>, place: Place, query: &Query<'_>) {
    key.clear();
    key.extend_from_slice(&place.0.to_be_bytes());
    key.extend_from_slice(&query.header().flags.to_be_bytes());
    let question = query.question();
    let (name, kind) = question.split_at(question.len().saturating_sub(4));
    key.extend(name.iter().map(u8::to_ascii_lowercase));
    key.extend_from_slice(kind);
    key.extend_from_slice(query.rest());
}

#[cfg(test)]
mod tests;
