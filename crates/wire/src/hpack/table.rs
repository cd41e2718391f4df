//! The fields that a header block may name by number (RFC 7541, section 2.3).

use std::collections::VecDeque;

use crate::Invalid;

/// What the fields that were sent before may take (RFC 9113, section 6.5.2: what holds unless something else was said).
const MOST: usize = 4096;

/// What a field takes besides its texts (section 4.1).
const OVERHEAD: usize = 32;

/// What a field counts for.
pub(super) fn size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + OVERHEAD
}

/// A name and a value.
type Field = (Box<[u8]>, Box<[u8]>);

#[derive(Debug)]
pub(super) struct Table {
    /// The latest first.
    sent: VecDeque<Field>,
    size: usize,
    limit: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            sent: VecDeque::new(),
            size: 0,
            limit: MOST,
        }
    }
}

impl Table {
    /// The field with this number: those everybody knows, and then those that were sent.
    pub(super) fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Invalid> {
        let place = index.checked_sub(1);
        let known = place.and_then(|place| KNOWN.get(place));
        if let Some((name, value)) = known {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let sent = place.and_then(|place| self.sent.get(place.checked_sub(KNOWN.len())?));
        let (name, value) = sent.ok_or(Invalid::Malformed("number of a header field"))?;
        Ok((name, value))
    }

    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = size(name, value);
        self.make_room(size);
        if size <= self.limit {
            self.size += size;
            self.sent.push_front((name.into(), value.into()));
        }
    }

    pub(super) fn resize(&mut self, limit: usize) -> Result<(), Invalid> {
        if limit > MOST {
            return Err(Invalid::TooLong { limit: MOST });
        }
        self.limit = limit;
        self.make_room(0);
        Ok(())
    }

    fn make_room(&mut self, more: usize) {
        while self.size + more > self.limit {
            let Some((name, value)) = self.sent.pop_back() else {
                return;
            };
            self.size -= size(&name, &value);
        }
    }
}

/// Appendix A.
const KNOWN: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
