mod agent;

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use ambit_control::LocalChannel;
use ambit_proto::spiffe::workload::{X509svid as OwnSvid, X509svidResponse};
use ambit_proto::spire::delegated::{SubscribeToX509sviDsResponse, X509svidWithKey};
use ambit_runtime::clock::{Clock, Hand};
use ambit_tls::authority::Root;
use tempfile::TempDir;
use tokio::time::sleep;

use self::agent::{Agent, Sockets, der};
use super::*;
use crate::{Certificates, Lease};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

struct World {
    agent: Arc<Agent>,
    sockets: Sockets,
    certificates: Certificates,
    hand: Hand,
    folder: TempDir,
}

fn identity(account: &str) -> Identity {
    Identity::new("td", "shop", account).unwrap()
}

impl World {
    fn new() -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (clock, hand) = Clock::standing_at(start);
        let agent = Agent::new(clock.clone());
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::serve(&agent, folder.path());
        let (certificates, renewer) = Certificates::new(clock);
        let at = AgentSockets {
            admin: LocalChannel::connect(&sockets.admin),
            workload: Some((LocalChannel::connect(&sockets.workload), identity("proxy"))),
        };
        let (issuer, roots) = SpireIssuer::new(at, Terms::default());
        tokio::spawn(roots.run());
        tokio::spawn(renewer.run(issuer));
        Self {
            agent,
            sockets,
            certificates,
            hand,
            folder,
        }
    }

    /// Lets both clocks go on.
    async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(SECOND);
            self.hand.advance(step);
            sleep(step).await;
            left -= step;
        }
    }

    /// A pod that has its certificate.
    async fn pod(&self) -> Lease {
        self.agent
            .tell(vec![self.agent.sign(&identity("web"), HOUR)]);
        let lease = self
            .certificates
            .lease_for(&identity("web"), "uid-1")
            .unwrap();
        lease.get().await.unwrap();
        lease
    }
}

fn offer(agent: &Agent, account: &str, life: Duration) -> X509svidWithKey {
    agent.sign(&identity(account), life)
}

#[tokio::test(start_paused = true)]
async fn asks_by_namespace_account_and_pods() {
    let world = World::new();
    let web = identity("web");
    let first = world.certificates.lease_for(&web, "uid-2").unwrap();
    let _again = first.clone();
    let _second = world.certificates.lease_for(&web, "uid-1").unwrap();
    world.agent.tell(vec![offer(&world.agent, "web", HOUR)]);
    let svid = first.get().await.unwrap();
    assert_eq!(svid.identity(), &web);
    let asked = world.agent.asked.lock()[0].clone();
    let shown: Vec<_> = asked
        .selectors
        .iter()
        .map(|s| format!("{}:{}", s.r#type, s.value))
        .collect();
    let expected = [
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:pod-uid:uid-1",
        "k8s:pod-uid:uid-2",
    ];
    assert_eq!(
        (shown, asked.pid),
        (expected.map(str::to_owned).to_vec(), 0)
    );
}

#[tokio::test(start_paused = true)]
async fn every_rotation_is_taken_over_as_it_comes() {
    let world = World::new();
    let lease = world.pod().await;
    let mut attempts = lease.attempts();
    for _ in 0..5 {
        let before = lease.current().unwrap();
        world.pass(HOUR / 2).await;
        attempts.borrow_and_update();
        world.agent.tell(vec![offer(&world.agent, "web", HOUR)]);
        attempts.changed().await.unwrap();
        let after = lease.current().unwrap();
        assert!(after.not_after() > before.not_after());
    }
    assert_eq!(world.agent.asked(), 1, "one subscription for all of it");
    let health = world.certificates.health();
    assert_eq!((health.valid, health.failing, health.followed), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_tells_nothing_in_time_is_asked_anew() {
    let world = World::new();
    let lease = world.pod().await;
    let generation = lease.current().unwrap().generation();
    world.pass(HOUR * 75 / 100).await;
    assert_eq!(world.agent.asked(), 2);
    assert_eq!(world.agent.live.load(Relaxed), 1, "in place of the first");
    let same = lease.current().unwrap().generation();
    assert_eq!(same, generation, "the same answer moves nobody");
}

#[tokio::test(start_paused = true)]
async fn certificates_outlive_the_agent_until_their_end() {
    let world = World::new();
    let lease = world.pod().await;
    let asked = world.agent.asked();
    world.agent.goes_away(Status::unavailable("starting"));
    world.pass(HOUR - SECOND).await;
    assert!(lease.current().is_some(), "the last good one serves");
    let health = world.certificates.health();
    assert_eq!((health.valid, health.failing), (1, 1));
    let calls = world.agent.asked() - asked;
    assert!((25..70).contains(&calls), "{calls} in an hour");
    world.pass(2 * SECOND).await;
    assert!(lease.current().is_none());
    let error = lease.get().await.unwrap_err().to_string();
    assert!(
        error.contains("SPIRE agent cannot be asked: Unavailable: starting"),
        "{error}"
    );
    // It comes back.
    world.agent.tell(vec![offer(&world.agent, "web", HOUR)]);
    *world.agent.refusal.lock() = None;
    world.pass(16 * SECOND).await;
    assert!(lease.current().is_some());
    assert_eq!(world.certificates.health().failing, 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_is_found_again() {
    let mut world = World::new();
    let lease = world.pod().await;
    let before = lease.current().unwrap().generation();
    world.sockets.kill();
    world.pass(3 * SECOND).await;
    assert_eq!(lease.current().unwrap().generation(), before);
    let health = world.certificates.health();
    assert_eq!((health.valid, health.followed, health.failing), (1, 0, 1));
    // Another process at the same place, with the roots of the first.
    let next = Agent::new(world.agent.clock.clone());
    next.bundles
        .send_replace(world.agent.bundles.borrow().clone());
    next.tell(vec![offer(&world.agent, "web", HOUR)]);
    world.sockets = Sockets::serve(&next, world.folder.path());
    world.pass(60 * SECOND).await;
    assert_ne!(lease.current().unwrap().generation(), before);
    assert_eq!(world.certificates.health().followed, 1);
}

type Wrong = fn(&Agent) -> SubscribeToX509sviDsResponse;

fn answer(x509_svids: Vec<X509svidWithKey>) -> SubscribeToX509sviDsResponse {
    SubscribeToX509sviDsResponse {
        x509_svids,
        federates_with: Vec::new(),
    }
}

/// What an agent must not say, and what is said of it.
const WRONG: [(Wrong, &str); 8] = [
    (
        |_| answer(vec![]),
        "has no certificate of spiffe://td/ns/shop/sa/web",
    ),
    (
        |agent| answer(vec![offer(agent, "cart", HOUR)]),
        "sa/web, but of spiffe://td/ns/shop/sa/cart",
    ),
    (
        // Said to be ours, and is another's.
        |agent| {
            let (mut svid, ours) = (offer(agent, "cart", HOUR), offer(agent, "web", HOUR));
            svid.x509_svid.as_mut().unwrap().id = ours.x509_svid.unwrap().id;
            answer(vec![svid])
        },
        "with a certificate of spiffe://td/ns/shop/sa/cart",
    ),
    (
        |agent| {
            let (mut svid, other) = (offer(agent, "web", HOUR), offer(agent, "web", HOUR));
            svid.x509_svid_key = other.x509_svid_key;
            answer(vec![svid])
        },
        "unusable",
    ),
    (
        |agent| {
            let mut svid = offer(agent, "web", HOUR);
            svid.x509_svid_key.clear();
            answer(vec![svid])
        },
        "private key cannot be read",
    ),
    (
        |agent| {
            let mut svid = offer(agent, "web", HOUR);
            svid.x509_svid.as_mut().unwrap().cert_chain.clear();
            answer(vec![svid])
        },
        "no certificate",
    ),
    (
        |agent| answer(vec![offer(agent, "web", Duration::ZERO)]),
        "certificate has expired",
    ),
    (
        |agent| {
            // By an authority that is not in the bundle.
            let stranger = Agent::new(agent.clock.clone());
            answer(vec![offer(&stranger, "web", HOUR)])
        },
        "not signed by the trust bundle",
    ),
];

#[tokio::test(start_paused = true)]
async fn what_must_not_be_used_is_refused_and_never_used() {
    for (wrong, expected) in WRONG {
        let world = World::new();
        world.agent.svids.send_replace(wrong(&world.agent));
        let lease = world
            .certificates
            .lease_for(&identity("web"), "uid-1")
            .unwrap();
        let error = lease.get().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(lease.current().is_none(), "{expected}");
        // Put right, it comes through the stream that is open.
        let asked = world.agent.asked();
        world.agent.tell(vec![offer(&world.agent, "web", HOUR)]);
        sleep(SECOND / 100).await;
        assert!(lease.current().is_some(), "{expected}");
        assert_eq!(world.agent.asked(), asked);
        // The same in the middle of a good life: the good one stays.
        let good = lease.current().unwrap().generation();
        world.agent.svids.send_replace(wrong(&world.agent));
        world.pass(5 * SECOND).await;
        assert_eq!(
            lease.current().map(|svid| svid.generation()),
            Some(good),
            "{expected}"
        );
        assert_eq!(world.certificates.health().failing, 1, "{expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_registrations_the_longest_certificate_of_the_right_name_is_taken() {
    let world = World::new();
    let [short, long] = [HOUR, 2 * HOUR].map(|life| offer(&world.agent, "web", life));
    let other = offer(&world.agent, "cart", 3 * HOUR);
    let lease = world
        .certificates
        .lease_for(&identity("web"), "uid-1")
        .unwrap();
    world
        .agent
        .tell(vec![short.clone(), long.clone(), other.clone()]);
    let svid = lease.get().await.unwrap();
    assert_eq!(svid.not_after(), world.agent.clock.now() + 2 * HOUR);
    world.agent.tell(vec![other, long, short]);
    sleep(SECOND).await;
    assert_eq!(lease.current().unwrap().generation(), svid.generation());
}

#[tokio::test(start_paused = true)]
async fn roots_that_change_reach_the_certificates_in_use() {
    let world = World::new();
    let lease = world.pod().await;
    let roots = |lease: &Lease| lease.current().unwrap().roots().len();
    assert_eq!(roots(&lease), 1);
    let next = Root::generate("next", world.agent.clock.now(), 1000 * HOUR).unwrap();
    let next = der(&next.certificate_pem());
    // Another root of ours, a domain that this workload federates with, and one that it does not.
    world
        .agent
        .svids
        .send_modify(|answer| answer.federates_with = vec!["spiffe://friend".into()]);
    world.agent.bundles.send_modify(|bundles| {
        bundles.get_mut("spiffe://td").unwrap().extend(&next);
        bundles.insert("spiffe://friend".to_owned(), next.clone());
        bundles.insert("spiffe://stranger".to_owned(), next.clone());
    });
    sleep(SECOND).await;
    assert_eq!(roots(&lease), 3);
    // Roots that cannot be read change nothing for that domain, and only for that one.
    world.agent.bundles.send_modify(|bundles| {
        bundles.insert("spiffe://friend".to_owned(), b"roots".to_vec());
        bundles.insert(
            "spiffe://td".to_owned(),
            der(&world.agent.root.certificate_pem()),
        );
    });
    sleep(SECOND).await;
    assert_eq!(roots(&lease), 2);
    assert_eq!(world.agent.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_roots_of_its_own_domain_there_is_no_certificate() {
    let world = World::new();
    let roots = world.agent.bundles.send_replace(Default::default());
    world.agent.tell(vec![offer(&world.agent, "web", HOUR)]);
    let lease = world
        .certificates
        .lease_for(&identity("web"), "uid-1")
        .unwrap();
    let error = lease.get().await.unwrap_err().to_string();
    assert!(
        error.contains("knows no roots of trust domain td"),
        "{error}"
    );
    world.agent.bundles.send_replace(roots);
    sleep(SECOND).await;
    assert!(lease.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_proxy_s_own_certificate_comes_by_the_workload_api() {
    let world = World::new();
    let partner = Root::generate("partner", world.agent.clock.now(), 1000 * HOUR).unwrap();
    let say = |account: &str| {
        let svid = offer(&world.agent, account, HOUR);
        world.agent.own.send_replace(X509svidResponse {
            svids: vec![OwnSvid {
                spiffe_id: identity(account).to_string(),
                x509_svid: svid.x509_svid.unwrap().cert_chain.concat(),
                x509_svid_key: svid.x509_svid_key,
                bundle: der(&world.agent.root.certificate_pem()),
                hint: String::new(),
            }],
            crl: Vec::new(),
            federated_bundles: [
                (
                    "spiffe://partner".to_owned(),
                    der(&partner.certificate_pem()),
                ),
                ("spiffe://unreadable".to_owned(), b"roots".to_vec()),
            ]
            .into(),
        });
    };
    say("somebody");
    let lease = world.certificates.lease(&identity("proxy")).unwrap();
    let error = lease.get().await.unwrap_err().to_string();
    assert!(
        error.contains("sa/proxy, but of spiffe://td/ns/shop/sa/somebody"),
        "{error}"
    );
    say("proxy");
    sleep(SECOND).await;
    let svid = lease.current().unwrap();
    assert_eq!(
        (svid.identity(), svid.roots().len()),
        (&identity("proxy"), 2)
    );
    say("proxy");
    sleep(SECOND).await;
    assert_ne!(lease.current().unwrap().generation(), svid.generation());
    assert_eq!(world.agent.asked(), 0, "nobody acted for it");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_ends_with_the_last_who_wants_it() {
    let world = World::new();
    let first = world.pod().await;
    let second = world
        .certificates
        .lease_for(&identity("web"), "uid-2")
        .unwrap();
    drop(first);
    sleep(SECOND).await;
    assert_eq!(world.agent.live.load(Relaxed), 1);
    drop(second);
    sleep(SECOND).await;
    assert_eq!(world.agent.live.load(Relaxed), 0);
    assert_eq!(world.certificates.health().followed, 0);
    // And begins with the next, which is asked for by its own pod.
    let third = world
        .certificates
        .lease_for(&identity("web"), "uid-3")
        .unwrap();
    third.get().await.unwrap();
    let last = world.agent.asked.lock().last().cloned().unwrap();
    let values: Vec<_> = last
        .selectors
        .into_iter()
        .map(|selector| selector.value)
        .collect();
    assert_eq!(values, ["ns:shop", "sa:web", "pod-uid:uid-3"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_to_do_and_is_not_asked_for_in_a_spin() {
    let world = World::new();
    let status = Status::permission_denied("caller not configured as an authorized delegate");
    *world.agent.refusal.lock() = Some(status);
    let lease = world
        .certificates
        .lease_for(&identity("web"), "uid-1")
        .unwrap();
    let error = lease.get().await.unwrap_err().to_string();
    let expected = "SPIRE agent refuses: PermissionDenied: caller not configured";
    assert!(error.contains(expected), "{error}");
    world.pass(60 * SECOND).await;
    let asked = world.agent.asked();
    assert!((7..=20).contains(&asked), "{asked} in a minute");
    // A pod that is new may be one that is registered: it does not wait.
    *world.agent.refusal.lock() = None;
    world.agent.tell(vec![offer(&world.agent, "web", HOUR)]);
    let _new = world
        .certificates
        .lease_for(&identity("web"), "uid-2")
        .unwrap();
    sleep(SECOND / 100).await;
    assert!(lease.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_not_there_is_named_as_the_reason() {
    let world = World::new();
    world.sockets.kill();
    let lease = world
        .certificates
        .lease_for(&identity("web"), "uid-1")
        .unwrap();
    let error = lease.get().await.unwrap_err().to_string();
    assert!(error.contains("SPIRE agent cannot be asked"), "{error}");
    assert!(error.contains("No such file"), "{error}");
}
