//! What header blocks say.
//!
//! A message with a field that cannot be (a name in upper case, a pseudo field nobody knows, a line's end in a value) is malformed,
//! and only its stream is to end (RFC 9113 section 8.1.1): one careless header of one application's proxy must not cut the tunnels
//! of all. So a block is always read to its end, for the table that it changes, and what is malformed is found on the way.

use ambit_wire::hpack;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// A block, and what its fields come to, may be this many times as long as a list of fields: what is refused for its length alone
/// must still be read, or the connection ends.
pub(crate) const LONGEST: usize = 4;

/// A request, an answer, or what comes behind their data.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) method: Option<Method>,
    /// As it came.
    pub(crate) authority: Option<Box<[u8]>>,
    /// It has a scheme, a path or a protocol.
    pub(crate) extended: bool,
    pub(crate) status: Option<StatusCode>,
    pub(crate) headers: HeaderMap,
    /// Pseudo fields that it has, a bit for each.
    pseudo: u8,
}

/// Of what is in a block.
#[derive(Debug)]
pub(crate) struct Read {
    /// `None` if it is malformed.
    pub(crate) message: Option<Message>,
    /// What its fields came to (section 6.5.2).
    pub(crate) size: usize,
}

/// Reads a whole block; a list of fields may come to `most`. An error is one of compression, and the connection's.
pub(crate) fn read(
    decoder: &mut hpack::Decoder,
    block: &[u8],
    most: usize,
) -> Result<Read, ambit_wire::Invalid> {
    let (mut message, mut sound, mut size) = (Message::default(), true, 0);
    decoder.decode(block, most.saturating_mul(LONGEST), |name, value| {
        size += name.len() + value.len() + 32;
        sound = sound && size <= most && message.add(name, value);
    })?;
    Ok(Read {
        message: sound.then_some(message),
        size,
    })
}

impl Message {
    /// Whether it has any field that only the beginning of a message may have.
    pub(crate) fn is_head(&self) -> bool {
        self.pseudo != 0
    }

    /// Whether it is a request as far as section 8.3.1 goes for every method.
    pub(crate) fn is_request(&self) -> bool {
        self.method.is_some() && self.status.is_none()
    }

    /// The status of an answer (section 8.3.2).
    pub(crate) fn answer(&self) -> Option<StatusCode> {
        self.status.filter(|_| self.pseudo == STATUS)
    }

    /// Adds a field; false if it cannot be there.
    fn add(&mut self, name: &[u8], value: &[u8]) -> bool {
        match name.strip_prefix(b":") {
            Some(name) => self.headers.is_empty() && self.add_pseudo(name, value),
            None => !is_of_connection(name, value) && self.add_field(name, value),
        }
    }

    fn add_pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        let (bit, sound) = match name {
            b"method" => {
                self.method = Method::from_bytes(value).ok();
                (METHOD, self.method.is_some())
            }
            b"status" => {
                self.status = StatusCode::from_bytes(value).ok();
                (STATUS, self.status.is_some())
            }
            b"authority" => {
                self.authority = Some(value.into());
                (4, true)
            }
            b"scheme" => (8, true),
            b"path" => (16, true),
            b"protocol" => (32, true),
            _ => return false,
        };
        self.extended |= bit >= 8;
        let first = self.pseudo & bit == 0;
        self.pseudo |= bit;
        first && sound
    }

    fn add_field(&mut self, name: &[u8], value: &[u8]) -> bool {
        // Both say what section 8.2.1 does.
        let name = HeaderName::from_lowercase(name);
        let value = HeaderValue::from_bytes(value);
        match (name, value) {
            (Ok(name), Ok(value)) => self.headers.try_append(name, value).is_ok(),
            _ => false,
        }
    }
}

const METHOD: u8 = 1;
const STATUS: u8 = 2;

/// Fields that HTTP/2 has no place for (section 8.2.2).
fn is_of_connection(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
            true
        }
        b"te" => value != b"trailers",
        _ => false,
    }
}

/// The block of a CONNECT (section 8.5).
pub(crate) fn connect(authority: &str, headers: &HeaderMap) -> Vec<u8> {
    let mut block = Vec::with_capacity(128);
    hpack::write(&mut block, b":method", b"CONNECT");
    hpack::write(&mut block, b":authority", authority.as_bytes());
    write(&mut block, headers);
    block
}

/// The block of an answer.
pub(crate) fn answer(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut block = Vec::with_capacity(64);
    if status == StatusCode::OK {
        block.push(0x88); // the eighth field that everybody knows (RFC 7541, appendix A)
    } else {
        hpack::write(&mut block, b":status", status.as_str().as_bytes());
    }
    write(&mut block, headers);
    block
}

fn write(block: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        hpack::write(block, name.as_str().as_bytes(), value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use ambit_wire::hpack;
    use http::{HeaderMap, HeaderValue, Method, StatusCode};

    use super::{answer, connect, read};

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            hpack::write(&mut block, name.as_bytes(), value.as_bytes());
        }
        block
    }

    #[test]
    fn what_is_written_is_read() {
        let mut headers = HeaderMap::new();
        headers.append("baggage", HeaderValue::from_static("a=b"));
        headers.append("baggage", HeaderValue::from_static("c=d"));
        let mut decoder = hpack::Decoder::new();
        let request = read(&mut decoder, &connect("10.0.0.1:80", &headers), 1000).unwrap();
        let request = request.message.unwrap();
        assert!(request.is_request() && !request.extended && request.is_head());
        assert_eq!(request.method, Some(Method::CONNECT));
        assert_eq!(&**request.authority.as_ref().unwrap(), b"10.0.0.1:80");
        assert_eq!(request.headers, headers);
        for status in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
            let said = read(&mut decoder, &answer(status, &headers), 1000).unwrap();
            let said = said.message.unwrap();
            assert_eq!((said.answer(), &said.headers), (Some(status), &headers));
            assert!(!said.is_request());
        }
    }

    #[test]
    fn a_malformed_message_is_read_to_its_end_and_is_none() {
        for fields in [
            &[("UPPER", "case")][..],
            &[("connection", "close")],
            &[("te", "gzip")],
            &[("x", "a\nb")],
            &[(":nobody", "knows")],
            &[(":method", "GET"), (":method", "GET")],
            &[(":path", "/"), (":path", "/")],
            &[("x", "y"), (":method", "GET")],
            &[(":method", "G T")],
            &[(":status", "twenty")],
            &[("", "x")],
        ] {
            let mut decoder = hpack::Decoder::new();
            let read = read(&mut decoder, &block(fields), 1000).unwrap();
            assert!(read.message.is_none(), "{fields:?}");
        }
        let mut decoder = hpack::Decoder::new();
        let long = block(&[("x", "y"); 20]);
        assert!(
            read(&mut decoder, &long, 20 * 34)
                .unwrap()
                .message
                .is_some()
        );
        assert!(
            read(&mut decoder, &long, 20 * 34 - 1)
                .unwrap()
                .message
                .is_none()
        );
    }
}
