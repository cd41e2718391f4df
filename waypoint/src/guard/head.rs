//! One HTTP/1 request head, read strictly (RFC 9112 sections 2 to 6).

use super::{Body, Refusal};

/// Checks a whole head without its final empty line and says how its body is framed.
pub(super) fn check(head: &[u8]) -> Result<Body, Refusal> {
    let mut lines = Lines(head);
    let first = lines.next().ok_or(Refusal::RequestLine)??;
    let version = request_line(first)?;
    let (mut length, mut chunked, mut unknown, mut hosts) = (None, false, false, 0);
    for line in lines {
        let (name, value) = check_field(line?)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Refusal::Lengths);
            }
            length = Some(decimal(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            unknown |=
                chunked || !value.eq_ignore_ascii_case(b"chunked") || version == Version::Http10;
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        }
    }
    if hosts > 1 || (hosts == 0 && version == Version::Http11) {
        return Err(Refusal::Host);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Refusal::Lengths),
        (None, true) if unknown => Err(Refusal::Coding),
        (Some(length), false) => Ok(Body::Length(length)),
        (None, true) => Ok(Body::Chunked),
        (None, false) => Ok(Body::Empty),
    }
}

/// What can already be said of a head whose end has not come: its line ends.
pub(super) fn check_partial(head: &[u8]) -> Result<(), Refusal> {
    let mut before = 0;
    for feed in memchr::memchr_iter(b'\n', head) {
        if feed == 0 || head.get(feed - 1) != Some(&b'\r') {
            return Err(Refusal::LineEnd);
        }
        before = feed;
    }
    // A NUL or another control byte in the first line: not HTTP, and no reason to wait for more.
    if before == 0
        && head
            .iter()
            .any(|byte| *byte < b' ' && *byte != b'\r' && *byte != b'\n')
    {
        return Err(Refusal::RequestLine);
    }
    Ok(())
}

/// Checks one `name: value` line and takes it apart.
pub(super) fn check_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line
        .first()
        .is_some_and(|byte| *byte == b' ' || *byte == b'\t')
    {
        return Err(Refusal::Folding);
    }
    let colon = memchr::memchr(b':', line).ok_or(Refusal::Name)?;
    let (name, value) = line.split_at_checked(colon).ok_or(Refusal::Name)?;
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Refusal::Name);
    }
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    if value
        .iter()
        .any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f)
    {
        return Err(Refusal::Value);
    }
    Ok((name, value))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

fn request_line(line: &[u8]) -> Result<Version, Refusal> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::RequestLine);
    };
    // A fragment is the client's own; a library would drop it in silence.
    let visible = |byte: &u8| *byte > b' ' && *byte != 0x7f && *byte != b'#';
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(Refusal::RequestLine);
    }
    if target.is_empty() || !target.iter().all(visible) {
        return Err(Refusal::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(Refusal::RequestLine),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Nineteen digits fit; nothing honest is longer.
fn decimal(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Length);
    }
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Refusal::Length)
}

/// Lines that end in CR LF; the last one ends with the text.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (line, rest) = match memchr::memmem::find(self.0, b"\r\n") {
            Some(end) => self.0.split_at_checked(end).unwrap_or((self.0, &[])),
            None => (self.0, &[][..]),
        };
        self.0 = rest.get(2..).unwrap_or_default();
        if line.contains(&b'\n') || line.contains(&b'\r') {
            return Some(Err(Refusal::LineEnd));
        }
        Some(Ok(line))
    }
}
