//! Header changes: remove, add, set, with values out of format strings.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::format::{Format, Values};

/// One change, applied in list order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Remove every value.
    Remove(HeaderName),
    /// Put a value.
    Put {
        /// Which header.
        name: HeaderName,
        /// Its value.
        value: EditValue,
        /// What about values already there.
        mode: PutMode,
        /// Put it even if the value is empty.
        keep_empty: bool,
    },
}

/// The value of a [`Edit::Put`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditValue {
    /// The same for every message.
    Constant(HeaderValue),
    /// Made for each.
    Made(Format),
}

/// What a [`Edit::Put`] does about values already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Keep them and add one.
    Append,
    /// Replace them.
    Overwrite,
    /// Replace them; do nothing when there is none.
    OverwriteIfPresent,
    /// Do nothing when there is one.
    IfAbsent,
}

/// Applies all changes in order. A value that is no legal header value (a client can cause that
/// through `%REQ(…)%` only with bytes that were legal before, so it does not happen) is left out.
pub fn apply(edits: &[Edit], headers: &mut HeaderMap, values: &impl Values) {
    for edit in edits {
        match edit {
            Edit::Remove(name) => {
                headers.remove(name);
            }
            Edit::Put {
                name,
                value,
                mode,
                keep_empty,
            } => {
                let value = match value {
                    EditValue::Constant(value) => value.clone(),
                    EditValue::Made(format) => {
                        let mut text = Vec::with_capacity(64);
                        format.render(values, "", &mut text);
                        match HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
                            Ok(value) => value,
                            Err(_) => continue,
                        }
                    }
                };
                if value.is_empty() && !keep_empty {
                    continue;
                }
                put(headers, name, value, *mode);
            }
        }
    }
}

fn put(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, mode: PutMode) {
    match (headers.entry(name), mode) {
        (Entry::Occupied(mut there), PutMode::Append) => there.append(value),
        (Entry::Occupied(mut there), PutMode::Overwrite | PutMode::OverwriteIfPresent) => {
            there.insert(value);
        }
        (Entry::Vacant(free), PutMode::Append | PutMode::Overwrite | PutMode::IfAbsent) => {
            free.insert(value);
        }
        (Entry::Occupied(_), PutMode::IfAbsent)
        | (Entry::Vacant(_), PutMode::OverwriteIfPresent) => {}
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{Edit, EditValue, PutMode, apply};
    use crate::format::{Command, Format, Values};

    struct Nothing;

    impl Values for Nothing {
        fn append(&self, command: &Command, out: &mut Vec<u8>) -> bool {
            if *command == Command::PeerPrincipal {
                out.extend_from_slice(b"spiffe://td/ns/a/sa/b");
                return true;
            }
            false
        }
    }

    fn put(name: &'static str, value: &str, mode: PutMode) -> Edit {
        let format = Format::parse(value).unwrap();
        let value = match format.constant() {
            Some(text) => EditValue::Constant(HeaderValue::from_str(text).unwrap()),
            None => EditValue::Made(format),
        };
        Edit::Put {
            name: HeaderName::from_static(name),
            value,
            mode,
            keep_empty: false,
        }
    }

    fn after(edits: &[Edit]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("1"));
        headers.append("a", HeaderValue::from_static("2"));
        apply(edits, &mut headers, &Nothing);
        headers
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn each_mode_treats_values_already_there_as_named() {
        let cases: &[(&[Edit], &[&str])] = &[
            (&[put("a", "3", PutMode::Append)], &["a=1", "a=2", "a=3"]),
            (&[put("a", "3", PutMode::Overwrite)], &["a=3"]),
            (&[put("a", "3", PutMode::IfAbsent)], &["a=1", "a=2"]),
            (&[put("b", "3", PutMode::IfAbsent)], &["a=1", "a=2", "b=3"]),
            (
                &[put("b", "3", PutMode::OverwriteIfPresent)],
                &["a=1", "a=2"],
            ),
            (&[Edit::Remove(HeaderName::from_static("a"))], &[]),
            (
                &[
                    Edit::Remove(HeaderName::from_static("a")),
                    put("a", "9", PutMode::Append),
                ],
                &["a=9"],
            ),
            (
                &[put("b", "%REQ(missing)%", PutMode::Append)],
                &["a=1", "a=2"],
            ),
            (
                &[put("a", "<%DOWNSTREAM_PEER_URI_SAN%>", PutMode::Overwrite)],
                &["a=<spiffe://td/ns/a/sa/b>"],
            ),
        ];
        for (edits, wanted) in cases {
            assert_eq!(&after(edits), wanted, "{edits:?}");
        }
    }
}
