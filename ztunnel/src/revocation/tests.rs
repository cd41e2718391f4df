//! When the file is read, and what it does when it cannot be.

use std::path::Path;
use std::sync::Arc;

use ambit_observe::metrics::{Format, Registry};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;

use super::{Revocation, Stamp, Watch, register};

/// A file's text: one list with so many entries, replaced so many days from now.
fn list(entries: u64, days: i64) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, KeyPair::generate().unwrap());
    let now = OffsetDateTime::now_utc();
    let entry = |number| RevokedCertParams {
        serial_number: SerialNumber::from(number),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: now - time::Duration::days(30),
        next_update: now + time::Duration::days(days),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: (0..entries).map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

fn start(path: &Path) -> (Arc<Revocation>, Watch) {
    let (revocation, watch) = Revocation::start(Some(path)).unwrap();
    (Arc::new(revocation), watch.unwrap())
}

/// How many certificates are listed, and whether that is what the file says.
fn state(revocation: &Revocation) -> (usize, bool) {
    let all = revocation.lists.current().unwrap().summaries();
    let certificates = all.iter().map(|list| list.certificates).sum();
    (certificates, revocation.problem.load().is_none())
}

/// Two looks: a change is seen, and is at rest.
async fn looks(watch: &mut Watch, revocation: &Revocation) {
    watch.look(revocation).await;
    watch.look(revocation).await;
}

#[test]
fn without_a_file_to_look_after_nothing_is_kept_or_asked() {
    let (revocation, watch) = Revocation::start(None).unwrap();
    assert!(watch.is_none());
    assert!(!revocation.lists.are_watched());
    assert!(revocation.shown().is_null());
}

#[test]
fn a_file_that_is_there_and_cannot_be_used_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    for content in [
        "",
        "revoked: none",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    ] {
        std::fs::write(&path, content).unwrap();
        let error = Revocation::start(Some(&path)).unwrap_err();
        assert!(format!("{error:#}").starts_with("CRL_PATH: "), "{error:#}");
    }
    // A folder is no file either.
    assert!(Revocation::start(Some(folder.path())).is_err());
    std::fs::write(&path, list(3, 1)).unwrap();
    assert_eq!(state(&start(&path).0), (3, true));
}

#[tokio::test]
async fn a_file_that_comes_later_is_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let (revocation, mut watch) = start(&path);
    looks(&mut watch, &revocation).await;
    assert_eq!(state(&revocation), (0, true), "no file is no list yet");
    let mut changes = revocation.changes();
    std::fs::write(&path, list(2, 1)).unwrap();
    watch.look(&revocation).await;
    assert_eq!(state(&revocation), (0, true), "it may still be written");
    watch.look(&revocation).await;
    assert_eq!(state(&revocation), (2, true));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    looks(&mut watch, &revocation).await;
    assert!(!changes.has_changed().unwrap(), "it is read once");
}

#[tokio::test]
async fn what_is_in_force_stays_until_there_is_something_better() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    std::fs::write(&path, list(2, 1)).unwrap();
    let (revocation, mut watch) = start(&path);
    let changes = revocation.changes();
    for broken in ["", "-----BEGIN X509 CRL-----\n", &list(5, 1)[..300]] {
        std::fs::write(&path, broken).unwrap();
        looks(&mut watch, &revocation).await;
        assert_eq!(state(&revocation), (2, false), "{broken}");
    }
    assert!(revocation.shown()["problem"].is_string());
    std::fs::remove_file(&path).unwrap();
    looks(&mut watch, &revocation).await;
    assert_eq!(state(&revocation), (2, false));
    assert_eq!(revocation.shown()["problem"], "the file is gone");
    assert!(!changes.has_changed().unwrap());
    std::fs::write(&path, list(4, 1)).unwrap();
    looks(&mut watch, &revocation).await;
    assert_eq!(state(&revocation), (4, true));
}

#[tokio::test]
async fn follows_the_links_that_the_kubelet_swaps() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, entries) in [("one", 1), ("two", 2)] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("crl.pem"), list(entries, 1)).unwrap();
    }
    std::os::unix::fs::symlink("one", at("data")).unwrap();
    std::os::unix::fs::symlink("data/crl.pem", at("crl.pem")).unwrap();
    let (revocation, mut watch) = start(&at("crl.pem"));
    assert_eq!(state(&revocation), (1, true));
    std::os::unix::fs::symlink("two", at("new")).unwrap();
    std::fs::rename(at("new"), at("data")).unwrap();
    looks(&mut watch, &revocation).await;
    assert_eq!(state(&revocation), (2, true));
}

#[tokio::test]
async fn a_file_beyond_all_measure_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    std::fs::write(&path, list(1, 1)).unwrap();
    let (revocation, mut watch) = start(&path);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(super::MAX_FILE + 1).unwrap();
    looks(&mut watch, &revocation).await;
    assert_eq!(state(&revocation), (1, false));
}

#[test]
fn a_file_is_read_when_it_is_another_one_and_at_rest() {
    let stamp = |size| {
        Some(Stamp {
            device: 1,
            inode: 1,
            size,
            modified: (0, 0),
            changed: (0, 0),
        })
    };
    let mut watch = Watch::new(Path::new("/nowhere"));
    watch.settle(stamp(1));
    let looks = [
        (stamp(1), false),
        (stamp(2), false),
        (stamp(3), false),
        (stamp(3), true),
        (None, false),
        (stamp(3), false),
        (None, false),
        (None, true),
        (stamp(1), false),
        (stamp(1), false),
    ];
    for (at, (stamp, due)) in looks.into_iter().enumerate() {
        assert_eq!(watch.due(stamp), due, "look {at}");
    }
}

#[test]
fn gauges_say_what_is_in_force_and_whether_it_is_current() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    std::fs::write(&path, list(1, 1) + &list(1, -1)).unwrap();
    let (revocation, _) = start(&path);
    let registry = Registry::default();
    register(&registry, &revocation);
    revocation.report(&path, "it is gone".to_owned());
    let page = registry.render(Format::Text);
    for line in [
        "ambit_crl_lists 2\n",
        "ambit_crl_lists_overdue 1\n",
        "ambit_crl_lists_unproven 0\n",
        "ambit_crl_not_current 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
}
