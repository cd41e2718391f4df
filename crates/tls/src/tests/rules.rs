//! The rules for a peer's certificate, one broken at a time.

use std::time::Duration;

use ambit_model::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::macros::datetime;

use crate::Rejected;
use crate::verify::{Bundle, MAX_CHAIN, MAX_CHAIN_BYTES, Side, Wanted, proven, verify};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

pub(super) struct Signer {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
}

pub(super) fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = datetime!(2024-01-01 0:00 UTC);
    params.not_after = datetime!(2034-01-01 0:00 UTC);
    params
}

impl Signer {
    pub(super) fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca(name);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    pub(super) fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    pub(super) fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(super) fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(WEB)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = datetime!(2026-01-01 0:00 UTC);
    params.not_after = datetime!(2026-01-02 0:00 UTC);
    params
}

fn at(date: time::OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(date.unix_timestamp()).unwrap();
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(super) fn noon() -> UnixTime {
    at(datetime!(2026-01-01 12:00 UTC))
}

pub(super) fn domain() -> Wanted {
    Wanted::TrustDomain("cluster.local".into())
}

/// What a server of `cluster.local` says to a client with this certificate.
fn judge(root: &Signer, change: impl FnOnce(&mut CertificateParams)) -> Result<(), Rejected> {
    let mut params = leaf();
    change(&mut params);
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    verify(
        &bundle,
        &domain(),
        Side::Client,
        &root.sign(&params),
        &[],
        noon(),
    )
}

#[test]
fn takes_a_certificate_that_keeps_every_rule() {
    let root = Signer::root("root");
    assert_eq!(judge(&root, |_| {}), Ok(()));
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let peer = proven(&bundle, Side::Client, &root.sign(&leaf()), &[]).unwrap();
    assert_eq!(peer.identity().to_string(), WEB);
}

type Change = fn(&mut CertificateParams);

fn refuses_each(cases: &[(&str, Change, Rejected)]) {
    let root = Signer::root("root");
    for (name, change, rejected) in cases {
        assert_eq!(judge(&root, change), Err(rejected.clone()), "{name}");
    }
}

#[test]
fn refuses_a_certificate_whose_names_break_a_rule() {
    refuses_each(&[
        (
            "no names",
            |p| p.subject_alt_names.clear(),
            Rejected::NoIdentity,
        ),
        (
            "a DNS name alone",
            |p| p.subject_alt_names = vec![SanType::DnsName("web".try_into().unwrap())],
            Rejected::NoIdentity,
        ),
        (
            "two identities",
            |p| {
                p.subject_alt_names
                    .push(uri("spiffe://cluster.local/ns/shop/sa/admin"))
            },
            Rejected::SeveralIdentities(2),
        ),
        (
            "an identity and another URI",
            |p| p.subject_alt_names.push(uri("https://example.com/")),
            Rejected::SeveralIdentities(2),
        ),
        (
            "no workload's identity",
            |p| p.subject_alt_names = vec![uri("spiffe://cluster.local/db")],
            Rejected::BadIdentity("spiffe://cluster.local/db".into()),
        ),
        (
            "escaped path",
            |p| p.subject_alt_names = vec![uri("spiffe://cluster.local/ns/a%2fb/sa/c")],
            Rejected::BadIdentity("spiffe://cluster.local/ns/a%2fb/sa/c".into()),
        ),
        (
            "another trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://cluster.locale/ns/shop/sa/web")],
            Rejected::TrustDomain {
                found: "cluster.locale".into(),
                wanted: "cluster.local".into(),
            },
        ),
    ]);
}

#[test]
fn refuses_a_certificate_whose_use_or_time_breaks_a_rule() {
    refuses_each(&[
        (
            "an authority",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Rejected::AuthorityAsLeaf,
        ),
        ("no key usage", |p| p.key_usages.clear(), Rejected::KeyUsage),
        (
            "no signatures",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            Rejected::KeyUsage,
        ),
        (
            "may sign",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            Rejected::KeyUsage,
        ),
        (
            "may revoke",
            |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
            Rejected::KeyUsage,
        ),
        (
            "server only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            Rejected::ExtendedKeyUsage,
        ),
        (
            "client only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Rejected::ExtendedKeyUsage,
        ),
        (
            "expired",
            |p| p.not_after = datetime!(2026-01-01 11:59:59 UTC),
            Rejected::Expired,
        ),
        (
            "not yet valid",
            |p| p.not_before = datetime!(2026-01-01 12:00:01 UTC),
            Rejected::NotYetValid,
        ),
    ]);
}

#[test]
fn takes_what_the_rules_leave_open() {
    let cases: &[(&str, Change)] = &[
        ("no extended key usage", |p| p.extended_key_usages.clear()),
        ("no basic constraints", |p| p.is_ca = IsCa::NoCa),
        ("also key encipherment", |p| {
            p.key_usages.push(KeyUsagePurpose::KeyEncipherment)
        }),
        ("also a DNS name", |p| {
            p.subject_alt_names
                .push(SanType::DnsName("web".try_into().unwrap()));
        }),
        ("a subject", |p| {
            p.distinguished_name.push(DnType::OrganizationName, "shop")
        }),
    ];
    let root = Signer::root("root");
    for (name, change) in cases {
        assert_eq!(judge(&root, change), Ok(()), "{name}");
    }
}

#[test]
fn refuses_what_another_root_signed_even_of_the_same_name() {
    let (ours, theirs) = (Signer::root("root"), Signer::root("root"));
    let bundle = Bundle::new(std::slice::from_ref(&ours.certificate)).unwrap();
    let leaf = theirs.sign(&leaf());
    for chain in [vec![], vec![theirs.certificate.clone()]] {
        let verdict = verify(&bundle, &domain(), Side::Client, &leaf, &chain, noon());
        assert!(verdict.is_err(), "{verdict:?}");
    }
    let both = Bundle::new(&[ours.certificate, theirs.certificate]).unwrap();
    assert_eq!(
        verify(&both, &domain(), Side::Client, &leaf, &[], noon()),
        Ok(())
    );
}

#[test]
fn takes_intermediates_and_refuses_to_do_without() {
    let root = Signer::root("root");
    let middle = root.below("middle");
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let leaf = middle.sign(&leaf());
    let judge = |chain: &[CertificateDer<'_>]| {
        verify(&bundle, &domain(), Side::Client, &leaf, chain, noon())
    };
    assert_eq!(judge(std::slice::from_ref(&middle.certificate)), Ok(()));
    assert_eq!(judge(&[]), Err(Rejected::UnknownIssuer));
}

#[test]
fn refuses_a_leaf_that_another_leaf_signed() {
    let root = Signer::root("root");
    let key = KeyPair::generate().unwrap();
    let params = leaf();
    let honest = params.signed_by(&key, &root.issuer).unwrap().der().clone();
    let forger = Signer {
        issuer: Issuer::new(params, key),
        certificate: honest,
    };
    let mut stolen = leaf();
    stolen.subject_alt_names = vec![uri("spiffe://cluster.local/ns/kube-system/sa/admin")];
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let chain = [forger.certificate.clone()];
    let verdict = verify(
        &bundle,
        &domain(),
        Side::Client,
        &forger.sign(&stolen),
        &chain,
        noon(),
    );
    assert!(verdict.is_err(), "{verdict:?}");
}

#[test]
fn refuses_long_and_large_chains_before_it_checks_a_signature() {
    let root = Signer::root("root");
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let leaf = root.sign(&leaf());
    let judge = |chain: &[CertificateDer<'_>]| {
        verify(&bundle, &domain(), Side::Client, &leaf, chain, noon())
    };
    let long = vec![root.certificate.clone(); MAX_CHAIN];
    assert_eq!(judge(&long), Err(Rejected::ChainTooLong(MAX_CHAIN + 1)));
    let large = [CertificateDer::from(vec![0; MAX_CHAIN_BYTES])];
    assert_eq!(
        judge(&large),
        Err(Rejected::ChainTooLarge(MAX_CHAIN_BYTES + leaf.len()))
    );
}

#[test]
fn a_dialler_takes_exactly_the_identities_it_expects() {
    let root = Signer::root("root");
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let leaf = root.sign(&leaf());
    let judge = |expected: &[&str]| {
        let expected: Vec<Identity> = expected.iter().map(|text| text.parse().unwrap()).collect();
        verify(
            &bundle,
            &Wanted::OneOf(expected),
            Side::Server,
            &leaf,
            &[],
            noon(),
        )
    };
    let (web, other) = (WEB, "spiffe://cluster.local/ns/shop/sa/we");
    let refused = Err(Rejected::Identity {
        found: WEB.parse().unwrap(),
    });
    assert_eq!(judge(&[web]), Ok(()));
    assert_eq!(judge(&[other, web]), Ok(()));
    assert_eq!(judge(&[other]), refused);
    assert_eq!(
        judge(&["spiffe://cluster.local/ns/shop/sa/web.v2"]),
        refused
    );
    assert_eq!(judge(&[]), refused);
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let root = Signer::root("root");
    let bundle = Bundle::new(std::slice::from_ref(&root.certificate)).unwrap();
    let good = root.sign(&leaf());
    let mut trailing = good.to_vec();
    trailing.push(0);
    let cut = good[..good.len() - 1].to_vec();
    for bad in [Vec::new(), vec![0x30], vec![0xff; 500], trailing, cut] {
        let verdict = verify(&bundle, &domain(), Side::Client, &bad.into(), &[], noon());
        assert_eq!(verdict, Err(Rejected::Malformed));
    }
    let mut forged = good.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let verdict = verify(
        &bundle,
        &domain(),
        Side::Client,
        &forged.into(),
        &[],
        noon(),
    );
    assert!(
        matches!(verdict, Err(Rejected::UnknownIssuer | Rejected::Path(_))),
        "{verdict:?}"
    );
}

proptest::proptest! {
    /// A peer's bytes never do worse than a refusal.
    #[test]
    fn no_bytes_panic(at in 0usize..400, byte: u8, length in 0usize..600) {
        static GOOD: std::sync::LazyLock<(CertificateDer<'static>, CertificateDer<'static>)> =
            std::sync::LazyLock::new(|| {
                let root = Signer::root("root");
                (root.sign(&leaf()), root.certificate)
            });
        let bundle = Bundle::new(std::slice::from_ref(&GOOD.1)).unwrap();
        let mut changed = GOOD.0.to_vec();
        if let Some(place) = changed.get_mut(at) {
            *place = byte;
        }
        changed.truncate(length);
        let same = changed == GOOD.0.to_vec();
        let verdict = verify(&bundle, &domain(), Side::Client, &changed.into(), &[], noon());
        proptest::prop_assert_eq!(verdict.is_ok(), same);
    }
}
