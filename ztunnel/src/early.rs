//! The first bytes of a client, sent before the tunnel's far end has answered.
//!
//! A client that speaks first has mostly done so by the time its connection is routed, so its bytes can go with the request for a
//! stream and need not wait for the answer: a round trip between nodes less for each connection, and a wake at either end.
//!
//! # Invariants
//! - The bytes stay in the client's socket until the far end has accepted the stream. If it refuses, they go to another endpoint,
//!   or nowhere.
//! - They go where they would have gone: to a peer that has proved to be the one meant. Only a workload's own proxy gets them: it is
//!   known to keep them until it has decided. Waypoints and gateways may be set to refuse them.

use std::io;

use ambit_model::reason::Reason;
use ambit_net::options;
use bytes::Bytes;
use tokio::net::TcpStream;

use crate::record::Outcome;

/// Most that is sent early: a TLS ClientHello with post-quantum shares is 1.8 KiB, most requests are less, and who sends more is
/// not held up by a round trip.
const MOST: usize = 4096;

/// What a client has sent, left where it is; nothing if it has sent nothing, or only its end. An error says that it is gone: the
/// kernel tells that once, so whoever waits for it would not hear of it again.
pub(crate) fn peek(client: &TcpStream) -> Result<Bytes, Outcome> {
    let mut first = [0; MOST];
    match options::peek(client, &mut first) {
        Ok(length) => Ok(Bytes::copy_from_slice(
            first.get(..length).unwrap_or_default(),
        )),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
        Err(error) => Err(broken(error)),
    }
}

/// Takes the first `length` bytes, which have been sent.
pub(crate) async fn take(client: &TcpStream, mut length: usize) -> Result<(), Outcome> {
    let mut sent = [0; MOST];
    while length > 0 {
        let most = length.min(MOST);
        let room = sent.get_mut(..most).unwrap_or_default();
        match client.try_read(room) {
            Ok(0) => return Err(Reason::LocalReset.into()),
            Ok(count) => length -= count.min(length),
            // The event loop has yet to hear of what has been there for some time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                client.readable().await.map_err(broken)?;
            }
            Err(error) => return Err(broken(error)),
        }
    }
    Ok(())
}

fn broken(error: io::Error) -> Outcome {
    Outcome::because(Reason::LocalReset, error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::{MOST, Reason, peek, take};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        (client.unwrap(), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_stay_until_they_are_taken() {
        let (mut client, mut server) = pair().await;
        assert!(peek(&server).unwrap().is_empty());
        client.write_all(&[1; 100]).await.unwrap();
        client.write_all(&vec![2; 2 * MOST]).await.unwrap();
        client.shutdown().await.unwrap();
        let all = async {
            while peek(&server).unwrap().len() < MOST {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .unwrap();
        for _ in 0..2 {
            let first = peek(&server).unwrap();
            assert_eq!(first.len(), MOST);
            assert_eq!(&first[..101], [[1; 100].as_slice(), &[2]].concat());
        }
        take(&server, 99).await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 1 + 2 * MOST);
        assert_eq!(rest[..2], [1, 2]);
        assert!(take(&server, 1).await.is_err(), "there is no more");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_known_to_be() {
        let (client, server) = pair().await;
        client.set_zero_linger().unwrap();
        drop(client);
        server.readable().await.unwrap();
        assert_eq!(peek(&server).unwrap_err().reason, Reason::LocalReset);
        assert!(take(&server, 1).await.is_err());
    }
}
