//! How large a read buffer should be, from how much the last reads brought. Pure.

/// As much of a connection as leaves the machine in one packet, in bytes, framed and encrypted.
///
/// The kernel hands what is written in one call to the network in packets of at most 64 KiB, which are cut for the wire as late as
/// can be, and each must be a multiple of the connection's segment. With a frame's header (RFC 9113 4.1) and what four TLS records
/// add, this lies below that for segments of 1,398 to 8,949 bytes (of Ethernet, with and without jumbo frames and an overlay's
/// header). A little more would be two packets, the second with some hundred bytes; and as many wake-ups at the other end, the
/// first of which finds a record that is not whole.
const PACKET: usize = 61 * 1024;

/// The longest piece that a source gives, in bytes: two packets. Half the calls and wake-ups of one packet, which is a sixth of a
/// tunnel's CPU time; a small message behind it waits a tenth of a millisecond longer at 5 Gbit/s.
///
/// What carries pieces in frames makes them as long: of a longer piece a few bytes would be left, a frame and a write of their own
/// all the way to the other end.
pub const LONGEST_PIECE: usize = 2 * PACKET;

/// Sizes of buffers in bytes. The smallest holds a request or an interactive message.
pub(crate) const SIZES: [usize; 4] = [4 * 1024, 16 * 1024, PACKET, LONGEST_PIECE];

/// The size for the next read of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    class: u8,
    /// Whether a read since the last rest used at least half of the buffer.
    used: bool,
}

impl Growth {
    /// The index into [`SIZES`].
    pub(crate) fn class(self) -> usize {
        usize::from(self.class).min(SIZES.len() - 1)
    }

    /// After a read of `bytes`, into a buffer with room for `room`.
    pub(crate) fn read(&mut self, bytes: usize, room: usize) {
        if bytes >= room && self.class() + 1 < SIZES.len() {
            self.class += 1;
        }
        self.used |= bytes * 2 >= room;
    }

    /// Nothing more to read at the moment: a buffer that was too large is smaller next time.
    pub(crate) fn rest(&mut self) {
        if !self.used {
            self.class = self.class.saturating_sub(1);
        }
        self.used = false;
    }
}

#[cfg(test)]
mod tests {
    use super::{Growth, SIZES};

    fn size(growth: Growth) -> usize {
        SIZES[growth.class()]
    }

    #[test]
    fn grows_while_reads_fill_the_buffer_and_no_further_than_the_largest() {
        let mut growth = Growth::default();
        let mut sizes = vec![size(growth)];
        for _ in 0..5 {
            growth.read(size(growth), size(growth));
            sizes.push(size(growth));
        }
        assert_eq!(sizes, [4096, 16384, 62464, 124_928, 124_928, 124_928]);
    }

    #[test]
    fn shrinks_one_step_at_each_rest_after_small_reads_only() {
        let mut growth = Growth {
            class: 2,
            used: false,
        };
        growth.read(40_000, 62_464);
        growth.read(10, 62_464);
        growth.rest();
        assert_eq!(size(growth), 62_464, "one read used it");
        for wanted in [16_384, 4096, 4096] {
            growth.read(64, size(growth));
            growth.rest();
            assert_eq!(size(growth), wanted);
        }
    }
}
