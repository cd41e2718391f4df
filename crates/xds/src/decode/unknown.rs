//! Fields of a policy that this version does not know.
//!
//! # Why
//! Decoding drops them without a word. In a policy such a field may be a condition or an alternative,
//! and a policy without it permits more than was meant. So the bytes are walked once more, against
//! the fields that the decoder takes.
//!
//! # Guarantees
//! Says nothing about bytes that a known field holds. A table below that lacks a field makes policies
//! stricter, never weaker; a test holds the tables against the definitions.

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Unknown fields that are named. They are for a person's eyes, and one is enough to close a policy.
const MOST: usize = 4;

/// The fields of one kind of message: number, name, and what is inside a field that is a message.
#[derive(Debug)]
pub(super) struct Message(&'static [(u32, &'static str, Inside)]);

#[derive(Debug, Clone, Copy)]
enum Inside {
    /// A number, a text, or bytes that nobody looks into.
    Value,
    Message(&'static Message),
}

use Inside::Value;

/// `istio.security.Authorization`.
pub(super) const AUTHORIZATION: Message = Message(&[
    (1, "name", Value),
    (2, "namespace", Value),
    (3, "scope", Value),
    (4, "action", Value),
    (5, "rules", Inside::Message(&RULE)),
    (6, "dry_run", Value),
    // What a vendor says to its own proxies does not concern us, here and below.
    (7, "extensions", Value),
]);

const RULE: Message = Message(&[(1, "clauses", Inside::Message(&CLAUSE))]);

const CLAUSE: Message = Message(&[(2, "matches", Inside::Message(&MATCH))]);

const MATCH: Message = Message(&[
    (1, "namespaces", Inside::Message(&STRING)),
    (2, "not_namespaces", Inside::Message(&STRING)),
    (3, "principals", Inside::Message(&STRING)),
    (4, "not_principals", Inside::Message(&STRING)),
    (5, "source_ips", Inside::Message(&ADDRESS)),
    (6, "not_source_ips", Inside::Message(&ADDRESS)),
    (7, "destination_ips", Inside::Message(&ADDRESS)),
    (8, "not_destination_ips", Inside::Message(&ADDRESS)),
    (9, "destination_ports", Value),
    (10, "not_destination_ports", Value),
    (11, "service_accounts", Inside::Message(&ACCOUNT)),
    (12, "not_service_accounts", Inside::Message(&ACCOUNT)),
    (13, "extensions", Value),
]);

const ADDRESS: Message = Message(&[(1, "address", Value), (2, "length", Value)]);

const ACCOUNT: Message = Message(&[(1, "namespace", Value), (2, "serviceAccount", Value)]);

const STRING: Message = Message(&[
    (1, "exact", Value),
    (2, "prefix", Value),
    (3, "suffix", Value),
    (4, "presence", Inside::Message(&EMPTY)),
]);

const EMPTY: Message = Message(&[]);

/// The fields of `bytes`, a message of this kind, that are not known: each as a path and a number.
/// Bytes that are no message are not known either.
pub(super) fn fields(message: &Message, bytes: Bytes) -> Vec<String> {
    let mut found = Vec::new();
    if walk(message, bytes, &mut String::new(), &mut found).is_none() {
        found.push("what follows cannot be read".to_owned());
    }
    found
}

/// Goes as deep as the tables, which do not contain themselves. `None` where the bytes make no sense.
fn walk(
    message: &Message,
    mut bytes: Bytes,
    path: &mut String,
    found: &mut Vec<String>,
) -> Option<()> {
    while !bytes.is_empty() && found.len() < MOST {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        let known = message.0.iter().find(|(known, ..)| *known == number);
        match known {
            Some((_, name, Inside::Message(inner))) if wire_type == WireType::LengthDelimited => {
                let inside = part(&mut bytes)?;
                let length = path.len();
                path.push_str(name);
                path.push('.');
                walk(inner, inside, path, found)?;
                path.truncate(length);
                continue;
            }
            Some(_) => {}
            None => found.push(format!("{path}field {number}: not known")),
        }
        skip_field(wire_type, number, &mut bytes, DecodeContext::default()).ok()?;
    }
    Some(())
}

/// The bytes of a field that is a message.
fn part(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ambit_proto::istio::security as wire;
    use bytes::Bytes;
    use prost::Message as _;
    use prost::encoding::{WireType, encode_key, encode_varint};

    use super::{AUTHORIZATION, Inside, Message, fields};

    /// The numbers and names that a message has in its definition.
    fn defined(message: &str) -> BTreeSet<(u32, String)> {
        let text = include_str!("../../../../proto/istio/authorization.proto");
        let start = text.find(&format!("message {message} {{")).unwrap();
        let body = text[start..].split_once("\n}").unwrap().0;
        let field = |line: &str| {
            let (field, number) = line.trim().strip_suffix(';')?.split_once(" = ")?;
            let name = field.rsplit_once(' ')?.1;
            Some((number.parse().ok()?, name.to_owned()))
        };
        body.lines().filter_map(field).collect()
    }

    fn listed(message: &Message) -> BTreeSet<(u32, String)> {
        let field = |(number, name, _): &(u32, &str, Inside)| (*number, (*name).to_owned());
        message.0.iter().map(field).collect()
    }

    #[test]
    fn the_tables_are_those_of_the_definitions() {
        for (name, table) in [
            ("Authorization", &AUTHORIZATION),
            ("Rule", &super::RULE),
            ("Clause", &super::CLAUSE),
            ("Match", &super::MATCH),
            ("Address", &super::ADDRESS),
            ("ServiceAccountMatch", &super::ACCOUNT),
            ("StringMatch", &super::STRING),
        ] {
            assert_eq!(listed(table), defined(name), "{name}");
        }
    }

    fn policy(alternative: wire::Match) -> wire::Authorization {
        let clauses = vec![wire::Clause {
            matches: vec![alternative],
        }];
        wire::Authorization {
            name: "p".to_owned(),
            namespace: "shop".to_owned(),
            action: 1,
            dry_run: true,
            rules: vec![wire::Rule { clauses }],
            ..wire::Authorization::default()
        }
    }

    /// A field with number 99 and a text.
    fn unknown() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_key(99, WireType::LengthDelimited, &mut bytes);
        encode_varint(1, &mut bytes);
        bytes.push(b'x');
        bytes
    }

    /// `inner` as the content of field `number`.
    fn inside(number: u32, inner: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut bytes);
        encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend_from_slice(inner);
        bytes
    }

    #[test]
    fn what_is_known_is_not_reported_in_any_encoding() {
        let full = policy(wire::Match {
            principals: vec![wire::StringMatch {
                match_type: Some(wire::string_match::MatchType::Presence(())),
            }],
            destination_ports: vec![80, 8080],
            source_ips: vec![wire::Address {
                address: Bytes::from_static(&[10, 0, 0, 1]),
                length: 32,
            }],
            ..wire::Match::default()
        });
        let mut bytes = full.encode_to_vec();
        // One value of a repeated number, not packed; and a default that is spelt out.
        let mut ports = Vec::new();
        encode_key(9, WireType::Varint, &mut ports);
        encode_varint(80, &mut ports);
        bytes.extend(inside(5, &inside(1, &inside(2, &ports))));
        encode_key(6, WireType::Varint, &mut bytes);
        encode_varint(0, &mut bytes);
        assert_eq!(fields(&AUTHORIZATION, bytes.into()), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_field_is_found_at_every_depth() {
        for (path, wrapped) in [
            ("", unknown()),
            ("rules.", inside(5, &unknown())),
            ("rules.clauses.", inside(5, &inside(1, &unknown()))),
            (
                "rules.clauses.matches.",
                inside(5, &inside(1, &inside(2, &unknown()))),
            ),
            (
                "rules.clauses.matches.not_principals.",
                inside(5, &inside(1, &inside(2, &inside(4, &unknown())))),
            ),
            (
                "rules.clauses.matches.service_accounts.",
                inside(5, &inside(1, &inside(2, &inside(11, &unknown())))),
            ),
        ] {
            let mut bytes = policy(wire::Match::default()).encode_to_vec();
            bytes.extend(wrapped);
            // What is looked for is a message that decodes.
            wire::Authorization::decode(&bytes[..]).unwrap();
            let found = fields(&AUTHORIZATION, bytes.into());
            assert_eq!(found, [format!("{path}field 99: not known")]);
        }
    }

    #[test]
    fn vendor_data_is_not_looked_into_and_the_list_is_bounded() {
        let bytes = inside(7, &unknown());
        assert!(fields(&AUTHORIZATION, bytes.into()).is_empty());
        let many = unknown().repeat(1000);
        assert_eq!(fields(&AUTHORIZATION, many.into()).len(), super::MOST);
        let cut = inside(5, b"abc")[..3].to_vec();
        assert_eq!(fields(&AUTHORIZATION, cut.into()).len(), 1);
    }
}
