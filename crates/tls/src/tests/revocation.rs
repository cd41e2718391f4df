//! Which certificates a file of lists takes back, and what that does to handshakes.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    CertificateRevocationList, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, Issuer, KeyIdMethod, KeyPair, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::macros::datetime;
use x509_parser::prelude::FromDer;

use super::rules::{Signer, domain, leaf, noon};
use super::{CART, DAY, End, WEB, identity};
use crate::authority::{Request, Root};
use crate::csr::KeyAndCsr;
use crate::revocation::Lists;
use crate::verify::{Bundle, Side, verify};
use crate::{Limits, Rejected, Revocations, Svid, Terms, TlsError, accept, connect};

fn serial(certificate: &[u8]) -> SerialNumber {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    SerialNumber::from_slice(parsed.raw_serial())
}

fn params(serials: &[SerialNumber]) -> CertificateRevocationListParams {
    let entry = |serial: &SerialNumber| RevokedCertParams {
        serial_number: serial.clone(),
        revocation_time: datetime!(2026-01-01 0:00 UTC),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: datetime!(2026-01-01 0:00 UTC),
        next_update: datetime!(2036-01-01 0:00 UTC),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

fn signed(
    by: &Signer,
    serials: &[SerialNumber],
    change: impl FnOnce(&mut CertificateRevocationListParams),
) -> CertificateRevocationList {
    let mut params = params(serials);
    change(&mut params);
    params.signed_by(&by.issuer).unwrap()
}

fn list(by: &Signer, certificates: &[&CertificateDer<'_>]) -> CertificateRevocationList {
    let serials: Vec<_> = certificates.iter().map(|der| serial(der)).collect();
    signed(by, &serials, |_| {})
}

fn pem(lists: &[CertificateRevocationList]) -> Vec<u8> {
    let texts: Vec<_> = lists.iter().map(|list| list.pem().unwrap()).collect();
    texts.concat().into_bytes()
}

/// Two roots of one name and an authority below the first, with a leaf of each; the bundle has both.
struct Pki {
    root: Signer,
    namesake: Signer,
    middle: Signer,
    of_root: CertificateDer<'static>,
    of_namesake: CertificateDer<'static>,
    of_middle: CertificateDer<'static>,
    /// With a serial number whose first octet is zero in DER.
    of_root_high: CertificateDer<'static>,
}

impl Pki {
    fn new() -> Self {
        let (root, namesake) = (Signer::root("root"), Signer::root("root"));
        let middle = root.below("middle");
        let mut high = leaf();
        high.serial_number = Some(SerialNumber::from_slice(&[0x80, 1, 2]));
        Self {
            of_root: root.sign(&leaf()),
            of_root_high: root.sign(&high),
            of_namesake: namesake.sign(&leaf()),
            of_middle: middle.sign(&leaf()),
            root,
            namesake,
            middle,
        }
    }

    fn bundle(&self, file: &[u8]) -> Bundle {
        let revocations = Revocations::watched();
        revocations.put(Lists::read(file).unwrap());
        let roots = [
            self.root.certificate.clone(),
            self.namesake.certificate.clone(),
        ];
        Bundle::new(&roots).unwrap().without(revocations)
    }

    fn judge(&self, file: &[u8], leaf: &CertificateDer<'_>) -> Result<(), Rejected> {
        let bundle = self.bundle(file);
        let chain = std::slice::from_ref(&self.middle.certificate);
        let verdicts = [Side::Client, Side::Server]
            .map(|side| verify(&bundle, &domain(), side, leaf, chain, noon()));
        assert_eq!(verdicts[0], verdicts[1], "both sides ask");
        verdicts[0].clone()
    }
}

/// What it is, the file, the leaf that is asked about, and whether that was taken back.
type Row<'a> = (&'a str, Vec<u8>, &'a CertificateDer<'a>, bool);

fn judge_all(pki: &Pki, table: &[Row<'_>]) {
    for (name, file, leaf, revoked) in table {
        let expected = if *revoked {
            Err(Rejected::Revoked)
        } else {
            Ok(())
        };
        assert_eq!(pki.judge(file, leaf), expected, "{name}");
    }
}

#[test]
fn takes_back_what_its_authority_lists_and_nothing_else() {
    let pki = Pki::new();
    let (root, middle, namesake) = (&pki.root, &pki.middle, &pki.namesake);
    let (first, second, below) = (&pki.of_root, &pki.of_namesake, &pki.of_middle);
    let stranger = Signer::root("stranger");
    let one = |by, of: &CertificateDer<'_>| pem(&[list(by, &[of])]);
    judge_all(
        &pki,
        &[
            ("an empty list", pem(&[list(root, &[])]), first, false),
            ("a leaf", one(root, first), first, true),
            ("another leaf", one(root, &pki.of_root_high), first, false),
            (
                "a leaf of an authority below",
                one(middle, below),
                below,
                true,
            ),
            ("its authority", one(root, &middle.certificate), below, true),
            (
                "the authority of others",
                one(root, &middle.certificate),
                first,
                false,
            ),
            (
                "a number that another authority gave",
                one(root, below),
                below,
                false,
            ),
            (
                "a number of an authority of that name",
                one(root, second),
                second,
                false,
            ),
            (
                "the list of a stranger",
                one(&stranger, first),
                first,
                false,
            ),
            (
                "a number with its high bit set",
                one(root, &pki.of_root_high),
                &pki.of_root_high,
                true,
            ),
            ("DER", list(root, &[first]).der().to_vec(), first, true),
        ],
    );
    let both = [list(root, &[second]), list(namesake, &[second])];
    let parts = [list(root, &[]), list(root, &[first])];
    let many = list(root, &[&pki.of_root_high, first, below]);
    judge_all(
        &pki,
        &[
            ("the right one of two of one name", pem(&both), second, true),
            (
                "the second of an authority's lists",
                pem(&parts),
                first,
                true,
            ),
            ("one of many", pem(&[many]), first, true),
        ],
    );
}

#[test]
fn takes_back_whatever_else_the_list_says_of_itself_or_of_why() {
    let pki = Pki::new();
    let held = |p: &mut CertificateRevocationListParams| {
        p.revoked_certs[0].reason_code = Some(RevocationReason::CertificateHold);
    };
    let overdue = |p: &mut CertificateRevocationListParams| {
        p.next_update = datetime!(2026-01-01 0:01 UTC);
    };
    let users_only = |p: &mut CertificateRevocationListParams| {
        p.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec!["http://crl.example/users".into()],
            },
            scope: Some(CrlScope::UserCertsOnly),
        });
    };
    let (first, other) = (&pki.of_root, &pki.of_root_high);
    let of = |certificate: &CertificateDer<'_>| [serial(certificate)];
    judge_all(
        &pki,
        &[
            (
                "overdue",
                pem(&[signed(&pki.root, &of(first), overdue)]),
                first,
                true,
            ),
            (
                "overdue, of others",
                pem(&[signed(&pki.root, &of(other), overdue)]),
                first,
                false,
            ),
            (
                "on hold",
                pem(&[signed(&pki.root, &of(first), held)]),
                first,
                true,
            ),
            (
                "of users",
                pem(&[signed(&pki.root, &of(first), users_only)]),
                first,
                true,
            ),
        ],
    );
}

#[test]
fn a_list_that_its_authority_did_not_sign_counts_for_nothing_and_is_shown() {
    let pki = Pki::new();
    let mut forged = list(&pki.root, &[&pki.of_root]).der().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let bundle = pki.bundle(&forged);
    let judge = || verify(&bundle, &domain(), Side::Client, &pki.of_root, &[], noon());
    let proven = || bundle.lists().unwrap().summaries()[0].proven;
    assert_eq!((proven(), judge(), proven()), (None, Ok(()), Some(false)));
    let honest = pki.bundle(&pem(&[list(&pki.root, &[&pki.of_root])]));
    let verdict = verify(&honest, &domain(), Side::Client, &pki.of_root, &[], noon());
    assert_eq!(verdict, Err(Rejected::Revoked));
    let summary = honest.lists().unwrap().summaries().remove(0);
    assert_eq!((summary.proven, summary.certificates), (Some(true), 1));
    assert_eq!(summary.issuer, "CN=root");
}

#[test]
fn a_file_is_taken_as_a_whole_or_not_at_all() {
    let root = Signer::root("root");
    let good = list(&root, &[&root.certificate]);
    let text = good.pem().unwrap();
    let broken = text.replacen("MI", "MJ", 1);
    let der = good.der().to_vec();
    let long = signed(&root, &[SerialNumber::from_slice(&[1; 21])], |_| {});
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("white space", b"\n\n".to_vec()),
        ("no PEM", b"revoked: none".to_vec()),
        (
            "a certificate",
            crate::svid::pem(&root.certificate).into_bytes(),
        ),
        ("half a text", text.as_bytes()[..text.len() / 2].to_vec()),
        (
            "one good, one broken",
            format!("{text}{broken}").into_bytes(),
        ),
        ("half of DER", der[..der.len() - 1].to_vec()),
        ("more than DER", [&der[..], &[0]].concat()),
        ("a number too long", long.der().to_vec()),
        ("too many lists", text.repeat(1025).into_bytes()),
    ];
    for (name, file) in cases {
        assert!(
            matches!(Lists::read(&file), Err(TlsError::Material(_))),
            "{name}"
        );
    }
    assert!(Lists::read(format!("# ours\n{text}\n{text}").as_bytes()).is_ok());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]

    /// A file's bytes never do worse than a refusal.
    #[test]
    fn no_bytes_panic(at in 0usize..400, byte: u8, length in 0usize..600) {
        static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let root = Signer::root("root");
            list(&root, &[&root.certificate]).der().to_vec()
        });
        let mut changed = GOOD.clone();
        if let Some(place) = changed.get_mut(at) {
            *place = byte;
        }
        changed.truncate(length);
        let _ = Lists::read(&changed).map(|lists| lists.summaries());
    }
}

fn svid(root: &Root, text: &str, revocations: &Revocations) -> Arc<Svid> {
    let identity = identity(text);
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let now = SystemTime::now();
    let chain = root.issue(&request, &identity, now, DAY).unwrap();
    let terms = Terms {
        revocations: revocations.clone(),
        ..Terms::default()
    };
    Svid::from_chain_on(&asked.key, &chain, &terms).unwrap()
}

fn take_back(root: &Root, svid: &Svid) -> Lists {
    let key = KeyPair::from_pem(&root.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&root.certificate_pem(), key).unwrap();
    let der = super::pem_body(&svid.chain()[0].pem);
    let list = params(&[serial(&der)]).signed_by(&issuer).unwrap();
    Lists::read(list.pem().unwrap().as_bytes()).unwrap()
}

async fn meet(client: &Svid, server: &Svid) -> (End, End) {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let expected = [identity(CART)];
    tokio::join!(
        connect(client, near, &expected, Limits::default()),
        accept(server, far, Limits::default())
    )
}

#[tokio::test]
async fn each_side_refuses_a_revoked_peer_and_tells_it() {
    let root = super::root();
    let (here, there) = (Revocations::watched(), Revocations::default());
    let (web, cart) = (svid(&root, WEB, &there), svid(&root, CART, &here));
    here.put(take_back(&root, &web));
    let (client, server) = meet(&web, &cart).await;
    let refused = server.unwrap_err();
    assert!(
        matches!(refused, TlsError::Peer(Rejected::Revoked)),
        "{refused:?}"
    );
    // In TLS 1.3 a client is done before the server has seen its certificate.
    use tokio::io::AsyncReadExt;
    let told = client.unwrap().0.read(&mut [0; 1]).await;
    assert_eq!(told.unwrap_err().kind(), std::io::ErrorKind::InvalidData);

    let (web, cart) = (svid(&root, WEB, &here), svid(&root, CART, &there));
    here.put(take_back(&root, &cart));
    let (client, server) = meet(&web, &cart).await;
    let refused = client.unwrap_err();
    assert!(
        matches!(refused, TlsError::Peer(Rejected::Revoked)),
        "{refused:?}"
    );
    let told = server.unwrap_err();
    assert!(
        matches!(&told, TlsError::RefusedByPeer(alert) if alert == "CertificateRevoked"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_peer_can_be_asked_about_for_as_long_as_it_is_connected() {
    let root = super::root();
    let lists = Revocations::watched();
    let (web, cart) = (
        svid(&root, WEB, &lists),
        svid(&root, CART, &Revocations::default()),
    );
    let (client, server) = meet(&web, &cart).await;
    let (at_client, at_server) = (client.unwrap().1, server.unwrap().1);
    assert!(!lists.revoke(&at_client));
    assert!(
        at_server.lineage().is_none(),
        "nothing is kept where there are never any lists"
    );
    lists.put(take_back(&root, &web));
    assert!(!lists.revoke(&at_client), "that is somebody else");
    lists.put(take_back(&root, &cart));
    assert!(lists.revoke(&at_client));
    lists.put(Lists::default());
    assert!(!lists.revoke(&at_client), "a hold can be lifted");
}
