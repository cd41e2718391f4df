//! After a 101: bytes both ways between the client's stream and the endpoint's, for as long as both
//! want.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};

use crate::record::Record;
use crate::upstream::UpstreamIo;

/// An endpoint that has switched protocols and waits for the client's stream.
#[derive(Debug)]
pub struct Waiting {
    /// Its stream.
    pub io: UpstreamIo,
    /// What it said right behind its 101.
    pub ahead: Bytes,
    /// The request that asked for it: it ends when the bytes do.
    pub record: Option<Box<Record>>,
}

/// Read at a time in each direction: websockets carry small messages.
const BUFFER: usize = 16 * 1024;

/// Relays until both directions have ended. `ahead`: what the client said behind its request.
pub async fn relay<T>(mut client: T, ahead: Bytes, waiting: Waiting)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let Waiting {
        mut io,
        ahead: answered,
        record,
    } = waiting;
    let moved = async {
        io.write_all(&ahead).await?;
        client.write_all(&answered).await?;
        copy_bidirectional_with_sizes(&mut client, &mut io, BUFFER, BUFFER).await
    };
    let ended = moved.await;
    if let Some(mut record) = record {
        if let Ok((received, sent)) = ended {
            record.upgraded(received + ahead.len() as u64, sent + answered.len() as u64);
        }
        record.complete();
    }
}
