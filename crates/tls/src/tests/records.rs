//! Records after the handshake: against rustls' own, and against scripts.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{CART, DAY, WEB, handshake, identity, root, svid};
use crate::csr::PrivateKey;
use crate::record::{Content, Longest, MOST_LONGEST, WORTH_WRITING};
use crate::{Limits, TlsStream, accept, connect, grpc};

async fn pair() -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let root = root();
    let (client, server) = handshake(&svid(&root, WEB), &svid(&root, CART), &[CART]).await;
    (client.unwrap().0, server.unwrap().0)
}

/// The pipe has to hold `text` both ways: nothing is read while it is written.
async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.flush().await.unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert!(back == text);
}

/// Sends back what comes until the end.
async fn mirror(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; 10_000];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        if read == 0 {
            return stream.shutdown().await.unwrap();
        }
        stream.write_all(&buffer[..read]).await.unwrap();
        stream.flush().await.unwrap();
    }
}

#[tokio::test]
async fn rustls_as_the_client_understands_us_and_changes_keys() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (near, far) = tokio::io::duplex(1 << 20);
    let server = tokio::spawn(async move {
        mirror(accept(&cart, far, Limits::default()).await.unwrap().0).await;
    });
    let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let connector = TlsConnector::from(web.dialling(&[identity(CART)]));
    let mut client = connector.connect(name, near).await.unwrap();
    for size in [1, 16_384, 16_385, 100_000] {
        echo(&mut client, &vec![7; size]).await;
        client.get_mut().1.refresh_traffic_keys().unwrap();
    }
    client.shutdown().await.unwrap();
    assert_eq!(
        client.read(&mut [0; 1]).await.unwrap(),
        0,
        "close_notify is missing"
    );
    server.await.unwrap();
}

#[tokio::test]
async fn rustls_as_the_server_understands_us_and_sends_tickets() {
    let root = root();
    let key = PrivateKey::generate().unwrap();
    let now = std::time::SystemTime::now();
    let chain = root.issue_server(&key, &["localhost"], now, DAY).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(crate::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            crate::svid::certificates_from_pem(&chain).unwrap(),
            key.der(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(config.send_tls13_tickets > 0);
    let (near, far) = tokio::io::duplex(1 << 20);
    let server = tokio::spawn(async move {
        let mut stream = TlsAcceptor::from(Arc::new(config))
            .accept(far)
            .await
            .unwrap();
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        mirror(stream).await;
    });
    let client = grpc::Client::new(&root.certificate_pem(), "localhost").unwrap();
    let mut client = client.connect(near, Limits::default()).await.unwrap();
    for size in [1, 16_384, 16_385, 100_000] {
        echo(&mut client, &vec![7; size]).await;
    }
    client.shutdown().await.unwrap();
    assert_eq!(
        client.read(&mut [0; 1]).await.unwrap(),
        0,
        "close_notify is missed"
    );
    server.await.unwrap();
}

#[tokio::test]
async fn data_right_behind_the_last_flight_is_not_lost() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (near, far) = tokio::io::duplex(1 << 20);
    let expected = [identity(CART)];
    let client = tokio::spawn(async move {
        let mut client = connect(&web, near, &expected, Limits::default())
            .await
            .unwrap()
            .0;
        client.write_all(&vec![5; 50_000]).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let mut server = accept(&cart, far, Limits::default()).await.unwrap().0;
    let mut all = Vec::new();
    server.read_to_end(&mut all).await.unwrap();
    assert!(all == vec![5; 50_000], "{}", all.len());
    client.await.unwrap();
}

/// Takes everything at once, and remembers how much each write brought.
#[derive(Default)]
struct Writes(Rc<RefCell<Vec<usize>>>);

impl AsyncWrite for Writes {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().push(data.len());
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Writes {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// A frame's head and the longest piece of the relay.
const FRAME: usize = 9 + 122 * 1024;
/// Most of a connection's bytes that the kernel sends as one packet, by the size of its segments: 64 KiB with the packet's headers.
const PACKETS: [usize; 4] = [65_535 - 60, 45 * 1448, 46 * 1398, 7 * 8948];

#[tokio::test]
async fn a_whole_piece_is_one_write_and_two_packets() {
    let (client, _server) = pair().await;
    let writes = Writes::default();
    let seen = Rc::clone(&writes.0);
    let mut stream = client.over(writes);
    for frames in [1, 2, 10] {
        seen.borrow_mut().clear();
        for _ in 0..frames {
            stream.write_all(&vec![7; FRAME]).await.unwrap();
        }
        stream.flush().await.unwrap();
        let seen = seen.borrow().clone();
        assert_eq!(seen.len(), frames, "{seen:?}");
        let (last, full) = seen.split_last().unwrap();
        assert!(full.iter().all(|write| *write == WORTH_WRITING), "{seen:?}");
        assert!(
            PACKETS
                .iter()
                .all(|packet| *last.max(&WORTH_WRITING) <= 2 * packet)
        );
    }
}

#[test]
fn few_connections_have_the_longest_space() {
    let have: Vec<_> = std::iter::from_fn(Longest::get).collect();
    assert!(have.len() <= MOST_LONGEST);
    assert!(Longest::get().is_none());
    drop(have);
    assert!(Longest::get().is_some());
}

#[tokio::test]
async fn keys_change_before_their_limit_and_nothing_is_noticed() {
    let (mut near, mut far) = pair().await;
    near.outgoing.update_every(3);
    far.outgoing.update_every(2);
    let server = tokio::spawn(mirror(far));
    for round in 0..50 {
        echo(&mut near, &vec![round; 1000]).await;
    }
    near.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    server.await.unwrap();
}

#[tokio::test]
async fn a_changed_byte_is_never_handed_on_and_the_sender_is_told() {
    let root = root();
    for at in [0, 3, 4, 5, 20, 60] {
        let (near, mut near_wire) = tokio::io::duplex(1 << 16);
        let (far, mut far_wire) = tokio::io::duplex(1 << 16);
        let (web, cart) = (svid(&root, WEB), svid(&root, CART));
        let expected = [identity(CART)];
        let (client, server, ()) = tokio::join!(
            async {
                let mut client = connect(&web, near, &expected, Limits::default())
                    .await
                    .unwrap()
                    .0;
                client.write_all(b"first").await.unwrap();
                client.flush().await.unwrap();
                client
            },
            async {
                let mut server = accept(&cart, far, Limits::default()).await.unwrap().0;
                server.read_exact(&mut [0; 5]).await.unwrap();
                server
            },
            async {
                // Carries the handshake and the first record faithfully.
                let carry = tokio::io::copy_bidirectional(&mut near_wire, &mut far_wire);
                let soon = std::time::Duration::from_millis(200);
                let _ = tokio::time::timeout(soon, carry).await;
            }
        );
        let (mut client, mut server) = (client, server);
        client.write_all(&[9; 100]).await.unwrap();
        client.flush().await.unwrap();
        let mut record = vec![0; 5 + 100 + 1 + 16];
        near_wire.read_exact(&mut record).await.unwrap();
        record[at] ^= 0x40;
        far_wire.write_all(&record).await.unwrap();
        far_wire.shutdown().await.unwrap();
        let mut got = Vec::new();
        let error = server.read_to_end(&mut got).await.unwrap_err();
        assert!(got.is_empty(), "byte {at}");
        assert!(
            matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ),
            "byte {at}: {error}"
        );
        assert!(server.write_all(b"more").await.is_err() || at == 4 || at == 3);
    }
}

#[tokio::test]
async fn messages_without_data_are_bounded() {
    let ticket = [4, 0, 0, 2, 1, 1];
    let update = [24, 0, 0, 1, 0];
    let cases: [(Content, &[u8]); 3] = [
        (Content::Handshake, &ticket),
        (Content::Data, &[]),
        (Content::Alert, &[1, 90]),
    ];
    for (content, payload) in cases {
        let (mut near, mut far) = pair().await;
        for _ in 0..10 {
            near.outgoing.say(content, payload).unwrap();
        }
        near.write_all(b"data").await.unwrap();
        for _ in 0..1000 {
            near.outgoing.say(content, payload).unwrap();
        }
        let sender = tokio::spawn(async move {
            // Ends early when the other side hangs up.
            let _ = near.flush().await;
            near
        });
        let mut got = [0; 4];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"data");
        assert_eq!(
            far.read(&mut got).await.unwrap_err().kind(),
            ErrorKind::InvalidData
        );
        drop(far);
        sender.await.unwrap();
    }
    let (mut near, mut far) = pair().await;
    for _ in 0..1000 {
        near.outgoing.say(Content::Handshake, &update).unwrap();
        let next = near.keys.next_outgoing().unwrap();
        near.outgoing.update(next);
    }
    let sender = tokio::spawn(async move { near.flush().await.is_ok() });
    assert_eq!(
        far.read(&mut [0; 1]).await.unwrap_err().kind(),
        ErrorKind::InvalidData
    );
    drop(far);
    sender.await.unwrap();
}

#[tokio::test]
async fn messages_that_have_no_place_break_the_connection() {
    let cases: [(Content, &[u8]); 6] = [
        (Content::Handshake, &[1, 0, 0, 0]),          // ClientHello
        (Content::Handshake, &[13, 0, 0, 0]),         // CertificateRequest
        (Content::Handshake, &[24, 0, 0, 1, 2]),      // KeyUpdate with no such value
        (Content::Handshake, &[4, 0xff, 0xff, 0xff]), // longer than anything is
        (Content::Alert, &[2, 40]),
        (Content::Alert, &[1]),
    ];
    for (content, payload) in cases {
        let (mut near, mut far) = pair().await;
        near.outgoing.say(content, payload).unwrap();
        near.flush().await.unwrap();
        let error = far.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{payload:?}");
        assert!(
            far.read(&mut [0; 1]).await.is_err(),
            "a broken connection stays broken"
        );
    }
}

#[tokio::test]
async fn a_message_may_be_split_over_records() {
    let (mut near, mut far) = pair().await;
    for part in [&[4][..], &[0, 0], &[3, 1], &[2, 3]] {
        near.outgoing.say(Content::Handshake, part).unwrap();
    }
    near.write_all(b"data").await.unwrap();
    near.flush().await.unwrap();
    let mut got = [0; 4];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"data");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However writes and reads are cut, the bytes are the same.
    #[test]
    fn bytes_do_not_depend_on_how_they_are_cut(
        writes in prop::collection::vec((0usize..60_000, any::<bool>()), 1..12),
        reads in prop::collection::vec(1usize..50_000, 1..8),
        pipe in 1usize..100_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let root = root();
            let (near, far) = tokio::io::duplex(pipe);
            let (web, cart) = (svid(&root, WEB), svid(&root, CART));
            let expected = [identity(CART)];
            let (client, server) = tokio::join!(
                connect(&web, near, &expected, Limits::default()),
                accept(&cart, far, Limits::default())
            );
            let (mut client, mut server) = (client.unwrap().0, server.unwrap().0);
            let total: usize = writes.iter().map(|(size, _)| size).sum();
            let sent: Vec<u8> = (0..total).map(|n| n.to_le_bytes()[n % 2]).collect();
            let writer = async {
                let mut rest = &sent[..];
                for (size, flush) in &writes {
                    let (piece, tail) = rest.split_at(*size);
                    client.write_all(piece).await.unwrap();
                    if *flush {
                        client.flush().await.unwrap();
                    }
                    rest = tail;
                }
                client.shutdown().await.unwrap();
            };
            let reader = async {
                let mut all = Vec::new();
                for size in reads.iter().cycle() {
                    let mut buffer = vec![0; *size];
                    match server.read(&mut buffer).await.unwrap() {
                        0 => break,
                        read => all.extend_from_slice(&buffer[..read]),
                    }
                }
                all
            };
            let ((), got) = tokio::join!(writer, reader);
            assert!(got == sent, "{} of {}", got.len(), sent.len());
        });
    }
}
