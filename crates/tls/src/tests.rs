//! Tests of the crate as its users see it: whole handshakes over an in-memory connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::authority::{Request, Root};
use crate::csr::KeyAndCsr;
use crate::{Limits, Peer, Rejected, Svid, TlsError, TlsStream, accept, connect};

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
