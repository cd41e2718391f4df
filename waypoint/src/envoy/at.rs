//! Where in a resource the compiler is, and how it refuses.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};
use prost::{Message, Name as ProtoName};

/// A part of a resource that we do not understand or that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct Refusal {
    /// `main_internal.filter_chains[3].filters[1]…`
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// The result of compiling a part.
pub(crate) type Compiled<T> = Result<T, Refusal>;

/// A place in a resource. Costs nothing until something is refused there.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
    warnings: &'a RefCell<Vec<String>>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

impl<'a> At<'a> {
    /// The resource itself. Things that are ignored with a warning are collected in `warnings`.
    pub(crate) fn root(name: &'a str, warnings: &'a RefCell<Vec<String>>) -> Self {
        Self {
            parent: None,
            step: Step::Field(name),
            warnings,
        }
    }

    pub(crate) fn field(&'a self, name: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: Step::Field(name),
            warnings: self.warnings,
        }
    }

    pub(crate) fn index(&'a self, name: &'a str, at: usize) -> Self {
        Self {
            parent: Some(self),
            step: Step::Index(name, at),
            warnings: self.warnings,
        }
    }

    pub(crate) fn key(&'a self, name: &'a str, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: Step::Key(name, key),
            warnings: self.warnings,
        }
    }

    pub(crate) fn refuse(&self, reason: impl fmt::Display) -> Refusal {
        Refusal {
            path: self.to_string(),
            reason: reason.to_string(),
        }
    }

    /// Something without influence on what is allowed is left out.
    pub(crate) fn warn(&self, what: impl fmt::Display) {
        self.warnings.borrow_mut().push(format!("{self}: {what}"));
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        match self.step {
            Step::Field(name) => f.write_str(name),
            Step::Index(name, at) => write!(f, "{name}[{at}]"),
            Step::Key(name, key) => write!(f, "{name}[{key:?}]"),
        }
    }
}

/// Type URLs come with this in front of the message's full name.
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// The message name in a type URL.
pub(crate) fn type_name(any: &Any) -> &str {
    any.type_url
        .strip_prefix(TYPE_URL_PREFIX)
        .unwrap_or(&any.type_url)
}

/// Whether an `Any` holds this message.
pub(crate) fn holds<M: ProtoName>(any: &Any) -> bool {
    type_name(any) == M::full_name()
}

/// Decodes an `Any` that must hold this message.
pub(crate) fn unpack<M: Message + Default + ProtoName>(any: &Any, at: &At<'_>) -> Compiled<M> {
    if !holds::<M>(any) {
        return Err(at.refuse(format_args!(
            "is a {}, not a {}",
            type_name(any),
            M::full_name()
        )));
    }
    decode(any, at)
}

/// Decodes an `Any` whose type was checked.
pub(crate) fn decode<M: Message + Default>(any: &Any, at: &At<'_>) -> Compiled<M> {
    M::decode(any.value.as_slice())
        .map_err(|error| at.refuse(format_args!("{} does not decode: {error}", type_name(any))))
}

/// As [`unpack`], for messages that decide what is allowed: a field that this program has never
/// heard of is refused too.
pub(crate) fn unpack_strict<M: Message + Default + ProtoName>(
    any: &Any,
    at: &At<'_>,
) -> Compiled<M> {
    let message: M = unpack(any, at)?;
    // A decoder drops what it does not know, so such a message has become shorter.
    if message.encoded_len() < any.value.len() {
        return Err(at.refuse("has fields unknown to this version"));
    }
    Ok(message)
}

/// Refuses a message of which the compiler has taken everything it understands, if anything is
/// left. The rest is named by its field numbers.
pub(crate) fn nothing_left(rest: &impl Message, at: &At<'_>) -> Compiled<()> {
    let tags = tags(&rest.encode_to_vec());
    if tags.is_empty() {
        return Ok(());
    }
    Err(at.refuse(format_args!("sets unsupported fields {tags:?} (by number)")))
}

/// As [`nothing_left`], for what has no influence on what is allowed: warns.
pub(crate) fn ignore_rest(rest: &impl Message, at: &At<'_>) {
    let tags = tags(&rest.encode_to_vec());
    if !tags.is_empty() {
        at.warn(format_args!(
            "ignores unsupported fields {tags:?} (by number)"
        ));
    }
}

/// Field numbers at the top level of an encoded message.
fn tags(mut bytes: &[u8]) -> Vec<u32> {
    let mut tags = Vec::new();
    while let Ok((tag, wire)) = prost::encoding::decode_key(&mut bytes) {
        let context = prost::encoding::DecodeContext::default();
        tags.push(tag);
        if prost::encoding::skip_field(wire, tag, &mut bytes, context).is_err() {
            break;
        }
    }
    tags.dedup();
    tags
}

/// A duration that must not be negative.
pub(crate) fn duration(value: &ProtoDuration, at: &At<'_>) -> Compiled<Duration> {
    let seconds = u64::try_from(value.seconds);
    let nanos = u32::try_from(value.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(at.refuse("is a negative or malformed duration")),
    }
}

/// A timeout where absence means `default` and zero means none.
pub(crate) fn timeout(
    value: Option<&ProtoDuration>,
    default: Option<Duration>,
    at: &At<'_>,
) -> Compiled<Option<Duration>> {
    match value {
        None => Ok(default),
        Some(value) => {
            let value = duration(value, at)?;
            Ok((!value.is_zero()).then_some(value))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction};
    use envoy_types::pb::google::protobuf::Any;
    use prost::{Message, Name};

    use super::{At, nothing_left, unpack, unpack_strict};

    #[test]
    fn a_refusal_names_the_place_and_the_fields() {
        let warnings = RefCell::new(Vec::new());
        let root = At::root("main_internal", &warnings);
        let chain = root.index("filter_chains", 3);
        let at = chain.key("policies", "p");
        let rest = Route {
            name: "x".into(),
            stat_prefix: "y".into(),
            ..Route::default()
        };
        let refusal = nothing_left(&rest, &at).unwrap_err();
        assert_eq!(
            refusal.path,
            "main_internal.filter_chains[3].policies[\"p\"]"
        );
        assert!(refusal.reason.contains("14, 19"), "{refusal}");
        assert_eq!(nothing_left(&Route::default(), &at), Ok(()));
    }

    #[test]
    fn an_any_of_another_type_or_with_unknown_fields_is_refused() {
        let warnings = RefCell::new(Vec::new());
        let at = At::root("r", &warnings);
        let mut value = Route {
            name: "x".into(),
            ..Route::default()
        }
        .encode_to_vec();
        let any = Any {
            type_url: Route::type_url(),
            value: value.clone(),
        };
        assert!(unpack::<Route>(&any, &at).is_ok());
        assert!(unpack::<RouteAction>(&any, &at).is_err());
        assert!(unpack_strict::<Route>(&any, &at).is_ok());
        // Field 1000, varint 1.
        value.extend_from_slice(&[0xc0, 0x3e, 0x01]);
        let any = Any {
            type_url: Route::type_url(),
            value,
        };
        assert!(unpack::<Route>(&any, &at).is_ok());
        assert!(unpack_strict::<Route>(&any, &at).is_err());
    }
}
