//! Which accepted connections may begin their handshakes, and when.
//!
//! A handshake takes the thread as long as a hundred small messages do, and is the most that somebody can ask for whom nobody knows
//! yet. So no more than so many are in flight; and who wastes them, one after the other, has to wait between them.
//!
//! # Theory of operation
//! - A handshake in flight holds a place. One source may have half of all.
//! - A connection whose handshake was for nothing makes its source owe [`PACE`]: one that does not get through it, one that leaves
//!   at once without a stream, and one that has to be ended for misbehaviour. Time pays.
//! - A source that owes more than [`PATIENCE`] begins its handshakes one [`PACE`] after the other. Those that turn out well are given
//!   back, so that an honest client behind a misbehaving one's address gets through, and is as quick as ever when that has ended.
//! - What waits holds a socket and nothing else. Who finds no place waits too before it is refused: it would come again at once.
//!
//! # Invariants
//! - Memory: [`MOST_SOURCES`] sources that owe, beside those that hold places or wait.
//! - A connection is charged once at most.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ambit_model::reason::Reason;
use tokio::time::Instant;

/// TLS and HTTP/2 handshakes of accepted connections that may be in flight on one thread. Each
/// costs tens of KiB and some milliseconds of CPU; with more of them, all would time out.
const PLACES: u32 = 512;

/// Of those, one source address may have so many: who stands still in all of its own leaves places for
/// others. A gateway, behind whose address there are many, still has more than it needs at once.
const PLACES_OF_ONE: u32 = PLACES / 2;

/// Connections that may wait on one thread: a descriptor, a KiB of ours and some of the kernel's each.
const WAITING: u32 = 2048;

/// Of those, of one source.
const WAITING_OF_ONE: u32 = WAITING / 2;

/// Between two handshakes of a source that wastes them: at a millisecond each they take half a hundredth of the thread, too little
/// for the 99th percentile of anybody's requests.
const PACE: Duration = Duration::from_millis(200);

/// What may be owed before that: sixteen handshakes, as of clients that give up one after the other while certificates change.
const PATIENCE: Duration = Duration::from_millis(16 * 200);

/// Longest wait for a turn, half of what clients give a handshake. No more is owed than that, so whoever comes behind a thousand
/// wasted handshakes finds its turn too.
const LONGEST: Duration = Duration::from_secs(5);

/// Wait of who finds no place or no turn, before it is refused.
const FULL: Duration = Duration::from_secs(1);

/// Who leaves without a stream within this time has wasted a handshake. A client that keeps a tunnel for later, or for the policies
/// of the network alone, keeps it longer.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Sources that owe. Some hundred bytes each; who has more addresses is not told from many who have one.
const MOST_SOURCES: usize = 1024;

/// The handshakes of one thread.
#[derive(Debug, Default)]
pub struct Handshakes {
    running: Count,
    waiting: Count,
    debts: Debts,
}

impl Handshakes {
    /// A place for a handshake of `source`, after a wait if need be. Cancel safe.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when there is none for it, of all or of this source.
    pub async fn begin(self: &Rc<Self>, source: IpAddr) -> Result<Visit, Reason> {
        let has_place = || self.running.is_below(PLACES, source, PLACES_OF_ONE);
        let wait = match self.debts.of(source).checked_sub(PATIENCE) {
            Some(wait) => wait,
            None if has_place() => Duration::ZERO,
            None => FULL,
        };
        let in_turn = self.debts.of(source) > PATIENCE;
        // A turn that comes too late is none, and is kept for nobody.
        let too_late = wait + PACE > LONGEST;
        if !wait.is_zero() {
            if !self.waiting.is_below(WAITING, source, WAITING_OF_ONE) {
                return Err(Reason::Overloaded);
            }
            let _waiting = Counted::new(self, |of| &of.waiting, source);
            if in_turn && !too_late {
                self.debts.add(source);
            }
            tokio::time::sleep(if too_late { FULL } else { wait }).await;
        }
        if too_late || !has_place() {
            return Err(Reason::Overloaded);
        }
        Ok(Visit {
            place: RefCell::new(Some(Counted::new(self, |of| &of.running, source))),
            of: Rc::clone(self),
            source,
            since: Instant::now(),
            charged: Cell::new(in_turn),
            forgiven: Cell::new(false),
        })
    }
}

/// How many there are, and of which source.
#[derive(Debug, Default)]
struct Count {
    all: Cell<u32>,
    of: RefCell<HashMap<IpAddr, u32>>,
}

impl Count {
    fn is_below(&self, all: u32, source: IpAddr, of_one: u32) -> bool {
        let of_source = self.of.borrow().get(&source).copied().unwrap_or(0);
        self.all.get() < all && of_source < of_one
    }
}

/// One of them.
#[derive(Debug)]
struct Counted {
    of: Rc<Handshakes>,
    which: fn(&Handshakes) -> &Count,
    source: IpAddr,
}

impl Counted {
    fn new(of: &Rc<Handshakes>, which: fn(&Handshakes) -> &Count, source: IpAddr) -> Self {
        let count = which(of);
        count.all.set(count.all.get() + 1);
        *count.of.borrow_mut().entry(source).or_default() += 1;
        let of = Rc::clone(of);
        Self { of, which, source }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = (self.which)(&self.of);
        count.all.set(count.all.get().saturating_sub(1));
        if let Entry::Occupied(mut of) = count.of.borrow_mut().entry(self.source) {
            match of.get() {
                0 | 1 => {
                    of.remove();
                }
                _ => *of.get_mut() -= 1,
            }
        }
    }
}

/// What sources owe.
#[derive(Debug, Default)]
struct Debts(RefCell<HashMap<IpAddr, Debt>>);

#[derive(Debug)]
struct Debt {
    /// When all of it is paid.
    paid: Instant,
    /// Somebody was told, since it began.
    told: bool,
}

impl Debts {
    fn of(&self, source: IpAddr) -> Duration {
        let all = self.0.borrow();
        all.get(&source).map_or(Duration::ZERO, |debt| {
            debt.paid.saturating_duration_since(Instant::now())
        })
    }

    fn add(&self, source: IpAddr) {
        let mut all = self.0.borrow_mut();
        let now = Instant::now();
        if all.len() >= MOST_SOURCES && !all.contains_key(&source) {
            all.retain(|_, debt| debt.paid > now);
            if all.len() >= MOST_SOURCES {
                return;
            }
        }
        let debt = all.entry(source).or_insert(Debt {
            paid: now,
            told: false,
        });
        let before = debt.paid.saturating_duration_since(now);
        let owes = (before + PACE).min(PATIENCE + LONGEST);
        debt.paid = now + owes;
        debt.told &= !before.is_zero();
        if owes > PATIENCE && !std::mem::replace(&mut debt.told, true) {
            tracing::warn!(%source, "this source wastes handshakes: its next ones wait for one another");
        }
    }

    fn give_back(&self, source: IpAddr) {
        if let Some(debt) = self.0.borrow_mut().get_mut(&source) {
            debt.paid = debt.paid.checked_sub(PACE).unwrap_or(debt.paid);
        }
    }
}

/// A connection from its handshake on. Its source is charged for it, unless it is forgiven or lasts.
#[derive(Debug)]
pub struct Visit {
    /// Until the handshake is over.
    place: RefCell<Option<Counted>>,
    of: Rc<Handshakes>,
    source: IpAddr,
    since: Instant,
    charged: Cell<bool>,
    forgiven: Cell<bool>,
}

impl Visit {
    /// The handshake is over: its place is free.
    pub fn shook_hands(&self) {
        drop(self.place.take());
    }

    /// It was not for nothing, or that was our fault.
    pub fn forgive(&self) {
        if !self.forgiven.replace(true) && self.charged.replace(false) {
            self.of.debts.give_back(self.source);
        }
    }

    /// Its peer misbehaved.
    pub fn blame(&self) {
        self.forgiven.set(true); // so that it is charged once
        if !self.charged.replace(true) {
            self.of.debts.add(self.source);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let failed = self.place.get_mut().is_some();
        if !self.forgiven.get() && (failed || self.since.elapsed() < AT_ONCE) {
            self.blame();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::rc::Rc;

    use ambit_model::reason::Reason;
    use futures_util::FutureExt;
    use tokio::time::{Instant, advance};

    use super::{
        AT_ONCE, FULL, Handshakes, LONGEST, MOST_SOURCES, PACE, PATIENCE, PLACES, PLACES_OF_ONE,
        Visit, WAITING_OF_ONE,
    };

    fn address(last: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + last).to_be_bytes())
    }

    /// A place that is there at once.
    fn now(all: &Rc<Handshakes>, source: u32) -> Option<Visit> {
        all.begin(address(source)).now_or_never()?.ok()
    }

    fn taken(all: &Rc<Handshakes>, source: u32) -> Vec<Visit> {
        std::iter::from_fn(|| now(all, source)).collect()
    }

    fn waste(all: &Rc<Handshakes>, source: u32, times: usize) {
        for _ in 0..times {
            drop(now(all, source).unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_cannot_take_every_place() {
        let all = Rc::default();
        let first = taken(&all, 1);
        assert_eq!(first.len(), PLACES_OF_ONE as usize);
        let second = taken(&all, 2);
        assert_eq!(first.len() + second.len(), PLACES as usize);
        let begun = Instant::now();
        assert!(matches!(
            all.begin(address(3)).await,
            Err(Reason::Overloaded)
        ));
        assert!(begun.elapsed() >= FULL, "it waited before");
        for visit in first.iter().chain(&second) {
            visit.shook_hands();
            visit.forgive();
        }
        now(&all, 3).unwrap().forgive();
        drop((first, second));
        assert!(all.debts.0.borrow().is_empty(), "nobody owes anything");
        assert!(all.running.of.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_gets_the_next_that_is_free() {
        let all = Rc::default();
        let mut first = taken(&all, 1);
        let second = all.begin(address(1));
        let free = async {
            tokio::time::sleep(FULL / 2).await;
            first.pop().unwrap().forgive();
        };
        let (second, ()) = tokio::join!(second, free);
        second.unwrap().forgive();
    }

    #[tokio::test(start_paused = true)]
    async fn who_wastes_handshakes_waits_between_them() {
        let all = Rc::default();
        waste(&all, 1, 17);
        assert!(now(&all, 1).is_none());
        assert!(now(&all, 2).is_some(), "others do not");
        // However many come, they begin one after the other.
        let begun = Instant::now();
        let mut ends = Vec::new();
        for visit in futures_util::future::join_all((0..10).map(|_| all.begin(address(1)))).await {
            drop(visit.unwrap());
            ends.push(begun.elapsed());
        }
        assert!(begun.elapsed() >= PACE * 9 && begun.elapsed() <= PACE * 11);
        // And time pays.
        advance(PATIENCE + PACE * 12).await;
        assert!(now(&all, 1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_turns_out_well_costs_nothing() {
        let all = Rc::default();
        waste(&all, 1, 17);
        for _ in 0..100 {
            let visit = all.begin(address(1)).await.unwrap();
            visit.shook_hands();
            visit.forgive();
        }
        advance(PATIENCE + PACE * 2).await;
        assert!(all.debts.of(address(1)).is_zero());
        // Unless its peer misbehaves after that: once.
        for _ in 0..17 {
            let visit = now(&all, 1).unwrap();
            visit.shook_hands();
            visit.forgive();
            visit.blame();
        }
        assert!(now(&all, 1).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn leaving_late_is_no_waste() {
        let all = Rc::default();
        for late in [false, true] {
            let visits: Vec<Visit> = (0..40).map(|_| now(&all, 1).unwrap()).collect();
            for visit in &visits {
                visit.shook_hands();
            }
            if late {
                advance(AT_ONCE).await;
            }
            drop(visits);
            assert_eq!(now(&all, 1).is_some(), late);
            advance(PATIENCE * 3).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_too_late_is_none_and_few_wait() {
        let all = Rc::<Handshakes>::default();
        waste(&all, 1, 17);
        let begun = Instant::now();
        let many = WAITING_OF_ONE as usize + 5;
        let came = futures_util::future::join_all((0..many).map(|_| {
            let visit = all.begin(address(1));
            async {
                let let_in = visit.await.map(|visit| visit.forgive()).is_ok();
                (let_in, begun.elapsed())
            }
        }))
        .await;
        let refused_at_once = came.iter().filter(|(_, after)| after.is_zero()).count();
        assert_eq!(refused_at_once, 5);
        let let_in: Vec<_> = came.iter().filter(|(let_in, _)| *let_in).collect();
        let turns = usize::try_from(LONGEST.as_millis() / PACE.as_millis()).unwrap();
        assert!((turns - 1..=turns).contains(&let_in.len()));
        assert!(let_in.iter().all(|(_, after)| *after <= LONGEST));
        assert_eq!(all.waiting.all.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_wasted_handshakes_are_forgotten_soon() {
        let all = Rc::<Handshakes>::default();
        let visits: Vec<Visit> = (0..PLACES_OF_ONE).map(|_| now(&all, 1).unwrap()).collect();
        drop(visits);
        advance(PACE * 2).await;
        all.begin(address(1)).await.unwrap().forgive();
        advance(PATIENCE + LONGEST).await;
        assert_eq!(taken(&all, 1).len(), PLACES_OF_ONE as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_makes_room_by_itself() {
        let all = Rc::<Handshakes>::default();
        for source in 0..5000 {
            waste(&all, source, 2);
        }
        assert!(all.debts.0.borrow().len() <= MOST_SOURCES);
        advance(PATIENCE).await;
        waste(&all, 9999, 1);
        assert!(all.debts.0.borrow().len() == 1);
    }
}
