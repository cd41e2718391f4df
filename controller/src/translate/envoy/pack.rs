//! Messages to bytes, always the same bytes.
//!
//! The generated types keep maps in hash maps, whose order differs from one to the next, and the
//! protocol buffer wire allows any order. Versions by content need one: the entries of every map are
//! sorted after encoding. Sorting changes no length, so it is done in place, along a table of where
//! the maps are.

use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// Where maps are inside a message: by field, what the field holds.
#[derive(Debug)]
pub(super) struct Shape(&'static [(u32, Part)]);

#[derive(Debug)]
enum Part {
    /// A message with maps somewhere inside.
    Message(&'static Shape),
    /// A map, and what its entries hold.
    Map(&'static Shape),
}

/// No map anywhere.
pub(super) static PLAIN: Shape = Shape(&[]);

static STRUCT: Shape = Shape(&[(1, Part::Map(&STRUCT_ENTRY))]);
static STRUCT_ENTRY: Shape = Shape(&[(2, Part::Message(&VALUE))]);
static VALUE: Shape = Shape(&[(5, Part::Message(&STRUCT)), (6, Part::Message(&LIST))]);
static LIST: Shape = Shape(&[(1, Part::Message(&VALUE))]);
static METADATA: Shape = Shape(&[(1, Part::Map(&METADATA_ENTRY))]);
static METADATA_ENTRY: Shape = Shape(&[(2, Part::Message(&STRUCT))]);

/// `envoy.config.cluster.v3.Cluster`; 36 is its extension options, with one entry.
pub(super) static CLUSTER: Shape = Shape(&[
    (25, Part::Message(&METADATA)),
    (33, Part::Message(&ASSIGNMENT)),
]);

/// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub(super) static ASSIGNMENT: Shape = Shape(&[(2, Part::Message(&LOCALITY))]);
static LOCALITY: Shape = Shape(&[(2, Part::Message(&ENDPOINT))]);
static ENDPOINT: Shape = Shape(&[(3, Part::Message(&METADATA))]);

/// The RBAC filters for HTTP and TCP: rules are field 1 of both, shadow rules field 2.
pub(super) static RBAC_FILTER: Shape =
    Shape(&[(1, Part::Message(&RBAC)), (2, Part::Message(&RBAC))]);
static RBAC: Shape = Shape(&[(2, Part::Map(&PLAIN))]);

/// `udpa.type.v1.TypedStruct`.
pub(super) static STRUCT_BEARER: Shape = Shape(&[(2, Part::Message(&STRUCT))]);

/// `xds.type.matcher.v3.IPMatcher`.
pub(super) static IP_MATCHER: Shape = Shape(&[(1, Part::Message(&RANGE))]);
static RANGE: Shape = Shape(&[(2, Part::Message(&ON_MATCH))]);
static ON_MATCH: Shape = Shape(&[(1, Part::Message(&MATCHER))]);
static MATCHER: Shape = Shape(&[(2, Part::Message(&TREE)), (3, Part::Message(&ON_MATCH))]);
static TREE: Shape = Shape(&[(2, Part::Message(&MATCH_MAP))]);
static MATCH_MAP: Shape = Shape(&[(1, Part::Map(&MATCH_ENTRY))]);
static MATCH_ENTRY: Shape = Shape(&[(2, Part::Message(&ON_MATCH))]);

/// The message in an `Any`.
pub(super) fn any<T: Message + Name>(message: &T, shape: &'static Shape) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", T::full_name()),
        value: bytes(message, shape),
    }
}

/// The message's bytes.
pub(super) fn bytes<T: Message>(message: &T, shape: &'static Shape) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    // We encoded it, so it can be walked; if not, the order is merely not ours.
    let _ = canonical(shape, &mut bytes);
    bytes
}

/// A field on the wire: its number, where it begins, where its payload begins and ends.
struct Field {
    number: u32,
    start: usize,
    payload: usize,
    end: usize,
}

fn canonical(shape: &Shape, bytes: &mut [u8]) -> Option<()> {
    if shape.0.is_empty() {
        return Some(());
    }
    let mut at = 0;
    let mut run: Option<(u32, usize)> = None;
    while at < bytes.len() {
        let field = field(bytes, at)?;
        at = field.end;
        let part = shape.0.iter().find(|(number, _)| *number == field.number);
        let map = matches!(part, Some((_, Part::Map(_))));
        if let Some((number, start)) = run
            && (!map || number != field.number)
        {
            sort_entries(bytes.get_mut(start..field.start)?)?;
            run = None;
        }
        if let Some((_, Part::Message(inner) | Part::Map(inner))) = part {
            canonical(inner, bytes.get_mut(field.payload..field.end)?)?;
        }
        if map && run.is_none() {
            run = Some((field.number, field.start));
        }
    }
    if let Some((_, start)) = run {
        sort_entries(bytes.get_mut(start..)?)?;
    }
    Some(())
}

/// Sorts whole fields by their bytes: by key, as the key comes first and its length before it.
fn sort_entries(bytes: &mut [u8]) -> Option<()> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let field = field(bytes, at)?;
        entries.push((
            bytes.get(field.payload..field.end)?.to_vec(),
            bytes.get(at..field.end)?.to_vec(),
        ));
        at = field.end;
    }
    entries.sort();
    let sorted: Vec<u8> = entries.into_iter().flat_map(|(_, whole)| whole).collect();
    bytes.copy_from_slice(&sorted);
    Some(())
}

fn field(bytes: &[u8], start: usize) -> Option<Field> {
    let (tag, at) = varint(bytes, start)?;
    let number = u32::try_from(tag >> 3).ok()?;
    let (payload, end) = match tag & 7 {
        0 => (at, varint(bytes, at)?.1),
        1 => (at, at.checked_add(8)?),
        2 => {
            let (length, at) = varint(bytes, at)?;
            (at, at.checked_add(usize::try_from(length).ok()?)?)
        }
        5 => (at, at.checked_add(4)?),
        _ => return None,
    };
    (end <= bytes.len()).then_some(Field {
        number,
        start,
        payload,
        end,
    })
}

fn varint(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    // Ten groups of seven bits hold any 64-bit number.
    for group in 0..10 {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(group * 7)?;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::core::v3::Metadata;
    use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
    use prost::Message as _;

    use super::{CLUSTER, bytes};

    fn fields(depth: usize) -> Struct {
        let leaf = |index: usize| Value {
            kind: Some(Kind::StringValue(format!("{index}"))),
        };
        let mut fields: HashMap<String, Value> = (0..12)
            .map(|index| (format!("key{index}"), leaf(index)))
            .collect();
        if depth > 0 {
            let inner = Value {
                kind: Some(Kind::StructValue(fields_of(depth - 1))),
            };
            let list = ListValue {
                values: vec![inner.clone()],
            };
            fields.insert("inner".to_owned(), inner);
            fields.insert(
                "list".to_owned(),
                Value {
                    kind: Some(Kind::ListValue(list)),
                },
            );
        }
        Struct { fields }
    }

    fn fields_of(depth: usize) -> Struct {
        fields(depth)
    }

    #[test]
    fn equal_messages_have_equal_bytes_and_mean_the_same() {
        let cluster = || Cluster {
            name: "a".to_owned(),
            metadata: Some(Metadata {
                filter_metadata: (0..5)
                    .map(|index| (format!("f{index}"), fields(2)))
                    .collect(),
                ..Metadata::default()
            }),
            ..Cluster::default()
        };
        let first = bytes(&cluster(), &CLUSTER);
        for _ in 0..20 {
            assert_eq!(bytes(&cluster(), &CLUSTER), first);
        }
        assert_eq!(Cluster::decode(first.as_slice()).unwrap(), cluster());
    }
}
