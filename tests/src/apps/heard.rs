//! The very bytes that an HTTP/1 application was sent, read in the one way that leaves no doubt.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What came on every connection so far. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Vec<u8>>>>);

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Method, target and version.
    pub line: String,
    /// Header fields in order; names as they came.
    pub fields: Vec<(String, String)>,
    /// The body, without the framing of chunks.
    pub body: String,
}

impl Message {
    /// A header field's values, joined by commas.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        let of_name = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        let values: Vec<&str> = self
            .fields
            .iter()
            .filter(of_name)
            .map(|(_, value)| value.as_str())
            .collect();
        values.join(", ")
    }
}

impl Heard {
    /// A stream that is written down as it is read.
    #[must_use]
    pub fn listen(&self, stream: TcpStream) -> Listening {
        let mut connections = self.0.lock();
        connections.push(Vec::new());
        Listening {
            stream,
            heard: self.clone(),
            connection: connections.len() - 1,
        }
    }

    /// Every request so far, on whichever connection; and
    /// where what came on a connection can be read in more than one way: the bytes, and why.
    #[must_use]
    pub fn messages(&self) -> (Vec<Message>, Vec<String>) {
        let (mut all, mut doubtful) = (Vec::new(), Vec::new());
        for bytes in self.0.lock().iter() {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match message(&mut rest) {
                    Ok(Some(message)) => all.push(message),
                    // Broken off by its sender.
                    Ok(None) => break,
                    Err(why) => {
                        doubtful.push(format!("{why}: {:?}", String::from_utf8_lossy(rest)));
                        break;
                    }
                }
            }
        }
        (all, doubtful)
    }
}

/// Takes one request off `rest`; `None` if it is not whole.
fn message(rest: &mut &[u8]) -> Result<Option<Message>, &'static str> {
    let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&rest[..end]).map_err(|_| "not UTF-8")?;
    let mut after = &rest[end + 4..];
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    if line.split(' ').count() != 3 || line.chars().any(char::is_control) {
        return Err("not a request line");
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a line without a colon")?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("not a field's name");
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err("a control character in a field");
        }
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut message = Message {
        line,
        fields,
        body: String::new(),
    };
    let hosts = message.fields.iter().filter(|(name, _)| name == "host");
    if hosts.count() != 1 {
        return Err("not one host");
    }
    let body = match (
        &message.field("content-length")[..],
        &message.field("transfer-encoding")[..],
    ) {
        ("", "") => Vec::new(),
        (length, "") if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| "a length beyond all bounds")?;
            if after.len() < length {
                return Ok(None);
            }
            let (body, behind) = after.split_at(length);
            after = behind;
            body.to_vec()
        }
        ("", "chunked") => match chunks(&mut after)? {
            Some(body) => body,
            None => return Ok(None),
        },
        _ => return Err("two lengths"),
    };
    message.body = String::from_utf8_lossy(&body).into_owned();
    *rest = after;
    Ok(Some(message))
}

/// Takes chunks and the empty line behind them off `rest`. A proxy has no reason to pass on
/// extensions.
fn chunks(rest: &mut &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let mut body = Vec::new();
    loop {
        let Some(end) = memchr::memmem::find(rest, b"\r\n") else {
            return Ok(None);
        };
        let digits = std::str::from_utf8(&rest[..end]).map_err(|_| "not a chunk")?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("not a chunk's length");
        }
        let length = usize::from_str_radix(digits, 16).map_err(|_| "a chunk beyond all bounds")?;
        let Some((chunk, behind)) = rest[end + 2..].split_at_checked(length) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        if behind.len() < 2 {
            return Ok(None);
        }
        *rest = behind
            .strip_prefix(b"\r\n")
            .ok_or("a chunk that is longer than it says, or trailers")?;
        if length == 0 {
            return Ok(Some(body));
        }
    }
}

/// A stream that is written down as it is read.
#[derive(Debug)]
pub struct Listening {
    stream: TcpStream,
    heard: Heard,
    connection: usize,
}

impl AsyncRead for Listening {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.heard.0.lock()[this.connection].extend_from_slice(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Listening {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn reads_what_has_one_reading_and_nothing_else() {
        const HEAD: &str = "POST /a HTTP/1.1\r\nhost: a\r\n";
        let mut sound: &[u8] = b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nGET";
        let read = message(&mut sound).unwrap().unwrap();
        assert_eq!((read.body.as_str(), sound), ("ab", &b"GET"[..]));
        for doubtful in [
            "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "content-length: 1\r\ncontent-length: 1\r\n\r\na",
            "transfer-encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            "x : y\r\n\r\n",
            "x: \ny: z\r\n\r\n",
            "host: b\r\n\r\n",
        ] {
            let text = format!("{HEAD}{doubtful}");
            assert!(message(&mut text.as_bytes()).is_err(), "{doubtful:?}");
        }
    }
}
