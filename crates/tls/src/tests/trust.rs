//! Roots by trust domain: who is proven by whose.

use super::{CART, DAY, WEB, handshake, identity, root, svid};
use crate::authority::{Request, Root};
use crate::csr::{KeyAndCsr, PrivateKey};
use crate::trust::{MAX_DOMAINS, MAX_ROOTS, TrustBundles, certificates_from_der};
use crate::{Rejected, Svid, Terms, TlsError};

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const PARTNER: &str = "spiffe://partner.example/ns/shop/sa/web";

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .unwrap()
        .to_vec()
}

fn root_der(root: &Root) -> Vec<u8> {
    der(&root.certificate_pem())
}

fn bundles(each: &[(&str, &Root)]) -> TrustBundles {
    let mut bundles = TrustBundles::default();
    for (domain, root) in each {
        bundles.insert(domain, &root_der(root)).unwrap();
    }
    bundles
}

fn issued(by: &Root, text: &str) -> (PrivateKey, Vec<u8>) {
    let identity = identity(text);
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let chain = by
        .issue(&request, &identity, SystemTime::now(), DAY)
        .unwrap();
    (asked.key, der(&chain[0]))
}

fn from_agent(by: &Root, text: &str, trust: &TrustBundles) -> Result<Arc<Svid>, TlsError> {
    let (key, chain) = issued(by, text);
    Svid::from_der(&key, &chain, trust, &Terms::default())
}

#[tokio::test]
async fn workloads_of_federated_domains_meet_and_of_others_do_not() {
    let (ours, theirs) = (root(), root());
    let both = bundles(&[("cluster.local", &ours), ("partner.example", &theirs)]);
    let cart = from_agent(&ours, CART, &both).unwrap();
    let partner = from_agent(&theirs, PARTNER, &both).unwrap();
    let (client, server) = handshake(&partner, &cart, &[CART]).await;
    assert_eq!(client.unwrap().1.identity(), &identity(CART));
    assert_eq!(server.unwrap().1.identity(), &identity(PARTNER));

    let alone = from_agent(&ours, CART, &bundles(&[("cluster.local", &ours)])).unwrap();
    let (_, server) = handshake(&partner, &alone, &[CART]).await;
    let refusal = server
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        refusal.contains("partner.example is not cluster.local"),
        "{refusal}"
    );
    let (client, _) = handshake(&alone, &partner, &[PARTNER]).await;
    assert!(
        matches!(client, Err(TlsError::Peer(Rejected::UnknownIssuer))),
        "{client:?}"
    );
}

#[tokio::test]
async fn a_federated_authority_can_name_nobody_of_ours() {
    let (ours, theirs) = (root(), root());
    let both = bundles(&[("cluster.local", &ours), ("partner.example", &theirs)]);
    let cart = from_agent(&ours, CART, &both).unwrap();
    // Signed by the partner's root with our domain's name, and the other way round.
    for (signer, name) in [(&theirs, WEB), (&ours, PARTNER)] {
        let false_one = from_agent(signer, name, &both).unwrap();
        assert_eq!(
            false_one.check(SystemTime::now()),
            Err(Rejected::UnknownIssuer)
        );
        let (_, server) = handshake(&false_one, &cart, &[CART]).await;
        assert!(
            matches!(server, Err(TlsError::Peer(Rejected::UnknownIssuer))),
            "{server:?}"
        );
        let (client, _) = handshake(&cart, &false_one, &[name]).await;
        assert!(
            matches!(client, Err(TlsError::Peer(Rejected::UnknownIssuer))),
            "{client:?}"
        );
    }
}

#[tokio::test]
async fn who_got_it_from_an_agent_and_who_from_an_authority_meet_under_one_root() {
    let root = root();
    let web = from_agent(&root, WEB, &bundles(&[("cluster.local", &root)])).unwrap();
    let cart = svid(&root, CART);
    let (client, server) = handshake(&web, &cart, &[CART]).await;
    assert!(client.is_ok() && server.is_ok());
    let (client, server) = handshake(&cart, &web, &[WEB]).await;
    assert!(client.is_ok() && server.is_ok());
}

#[test]
fn material_that_cannot_be_used_is_refused() {
    let (ours, theirs) = (root(), root());
    let trust = bundles(&[("cluster.local", &ours)]);
    let (key, chain) = issued(&ours, WEB);
    let (other_key, _) = issued(&ours, WEB);
    let with = |key: &PrivateKey, chain: &[u8], trust: &TrustBundles| {
        let made = Svid::from_der(key, chain, trust, &Terms::default());
        made.err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert_eq!(with(&key, &chain, &trust), "");
    assert!(
        with(&other_key, &chain, &trust).contains("key"),
        "another key"
    );
    assert!(with(&key, &[], &trust).contains("no certificate"));
    assert!(with(&key, &chain[1..], &trust).contains("DER"));
    assert!(with(&key, &chain.repeat(9), &trust).contains("more than 8"));
    let foreign = bundles(&[("partner.example", &theirs)]);
    assert!(with(&key, &chain, &foreign).contains("no trust bundle of cluster.local"));
    assert!(PrivateKey::from_pkcs8(b"no key").is_err());
    let pair = KeyPair::generate().unwrap();
    assert!(PrivateKey::from_pkcs8(&pair.serialize_der()).is_ok());
}

#[test]
fn bundles_are_read_one_certificate_after_another_and_are_bounded() {
    let (first, second) = (root(), root());
    let two = [root_der(&first), root_der(&second)].concat();
    assert_eq!(certificates_from_der(&two, 2).unwrap().len(), 2);
    let mut trust = TrustBundles::default();
    trust.insert("a", &two).unwrap();
    let kept = trust.clone();
    for wrong in [
        &[][..],
        b"roots",
        &two[..two.len() - 1],
        &two.repeat(MAX_ROOTS),
    ] {
        assert!(trust.insert("a", wrong).is_err());
        assert!(trust.insert("b", wrong).is_err());
    }
    assert_eq!(trust, kept, "what cannot be used changes nothing");
    for n in 1..MAX_DOMAINS {
        trust.insert(&n.to_string(), &two).unwrap();
    }
    assert!(trust.insert("one more", &two).is_err());
    assert!(trust.insert("a", &two).is_ok());
    assert!(trust.only(|domain| domain == "7").contains("7"));
    assert!(!trust.only(|domain| domain == "7").contains("a"));
}
