//! Netlink attributes: a writer, and a reader that never panics.
//!
//! The layout is the kernel's (`struct nlattr`): length and type, two bytes each in the machine's order,
//! then the value, padded to four bytes. Integers inside nf_tables attributes are big-endian.

/// Set on the type of an attribute whose value is a list of attributes.
const NESTED: u16 = 0x8000;
/// Set by the kernel on some types to say that the value is big-endian; together with [`NESTED`] not
/// part of the number.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// A list of attributes being written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// An empty list.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The bytes as the kernel reads them.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Appends a value as it is.
    ///
    /// A value longer than an attribute can be (64 KiB) is left out: nothing that we write comes near.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let Ok(length) = u16::try_from(HEADER + value.len()) else {
            return self;
        };
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(HEADER), 0);
        self
    }

    /// Appends a 32-bit integer.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a text, with the zero that ends it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends a list.
    pub(crate) fn list(&mut self, kind: u16, inner: Self) -> &mut Self {
        self.bytes(kind | NESTED, &inner.into_bytes())
    }
}

/// One attribute that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    /// The number, without flags.
    pub(crate) kind: u16,
    /// Whether the writer said that the value is a list.
    pub(crate) nested: bool,
    /// The value.
    pub(crate) value: &'a [u8],
}

impl Attribute<'_> {
    /// The value as a 32-bit integer.
    pub(crate) fn number(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a text, without the zero that ends it.
    pub(crate) fn text(&self) -> Option<&str> {
        let end = self
            .value
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.value.len());
        std::str::from_utf8(self.value.get(..end)?).ok()
    }
}

/// The attributes in `bytes`, up to the first one that is malformed.
pub(crate) fn read(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*kind);
        let value = bytes.get(HEADER..length)?;
        bytes = bytes
            .get(length.next_multiple_of(HEADER)..)
            .unwrap_or_default();
        Some(Attribute {
            kind: kind & TYPE_MASK,
            nested: kind & NESTED != 0,
            value,
        })
    })
}

/// The first attribute of this number.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<Attribute<'_>> {
    read(bytes).find(|attribute| attribute.kind == kind)
}

/// Whether `actual` holds every attribute of `expected` with the same value. Attributes that the kernel adds are
/// no difference.
pub(crate) fn covers(actual: &[u8], expected: &[u8]) -> bool {
    read(expected).all(|wanted| {
        find(actual, wanted.kind).is_some_and(|found| {
            if wanted.nested {
                covers(found.value, wanted.value)
            } else {
                found.value == wanted.value
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{Attributes, covers, find, read};
    use proptest::prelude::{any, proptest};

    #[test]
    fn what_is_written_is_read_back() {
        let mut inner = Attributes::new();
        inner.number(7, 9);
        let mut list = Attributes::new();
        list.text(1, "abc")
            .bytes(2, &[1, 2, 3, 4, 5])
            .list(3, inner);
        let bytes = list.into_bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find(&bytes, 1).unwrap().text(), Some("abc"));
        assert_eq!(find(&bytes, 2).unwrap().value, [1, 2, 3, 4, 5]);
        let nested = find(&bytes, 3).unwrap();
        assert!(nested.nested);
        assert_eq!(find(nested.value, 7).unwrap().number(), Some(9));
    }

    #[test]
    fn an_added_attribute_is_no_difference_and_a_missing_one_is() {
        let mut less = Attributes::new();
        less.number(1, 1);
        let mut more = Attributes::new();
        more.number(2, 2).number(1, 1);
        let (less, more) = (less.into_bytes(), more.into_bytes());
        assert!(covers(&more, &less));
        assert!(!covers(&less, &more));
    }

    proptest! {
        #[test]
        fn reading_any_bytes_ends(bytes: Vec<u8>, kind in any::<u16>()) {
            let _ = find(&bytes, kind);
            let total: usize = read(&bytes).map(|attribute| attribute.value.len()).sum();
            assert!(total <= bytes.len());
        }
    }
}
