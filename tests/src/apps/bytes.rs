//! Bulk with checksums: every byte depends on its place, so that a lost, doubled or moved byte
//! changes the sum.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::App;
use crate::pod::Pod;

/// Sixteen bytes a client sends first: how many bytes it wants and will send, and a seed.
pub const HEAD: usize = 16;
/// Bytes written at once.
const PIECE: usize = 256 * 1024;

/// A stream of bytes that look random.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next bytes, eight at a time: `piece` should be a multiple of eight long.
    pub fn fill(&mut self, piece: &mut [u8]) {
        for word in piece.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// A checksum of a stream that comes in pieces of any size.
#[derive(Debug, Default)]
pub struct Sum {
    sum: u64,
    length: u64,
    part: Vec<u8>,
}

impl Sum {
    /// Adds the next bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if !self.part.is_empty() {
            let missing = (8 - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.part.len() < 8 {
                return;
            }
            let whole = std::mem::take(&mut self.part);
            self.word(&whole);
        }
        let words = bytes.chunks_exact(8);
        self.part.extend_from_slice(words.remainder());
        for word in words {
            self.word(word);
        }
    }

    fn word(&mut self, word: &[u8]) {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        self.sum = (self.sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// The sum and the number of bytes.
    #[must_use]
    pub fn end(mut self) -> (u64, u64) {
        let mut rest = std::mem::take(&mut self.part);
        rest.resize(8, 0);
        self.word(&rest);
        (self.sum, self.length)
    }
}

/// The sum of the first `length` bytes of a seed's noise, without sending them.
#[must_use]
pub fn expected(seed: u64, length: u64) -> (u64, u64) {
    let (mut noise, mut sum, mut piece) = (Noise::new(seed), Sum::default(), vec![0; PIECE]);
    let mut left = length;
    while left > 0 {
        noise.fill(&mut piece);
        let now = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        sum.add(&piece[..now]);
        left -= now as u64;
    }
    sum.end()
}

/// What came over one connection both ways.
#[derive(Debug, PartialEq, Eq)]
pub struct Both {
    /// Sum and length of what the server read, as it says.
    pub sent: (u64, u64),
    /// Sum and length of what the client read.
    pub received: (u64, u64),
}

impl Pod {
    /// The other end of [`exchange_bytes`](Self::exchange_bytes).
    pub fn serve_bytes(&self, port: u16) -> App {
        self.serve(port, |stream, _| async move {
            let (mut read, mut write) = stream.into_split();
            let mut head = [0; HEAD];
            read.read_exact(&mut head).await?;
            let (length, seed) = (number(&head[..8]), number(&head[8..]));
            let sending = tokio::task::spawn_local(async move {
                send(&mut write, !seed, length).await?;
                io::Result::Ok(write)
            });
            let (sum, length) = receive(&mut read, u64::MAX).await?;
            let mut write = sending.await.map_err(io::Error::other)??;
            write.write_all(&sum.to_le_bytes()).await?;
            write.write_all(&length.to_le_bytes()).await?;
            write.shutdown().await
        })
    }

    /// Sends and receives `length` bytes at once over one connection, ends the sending, and then
    /// reads the server's sum of what it got: which shows half-close too.
    ///
    /// # Errors
    ///
    /// The connection breaks.
    pub async fn exchange_bytes(&self, to: &str, length: u64, seed: u64) -> io::Result<Both> {
        let (mut read, mut write) = self.dial(to).await?.into_split();
        write.write_all(&length.to_le_bytes()).await?;
        write.write_all(&seed.to_le_bytes()).await?;
        let sending = async {
            send(&mut write, seed, length).await?;
            write.shutdown().await
        };
        let (received, sent) = tokio::join!(receive(&mut read, length), sending);
        sent?;
        let mut tail = [0; 16];
        read.read_exact(&mut tail).await?;
        Ok(Both {
            sent: (number(&tail[..8]), number(&tail[8..])),
            received: received?,
        })
    }
}

/// What [`Pod::exchange_bytes`] returns when nothing is lost.
#[must_use]
pub fn whole(length: u64, seed: u64) -> Both {
    Both {
        sent: expected(seed, length),
        received: expected(!seed, length),
    }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), seed: u64, length: u64) -> io::Result<()> {
    let (mut noise, mut piece, mut left) = (Noise::new(seed), vec![0; PIECE], length);
    while left > 0 {
        noise.fill(&mut piece);
        let now = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        write.write_all(&piece[..now]).await?;
        left -= now as u64;
    }
    Ok(())
}

/// Reads `most` bytes, or to the end.
async fn receive(read: &mut (impl AsyncReadExt + Unpin), most: u64) -> io::Result<(u64, u64)> {
    let (mut sum, mut piece, mut left) = (Sum::default(), vec![0; PIECE], most);
    while left > 0 {
        let room = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let length = read.read(&mut piece[..room]).await?;
        if length == 0 {
            break;
        }
        sum.add(&piece[..length]);
        left -= length as u64;
    }
    Ok(sum.end())
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::{Noise, Sum, expected};

    fn sum(pieces: &[&[u8]]) -> (u64, u64) {
        let mut sum = Sum::default();
        pieces.iter().for_each(|piece| sum.add(piece));
        sum.end()
    }

    #[test]
    fn the_sum_does_not_depend_on_the_pieces_and_does_on_every_byte() {
        let mut data = vec![0; 1000];
        Noise::new(7).fill(&mut data);
        let whole = sum(&[&data]);
        assert_eq!(expected(7, 1000), whole);
        for cut in [1, 7, 8, 9, 500, 999] {
            assert_eq!(sum(&[&data[..cut], &data[cut..]]), whole);
        }
        let bytes: Vec<&[u8]> = data.chunks(3).collect();
        assert_eq!(sum(&bytes), whole);
        let mut swapped = data.clone();
        swapped.swap(10, 30);
        assert_ne!(sum(&[&swapped]), whole);
        assert_ne!(sum(&[&data[..999]]), whole);
    }
}
