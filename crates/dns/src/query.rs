//! Reading what a client asks.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::Transport;
use crate::walk::{self, CLASS_IN, HEADER, Header, Malformed, flag, kind, u16_at};

/// Longest datagram of a client that does not say more (RFC 1035 section 4.2.1).
pub const PLAIN_UDP: usize = 512;

/// What a client says of itself in an OPT record (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEdns {
    /// Longest datagram it takes.
    pub payload: u16,
    /// It wants signatures.
    pub dnssec_ok: bool,
    /// Version; 0 is the only one there is.
    pub version: u8,
    /// It sent options, whose meaning may be for one server alone.
    pub options: bool,
}

/// One question, as it came.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    bytes: &'a [u8],
    header: Header,
    question_end: usize,
    name: Option<String>,
    edns: Option<ClientEdns>,
    /// Nothing but the question and at most an OPT record without options.
    plain: bool,
}

/// Why a message is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Peer: it is no DNS message at all, and gets no answer.
    #[error("no DNS message")]
    Foreign,
    /// Peer: it is an answer, or is malformed.
    #[error("malformed query")]
    Malformed,
    /// Peer: it is something else than a query (NOTIFY, UPDATE…).
    #[error("not a query")]
    NotAQuery,
}

impl<'a> Query<'a> {
    /// Reads a message that a client sent.
    ///
    /// # Errors
    /// See [`Fault`]; [`Fault::answer`] is what to say then.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let header = Header::read(bytes).map_err(|Malformed| Fault::Foreign)?;
        if header.has(flag::ANSWER) {
            return Err(Fault::Malformed);
        }
        if header.flags & flag::OPCODE != 0 {
            return Err(Fault::NotAQuery);
        }
        Self::read_sections(bytes, header).map_err(|Malformed| Fault::Malformed)
    }

    fn read_sections(bytes: &'a [u8], header: Header) -> Result<Self, Malformed> {
        if header.questions != 1 {
            return Err(Malformed);
        }
        let question_end = walk::question_end(bytes)?;
        let mut records = walk::records(bytes, &header, question_end);
        let (mut edns, mut others) = (None, false);
        for record in records.by_ref() {
            let record = record?;
            if record.kind != kind::OPT {
                others = true;
                continue;
            }
            let [_, version, high, _] = record.ttl.to_be_bytes();
            let read = ClientEdns {
                payload: record.class,
                dnssec_ok: high & 0x80 != 0,
                version,
                options: record.end > record.data,
            };
            // RFC 6891 section 6.1.1: one, with the root as its name.
            if edns.replace(read).is_some() || record.fixed != record.start + 1 {
                return Err(Malformed);
            }
        }
        let whole = records.at() == bytes.len();
        Ok(Self {
            name: hostname(bytes, question_end),
            plain: whole && !others && edns.is_none_or(|edns| !edns.options),
            bytes,
            header,
            question_end,
            edns,
        })
    }

    /// The message.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The client's id.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.header.id
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Name, type and class of the question, as they came.
    #[must_use]
    pub fn question(&self) -> &'a [u8] {
        self.bytes
            .get(HEADER..self.question_end)
            .unwrap_or_default()
    }

    /// What follows the question.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.question_end..).unwrap_or_default()
    }

    /// The name in lower case without the last dot, where it is one that text can write without escapes.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> u16 {
        u16_at(self.bytes, self.question_end.saturating_sub(4)).unwrap_or_default()
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> u16 {
        u16_at(self.bytes, self.question_end.saturating_sub(2)).unwrap_or_default()
    }

    /// Whether it asks for addresses, which is what the mesh has: then of this family, true for IPv6.
    #[must_use]
    pub fn asks_ipv6(&self) -> Option<bool> {
        match (self.kind(), self.class()) {
            (kind::A, CLASS_IN) => Some(false),
            (kind::AAAA, CLASS_IN) => Some(true),
            _ => None,
        }
    }

    /// What the client says of itself.
    #[must_use]
    pub fn edns(&self) -> Option<ClientEdns> {
        self.edns
    }

    /// Whether another client's question of the same bytes (but for id and letter case) asks the same. Options of EDNS,
    /// such as cookies, and signatures are between one client and one server.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Longest answer that the client takes.
    #[must_use]
    pub fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => usize::from(edns.payload).max(PLAIN_UDP),
        }
    }

    /// An answer of ours without records.
    #[must_use]
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.response(code))
    }

    /// The frame of an answer of ours: the question, what was said of EDNS, and no records.
    pub(crate) fn response(&self, code: ResponseCode) -> Message {
        let mut message = frame(&self.header, OpCode::Query, code);
        let mut at_question = BinDecoder::new(self.bytes).clone(HEADER_U16);
        if let Ok(question) = Question::read(&mut at_question) {
            message.add_query(question);
        }
        if let Some(said) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(said.payload);
            edns.set_dnssec_ok(said.dnssec_ok);
            message.set_edns(edns);
        }
        message
    }
}

/// [`HEADER`] in the type of an offset.
const HEADER_U16: u16 = 12;

impl Fault {
    /// What to say to whoever sent `bytes`; nothing where they are no DNS message.
    #[must_use]
    pub fn answer(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let header = Header::read(bytes).ok()?;
        let code = match self {
            Self::Foreign => return None,
            Self::Malformed => ResponseCode::FormErr,
            Self::NotAQuery => ResponseCode::NotImp,
        };
        let number = (header.flags & flag::OPCODE).to_be_bytes();
        let [opcode, _] = number;
        Some(encode(&frame(&header, OpCode::from_u8(opcode >> 3), code)))
    }
}

/// An answer to `header` with nothing in it.
fn frame(header: &Header, opcode: OpCode, code: ResponseCode) -> Message {
    let mut message = Message::new(header.id, MessageType::Response, opcode);
    message.metadata.recursion_desired = header.has(flag::RECURSION_DESIRED);
    message.metadata.checking_disabled = header.has(flag::CHECKING_DISABLED);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message
}

/// The message's bytes. One that we composed of what we read can be written.
pub(crate) fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}

/// The question's name as text, if each byte of its labels is a plain character other than a dot.
fn hostname(bytes: &[u8], question_end: usize) -> Option<String> {
    let mut labels = bytes.get(HEADER..question_end.checked_sub(5)?)?;
    let mut text = String::with_capacity(labels.len());
    while let Some((&length, rest)) = labels.split_first() {
        let (label, next) = rest.split_at_checked(usize::from(length))?;
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            let plain = byte.is_ascii_graphic() && *byte != b'.' && *byte != b'\\';
            text.push(char::from(plain.then_some(byte.to_ascii_lowercase())?));
        }
        labels = next;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
