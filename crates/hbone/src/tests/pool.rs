//! The pool: sharing, joining, bounds, closing, idling.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use ambit_tls::Peer;
use http::HeaderMap;
use proptest::prelude::*;
use smallvec::smallvec;
use tokio::time::Instant;

use super::{ends, paused, request};
use crate::client::{Opened, Place, Tunnel};
use crate::pool::{CheckoutError, Key, Limits, Pool};
use crate::{OpenError, Settings, Stream};

/// A destination that accepts everything, and counts.
struct Destination {
    peer: Peer,
    dials: Cell<u32>,
    delay: Cell<Duration>,
    failures: RefCell<VecDeque<&'static str>>,
    /// Streams as the far end has them, so that they stay open.
    far: Rc<RefCell<Vec<Stream>>>,
    settings: Settings,
}

impl Destination {
    fn new(peer: Peer) -> Rc<Self> {
        Self::with(peer, Settings::default())
    }

    fn with(peer: Peer, settings: Settings) -> Rc<Self> {
        Rc::new(Self {
            peer,
            dials: Cell::new(0),
            delay: Cell::new(Duration::from_millis(10)),
            failures: RefCell::default(),
            far: Rc::default(),
            settings,
        })
    }

    async fn dial(self: Rc<Self>) -> Result<Tunnel, &'static str> {
        self.dials.set(self.dials.get() + 1);
        tokio::time::sleep(self.delay.get()).await;
        if let Some(failure) = self.failures.borrow_mut().pop_front() {
            return Err(failure);
        }
        let (tunnel, mut incoming) = ends(&self.peer, &self.settings, 64 * 1024).await;
        let far = Rc::clone(&self.far);
        tokio::task::spawn_local(async move {
            while let Some(exchange) = incoming.next().await {
                far.borrow_mut()
                    .push(exchange.unwrap().accept(HeaderMap::new()).unwrap());
            }
        });
        Ok(tunnel)
    }
}

fn key(generation: u64) -> Key {
    Key {
        source: "web-1".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
        generation,
        destination: "cart-1".into(),
        next_hop: "10.0.0.2:15008".parse().unwrap(),
        expected: smallvec!["spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()],
    }
}

type Checked = Result<Place, CheckoutError<&'static str>>;

async fn place(pool: &Pool<&'static str>, generation: u64, to: &Rc<Destination>) -> Checked {
    pool.checkout(&key(generation), || Rc::clone(to).dial())
        .await
}

async fn open(pool: &Pool<&'static str>, generation: u64, to: &Rc<Destination>) -> Opened {
    place(pool, generation, to)
        .await
        .unwrap()
        .open(request())
        .await
        .unwrap()
}

fn streams(pool: &Pool<&'static str>) -> Vec<u32> {
    pool.contents()
        .into_iter()
        .flat_map(|contents| contents.streams)
        .collect()
}

#[test]
fn a_forsaken_key_carries_nothing_new_and_keeps_what_lives() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let held = open(&pool, 1, &to).await;
        drop(open(&pool, 2, &to).await);
        pool.forsake(|_| true);
        assert_eq!(streams(&pool), [1], "the idle tunnel is gone at once");
        // Its peer lives, so what it carries goes on; a new stream gets a new tunnel.
        tokio::time::sleep(Duration::from_secs(60)).await;
        pool.forsake(|_| false);
        assert_eq!(streams(&pool), [1]);
        let other = open(&pool, 1, &to).await;
        assert_eq!(to.dials.get(), 3);
        drop((held, other));
    });
}

#[test]
fn streams_of_one_key_share_a_tunnel_and_keys_do_not() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let first = open(&pool, 1, &to).await;
        let second = open(&pool, 1, &to).await;
        assert_eq!((to.dials.get(), streams(&pool)), (1, vec![2]));
        let other = open(&pool, 2, &to).await;
        assert_eq!(to.dials.get(), 2);
        drop((first, second, other));
        assert_eq!(streams(&pool), [0, 0]);
    });
}

#[test]
fn a_burst_joins_one_dial() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let burst = (0..100).map(|_| place(&pool, 1, &to));
        let places = futures_util::future::join_all(burst).await;
        assert!(places.iter().all(Result::is_ok));
        assert_eq!((to.dials.get(), streams(&pool)), (1, vec![100]));
    });
}

#[test]
fn a_burst_beyond_one_tunnel_dials_as_many_as_it_needs_at_once() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let started = Instant::now();
        let burst = (0..450).map(|_| place(&pool, 1, &to));
        let places = futures_util::future::join_all(burst).await;
        assert!(places.iter().all(Result::is_ok));
        assert_eq!(to.dials.get(), 5);
        assert_eq!(streams(&pool).iter().sum::<u32>(), 450);
        assert!(streams(&pool).into_iter().all(|streams| streams <= 100));
        assert!(
            started.elapsed() < Duration::from_millis(20),
            "dials wait for one another"
        );
    });
}

#[test]
fn a_full_tunnel_is_used_again_when_a_stream_ends() {
    paused(async |peer| {
        let limits = Limits {
            streams: 2,
            ..Limits::default()
        };
        let (pool, to) = (Pool::new(limits), Destination::new(peer));
        let first = open(&pool, 1, &to).await;
        let _second = open(&pool, 1, &to).await;
        let _third = open(&pool, 1, &to).await;
        assert_eq!((to.dials.get(), streams(&pool)), (2, vec![2, 1]));
        drop(first);
        let _fourth = open(&pool, 1, &to).await;
        assert_eq!((to.dials.get(), streams(&pool)), (2, vec![2, 1]));
    });
}

#[test]
fn a_peer_that_allows_fewer_streams_gets_fewer() {
    paused(async |peer| {
        let settings = Settings {
            max_streams: 3,
            ..Settings::default()
        };
        let (pool, to) = (
            Pool::new(Limits::default()),
            Destination::with(peer, settings),
        );
        let mut opened = vec![open(&pool, 1, &to).await]; // its SETTINGS are here now
        for _ in 0..4 {
            opened.push(open(&pool, 1, &to).await);
        }
        assert_eq!((to.dials.get(), streams(&pool)), (2, vec![3, 2]));
    });
}

#[test]
fn a_failed_dial_tells_every_waiter_and_the_next_one_dials_anew() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        to.failures.borrow_mut().push_back("refused");
        let burst = (0..50).map(|_| place(&pool, 1, &to));
        for result in futures_util::future::join_all(burst).await {
            assert!(
                matches!(result, Err(CheckoutError::Dial("refused"))),
                "{result:?}"
            );
        }
        assert_eq!(to.dials.get(), 1);
        assert!(
            pool.contents().is_empty(),
            "a failed key leaves nothing behind"
        );
        open(&pool, 1, &to).await;
        assert_eq!(to.dials.get(), 2);
    });
}

#[test]
fn a_dialler_that_goes_away_takes_nobody_with_it() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        to.delay.set(Duration::from_secs(1));
        let soon = Duration::from_millis(10);
        let (dialler, waiter) = tokio::join!(
            tokio::time::timeout(soon, place(&pool, 1, &to)),
            place(&pool, 1, &to)
        );
        assert!(dialler.is_err());
        waiter.unwrap().open(request()).await.unwrap();
        assert_eq!((to.dials.get(), streams(&pool)), (1, vec![0]));
    });
}

#[test]
fn a_dial_that_nobody_waits_for_any_more_is_given_up_soon() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        to.delay.set(Duration::from_secs(10));
        let gone = Duration::from_millis(100);
        let dials = || {
            pool.contents()
                .iter()
                .map(|contents| contents.dials)
                .sum::<usize>()
        };
        for waiters in [1, 3] {
            let burst = (0..waiters).map(|_| place(&pool, 1, &to));
            let all = futures_util::future::join_all(burst);
            assert!(tokio::time::timeout(gone, all).await.is_err());
            assert_eq!(dials(), 1);
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(dials(), 0);
        }
        // Whoever comes back soon keeps it alive.
        assert!(
            tokio::time::timeout(gone, place(&pool, 1, &to))
                .await
                .is_err()
        );
        let before = to.dials.get();
        place(&pool, 1, &to).await.unwrap();
        assert_eq!(to.dials.get(), before);
    });
}

#[test]
fn waiters_and_tunnels_are_bounded() {
    paused(async |peer| {
        let limits = Limits {
            streams: 1,
            tunnels: 4,
            waiting: 3,
            ..Limits::default()
        };
        let (pool, to) = (Pool::new(limits), Destination::new(peer));
        let burst = (0..10).map(|_| place(&pool, 1, &to));
        let places = futures_util::future::join_all(burst).await;
        let refused = places
            .iter()
            .filter(|it| matches!(it, Err(CheckoutError::Overloaded)))
            .count();
        assert_eq!((to.dials.get(), refused), (3, 7));
        let _fourth = place(&pool, 1, &to).await.unwrap();
        assert!(matches!(
            place(&pool, 1, &to).await,
            Err(CheckoutError::Overloaded)
        ));
    });
}

#[test]
fn an_idle_tunnel_is_let_go_and_a_used_one_is_kept() {
    paused(async |peer| {
        let limits = Limits {
            idle: Duration::from_secs(60),
            ..Limits::default()
        };
        let (pool, to) = (Pool::new(limits), Destination::new(peer));
        tokio::task::spawn_local(pool.sweeper());
        let _used = open(&pool, 1, &to).await;
        let idle = place(&pool, 2, &to).await.unwrap();
        let tunnel = idle.tunnel().clone();
        drop(idle);
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(streams(&pool).len(), 2);
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(streams(&pool), [1]);
        assert!(tunnel.is_ready(), "a handle outside the pool keeps it");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(streams(&pool), [1]);
    });
}

#[test]
fn retired_tunnels_take_no_new_streams_and_keep_old_ones() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let old = open(&pool, 1, &to).await;
        pool.retire(|key| key.generation == 1);
        let _new = open(&pool, 1, &to).await;
        assert_eq!((to.dials.get(), streams(&pool)), (2, vec![1, 1]));
        drop(old);
        pool.sweep(Instant::now());
        assert_eq!(streams(&pool), [1]);
    });
}

#[test]
fn closing_a_key_ends_its_tunnels_and_its_dials() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let gone = place(&pool, 1, &to).await.unwrap();
        let kept = place(&pool, 2, &to).await.unwrap();
        let (waited, ()) = tokio::join!(place(&pool, 3, &to), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            pool.close("workload is gone", |key| key.generation != 2);
        });
        assert!(matches!(waited, Err(CheckoutError::Closed)));
        assert!(matches!(
            gone.open(request()).await,
            Err(OpenError::Tunnel(_))
        ));
        kept.open(request()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            pool.contents().len(),
            1,
            "the dial in flight came back after all"
        );
    });
}

#[test]
fn tunnels_end_by_their_peer_with_their_streams_and_are_replaced() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer.clone()));
        let live = open(&pool, 1, &to).await;
        drop(open(&pool, 2, &to).await);
        assert_eq!(pool.end("revoked", |found| *found != peer), 0);
        assert_eq!(pool.end("revoked", |found| *found == peer), 2);
        let (mut source, _sink) = live.stream.split();
        assert!(super::read(&mut source).await.is_err());
        assert_eq!(pool.end("revoked", |found| *found == peer), 0, "once each");
        drop(open(&pool, 1, &to).await);
        assert_eq!(to.dials.get(), 3);
    });
}

#[test]
fn a_tunnel_that_broke_is_replaced() {
    paused(async |peer| {
        let (pool, to) = (Pool::new(Limits::default()), Destination::new(peer));
        let first = place(&pool, 1, &to).await.unwrap();
        first.tunnel().abort("broke");
        open(&pool, 1, &to).await;
        assert_eq!(to.dials.get(), 2);
    });
}

/// What a user of the pool can do.
#[derive(Debug, Clone)]
enum Step {
    Take(u8),
    Give(u8),
    Fail,
    Retire,
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40u8).prop_map(Step::Take),
        3 => (1..40u8).prop_map(Step::Give),
        1 => Just(Step::Fail),
        1 => Just(Step::Retire),
        1 => (1..120u8).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Places handed out and places counted are the same at every moment, no tunnel has more than
    /// its limit, and in the end nothing is left.
    #[test]
    fn places_are_neither_lost_nor_made_up(steps in prop::collection::vec(step(), 1..25)) {
        paused(async |peer| {
            let limits =
                Limits { streams: 8, tunnels: 16, waiting: 64, idle: Duration::from_secs(60) };
            let (pool, to) = (Pool::new(limits), Destination::new(peer));
            let mut held = Vec::new();
            for step in steps {
                match step {
                    Step::Take(count) => {
                        let burst = (0..count).map(|_| place(&pool, 1, &to));
                        let taken = futures_util::future::join_all(burst).await;
                        held.extend(taken.into_iter().flatten());
                    }
                    Step::Give(count) => held.truncate(held.len().saturating_sub(count.into())),
                    Step::Fail => to.failures.borrow_mut().push_back("no"),
                    Step::Retire => pool.retire(|_| true),
                    Step::Wait(seconds) => {
                        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                        pool.sweep(Instant::now());
                    }
                }
                let counted = streams(&pool);
                assert_eq!(counted.iter().sum::<u32>() as usize, held.len());
                assert!(counted.iter().all(|streams| *streams <= 8), "{counted:?}");
                assert!(counted.len() <= 16);
            }
            drop(held);
            tokio::time::sleep(Duration::from_secs(61)).await;
            pool.sweep(Instant::now());
            pool.sweep(Instant::now() + Duration::from_secs(61));
            assert!(pool.contents().is_empty());
        });
    }
}
