//! Tests of the crate as its users see it: whole handshakes over an in-memory connection.

mod exchange;
mod hostile;
mod records;
mod revocation;
mod rules;
mod trust;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::authority::{Request, Root};
use crate::csr::{KeyAndCsr, PrivateKey};
use crate::{Limits, Peer, Rejected, Svid, TlsError, TlsStream, accept, connect, grpc};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn root() -> Root {
    Root::generate("mesh", SystemTime::now(), 365 * DAY).unwrap()
}

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

fn svid(root: &Root, text: &str) -> Arc<Svid> {
    let identity = identity(text);
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let chain = root
        .issue(&request, &identity, SystemTime::now(), DAY)
        .unwrap();
    Svid::from_chain(&asked.key, &chain).unwrap()
}

type End = Result<(TlsStream<DuplexStream>, Peer), TlsError>;

async fn handshake(client: &Svid, server: &Svid, expected: &[&str]) -> (End, End) {
    let expected: Vec<Identity> = expected.iter().map(|text| identity(text)).collect();
    let (near, far) = tokio::io::duplex(16 * 1024);
    tokio::join!(
        connect(client, near, &expected, Limits::default()),
        accept(server, far, Limits::default())
    )
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (client, server) = handshake(&web, &cart, &[CART]).await;
    let ((mut near, at_client), (mut far, at_server)) = (client.unwrap(), server.unwrap());
    assert_eq!(at_client.identity(), &identity(CART));
    assert_eq!(at_server.identity(), &identity(WEB));
    assert_eq!(at_server.serial(), web.serial());
    assert_eq!(at_server.not_after(), web.not_after());
    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut read = [0; 4];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

#[tokio::test]
async fn client_refuses_a_server_that_it_did_not_dial() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (client, server) = handshake(&web, &cart, &[WEB]).await;
    let refusal = Rejected::Identity {
        found: identity(CART),
    };
    assert!(matches!(client, Err(TlsError::Peer(found)) if found == refusal));
    assert!(matches!(server, Err(TlsError::RefusedByPeer(_))));
}

#[tokio::test]
async fn server_refuses_a_client_of_another_trust_domain() {
    let root = root(); // even of one that the same authority signs for
    let server = svid(&root, CART);
    let client = svid(&root, "spiffe://other.example/ns/shop/sa/web");
    let (_, server) = handshake(&client, &server, &[CART]).await;
    assert!(
        matches!(server, Err(TlsError::Peer(Rejected::TrustDomain { .. }))),
        "{server:?}"
    );
}

#[tokio::test]
async fn each_end_refuses_a_peer_of_another_root() {
    let (ours, theirs) = (root(), root());
    let (near, far) = (svid(&ours, WEB), svid(&theirs, CART));
    let (client, server) = handshake(&near, &far, &[CART]).await;
    assert!(
        matches!(client, Err(TlsError::Peer(Rejected::UnknownIssuer))),
        "{client:?}"
    );
    assert!(
        matches!(server, Err(TlsError::RefusedByPeer(_))),
        "{server:?}"
    );

    // A client that trusts both is refused by the server's own check.
    let both = {
        let identity = identity(WEB);
        let asked = KeyAndCsr::generate(&identity).unwrap();
        let request = Request::from_pem(&asked.csr_pem).unwrap();
        let mut chain = ours
            .issue(&request, &identity, SystemTime::now(), DAY)
            .unwrap();
        chain
            .last_mut()
            .unwrap()
            .push_str(&theirs.certificate_pem());
        Svid::from_chain(&asked.key, &chain).unwrap()
    };
    let (_, server) = handshake(&both, &far, &[CART]).await;
    assert!(
        matches!(server, Err(TlsError::Peer(Rejected::UnknownIssuer))),
        "{server:?}"
    );
}

#[tokio::test]
async fn server_refuses_a_client_without_a_certificate() {
    let root = root();
    let server = svid(&root, CART);
    let (near, far) = tokio::io::duplex(16 * 1024);
    // The control plane's client has no certificate, and is a TLS 1.3 client like any other.
    let client = grpc::Client::new(&root.certificate_pem(), "istiod.istio-system.svc").unwrap();
    let (_, server) = tokio::join!(
        client.connect(near, Limits::default()),
        accept(&server, far, Limits::default())
    );
    assert!(
        matches!(
            server,
            Err(TlsError::Peer(Rejected::NoCertificate) | TlsError::RefusedByPeer(_))
        ),
        "{server:?}"
    );
}

#[tokio::test]
async fn a_client_that_expects_nobody_reaches_nobody() {
    let root = root();
    let (client, _) = handshake(&svid(&root, WEB), &svid(&root, CART), &[]).await;
    assert!(
        matches!(client, Err(TlsError::Peer(Rejected::Identity { .. }))),
        "{client:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stands_still_times_out_at_each_end() {
    let root = root();
    let svid = svid(&root, WEB);
    let limits = Limits {
        timeout: Duration::from_secs(3),
    };
    let (near, _far) = tokio::io::duplex(16 * 1024);
    let stalled = accept(&svid, near, limits).await;
    assert!(matches!(stalled, Err(TlsError::Timeout(limit)) if limit == limits.timeout));
    let (near, _far) = tokio::io::duplex(16 * 1024);
    let stalled = connect(&svid, near, &[identity(CART)], limits).await;
    assert!(matches!(stalled, Err(TlsError::Timeout(_))));
}

#[tokio::test]
async fn bytes_that_are_no_tls_are_the_peers_fault() {
    let root = root();
    let svid = svid(&root, WEB);
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        &[0; 64],
        &[0x16, 3, 1, 0xff, 0xff, 1],
    ] {
        let (mut near, far) = tokio::io::duplex(16 * 1024);
        near.write_all(garbage).await.unwrap();
        near.shutdown().await.unwrap();
        let result = accept(&svid, far, Limits::default()).await;
        assert!(
            matches!(result, Err(TlsError::Protocol(_) | TlsError::Io(_))),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn a_cut_connection_is_not_an_end() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (client, server) = handshake(&web, &cart, &[CART]).await;
    let (near, mut far) = (client.unwrap().0, server.unwrap().0);
    drop(near); // no close_notify
    let cut = far.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof);

    let (client, server) = handshake(&web, &cart, &[CART]).await;
    let (mut near, mut far) = (client.unwrap().0, server.unwrap().0);
    near.write_all(b"last words").await.unwrap();
    near.shutdown().await.unwrap();
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"last words");
}

#[tokio::test]
async fn megabytes_arrive_whole_in_both_directions_at_once() {
    let root = root();
    let (web, cart) = (svid(&root, WEB), svid(&root, CART));
    let (client, server) = handshake(&web, &cart, &[CART]).await;
    let (near, far) = (client.unwrap().0, server.unwrap().0);
    let sent: Arc<Vec<u8>> = Arc::new(
        (0..5_000_000u32)
            .map(|n| (n ^ n >> 9).to_le_bytes()[0])
            .collect(),
    );
    let run = |stream: TlsStream<DuplexStream>, sent: Arc<Vec<u8>>| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let expected = Arc::clone(&sent);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            assert!(all == *expected, "{} bytes", all.len());
        });
        for piece in sent.chunks(70_001) {
            write.write_all(piece).await.unwrap();
        }
        write.shutdown().await.unwrap();
        reader.await.unwrap();
    };
    tokio::join!(run(near, Arc::clone(&sent)), run(far, sent));
}

#[tokio::test]
async fn control_plane_is_known_by_its_name() {
    let root = root();
    let key = PrivateKey::generate().unwrap();
    let names = ["istiod.istio-system.svc", "localhost"];
    let chain = root
        .issue_server(&key, &names, SystemTime::now(), DAY)
        .unwrap();
    let server = grpc::Server::new(&chain, &key).unwrap();
    for (name, right) in [(names[0], true), (names[1], true), ("evil.example", false)] {
        let client = grpc::Client::new(&root.certificate_pem(), name).unwrap();
        let (near, far) = tokio::io::duplex(16 * 1024);
        let (near, _) = tokio::join!(
            client.connect(near, Limits::default()),
            server.accept(far, Limits::default())
        );
        assert_eq!(near.is_ok(), right, "{name}: {near:?}");
    }
}

#[test]
fn certificate_has_what_the_authority_was_told_and_not_what_was_asked() {
    let root = root();
    let asked = KeyAndCsr::generate(&identity("spiffe://evil/ns/kube-system/sa/admin")).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let now = SystemTime::now();
    let chain = root.issue(&request, &identity(WEB), now, DAY).unwrap();
    let svid = Svid::from_chain(&asked.key, &chain).unwrap();
    assert_eq!(svid.identity(), &identity(WEB));
    assert_eq!(svid.chain().len(), 1);
    assert_eq!(svid.roots()[0].pem, root.certificate_pem());
    let second = Duration::from_secs(1);
    assert!(svid.not_after() <= now + DAY && svid.not_after() + second >= now + DAY);
    assert!(svid.not_before() < now);
}

#[test]
fn leaf_never_outlives_its_root_and_an_expired_root_signs_nothing() {
    let now = SystemTime::now();
    let root = Root::generate("mesh", now, DAY).unwrap();
    let asked = KeyAndCsr::generate(&identity(WEB)).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let chain = root.issue(&request, &identity(WEB), now, 30 * DAY).unwrap();
    assert_eq!(
        Svid::from_chain(&asked.key, &chain).unwrap().not_after(),
        root.not_after()
    );
    assert!(
        root.issue(&request, &identity(WEB), now + 2 * DAY, DAY)
            .is_err()
    );
}

#[test]
fn root_is_the_same_after_a_restart() {
    let root = root();
    let again = Root::from_pem(&root.certificate_pem(), &root.key_pem()).unwrap();
    let svid = svid(&again, WEB);
    assert_eq!(svid.roots()[0].pem, root.certificate_pem());
    let other = self::root();
    assert!(Root::from_pem(&root.certificate_pem(), &other.key_pem()).is_err());
    let leaf = &svid.chain()[0].pem;
    assert!(Root::from_pem(leaf, &root.key_pem()).is_err());
}

#[test]
fn requests_with_a_wrong_signature_or_size_are_refused() {
    let asked = KeyAndCsr::generate(&identity(WEB)).unwrap();
    let der = pem_body(&asked.csr_pem);
    let mut forged = der.clone();
    *forged.last_mut().unwrap() ^= 1;
    for request in [
        String::new(),
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into(),
        armour(&forged),
        armour(&der[..der.len() - 1]),
        "x".repeat(1 << 20),
    ] {
        assert!(matches!(
            Request::from_pem(&request),
            Err(TlsError::Request(_))
        ));
    }
    assert!(Request::from_pem(&armour(&der)).is_ok());
}

fn pem_body(pem: &str) -> Vec<u8> {
    use base64::Engine;
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

fn armour(der: &[u8]) -> String {
    crate::svid::pem(der).replace("CERTIFICATE", "CERTIFICATE REQUEST")
}

#[test]
fn material_that_does_not_fit_together_is_refused() {
    let root = root();
    let asked = KeyAndCsr::generate(&identity(WEB)).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let chain = root
        .issue(&request, &identity(WEB), SystemTime::now(), DAY)
        .unwrap();
    let none: [&str; 0] = [];
    let other = PrivateKey::generate().unwrap();
    assert!(matches!(
        Svid::from_chain(&other, &chain),
        Err(TlsError::Material(_))
    ));
    assert!(matches!(
        Svid::from_chain(&asked.key, &none),
        Err(TlsError::Material(_))
    ));
    assert!(matches!(
        Svid::from_chain(&asked.key, &chain[..1]),
        Err(TlsError::Material(_))
    ));
    assert!(matches!(
        Svid::from_chain(&asked.key, &[&chain[0], "no certificate at all"]),
        Err(TlsError::Material(_))
    ));
    assert!(Svid::from_chain(&asked.key, &chain).is_ok());
}

#[test]
fn generations_tell_certificates_apart() {
    let root = root();
    assert_ne!(svid(&root, WEB).generation(), svid(&root, WEB).generation());
}

#[test]
fn nothing_printed_holds_a_key() {
    let root = root();
    let asked = KeyAndCsr::generate(&identity(WEB)).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let chain = root
        .issue(&request, &identity(WEB), SystemTime::now(), DAY)
        .unwrap();
    let svid = Svid::from_chain(&asked.key, &chain).unwrap();
    let secret = asked.key.der().secret_der().to_vec();
    let shown = format!("{root:?} {asked:?} {svid:?} {request:?} {:?}", asked.key);
    let numbers = format!("{:?}", &secret[40..44]);
    let numbers = numbers.trim_matches(['[', ']']);
    assert!(
        !shown.contains(numbers) && !shown.contains("PRIVATE"),
        "{shown}"
    );
    assert!(!shown.contains(&root.key_pem()[30..60]));
}
