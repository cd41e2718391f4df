//! What an HTTP/1 client may send: a strict reading of message framing, before the HTTP library's own.
//!
//! # Purpose
//! Two servers that disagree about where a request ends can be made to disagree about what the next
//! request is (request smuggling, RFC 9112 section 11.2). Our HTTP library frames correctly what it
//! forwards, but it forgives on the way: a length beside `transfer-encoding`, lines that end in a
//! bare line feed. Here the same bytes are checked first, and what could be read in two ways is
//! refused with 400.
//!
//! # Theory of operation
//! [`Guard`] is pure: it is shown the client's bytes in order and says how many of them may be passed
//! on. It follows the framing through heads, bodies and chunks, so that it knows where the next head
//! begins on a kept-alive connection. A head is passed on only when it is whole and sound.
//!
//! # Not done here
//! Meaning: hosts, paths and names are judged in `headers.rs`, for HTTP/2 as well.

use std::fmt;

mod head;
mod io;

pub use io::{GuardedIo, Signals, is_placeholder};

/// A chunk-size line or a trailer line longer than this serves no honest client.
const MAX_LINE: usize = 8 * 1024;
/// All trailers of one request together; as much as Envoy allows a header block by default.
const MAX_TRAILERS: usize = 60 * 1024;

/// Why a request was refused before it was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not a request line of HTTP/1.
    RequestLine,
    /// A line that ends in a bare line feed, or a carriage return inside of one.
    LineEnd,
    /// A header continued on the next line (obsolete folding).
    Folding,
    /// A header name with bytes that no token may have, or white space before its colon.
    Name,
    /// A control byte in a header's value.
    Value,
    /// `content-length` that is not one decimal number.
    Length,
    /// Several `content-length` headers, or one beside `transfer-encoding`.
    Lengths,
    /// `transfer-encoding` other than exactly `chunked`.
    Coding,
    /// Several `host` headers, or none in HTTP/1.1.
    Host,
    /// A chunk that is not one, or trailers that are none.
    Chunk,
    /// The head is larger than the chain allows.
    TooLarge,
}

impl Refusal {
    /// The status that answers it. Envoy's: 501 for codings it does not know, 431 for size.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Coding => 501,
            Self::TooLarge => 431,
            Self::RequestLine
            | Self::LineEnd
            | Self::Folding
            | Self::Name
            | Self::Value
            | Self::Length
            | Self::Lengths
            | Self::Host
            | Self::Chunk => 400,
        }
    }

    /// Whether it is about what follows a head that was passed on.
    #[must_use]
    pub fn is_of_body(self) -> bool {
        self == Self::Chunk
    }

    /// What the access log says, in the style of Envoy's response code details.
    #[must_use]
    pub fn details(self) -> &'static str {
        match self {
            Self::RequestLine => "http1.codec_error.request_line",
            Self::LineEnd => "http1.codec_error.line_end",
            Self::Folding => "http1.codec_error.folded_header",
            Self::Name => "http1.invalid_header_name",
            Self::Value => "http1.invalid_header_value",
            Self::Length => "http1.invalid_content_length",
            Self::Lengths => "http1.conflicting_lengths",
            Self::Coding => "http1.invalid_transfer_encoding",
            Self::Host => "http1.invalid_host",
            Self::Chunk => "http1.invalid_chunk",
            Self::TooLarge => "http1.headers_too_large",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.details())
    }
}

impl std::error::Error for Refusal {}

/// How the body after a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Empty,
    Length(u64),
    Chunked,
}

/// Where in the client's bytes we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    Body(u64),
    ChunkSize,
    /// Bytes of the chunk that are still to come, its line end included.
    ChunkData(u64),
    Trailers {
        so_far: usize,
    },
    /// No longer HTTP: after an upgrade.
    Opaque,
}

/// Follows one connection's client bytes.
#[derive(Debug)]
pub struct Guard {
    place: Place,
    max_head: usize,
}

/// How much of what was shown may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// So many bytes from the beginning; show the rest again with what follows it.
    Bytes(usize),
    /// So many bytes from the beginning; what follows them is refused, for good.
    Refused(usize, Refusal),
}

impl Guard {
    /// A guard at the beginning of a connection. `max_head`: bytes of request line and headers.
    #[must_use]
    pub fn new(max_head: usize) -> Self {
        Self {
            place: Place::Head,
            max_head,
        }
    }

    /// From now on everything passes: the connection was upgraded.
    pub fn open(&mut self) {
        self.place = Place::Opaque;
    }

    /// Looks at bytes that follow those passed so far.
    pub fn look(&mut self, bytes: &[u8]) -> Passed {
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.is_empty() {
                return Passed::Bytes(at);
            }
            let in_head = self.place == Place::Head;
            match self.step(rest) {
                Ok(0) => return Passed::Bytes(at),
                Ok(taken) => at += taken,
                Err(refusal) if in_head => return Passed::Refused(at, refusal),
                // Of a body only that much is said.
                Err(_) => return Passed::Refused(at, Refusal::Chunk),
            }
        }
    }

    /// Takes one element (or a part of a body) off `rest`; 0 if more bytes are needed.
    fn step(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        match self.place {
            Place::Opaque => Ok(rest.len()),
            Place::Head => self.head(rest),
            Place::Body(left) => {
                let (taken, left) = take(rest, left);
                self.place = if left == 0 {
                    Place::Head
                } else {
                    Place::Body(left)
                };
                Ok(taken)
            }
            Place::ChunkSize => self.chunk_size(rest),
            Place::ChunkData(left) => {
                let (taken, still) = take(rest, left);
                // The last two bytes of the count are the line end.
                for (offset, byte) in rest
                    .iter()
                    .take(taken)
                    .enumerate()
                    .skip(skipped(taken, still))
                {
                    let from_end = still + (taken - offset) as u64;
                    if (from_end == 2 && *byte != b'\r') || (from_end == 1 && *byte != b'\n') {
                        return Err(Refusal::Chunk);
                    }
                }
                self.place = if still == 0 {
                    Place::ChunkSize
                } else {
                    Place::ChunkData(still)
                };
                Ok(taken)
            }
            Place::Trailers { so_far } => self.trailer(rest, so_far),
        }
    }

    fn head(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        // One empty line before a request line is allowed (RFC 9112 section 2.2).
        if rest == b"\r" || rest == b"\r\n" {
            return Ok(0);
        }
        let start = if rest.starts_with(b"\r\n") { 2 } else { 0 };
        let text = rest.get(start..).unwrap_or_default();
        let Some(end) = memchr::memmem::find(text, b"\r\n\r\n") else {
            // Bare line feeds may mean that its end never comes in our form: say so now.
            head::check_partial(text)?;
            return if text.len() > self.max_head {
                Err(Refusal::TooLarge)
            } else {
                Ok(0)
            };
        };
        if end > self.max_head {
            return Err(Refusal::TooLarge);
        }
        let body = head::check(text.get(..end).unwrap_or_default())?;
        self.place = match body {
            Body::Empty | Body::Length(0) => Place::Head,
            Body::Length(length) => Place::Body(length),
            Body::Chunked => Place::ChunkSize,
        };
        Ok(start + end + 4)
    }

    fn chunk_size(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        let Some((line, taken)) = line(rest)? else {
            return Ok(0);
        };
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits)
            .ok()
            .map(|text| text.trim_end_matches([' ', '\t']));
        let size = match size {
            // Fifteen digits are more than any body; from_str_radix would also take a sign.
            Some(hex)
                if (1..=15).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit()) =>
            {
                u64::from_str_radix(hex, 16).ok()
            }
            _ => None,
        };
        self.place = match size.ok_or(Refusal::Chunk)? {
            0 => Place::Trailers { so_far: 0 },
            size => Place::ChunkData(size + 2),
        };
        Ok(taken)
    }

    fn trailer(&mut self, rest: &[u8], so_far: usize) -> Result<usize, Refusal> {
        let Some((line, taken)) = line(rest)? else {
            return Ok(0);
        };
        if line.is_empty() {
            self.place = Place::Head;
            return Ok(taken);
        }
        head::check_field(line)?;
        let so_far = so_far + taken;
        if so_far > MAX_TRAILERS {
            return Err(Refusal::TooLarge);
        }
        self.place = Place::Trailers { so_far };
        Ok(taken)
    }
}

/// As many of `rest` as `left` asks for, and what is left to ask for then.
fn take(rest: &[u8], left: u64) -> (usize, u64) {
    let taken = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
    (taken, left - taken as u64)
}

/// Bytes at the beginning of a piece of a chunk that cannot be its line end.
fn skipped(taken: usize, still: u64) -> usize {
    if still >= 2 {
        taken
    } else {
        taken.saturating_sub(2)
    }
}

/// One line without its end, and the bytes it took with it; `None` if its end is yet to come.
fn line(rest: &[u8]) -> Result<Option<(&[u8], usize)>, Refusal> {
    let Some(feed) = memchr::memchr(b'\n', rest) else {
        return if rest.len() > MAX_LINE {
            Err(Refusal::Chunk)
        } else {
            Ok(None)
        };
    };
    let text = rest
        .get(..feed)
        .and_then(|line| line.strip_suffix(b"\r"))
        .ok_or(Refusal::LineEnd)?;
    if text.len() > MAX_LINE || text.contains(&b'\r') {
        return Err(Refusal::Chunk);
    }
    Ok(Some((text, feed + 1)))
}

#[cfg(test)]
mod tests;
