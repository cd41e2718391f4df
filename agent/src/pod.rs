//! One pod of this node, from the first sight of it to the last.
//!
//! # Theory of operation
//! Each pod has a task. It knows the [`Wish`] (what the manifests say) and the [`Facts`] (what is in force), asks [`plan::next`] for the next
//! step, does it, and so on until nothing is left to do; then it waits for the wish to change, for somebody else to change
//! the namespace, or for the periodic look. A step that fails is tried again with growing waits; the error stands in the
//! report until it is gone.
//!
//! # Invariants
//! * The facts are found out at the start by looking at the kernel, so an agent that was killed goes on where it was: rules that
//!   are as they should be are not touched, and an announcement that is true is not withdrawn.
//! * A namespace is used only through [`PodNetns`], which proves that it is this pod's.

pub mod plan;
mod wish;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambit_net::netns::NetnsId;
use ambit_objects::status::{PodStatus, REDIRECTION, Writer};
use ambit_runtime::backoff::Backoff;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::drift::Drift;
use crate::namespace::{Claims, NamespaceError, PodNetns};
use crate::nftables::{Owner, State};
use crate::redirect::{self, Mode};
use crate::report::{Phase, Reports};
use crate::session::{Hub, NotServed};
use crate::sockets;
use plan::{Announced, Facts, InForce, Order, Step, Want};
pub use wish::{NETNS_ANNOTATION, Settings, Wish};

/// Between two looks at a namespace in which nothing was heard of: notices can be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The first and the longest wait after a failed step.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Between the first two glances at a leaving pod's sockets, and twice as long each time: a glance goes through all sockets of the
/// machine, and all pods of a namespace may leave at once.
const FIRST_GLANCE: Duration = Duration::from_millis(50);

/// What all pods share.
#[derive(Debug)]
pub struct Shared {
    /// The name of this node.
    pub node: String,
    /// Where the objects come from, by a path that does not change.
    pub source: PathBuf,
    /// How long others may take to hear that a pod is no longer announced.
    pub settle: Duration,
    /// How long redirected connections have to end, at the most, when a pod leaves.
    pub drain: Duration,
    /// Who holds which namespace.
    pub claims: Arc<Claims>,
    /// The node proxies.
    pub hub: Hub,
    /// Where announcements are written.
    pub writer: Writer,
    /// What people are shown.
    pub reports: Reports,
}

impl Shared {
    /// The owner of the rules that this agent makes for a pod.
    #[must_use]
    pub fn owner(&self, uid: &str) -> Owner {
        Owner::new(&self.node, &self.source, uid)
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("the rules could not be changed: {0}")]
    Rules(#[source] io::Error),
    #[error(transparent)]
    Proxy(#[from] NotServed),
    #[error("the status could not be written: {0}")]
    Status(#[source] io::Error),
}

/// Starts the task of one pod. `looked` hears when the first look is done; until then a node proxy must not be told that
/// it knows all pods.
pub fn start(
    shared: Arc<Shared>,
    wishes: watch::Receiver<Wish>,
    looked: oneshot::Sender<()>,
) -> tokio::task::JoinHandle<()> {
    let wish = wishes.borrow().clone();
    let order = if wish.want == Want::In {
        Order::RulesFirst
    } else {
        Order::ProxyFirst
    };
    let pod = Pod {
        shared,
        wishes,
        wish,
        order,
        facts: Facts::default(),
        netns: None,
        drift: None,
        complaint: None,
        backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
    };
    tokio::spawn(pod.run(looked))
}

struct Pod {
    shared: Arc<Shared>,
    wishes: watch::Receiver<Wish>,
    wish: Wish,
    order: Order,
    facts: Facts,
    netns: Option<Arc<PodNetns>>,
    drift: Option<Drift>,
    /// The error that was last written to the log.
    complaint: Option<String>,
    backoff: Backoff,
}

impl Pod {
    async fn run(mut self, looked: oneshot::Sender<()>) {
        self.first_look().await;
        // The reconciler may have stopped to wait for it.
        let _ = looked.send(());
        loop {
            self.heed();
            let step = plan::next(&self.facts, self.wish.want, self.order);
            if step == Step::Rest {
                self.rested();
                if self.wish.want == Want::Gone {
                    self.shared.reports.remove(&self.wish.uid);
                    return;
                }
                self.rest().await;
                continue;
            }
            self.shared.reports.phase(&self.wish.uid, phase(step));
            match self.perform(step).await {
                Ok(done) => self.done(step, done),
                Err(error) => self.failed(step, &error).await,
            }
        }
    }

    /// Takes the newest wish, and drops a namespace that the pod no longer has.
    fn heed(&mut self) {
        let wish = self.wishes.borrow_and_update().clone();
        if wish.want == Want::In && wish != self.wish {
            self.backoff.reset();
        }
        self.wish = wish;
        self.shared.reports.wish(&self.wish, &self.facts);
    }

    /// Finds out what an earlier agent left.
    async fn first_look(&mut self) {
        let wish = self.wish.clone();
        if wish.want == Want::In {
            self.shared.hub.expect(&wish.uid, &wish.identity);
        }
        self.shared.reports.wish(&wish, &self.facts);
        if wish.netns.is_none() {
            return;
        }
        match self.namespace().await {
            Ok(netns) => {
                let found = inside(&netns, |netns| redirect::owner(netns.netns())).await;
                if matches!(found, Ok(Some(_))) {
                    self.found_rules(netns).await;
                }
            }
            Err(error) if wish.want == Want::In => {
                tracing::warn!(pod = %wish.name, %error, "the pod cannot be enrolled");
                self.shared.reports.failed(&wish.uid, &error.to_string());
            }
            Err(error) => tracing::debug!(pod = %wish.name, %error, "not looked into"),
        }
        if self.facts.rules == InForce::Nothing {
            // An announcement without rules is not true.
            if wish.announced != Announced::Nothing
                && let Err(error) = self.shared.writer.remove(&wish.name)
            {
                tracing::warn!(pod = %wish.name, %error, "a stale status could not be removed");
            }
            if wish.want != Want::In {
                self.forget_namespace();
            }
        }
    }

    async fn found_rules(&mut self, netns: Arc<PodNetns>) {
        self.facts.rules = InForce::Capture;
        self.facts.drained = false;
        self.facts.announced = self.wish.announced;
        self.facts.settled = self.wish.announced != Announced::Enabled;
        // A proxy may serve it still; until the pod has left it must not be told to drop it.
        self.facts.served = self.wish.want != Want::In;
        self.shared
            .hub
            .put(&self.wish.uid, &self.wish.identity, &netns);
        self.mend().await;
    }

    async fn perform(&mut self, step: Step) -> Result<bool, StepError> {
        match step {
            Step::Rest => {}
            Step::Capture => self.install(Mode::Capture).await?,
            Step::Drain => self.install(Mode::Drain).await?,
            Step::Serve => return self.serve().await,
            Step::Announce => self.announce("enabled")?,
            Step::Withdraw => {
                self.shared
                    .writer
                    .remove(&self.wish.name)
                    .map_err(StepError::Status)?;
            }
            Step::Settle => {
                let settled = sleep(self.shared.settle);
                return Ok(self.unless_wanted(settled).await);
            }
            Step::WaitForEnd => {
                let ended = connections_ended(self.netns.clone(), self.shared.drain);
                return Ok(self.unless_wanted(ended).await);
            }
            Step::Release => self.shared.hub.release(&self.wish.uid).await,
            Step::Remove => self.remove().await?,
        }
        Ok(true)
    }

    fn done(&mut self, step: Step, done: bool) {
        if !done {
            return;
        }
        self.backoff.reset();
        self.complaint = None;
        self.facts = self.facts.after(step);
        // From now on the pod is known to run; if it goes and comes again its connections must not fail.
        if step == Step::Remove {
            self.order = Order::ProxyFirst;
        }
        self.shared.reports.facts(&self.wish.uid, &self.facts);
        tracing::info!(pod = %self.wish.name, ?step, "done");
    }

    async fn failed(&mut self, step: Step, error: &StepError) {
        let wait = self.backoff.next(fastrand::u64(..));
        let text = error.to_string();
        self.shared.reports.failed(&self.wish.uid, &text);
        // Some errors stay until a person mends their cause: said once, not with every try.
        if self.complaint.as_ref() == Some(&text) {
            tracing::debug!(pod = %self.wish.name, ?step, %error, ?wait, "failed again");
        } else {
            tracing::warn!(pod = %self.wish.name, ?step, %error, "failed, and is tried until it works");
            self.complaint = Some(text);
        }
        if self.wish.want == Want::In && self.facts.announced == Announced::Nothing {
            // Only says that the agent is at it; nobody acts on it.
            match self.announce("pending") {
                Ok(()) => self.facts.announced = Announced::Pending,
                Err(error) => tracing::warn!(pod = %self.wish.name, %error, "not announced"),
            }
        }
        tokio::select! {
            () = sleep(wait) => {}
            _changed = self.wishes.changed() => {}
        }
    }

    async fn serve(&mut self) -> Result<bool, StepError> {
        let netns = self.namespace().await?;
        let hub = self.shared.hub.clone();
        tokio::select! {
            served = hub.serve(&self.wish.uid, &self.wish.identity, &netns) => served?,
            () = changed_from(&mut self.wishes, Want::In) => return Ok(false),
        }
        Ok(true)
    }

    fn announce(&self, value: &str) -> Result<(), StepError> {
        let uid = self.wish.kubernetes_uid.as_deref();
        let status = PodStatus::new(&self.wish.name, uid, &[(REDIRECTION, value)]);
        self.shared.writer.write(&status).map_err(StepError::Status)
    }

    async fn install(&mut self, mode: Mode) -> Result<(), StepError> {
        let netns = self.namespace().await?;
        let (options, owner) = (self.wish.options.clone(), self.owner());
        let done = inside(&netns, move |netns| {
            redirect::install(netns.netns(), mode, &options, &owner)
        });
        done.await.map_err(StepError::Rules)
    }

    async fn remove(&mut self) -> Result<(), StepError> {
        if let Some(netns) = self.netns.clone() {
            let done = inside(&netns, |netns| redirect::remove(netns.netns()));
            done.await.map_err(StepError::Rules)?;
        }
        self.forget_namespace();
        Ok(())
    }

    /// The pod's namespace, opened and proved the first time.
    async fn namespace(&mut self) -> Result<Arc<PodNetns>, NamespaceError> {
        if let Some(netns) = &self.netns {
            return Ok(Arc::clone(netns));
        }
        let missing = NamespaceError::NotNamed {
            annotation: NETNS_ANNOTATION,
        };
        let path = self.wish.netns.clone().ok_or(missing)?;
        let (claims, wish) = (Arc::clone(&self.shared.claims), self.wish.clone());
        let opened = blocking(move || {
            PodNetns::open(&claims, &wish.uid, &path, &wish.addresses).map_err(io::Error::other)
        });
        let netns = Arc::new(opened.await.map_err(refusal)?);
        match Drift::listen(netns.netns()) {
            Ok(drift) => self.drift = Some(drift),
            Err(error) => {
                tracing::warn!(pod = %self.wish.name, %error, "changes will be seen later");
            }
        }
        self.shared
            .reports
            .namespace(&self.wish.uid, Some(netns.id()));
        self.netns = Some(Arc::clone(&netns));
        Ok(netns)
    }

    fn forget_namespace(&mut self) {
        self.netns = None;
        self.drift = None;
        self.shared
            .reports
            .namespace(&self.wish.uid, None::<NetnsId>);
    }

    fn owner(&self) -> Owner {
        self.shared.owner(&self.wish.uid)
    }

    fn rested(&self) {
        let phase = match (self.wish.want, self.facts.announced) {
            (Want::In, _) => Phase::Enrolled,
            (Want::Out | Want::Gone, _) => Phase::Out,
        };
        self.shared.reports.phase(&self.wish.uid, phase);
        self.shared.reports.recovered(&self.wish.uid);
    }

    /// Waits for something to do.
    async fn rest(&mut self) {
        let heard = async {
            match &self.drift {
                Some(drift) => drift.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.wishes.changed() => {
                if changed.is_err() {
                    // The reconciler is gone: the process ends.
                    return std::future::pending().await;
                }
                self.heed();
            }
            () = heard => {}
            () = sleep(LOOK_AGAIN) => {}
        }
        if self.wish.want == Want::In {
            self.check_namespace().await;
            self.mend().await;
            // The same text again is no writing; a status that somebody removed comes back.
            if self.facts.announced == Announced::Enabled
                && let Err(error) = self.announce("enabled")
            {
                tracing::warn!(pod = %self.wish.name, %error, "not announced");
            }
        }
    }

    /// A pod whose path names another namespace than before was made anew.
    async fn check_namespace(&mut self) {
        let (Some(netns), Some(path)) = (self.netns.clone(), self.wish.netns.clone()) else {
            return;
        };
        let same = inside(&netns, move |netns| Ok(netns.is_at(&path)))
            .await
            .unwrap_or(true);
        if same {
            return;
        }
        tracing::warn!(pod = %self.wish.name, "the network namespace of the pod is another one now");
        if let Err(error) = self.shared.writer.remove(&self.wish.name) {
            tracing::warn!(pod = %self.wish.name, %error, "the status could not be removed");
        }
        drop(netns);
        self.shared.hub.release(&self.wish.uid).await;
        self.forget_namespace();
        self.facts = Facts::default();
        self.order = Order::RulesFirst;
    }

    /// Puts back what somebody changed in the namespace.
    async fn mend(&mut self) {
        let Some(netns) = self.netns.clone() else {
            return;
        };
        if self.facts.rules != InForce::Capture || self.wish.want != Want::In {
            return;
        }
        let (options, owner) = (self.wish.options.clone(), self.owner());
        let found = inside(&netns, move |netns| {
            redirect::inspect(netns.netns(), Mode::Capture, &options, &owner)
        });
        let what = match found.await {
            Ok(State::Same) => return,
            Ok(State::Absent) => "the table is gone".to_owned(),
            Ok(State::Different(what)) => what,
            Err(error) => format!("cannot be looked at: {error}"),
        };
        match self.install(Mode::Capture).await {
            Ok(()) => {
                tracing::warn!(pod = %self.wish.name, what, "the rules were changed and are mended");
                self.shared.reports.mended(&self.wish.uid);
            }
            Err(error) => {
                tracing::warn!(pod = %self.wish.name, what, %error, "the rules could not be mended");
                self.shared
                    .reports
                    .failed(&self.wish.uid, &error.to_string());
            }
        }
    }

    /// Waits, unless something else is wanted meanwhile; false then.
    async fn unless_wanted(&mut self, waited: impl Future<Output = ()>) -> bool {
        let want = self.wish.want;
        tokio::select! {
            () = waited => true,
            () = changed_from(&mut self.wishes, want) => false,
        }
    }
}

/// Returns when something else than `want` is wanted. Cancel safe.
async fn changed_from(wishes: &mut watch::Receiver<Wish>, want: Want) {
    // An error means that nobody is left to wish anything.
    if wishes.wait_for(|wish| wish.want != want).await.is_err() {
        std::future::pending().await
    }
}

/// Returns when no connection of the pod is redirected any more, `most` from now at the latest.
async fn connections_ended(netns: Option<Arc<PodNetns>>, most: Duration) {
    let end = Instant::now() + most;
    let mut pause = FIRST_GLANCE;
    while let Some(netns) = &netns {
        match inside(netns, |netns| sockets::redirected(netns.netns())).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the pod's sockets cannot be seen"),
        }
        if Instant::now() + pause >= end {
            break;
        }
        sleep(pause).await;
        pause *= 2;
    }
    sleep_until(end).await;
}

const fn phase(step: Step) -> Phase {
    match step {
        Step::Rest => Phase::Out,
        Step::Capture | Step::Serve | Step::Announce => Phase::Enrolling,
        Step::Withdraw
        | Step::Settle
        | Step::Drain
        | Step::WaitForEnd
        | Step::Release
        | Step::Remove => Phase::Leaving,
    }
}

/// The refusal that travelled inside an I/O error.
fn refusal(error: io::Error) -> NamespaceError {
    match error.downcast::<NamespaceError>() {
        Ok(refusal) => refusal,
        Err(source) => NamespaceError::Unreadable {
            path: "/proc".into(),
            source,
        },
    }
}

/// Runs `work` on a thread that may block and enter namespaces.
async fn inside<T: Send + 'static>(
    netns: &Arc<PodNetns>,
    work: impl FnOnce(&PodNetns) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let netns = Arc::clone(netns);
    blocking(move || work(&netns)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
