//! Header blocks of HTTP/2, one after the other on one connection.
#![no_main]

use ambit_wire::hpack::{Decoder, write};

// A byte says how long the next block is.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new();
    let mut rest = bytes;
    while let [length, more @ ..] = rest {
        let (block, more) = more.split_at(more.len().min(usize::from(*length)));
        rest = more;
        let mut fields = Vec::new();
        let read = decoder.decode(block, 1 << 20, |name, value| {
            fields.push((name.to_vec(), value.to_vec()));
        });
        if read.is_err() {
            return;
        }
        // What was read is written plainly, and read again the same.
        let mut plain = Vec::new();
        for (name, value) in &fields {
            write(&mut plain, name, value);
        }
        let mut again = Vec::new();
        let read = Decoder::new().decode(&plain, usize::MAX, |name, value| {
            again.push((name.to_vec(), value.to_vec()));
        });
        assert!(read.is_ok() && again == fields);
    }
});
