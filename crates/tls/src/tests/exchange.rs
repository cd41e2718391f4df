//! How keys are agreed on.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::NamedGroup;
use rustls::pki_types::ServerName;

use super::{CART, DAY, WEB, identity};
use crate::authority::{Request, Root};
use crate::csr::KeyAndCsr;
use crate::provider::effective;
use crate::{KeyExchange, Limits, Svid, Terms, TlsError, accept, negotiate};

fn svid(root: &Root, text: &str, key_exchange: KeyExchange) -> Arc<Svid> {
    let identity = identity(text);
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let now = SystemTime::now();
    let chain = root.issue(&request, &identity, now, DAY).unwrap();
    let terms = Terms {
        key_exchange,
        ..Terms::default()
    };
    Svid::from_chain_on(&asked.key, &chain, &terms).unwrap()
}

const KINDS: [KeyExchange; 2] = [
    KeyExchange::PostQuantumPreferred,
    KeyExchange::PostQuantumOnly,
];

#[tokio::test]
async fn two_of_ours_agree_on_keys_that_withstand_a_quantum_computer() {
    let root = super::root();
    for (near, far) in KINDS
        .iter()
        .flat_map(|one| KINDS.map(|other| (*one, other)))
    {
        let (web, cart) = (svid(&root, WEB, near), svid(&root, CART, far));
        let (to, from) = tokio::io::duplex(16 * 1024);
        let name = ServerName::try_from("cart").unwrap();
        let (client, server) = tokio::join!(
            negotiate::client(web.dialling(&[identity(CART)]), name, to),
            negotiate::server(cart.accepting(), from),
        );
        let groups = [client.unwrap().group, server.unwrap().group];
        assert_eq!(
            groups,
            [Some(NamedGroup::X25519MLKEM768); 2],
            "{near:?} {far:?}"
        );
    }
}

/// What a server says to a client from before there was a hybrid.
async fn answer_to_a_classical_client(server: KeyExchange) -> TlsError {
    let root = super::root();
    let cart = svid(&root, CART, server);
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (to, from) = tokio::io::duplex(16 * 1024);
    let name = ServerName::try_from("cart").unwrap();
    let (_, server) = tokio::join!(
        negotiate::client(Arc::new(config), name, to),
        accept(&cart, from, Limits::default()),
    );
    server.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn a_peer_without_the_hybrid_is_taken_unless_the_policy_says_no() {
    // It does not know our root: with a key agreed on, that is what it complains of.
    let preferred = answer_to_a_classical_client(KeyExchange::PostQuantumPreferred).await;
    assert!(
        matches!(preferred, TlsError::RefusedByPeer(_)),
        "{preferred:?}"
    );
    let only = answer_to_a_classical_client(KeyExchange::PostQuantumOnly).await;
    assert!(matches!(only, TlsError::Protocol(_)), "{only:?}");
}

#[test]
fn says_what_is_in_force() {
    let preferred = effective(KeyExchange::PostQuantumPreferred);
    assert_eq!(preferred.versions, ["TLSv1_3"]);
    assert_eq!(preferred.key_exchange.first().unwrap(), "X25519MLKEM768");
    assert!(preferred.key_exchange.len() > 1);
    let only = effective(KeyExchange::PostQuantumOnly);
    assert_eq!(only.key_exchange, ["X25519MLKEM768"]);
    assert_eq!(only.cipher_suites, preferred.cipher_suites);
}
