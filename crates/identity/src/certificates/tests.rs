use std::sync::atomic::AtomicU64;

use ambit_runtime::clock::Hand;
use ambit_tls::authority::{Request, Root};
use ambit_tls::csr::KeyAndCsr;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::*;
use crate::{Issued, Issuer};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Slow,
    Failing,
    Silent,
    OtherIdentity,
    OtherKey,
    AlreadyOver,
    OtherBundle,
}

/// An authority in memory, whose mood a test changes.
struct Authority {
    root: Root,
    clock: Clock,
    mood: Mutex<Mood>,
    life: Mutex<Duration>,
    calls: AtomicU64,
    live: AtomicUsize,
    most_live: AtomicUsize,
}

struct Local(Arc<Authority>);

impl Issuer for Local {
    async fn issue(&self, subject: &Subject) -> Result<Issued, IssueError> {
        let (authority, identity) = (&self.0, &subject.identity);
        authority.calls.fetch_add(1, Relaxed);
        let live = authority.live.fetch_add(1, Relaxed) + 1;
        authority.most_live.fetch_max(live, Relaxed);
        let mood = *authority.mood.lock();
        let outcome = match mood {
            Mood::Failing => Err(IssueError::Unavailable(Status::unavailable("down"))),
            Mood::Silent => std::future::pending().await,
            Mood::Slow => {
                sleep(SECOND).await;
                Ok(authority.sign(identity, HOUR))
            }
            Mood::Good => Ok(authority.sign(identity, *authority.life.lock())),
            Mood::OtherKey => authority.sign_for_another_key(identity),
            Mood::OtherIdentity => {
                Ok(authority.sign(&Identity::new("td", "x", "other").unwrap(), HOUR))
            }
            Mood::AlreadyOver => Ok(authority.sign(identity, Duration::ZERO)),
            Mood::OtherBundle => {
                let other = Root::generate("other", authority.clock.now(), 1000 * HOUR).unwrap();
                Ok(authority.sign_with(identity, HOUR, &other.certificate_pem()))
            }
        };
        authority.live.fetch_sub(1, Relaxed);
        outcome.map(Issued::Once)
    }
}

impl Authority {
    fn sign(&self, identity: &Identity, life: Duration) -> Arc<Svid> {
        self.sign_with(identity, life, &self.root.certificate_pem())
    }

    fn sign_with(&self, identity: &Identity, life: Duration, bundle: &str) -> Arc<Svid> {
        let KeyAndCsr { key, csr_pem } = KeyAndCsr::generate(identity).unwrap();
        let request = Request::from_pem(&csr_pem).unwrap();
        let mut chain = self
            .root
            .issue(&request, identity, self.clock.now(), life)
            .unwrap();
        *chain.last_mut().unwrap() = bundle.to_owned();
        Svid::from_chain(&key, &chain).unwrap()
    }

    fn sign_for_another_key(&self, identity: &Identity) -> Result<Arc<Svid>, IssueError> {
        let [ours, theirs] = [(); 2].map(|()| KeyAndCsr::generate(identity).unwrap());
        let request = Request::from_pem(&theirs.csr_pem).unwrap();
        let now = self.clock.now();
        let chain = self.root.issue(&request, identity, now, HOUR).unwrap();
        Svid::from_chain(&ours.key, &chain).map_err(IssueError::Answer)
    }

    fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    fn feel(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }
}

struct World {
    certificates: Certificates,
    authority: Arc<Authority>,
    hand: Hand,
}

impl World {
    fn new(mood: Mood) -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (clock, hand) = Clock::standing_at(start);
        let root = Root::generate("test", start, 1000 * HOUR).unwrap();
        let authority = Arc::new(Authority {
            root,
            clock: clock.clone(),
            mood: Mutex::new(mood),
            life: Mutex::new(HOUR),
            calls: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            most_live: AtomicUsize::new(0),
        });
        let (certificates, renewer) = Certificates::new(clock);
        tokio::spawn(renewer.run(Local(authority.clone())));
        Self {
            certificates,
            authority,
            hand,
        }
    }

    /// One whose authority gives certificates so long a life.
    fn living(mood: Mood, life: Duration) -> Self {
        let world = Self::new(mood);
        *world.authority.life.lock() = life;
        world
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
}

fn identity(name: &str) -> Identity {
    Identity::new("td", "shop", name).unwrap()
}

/// Lets both clocks go on by a long time, in larger steps.
async fn pass_long(world: &World, time: Duration) {
    for _ in 0..time.as_secs() / 5 {
        world.hand.advance(5 * SECOND);
        sleep(5 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_away_for_a_day_is_asked_rarely_and_found_again() {
    let world = World::living(Mood::Good, 24 * HOUR);
    let lease = world.certificates.lease(&identity("web")).unwrap();
    lease.get().await.unwrap();
    world.authority.feel(Mood::Failing);
    let began = world.authority.calls();
    // It is kept to its end, and none is made up after.
    pass_long(&world, 23 * HOUR).await;
    assert!(lease.current().is_some());
    let health = world.certificates.health();
    assert_eq!((health.valid, health.failing, health.missing), (1, 1, 0));
    assert_eq!(health.first_end, Some(lease.current().unwrap().not_after()));
    pass_long(&world, 5 * HOUR).await;
    assert!(lease.current().is_none());
    let health = world.certificates.health();
    assert_eq!((health.valid, health.failing, health.missing), (0, 1, 1));
    let registry = ambit_observe::metrics::Registry::default();
    world.certificates.register(&registry);
    let page = registry.render(ambit_observe::metrics::Format::Text);
    for line in [
        "ambit_certificates_valid 0\n",
        "ambit_certificates_missing 1\n",
        "ambit_certificates_failing 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    assert!(
        !page.contains("\nambit_certificates_first_end_timestamp_seconds "),
        "{page}"
    );
    // From the half of its life on every 75 to 150 seconds, and then every 8 to 15.
    let calls = world.authority.calls() - began;
    assert!((600..3000).contains(&calls), "{calls} in 28 hours");
    world.authority.feel(Mood::Good);
    pass_long(&world, 60 * SECOND).await;
    assert!(lease.current().is_some(), "it comes back by itself");
    let health = world.certificates.health();
    assert_eq!((health.valid, health.failing, health.missing), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_is_noticed_within_half_a_minute() {
    let world = World::new(Mood::Good);
    let lease = world.certificates.lease(&identity("web")).unwrap();
    let first = lease.get().await.unwrap();
    // Forward, beyond its end: none is used, and another is asked for.
    let ahead = world.authority.clock.now() + 10 * HOUR;
    world.hand.set(ahead);
    assert!(lease.current().is_none());
    world.pass(31 * SECOND).await;
    let second = lease.current().expect("one that is valid by the new time");
    assert!(second.not_after() > ahead && second.generation() != first.generation());
    // Back: renewed by the right time, though by the wrong one there was time.
    world.hand.set(ahead - 10 * HOUR);
    world.pass(31 * SECOND).await;
    let third = lease.current().unwrap();
    assert_ne!(third.generation(), second.generation());
    assert!(third.not_after() < ahead);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_wrong_at_the_start_leaves_nobody_without() {
    let world = World::new(Mood::Failing);
    let right = world.authority.clock.now();
    world.hand.set(right + 365 * 24 * HOUR);
    let lease = world.certificates.lease(&identity("web")).unwrap();
    assert!(lease.get().await.is_err());
    world.pass(60 * SECOND).await;
    world.hand.set(right);
    world.authority.feel(Mood::Good);
    world.pass(31 * SECOND).await;
    assert!(lease.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn two_callers_share_one_request() {
    let world = World::new(Mood::Slow);
    let web = identity("web");
    assert!(world.certificates.peek(&web).is_none());
    let (one, two) = tokio::join!(world.certificates.get(&web), world.certificates.get(&web));
    assert_eq!(one.unwrap().generation(), two.unwrap().generation());
    assert_eq!(world.authority.calls(), 1);
    assert_eq!(world.certificates.peek(&web).unwrap().identity(), &web);
}

#[tokio::test(start_paused = true)]
async fn renews_before_half_of_its_life_without_a_gap() {
    let world = World::new(Mood::Good);
    let lease = world.certificates.lease(&identity("web")).unwrap();
    let first = lease.get().await.unwrap().generation();
    world.pass(HOUR * 35 / 100).await;
    assert_eq!(lease.current().unwrap().generation(), first, "not yet");
    for _ in 0..20 {
        world.pass(HOUR / 100).await;
        assert!(lease.current().is_some());
    }
    assert_ne!(
        lease.current().unwrap().generation(),
        first,
        "renewed by 55 %"
    );
    assert_eq!(world.authority.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_serves_until_its_end_while_renewal_fails_and_then_there_is_none() {
    let world = World::new(Mood::Good);
    let lease = world.certificates.lease(&identity("web")).unwrap();
    let end = lease.get().await.unwrap().not_after();
    world.authority.feel(Mood::Failing);
    let left = end.duration_since(world.authority.clock.now()).unwrap();
    world.pass(left - SECOND).await;
    assert!(lease.current().is_some(), "valid to the last second");
    world.pass(SECOND).await;
    assert!(lease.current().is_none());
    assert!(world.certificates.peek(&identity("web")).is_none());
    world.pass(SECOND).await;
    let began = Instant::now();
    let error = lease.get().await.unwrap_err();
    assert!(
        matches!(error, CertificateError::Unavailable { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("down"), "{error}");
    assert!(began.elapsed() < SECOND, "the last error is told at once");
    world.authority.feel(Mood::Good);
    world.pass(16 * SECOND).await;
    assert!(lease.current().is_some(), "it comes back by itself");
}

#[tokio::test(start_paused = true)]
async fn a_refusing_authority_is_asked_ever_more_rarely() {
    let world = World::new(Mood::Failing);
    let lease = world.certificates.lease(&identity("web")).unwrap();
    assert!(lease.get().await.is_err());
    world.pass(60 * SECOND).await;
    let calls = world.authority.calls();
    assert!((7..=20).contains(&calls), "{calls} in a minute");
    let dump = world.certificates.dump();
    assert!(
        dump[0].state.starts_with("Unavailable: "),
        "{}",
        dump[0].state
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_no_peer_would_take_is_not_used() {
    for (mood, expected) in [
        (Mood::OtherIdentity, "with a certificate of"),
        (Mood::OtherKey, "unusable"),
        (Mood::AlreadyOver, "bundle: certificate has expired"),
        (Mood::OtherBundle, "not signed by the trust bundle"),
    ] {
        let world = World::new(mood);
        let error = world.certificates.get(&identity("web")).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(world.certificates.peek(&identity("web")).is_none());
        world.pass(60 * SECOND).await;
        let calls = world.authority.calls();
        assert!((7..=20).contains(&calls), "{mood:?}: {calls} in a minute");
        world.authority.feel(Mood::Good);
        world.pass(16 * SECOND).await;
        assert!(
            world.certificates.peek(&identity("web")).is_some(),
            "{mood:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_never_answers_ends_the_wait() {
    let world = World::new(Mood::Silent);
    let began = Instant::now();
    assert!(world.certificates.get(&identity("web")).await.is_err());
    assert!(began.elapsed() <= LONGEST_WAIT + SECOND);
    world.authority.feel(Mood::Good);
    world.pass(20 * SECOND).await;
    assert!(
        world.certificates.peek(&identity("web")).is_some(),
        "the stuck attempt was given up"
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_waited_for_comes_first_and_few_requests_run_at_once() {
    let world = World::new(Mood::Slow);
    let leases: Vec<_> = (0..100)
        .map(|n| {
            world
                .certificates
                .lease(&identity(&format!("pod-{n}")))
                .unwrap()
        })
        .collect();
    sleep(SECOND / 2).await;
    let began = Instant::now();
    world.certificates.get(&identity("urgent")).await.unwrap();
    assert!(began.elapsed() <= 2 * SECOND, "{:?}", began.elapsed());
    sleep(20 * SECOND).await;
    assert!(leases.iter().all(|lease| lease.current().is_some()));
    assert_eq!(world.authority.most_live.load(Relaxed), 8);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_forgotten_with_its_last_lease() {
    let world = World::new(Mood::Good);
    let web = identity("web");
    let first = world.certificates.lease(&web).unwrap();
    let second = first.clone();
    first.get().await.unwrap();
    drop(first);
    assert!(world.certificates.peek(&web).is_some());
    drop(second);
    assert!(world.certificates.peek(&web).is_none());
    world.certificates.get(&web).await.unwrap();
    world.certificates.release(&web);
    assert!(world.certificates.dump().is_empty());
    world.pass(HOUR).await;
    assert_eq!(
        world.authority.calls(),
        2,
        "what is forgotten is not renewed"
    );
}

#[tokio::test(start_paused = true)]
async fn there_is_a_limit_to_identities() {
    let world = World::new(Mood::Silent);
    let lease = |n| world.certificates.lease(&identity(&format!("pod-{n}")));
    let leases: Vec<_> = (0..MAX_IDENTITIES).map(|n| lease(n).unwrap()).collect();
    assert!(matches!(
        lease(MAX_IDENTITIES),
        Err(CertificateError::TooMany(..))
    ));
    drop(leases);
    assert!(lease(0).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_dump_has_istio_s_shape_and_no_key() {
    let world = World::new(Mood::Good);
    world.certificates.get(&identity("web")).await.unwrap();
    let dump = serde_json::to_value(world.certificates.dump()).unwrap();
    let entry = &dump[0];
    assert_eq!(entry["identity"], "spiffe://td/ns/shop/sa/web");
    assert_eq!(entry["state"], "Available");
    assert_eq!(entry["certChain"][0]["validFrom"], "2027-01-15T07:58:00Z");
    assert_eq!(
        entry["certChain"][0]["expirationTime"],
        "2027-01-15T09:00:00Z"
    );
    assert_eq!(entry["rootCerts"].as_array().unwrap().len(), 1);
    let text = dump.to_string();
    assert!(!text.contains("PRIVATE"));
    for part in ["certChain", "rootCerts"] {
        use base64::Engine;
        // istioctl reads it as a decimal number and times as RFC 3339, for roots, too.
        let serial = entry[part][0]["serialNumber"].as_str().unwrap();
        assert!(
            !serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_digit()),
            "{part} {serial}"
        );
        for end in ["validFrom", "expirationTime"] {
            let end = entry[part][0][end].as_str().unwrap();
            assert!(end.ends_with('Z'), "{part} {end}");
        }
        let pem = entry[part][0]["pem"].as_str().unwrap();
        let pem = base64::engine::general_purpose::STANDARD
            .decode(pem)
            .unwrap();
        assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"), "{part}");
    }
}
