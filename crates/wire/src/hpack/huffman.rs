//! The code that texts in header blocks are compressed with (RFC 7541, section 5.2 and appendix B).
//!
//! Codes of one length follow each other, and each length begins where the one before it ended. So the number of codes of each
//! length, and the bytes in the order of their codes, are the whole of it.

use crate::Invalid;

/// Longest code, in bits.
const LONGEST: u32 = 30;

/// Lengths in bits, and how many codes have it. The last code of all is the end of the text, which is never sent.
const LENGTHS: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (LONGEST, 3),
];

/// Bytes in the order of their codes.
#[rustfmt::skip]
const BYTES: [u8; 256] = [
    48, 49, 50, 97, 99, 101, 105, 111, 115, 116, 32, 37, 45, 46, 47, 51,
    52, 53, 54, 55, 56, 57, 61, 65, 95, 98, 100, 102, 103, 104, 108, 109,
    110, 112, 114, 117, 58, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76,
    77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118,
    119, 120, 121, 122, 38, 42, 44, 59, 88, 90, 33, 34, 40, 41, 63, 39,
    43, 124, 35, 62, 0, 36, 64, 91, 93, 126, 94, 125, 60, 96, 123, 92,
    195, 208, 128, 130, 131, 162, 184, 194, 224, 226, 153, 161, 167, 172, 176, 177,
    179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156, 160,
    163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232,
    233, 1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157,
    158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239, 9, 142,
    144, 145, 148, 159, 171, 206, 215, 225, 236, 237, 199, 207, 234, 235, 192, 193,
    200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255, 203, 204, 211,
    212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254,
    2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20,
    21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127, 220, 249, 10, 13, 22,
];

/// Bits of the codes that are looked up at once: three in four letters of what header fields say have no longer one.
const SHORT: u32 = 8;

/// What a code stands for and its length, by the bits that begin with it. The length is 0 where the code is longer than these bits.
static BEGINNINGS: [(u8, u32); 1 << SHORT] = beginnings();

#[expect(
    clippy::indexing_slicing,
    reason = "the compiler works it out, and would not build what is out of bounds"
)]
const fn beginnings() -> [(u8, u32); 1 << SHORT] {
    let mut all = [(0, 0); 1 << SHORT];
    let (mut place, mut filled, mut group) = (0, 0, 0);
    while LENGTHS[group].0 <= SHORT {
        let (length, count) = LENGTHS[group];
        let mut code = 0;
        while code < count {
            let end = filled + (1 << (SHORT - length));
            while filled < end {
                all[filled] = (BYTES[place], length);
                filled += 1;
            }
            (place, code) = (place + 1, code + 1);
        }
        group += 1;
    }
    all
}

/// Adds what `text` says to `out`: at most eight bytes for five.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    let mut bits: u64 = 0;
    let mut held = 0;
    for byte in text {
        bits = bits << 8 | u64::from(*byte);
        held += 8;
        // With the longest code in hand, whatever comes first is whole.
        while held >= LONGEST {
            let (byte, length) = first(bits, held).ok_or(END)?;
            out.push(byte);
            held -= length;
        }
    }
    while let Some((byte, length)) = first(bits, held) {
        out.push(byte);
        held -= length;
    }
    // Padding is less than a byte of ones.
    let rest = bits & ((1 << held) - 1);
    if held > 7 || rest != (1 << held) - 1 {
        return Err(END);
    }
    Ok(())
}

const END: Invalid = Invalid::Malformed("end of a compressed text");

/// What the first of the last `held` of `bits` stand for, and how many they are.
fn first(bits: u64, held: u32) -> Option<(u8, u32)> {
    if let Some(behind) = held.checked_sub(SHORT)
        && let Ok(beginning) = usize::try_from((bits >> behind) & ((1 << SHORT) - 1))
        && let Some((byte, length @ 1..)) = BEGINNINGS.get(beginning)
    {
        return Some((*byte, *length));
    }
    by_length(bits, held)
}

/// The same, by the order of the codes.
fn by_length(bits: u64, held: u32) -> Option<(u8, u32)> {
    let (mut code, mut before, mut last) = (0, 0, 0);
    for (length, count) in LENGTHS {
        if length > held {
            return None;
        }
        code <<= length - last;
        last = length;
        let candidate = (bits >> (held - length)) & ((1 << length) - 1);
        if candidate < code + u64::from(count) {
            let place = u64::from(before) + (candidate - code);
            let byte = BYTES.get(usize::try_from(place).ok()?)?;
            return Some((*byte, length));
        }
        code += u64::from(count);
        before += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{BYTES, SHORT, by_length, first};

    #[test]
    fn short_codes_are_looked_up_as_they_are_found_by_their_order() {
        for bits in 0..1 << 16 {
            for held in [SHORT - 1, SHORT, 16] {
                let bits = bits & ((1 << held) - 1);
                assert_eq!(first(bits, held), by_length(bits, held), "{bits:b}");
            }
        }
        assert_eq!(first(0, SHORT), Some((BYTES[0], 5)));
    }
}
