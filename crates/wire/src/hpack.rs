//! Header blocks of HTTP/2 (HPACK, RFC 7541): read field by field, written plainly.
//!
//! The reader keeps the table that the writer at the other end assumes, whatever the fields are: whether a field may be is for its
//! caller to say. So one message that is malformed does not spoil the blocks behind it.

mod huffman;
mod table;

use crate::Invalid;
use table::Table;

const SHORT: Invalid = Invalid::Missing("the rest of a header block");

/// Reads the header blocks of one direction of one connection, in their order.
#[derive(Debug, Default)]
pub struct Decoder {
    table: Table,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// Before the first block. The table has the protocol's 4,096 bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a whole block and calls `each` with the names and values in it. Takes time by the length of the block, and of
    /// what its fields come to, in bytes as section 4.1 counts them: three bytes of a block can name a field of four thousand,
    /// so that is bounded by `limit`, but for the last field.
    ///
    /// # Errors
    ///
    /// When it is no header block, or comes to more than `limit`. The table is then lost, and the connection with it (RFC 9113,
    /// section 4.3).
    pub fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Invalid> {
        let mut size: usize = 0;
        let mut each = |name: &[u8], value: &[u8]| {
            size = size.saturating_add(table::size(name, value));
            each(name, value);
            if size > limit {
                return Err(Invalid::TooLong { limit });
            }
            Ok(())
        };
        let mut rest = block;
        let mut begun = false;
        while let Some(first) = rest.first() {
            if first & 0x20 != 0 && first & 0xc0 == 0 {
                if begun {
                    return Err(Invalid::Malformed("place of a table's size"));
                }
                self.table.resize(integer(&mut rest, 5)?)?;
                continue;
            }
            begun = true;
            if first & 0x80 != 0 {
                let (name, value) = self.table.entry(integer(&mut rest, 7)?)?;
                each(name, value)?;
            } else {
                let keep = first & 0x40 != 0;
                self.literal(&mut rest, if keep { 6 } else { 4 })?;
                each(&self.name, &self.value)?;
                if keep {
                    self.table.insert(&self.name, &self.value);
                }
            }
        }
        // Room for what fields usually are stays.
        self.name.shrink_to(64);
        self.value.shrink_to(512);
        Ok(())
    }

    /// Reads a field with a value of its own into `name` and `value`.
    fn literal(&mut self, rest: &mut &[u8], prefix: u32) -> Result<(), Invalid> {
        let index = integer(rest, prefix)?;
        if index == 0 {
            string(rest, &mut self.name)?;
        } else {
            let (name, _) = self.table.entry(index)?;
            self.name.clear();
            self.name.extend_from_slice(name);
        }
        string(rest, &mut self.value)
    }
}

/// Adds a field to a block, in a form that needs no table and changes none (section 6.2.2).
pub fn write(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        length(block, text.len());
        block.extend_from_slice(text);
    }
}

/// The length of a text that is not compressed (section 5.2).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut more) = length.checked_sub(0x7f) else {
        block.extend(u8::try_from(length));
        return;
    };
    block.push(0x7f);
    while more > 0x7f {
        block.extend(u8::try_from(more & 0x7f).map(|low| low | 0x80));
        more >>= 7;
    }
    block.extend(u8::try_from(more));
}

/// A number that begins in the last `prefix` bits of the next byte (section 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Invalid> {
    let most = (1u8 << prefix) - 1;
    let first = byte(rest)? & most;
    let mut value = usize::from(first);
    if first < most {
        return Ok(value);
    }
    // Up to 2^28: whatever is larger is larger than any block.
    for shift in [0, 7, 14, 21] {
        let next = byte(rest)?;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Invalid::Malformed("number in a header block"))
}

/// A text, compressed or not (section 5.2).
fn string(rest: &mut &[u8], into: &mut Vec<u8>) -> Result<(), Invalid> {
    let compressed = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, more) = rest.split_at_checked(length).ok_or(SHORT)?;
    *rest = more;
    into.clear();
    if compressed {
        huffman::decode(text, into)
    } else {
        into.extend_from_slice(text);
        Ok(())
    }
}

fn byte(rest: &mut &[u8]) -> Result<u8, Invalid> {
    let (first, more) = rest.split_first().ok_or(SHORT)?;
    *rest = more;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::{Decoder, write};

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        let pair = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    fn read(decoder: &mut Decoder, block: &[u8]) -> Option<String> {
        let mut all = String::new();
        let read = decoder.decode(block, 200_000, |name, value| {
            let [name, value] = [name, value].map(|text| std::str::from_utf8(text).unwrap());
            all.push_str(&format!("{name}={value};"));
        });
        read.ok().map(|()| all)
    }

    #[test]
    fn reads_the_examples_of_the_rfc() {
        // Sections C.3 and C.4: three requests on one connection, plain and compressed.
        let requests = [
            ":method=GET;:scheme=http;:path=/;:authority=www.example.com;",
            ":method=GET;:scheme=http;:path=/;:authority=www.example.com;cache-control=no-cache;",
            ":method=GET;:scheme=https;:path=/index.html;:authority=www.example.com;custom-key=custom-value;",
        ];
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let compressed = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, compressed] {
            let mut decoder = Decoder::new();
            for (block, request) in blocks.iter().zip(requests) {
                assert_eq!(read(&mut decoder, &hex(block)).unwrap(), request);
            }
        }
    }

    #[test]
    fn the_table_forgets_its_oldest_and_keeps_its_size() {
        let mut decoder = Decoder::new();
        // A table of 70 bytes holds two fields of 34 each.
        let block = hex("3f27 4001 61 01 62 4001 63 01 64 4001 65 01 66 bf be");
        assert_eq!(read(&mut decoder, &block).unwrap(), "a=b;c=d;e=f;c=d;e=f;");
        assert_eq!(read(&mut decoder, &hex("c0")), None);
        // One that is larger than the table empties it.
        let mut large = hex("4001 61 28");
        large.extend([b'x'; 40]);
        assert!(read(&mut decoder, &large).is_some());
        assert_eq!(read(&mut decoder, &hex("be")), None);
    }

    #[test]
    fn refuses_what_is_no_block() {
        for (what, block) in [
            ("index 0", "80"),
            ("an index beyond the table", "be"),
            ("a name beyond the table", "7f 00 01 61"),
            ("half a number", "ff"),
            ("a number without an end", "ff ff ff ff ff ff ff"),
            ("half a text", "00 05 61 62"),
            ("a larger table than was offered", "3f e2 1f"),
            ("a new size behind a field", "82 20"),
            ("the end of text as a letter", "00 84 ff ff ff ff 01 61"),
            ("padding of zeros", "00 81 18 01 61"),
            ("padding of a whole byte", "00 82 1f ff 01 61"),
        ] {
            assert_eq!(read(&mut Decoder::new(), &hex(block)), None, "{what}");
        }
        // The same text with the padding that it must have.
        assert_eq!(
            read(&mut Decoder::new(), &hex("00 81 1f 01 61")).unwrap(),
            "a=a;"
        );
    }

    #[test]
    fn fields_that_come_to_more_than_the_limit_are_read_no_further() {
        // A name of 4,000 bytes for the table, and then that name again and again in three bytes each.
        let mut block = hex("40 7f a1 1e");
        block.extend([b'n'; 4000]);
        block.push(0);
        block.extend([0x0f, 0x2f, 0].repeat(10_000));
        let mut fields = 0;
        let read = Decoder::new().decode(&block, 100_000, |name, _| {
            assert_eq!(name.len(), 4000);
            fields += 1;
        });
        assert!(read.is_err());
        assert_eq!(fields, 25);
    }

    #[test]
    fn what_is_written_is_read_whatever_its_length() {
        for size in [0, 1, 126, 127, 128, 254, 255, 256, 16_000, 70_000] {
            let (name, value) = ("n".repeat(size), "v".repeat(size));
            let mut block = Vec::new();
            write(&mut block, name.as_bytes(), value.as_bytes());
            let read = read(&mut Decoder::new(), &block).unwrap();
            assert_eq!(read, format!("{name}={value};"), "{size}");
        }
    }
}
