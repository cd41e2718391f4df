//! HTTP as bytes: what no client library would send.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::pod::Pod;

/// Bytes of an answer that are read at most.
const MOST: usize = 1 << 20;

/// One answer of HTTP/1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Status.
    pub status: u16,
    /// The head as it came.
    pub head: String,
    /// The body, its chunks put together.
    pub body: String,
}

impl Answered {
    /// A header field, empty if absent.
    #[must_use]
    pub fn field(&self, wanted: &str) -> &str {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut found = fields.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.next().map_or("", |(_, value)| value.trim())
    }
}

/// Sends bytes to `HOST:PORT` and reads answers until one says that it is the last, the other side
/// ends, or nothing comes for `patience`. True: it was silence.
///
/// # Errors
///
/// The connection is refused.
pub fn exchange(
    client: &Pod,
    to: &str,
    bytes: &[u8],
    patience: Duration,
) -> Result<(Vec<Answered>, bool)> {
    let mut stream = client.connect(to).context("connect")?;
    // Whoever refuses the beginning may have gone before the end is written.
    let _ = stream.write_all(bytes);
    let mut read = Vec::new();
    let mut answers = Vec::new();
    let ended = loop {
        while let Some((answer, length)) = answered(&read) {
            read.drain(..length);
            let last = answer.field("connection").eq_ignore_ascii_case("close");
            answers.push(answer);
            if last {
                return Ok((answers, false));
            }
        }
        match more(&mut stream, &mut read, patience) {
            Some(true) if read.len() < MOST => {}
            ended => break ended.is_none(),
        }
    };
    Ok((answers, ended))
}

/// Reads on: whether something came, `None` for silence.
fn more(stream: &mut TcpStream, read: &mut Vec<u8>, patience: Duration) -> Option<bool> {
    let _ = stream.set_read_timeout(Some(patience));
    let mut piece = [0; 4096];
    match stream.read(&mut piece) {
        Ok(0) => Some(false),
        Ok(count) => {
            read.extend_from_slice(&piece[..count]);
            Some(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(_) => Some(false),
    }
}

/// The first answer in `bytes` and its length, if it is whole.
fn answered(bytes: &[u8]) -> Option<(Answered, usize)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut answer = Answered {
        status,
        head,
        body: String::new(),
    };
    let begin = end + 4;
    if answer
        .field("transfer-encoding")
        .eq_ignore_ascii_case("chunked")
    {
        let length = memchr::memmem::find(&bytes[end..], b"\r\n0\r\n\r\n")?;
        let text = String::from_utf8_lossy(bytes.get(begin..end + length).unwrap_or_default());
        let lines = text.split("\r\n").enumerate();
        answer.body = lines
            .filter(|(number, _)| number % 2 == 1)
            .map(|(_, line)| line)
            .collect();
        return Some((answer, end + length + 7));
    }
    let length: usize = answer.field("content-length").parse().unwrap_or(0);
    let body = bytes.get(begin..begin + length)?;
    answer.body = String::from_utf8_lossy(body).into_owned();
    Some((answer, begin + length))
}

/// What came of a request in frames of HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framed {
    /// The status, `reset`, `closed` or `silence`.
    pub outcome: String,
    /// The body as far as it came.
    pub body: String,
}

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block in which nothing is compressed (RFC 7541 section 6.2.2).
fn block(fields: &[(String, String)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Up to 126 bytes the length is one byte.
            block.push(u8::try_from(text.len()).expect("short"));
            assert!(text.len() < 127, "{text}");
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Sends one request as frames of HTTP/2, its fields as they are, and waits for its end.
///
/// # Errors
///
/// The connection is refused.
pub fn frames(
    client: &Pod,
    to: &str,
    fields: &[(String, String)],
    body: Option<&str>,
    patience: Duration,
) -> Result<Framed> {
    let mut stream = client.connect(to).context("connect")?;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let flags = END_HEADERS | if body.is_none() { END_STREAM } else { 0 };
    bytes.extend(frame(HEADERS, flags, 1, &block(fields)));
    if let Some(body) = body {
        bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
    }
    let _ = stream.write_all(&bytes);
    let begun = Instant::now();
    let (mut read, mut status, mut text) = (Vec::new(), None, Vec::new());
    let outcome = 'ended: loop {
        while let Some((kind, flags, of, payload)) = take_frame(&mut read) {
            match kind {
                HEADERS if of == 1 && status.is_none() => status = Some(status_of(&payload)),
                DATA if of == 1 => text.extend(payload),
                RST_STREAM if of == 1 => break 'ended "reset".to_owned(),
                // An orderly end says NO_ERROR and lets the stream go on.
                GOAWAY if payload.get(4..8) != Some(&[0; 4]) => break 'ended "closed".to_owned(),
                _ => {}
            }
            if of == 1 && flags & END_STREAM != 0 && (kind == HEADERS || kind == DATA) {
                break 'ended status.unwrap_or_default();
            }
        }
        match more(&mut stream, &mut read, patience) {
            None => break "silence".to_owned(),
            Some(true) if begun.elapsed() < 4 * patience => {}
            Some(_) => break "closed".to_owned(),
        }
    };
    Ok(Framed {
        outcome,
        body: String::from_utf8_lossy(&text).into_owned(),
    })
}

fn take_frame(read: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head: [u8; 9] = read.get(..9)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).ok()?;
    let payload = read.get(9..9 + length)?.to_vec();
    read.drain(..9 + length);
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Some((head[3], head[4], stream, payload))
}

/// `:status` comes first, by the static table's number where that has one (RFC 7541 appendix A).
fn status_of(block: &[u8]) -> String {
    // A change of the dynamic table's size may precede it.
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    let status = match first {
        Some(0x88) => "200",
        Some(0x89) => "204",
        Some(0x8c) => "400",
        Some(0x8d) => "404",
        Some(0x8e) => "500",
        _ => "another status",
    };
    status.to_owned()
}

#[cfg(test)]
mod tests {
    use super::answered;

    #[test]
    fn answers_are_taken_one_by_one() {
        let bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 1\r\nConnection: close\r\n\r\nx";
        let (first, length) = answered(bytes).unwrap();
        assert_eq!((first.status, first.body.as_str()), (200, "abc"));
        let (second, rest) = answered(&bytes[length..]).unwrap();
        assert_eq!((second.status, second.body.as_str()), (404, "x"));
        assert_eq!(second.field("connection"), "close");
        assert_eq!(length + rest, bytes.len());
        assert!(answered(&bytes[..40]).is_none());
    }
}
