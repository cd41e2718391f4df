//! Peers that mean harm, each with a bound of what it costs us.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::rules::{Signer, ca, domain, leaf, noon};
use super::{CART, WEB, handshake, identity, root, svid};
use crate::record::Content;
use crate::verify::{Bundle, MAX_CHAIN, Side, verify};
use crate::{Limits, Rejected, Svid, TlsError, TlsStream, accept, connect};

/// What the calling thread has computed so far: other tests of the machine do not count.
fn computed() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

async fn pair() -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let root = root();
    let (client, server) = handshake(&svid(&root, WEB), &svid(&root, CART), &[CART]).await;
    (client.unwrap().0, server.unwrap().0)
}

/// Sends a change of keys that asks for one of ours, and a byte of data.
fn change(stream: &mut TlsStream<DuplexStream>) {
    stream
        .outgoing
        .say(Content::Handshake, &[24, 0, 0, 1, 1])
        .unwrap();
    let next = stream.keys.next_outgoing().unwrap();
    stream.outgoing.update(next);
}

#[tokio::test]
async fn changes_of_keys_between_data_are_answered_once_and_bounded() {
    let (mut near, mut far) = pair().await;
    for _ in 0..50 {
        change(&mut near);
        near.write_all(b"x").await.unwrap();
    }
    near.flush().await.unwrap();
    far.read_exact(&mut [0; 50]).await.unwrap();
    assert!(
        far.outgoing.sealed().is_empty(),
        "nothing piles up for who does not read"
    );
    far.write_all(b"answer").await.unwrap();
    let answer = 27 + 5 + 6 + 1 + 16;
    far.outgoing.seal().unwrap();
    assert_eq!(
        far.outgoing.sealed().len(),
        answer,
        "one change, then the data"
    );
    far.flush().await.unwrap();
    let mut got = [0; 6];
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"answer");

    let sender = tokio::spawn(async move {
        for _ in 0..100_000 {
            change(&mut near);
            if near.write_all(b"x").await.is_err() || near.flush().await.is_err() {
                break;
            }
        }
    });
    let mut taken = 0;
    let error = loop {
        match far.read(&mut [0; 64]).await {
            Ok(read) => taken += read,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(taken < 64, "{taken} bytes for as many changes");
    drop(far);
    sender.await.unwrap();
}

#[tokio::test]
async fn a_peer_with_a_rule_of_its_own_may_change_keys_every_megabyte() {
    let (mut near, mut far) = pair().await;
    let sender = tokio::spawn(async move {
        for _ in 0..80 {
            near.write_all(&vec![3; 1 << 20]).await.unwrap();
            near.flush().await.unwrap();
            change(&mut near);
        }
        near.shutdown().await.unwrap();
        near
    });
    let mut buffer = vec![0; 1 << 16];
    let mut taken = 0;
    while let read @ 1.. = far.read(&mut buffer).await.unwrap() {
        taken += read;
    }
    assert_eq!(taken, 80 << 20);
    sender.await.unwrap();
}

/// A chain as long and confusing as is looked at: authorities that all have the root's name, so that
/// every order of them is a path to be tried.
fn maze(root_name: &str) -> (CertificateDer<'static>, Vec<CertificateDer<'static>>) {
    let signer = Signer::root(root_name);
    let authorities = (0..MAX_CHAIN - 1).map(|_| {
        let key = KeyPair::generate().unwrap();
        ca(root_name)
            .signed_by(&key, &signer.issuer)
            .unwrap()
            .der()
            .clone()
    });
    (signer.sign(&leaf()), authorities.collect())
}

#[test]
fn the_most_confusing_chain_has_a_bound() {
    let root = Signer::root("root");
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let (leaf, authorities) = maze("root");
    let begun = computed();
    let verdict = verify(
        &bundle,
        &domain(),
        Side::Client,
        &leaf,
        &authorities,
        noon(),
    );
    let cost = computed() - begun;
    println!(
        "a maze of {} authorities: {cost:?}, {verdict:?}",
        authorities.len()
    );
    assert!(
        matches!(verdict, Err(Rejected::UnknownIssuer | Rejected::Path(_))),
        "{verdict:?}"
    );
    // 100 signatures of the bundle's own kind at most, which take 40 microseconds each where it is
    // optimised.
    assert!(cost < Duration::from_millis(200), "{cost:?}");
}

/// A client that presents this chain to a server, as it is.
async fn present(chain: Vec<CertificateDer<'static>>, key: &KeyPair, server: &Svid) -> TlsError {
    let mut config = rustls::ClientConfig::builder_with_provider(crate::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(
            chain,
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.dangerous().set_certificate_verifier(Arc::new(Blind));
    let (near, far) = tokio::io::duplex(1 << 20);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from("cart").unwrap();
    let client = tokio::spawn(async move {
        // The server's verdict comes after the client's own end of the handshake.
        if let Ok(mut stream) = connector.connect(name, near).await {
            let _ = stream.read(&mut [0; 1]).await;
        }
    });
    let refused = accept(server, far, Limits::default())
        .await
        .map(|_| ())
        .unwrap_err();
    client.await.unwrap();
    refused
}

/// Takes any server: it is the client that is looked at.
#[derive(Debug)]
struct Blind;

impl rustls::client::danger::ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        crate::provider::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn absurd_chains_are_refused_before_they_are_looked_into() {
    let server = svid(&root(), CART);
    let signer = Signer::root("root");
    let key = KeyPair::generate().unwrap();
    let own = leaf()
        .signed_by(&key, &signer.issuer)
        .unwrap()
        .der()
        .clone();
    let filler = |bytes: usize| {
        let mut params = ca("root");
        let extension = vec![0x04; bytes];
        let oid = [1, 3, 6, 1, 4, 1, 99_999, 1];
        let extension = rcgen::CustomExtension::from_oid_content(&oid, extension);
        params.custom_extensions.push(extension);
        signer.sign(&CertificateParams::clone(&params))
    };
    let small = filler(1);
    let large = filler(10_000);
    let cases: [(&str, Vec<CertificateDer<'static>>); 4] = [
        ("nine certificates", vec![small.clone(); 8]),
        ("a hundred", vec![small; 99]),
        ("forty kilobytes", vec![large.clone(); 4]),
        ("half a megabyte", vec![large; 50]),
    ];
    for (name, more) in cases {
        let chain = [vec![own.clone()], more].concat();
        let begun = (computed(), Instant::now());
        let refused = present(chain, &key, &server).await;
        let cost = computed() - begun.0;
        println!("{name}: {cost:?} (both ends), {refused}");
        let kinds = matches!(
            refused,
            TlsError::Peer(Rejected::ChainTooLong(_) | Rejected::ChainTooLarge(_))
                | TlsError::HandshakeTooLarge(_)
                | TlsError::Protocol(_)
        );
        assert!(kinds, "{name}: {refused:?}");
        assert!(cost < Duration::from_millis(200), "{name}: {cost:?}");
    }
}

/// A client's first flight, and its wire.
async fn first_flight(client: &Svid) -> (Vec<u8>, DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, mut wire) = tokio::io::duplex(1 << 16);
    let config = client.dialling(&[identity(CART)]);
    let dialling = tokio::spawn(async move {
        let name = rustls::pki_types::ServerName::try_from("cart").unwrap();
        // Nobody answers it.
        let _ = crate::negotiate::client(config, name, near).await;
    });
    let mut header = [0; 5];
    wire.read_exact(&mut header).await.unwrap();
    let mut flight = header.to_vec();
    flight.resize(
        5 + usize::from(u16::from_be_bytes([header[3], header[4]])),
        0,
    );
    wire.read_exact(&mut flight[5..]).await.unwrap();
    (flight, wire, dialling)
}

#[tokio::test(start_paused = true)]
async fn a_handshake_ends_in_time_wherever_its_peer_stands_still() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (flight, _wire, dialling) = first_flight(&web).await;
    dialling.abort();
    let limits = Limits::default();
    for sent in [0, 1, 5, 6, flight.len() / 2, flight.len() - 1, flight.len()] {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(&flight[..sent]).await.unwrap();
        let begun = tokio::time::Instant::now();
        let stalled = accept(&cart, far, limits).await;
        assert!(
            matches!(stalled, Err(TlsError::Timeout(_))),
            "after {sent}: {stalled:?}"
        );
        assert_eq!(begun.elapsed(), limits.timeout, "after {sent}");
    }
    // One byte a second buys no time.
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let dribble = tokio::spawn(async move {
        for byte in flight {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if near.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let begun = tokio::time::Instant::now();
    assert!(matches!(
        accept(&cart, far, limits).await,
        Err(TlsError::Timeout(_))
    ));
    assert_eq!(begun.elapsed(), limits.timeout);
    dribble.abort();
}

#[tokio::test]
async fn a_first_flight_in_a_thousand_pieces_costs_little_more_than_in_one() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (flight, _wire, dialling) = first_flight(&web).await;
    dialling.abort();
    // One byte of the message in each record (RFC 8446 5.1 lets handshake messages be cut anywhere).
    let pieces: Vec<u8> = flight[5..]
        .iter()
        .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
        .collect();
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&pieces).await.unwrap();
    let begun = computed();
    let limits = Limits {
        timeout: Duration::from_millis(300),
    };
    let outcome = accept(&cart, far, limits).await;
    let cost = computed() - begun;
    println!("{} records: {cost:?}, {outcome:?}", flight.len() - 5);
    assert!(cost < Duration::from_millis(200), "{cost:?}");
}

#[tokio::test]
async fn bytes_after_the_handshake_that_are_no_records_end_the_connection() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    for garbage in [
        &[0xff; 64][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[23, 3, 3, 0xff, 0xff, 0],
        &[23, 3, 3, 0, 0],
    ] {
        let (near, mut near_wire) = tokio::io::duplex(1 << 16);
        let (far, mut far_wire) = tokio::io::duplex(1 << 16);
        let expected = [identity(CART)];
        let (client, server, ()) = tokio::join!(
            connect(&web, near, &expected, Limits::default()),
            accept(&cart, far, Limits::default()),
            async {
                let carry = tokio::io::copy_bidirectional(&mut near_wire, &mut far_wire);
                let _ = tokio::time::timeout(Duration::from_millis(200), carry).await;
            }
        );
        let (_client, mut server) = (client.unwrap().0, server.unwrap().0);
        far_wire.write_all(garbage).await.unwrap();
        let error = server.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{garbage:?}");
        assert!(server.write_all(b"more").await.is_err(), "{garbage:?}");
    }
}
