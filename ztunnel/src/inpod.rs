//! The node agent: which pods of this node are served.
//!
//! # Theory of operation
//! The proxy dials the agent's socket, says hello, and from then on answers each message with
//! exactly one acknowledgement, in order. What a message means is decided by [`reconcile`]; doing
//! it is the business of [`Pods`]. A lost agent is dialled again, with backoff, and the pods go on
//! being served meanwhile.
//!
//! # Failure modes
//! A message that cannot be read, or breaks the conversation's rules, is answered with an error;
//! the conversation then ends and a new one starts from a snapshot.

pub mod reconcile;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_net::netns::Netns;
use ambit_net::seqpacket::SeqPacket;
use ambit_proto::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request, workload_response,
};
use ambit_runtime::backoff::Backoff;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::pods::{PodNetns, Pods};
use reconcile::{Action, Message, PodInfo, Reconcile, Wanted};

/// Largest message of the contract; a longer one is refused by the socket's own check.
const LARGEST: usize = 1024;
/// Room for an error in an acknowledgement, inside [`LARGEST`].
const ERROR_MOST: usize = 900;
/// Pods that could not be started are tried again this often, as by Istio's node proxy.
const RETRY: Duration = Duration::from_secs(5);
/// Pauses between conversations. The agent restarts within a second; a node without one should
/// not be asked often.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long the agent may take to take an answer.
const SEND: Duration = Duration::from_secs(5);

/// What the rest of the program may know of the conversation.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ready: AtomicBool,
    pending: Mutex<Vec<(String, PodInfo)>>,
}

impl Status {
    /// Whether the node's pods are served: see [`Reconcile::ready`].
    #[must_use]
    pub fn ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    /// Pods that are wanted and could not be started.
    #[must_use]
    pub fn pending(&self) -> Vec<(String, PodInfo)> {
        self.0.pending.lock().clone()
    }

    /// What a proxy for one workload says once that is served, for it has no agent.
    pub fn serves_its_only(&self) {
        self.0.ready.store(true, Ordering::Relaxed);
    }

    fn follow(&self, state: &Reconcile<PodNetns>) {
        self.0.ready.store(state.ready(), Ordering::Relaxed);
        let pending = state
            .pending()
            .map(|wanted| (wanted.uid.clone(), wanted.info.clone()));
        *self.0.pending.lock() = pending.collect();
    }
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// Environment: nobody listens at the socket.
    #[error("the agent cannot be reached at its socket: {0}")]
    Dial(#[source] ambit_net::Error),
    /// Peer: it went away.
    #[error("the agent closed the connection")]
    Closed,
    /// Peer or environment: the socket failed.
    #[error("the agent's connection failed: {0}")]
    Io(#[from] io::Error),
    /// Peer: its message cannot be read or may not come now.
    #[error("the agent's message is refused: {0}")]
    Refused(String),
}

/// Talks to the agent for ever.
#[derive(Debug)]
pub struct Session {
    state: Reconcile<PodNetns>,
    pods: Pods,
    status: Status,
}

impl Session {
    /// A proxy that has not met its agent.
    #[must_use]
    pub fn new(pods: Pods, status: Status) -> Self {
        Self {
            state: Reconcile::default(),
            pods,
            status,
        }
    }

    /// Talks to the agent at `socket` for ever. Dropping the future ends the conversation and
    /// leaves the pods as they are.
    pub async fn run(mut self, socket: &Path) -> Infallible {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut told = false;
        loop {
            let (ended, lasted) = self.conversation(socket).await;
            self.state.disconnected();
            self.status.follow(&self.state);
            if lasted {
                backoff.reset();
                told = false;
            }
            let pause = backoff.next(fastrand::u64(..));
            // One line for each time the agent is lost; the rest of the attempts are routine.
            if told {
                tracing::debug!(error = %ended, ?pause, "no agent");
            } else {
                tracing::warn!(error = %ended, ?pause, "no agent; will dial again");
            }
            told = true;
            tokio::time::sleep(pause).await;
        }
    }

    /// One conversation. True if a message of it was understood.
    async fn conversation(&mut self, socket: &Path) -> (Ended, bool) {
        let agent = match SeqPacket::connect(socket) {
            Ok(agent) => agent,
            Err(error) => return (Ended::Dial(error), false),
        };
        self.state.connected();
        self.status.follow(&self.state);
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        if let Err(error) = send(&agent, &hello.encode_to_vec()).await {
            return (error.into(), false);
        }
        tracing::info!(socket = %socket.display(), "connected to the agent");
        let mut understood = false;
        // One clock for the conversation: a busy agent must not put the next try off for ever.
        let mut retry = tokio::time::interval_at(Instant::now() + RETRY, RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(ended) = self.turn(&agent, &mut retry).await {
                return (ended, understood);
            }
            understood = true;
        }
    }

    /// Receives one message and answers it; meanwhile tries pending pods again.
    async fn turn(&mut self, agent: &SeqPacket, retry: &mut Interval) -> Result<(), Ended> {
        let mut buffer = [0; LARGEST];
        let (length, descriptors) = loop {
            tokio::select! {
                biased;
                _ = retry.tick() => self.retry().await,
                received = agent.recv(&mut buffer) => break received?,
            }
        };
        if length == 0 {
            return Err(Ended::Closed);
        }
        let bytes = buffer.get(..length).unwrap_or_default();
        let taken = match read(bytes, descriptors) {
            Ok(message) => self.take(message).await,
            Err(problem) => Err(Failed::Conversation(problem)),
        };
        match taken {
            Ok(()) => Ok(acknowledge(agent, "").await?),
            Err(Failed::Pod(problem)) => Ok(acknowledge(agent, &problem).await?),
            Err(Failed::Conversation(problem)) => {
                acknowledge(agent, &problem).await?;
                Err(Ended::Refused(problem))
            }
        }
    }

    async fn take(&mut self, message: Message<PodNetns>) -> Result<(), Failed> {
        let snapshot = matches!(message, Message::SnapshotSent);
        if let Message::Keep(uid) = &message
            && !self.state.runs(uid)
        {
            tracing::warn!(uid, "the agent keeps a pod that is not served here");
        }
        let actions = self
            .state
            .message(message)
            .map_err(|why| Failed::Conversation(why.to_string()))?;
        let mut problem = None;
        for action in actions {
            match action {
                Action::Stop(uid) => self.pods.stop(&uid),
                Action::Start(wanted) => problem = problem.or(self.start(wanted).await.err()),
            }
        }
        self.status.follow(&self.state);
        if snapshot {
            tracing::info!(
                pods = self.state.running(),
                ready = self.state.ready(),
                "snapshot received"
            );
        }
        self.count();
        problem.map_or(Ok(()), |problem| Err(Failed::Pod(problem)))
    }

    async fn start(&mut self, wanted: Wanted<PodNetns>) -> Result<(), String> {
        match self.pods.start(&wanted).await {
            Ok(()) => {
                self.state.started(wanted);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "a pod cannot be served yet");
                self.state.failed(wanted);
                Err(error.to_string())
            }
        }
    }

    async fn retry(&mut self) {
        for wanted in self.state.retries() {
            // Its failure was logged, and it stays pending.
            let _ = self.start(wanted).await;
        }
        self.status.follow(&self.state);
        self.count();
    }

    fn count(&self) {
        self.pods.count_pending(self.state.pending().count());
    }
}

/// How far a failure reaches.
enum Failed {
    /// This pod; the conversation goes on.
    Pod(String),
    /// The conversation.
    Conversation(String),
}

/// Reads one message with the descriptors that came with it.
fn read(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Message<PodNetns>, String> {
    let request = WorkloadRequest::decode(bytes).map_err(|error| error.to_string())?;
    let payload = request.payload.ok_or("empty message")?;
    let mut descriptors = descriptors.into_iter();
    let (first, second) = (descriptors.next(), descriptors.next());
    if second.is_some() {
        return Err("more than one descriptor".to_owned());
    }
    match (payload, first) {
        (workload_request::Payload::Add(add), Some(descriptor)) => {
            let info = add.workload_info.ok_or("add without workload info")?;
            let netns = Netns::from_fd(descriptor)
                .map_err(|_| "the descriptor is no network namespace".to_owned())?;
            Ok(Message::Add(Wanted {
                uid: add.uid,
                info: PodInfo {
                    name: info.name,
                    namespace: info.namespace,
                    service_account: info.service_account,
                },
                netns: PodNetns(Arc::new(netns)),
            }))
        }
        (workload_request::Payload::Add(_), None) => Err("add without a descriptor".to_owned()),
        (_, Some(_)) => Err("a descriptor that does not belong there".to_owned()),
        (workload_request::Payload::Keep(keep), None) => Ok(Message::Keep(keep.uid)),
        (workload_request::Payload::Del(del), None) => Ok(Message::Del(del.uid)),
        (workload_request::Payload::SnapshotSent(_), None) => Ok(Message::SnapshotSent),
    }
}

async fn acknowledge(agent: &SeqPacket, error: &str) -> io::Result<()> {
    let mut end = error.len().min(ERROR_MOST);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    let ack = Ack {
        error: error.get(..end).unwrap_or_default().to_owned(),
    };
    let response = WorkloadResponse {
        payload: Some(workload_response::Payload::Ack(ack)),
    };
    send(agent, &response.encode_to_vec()).await
}

async fn send(agent: &SeqPacket, message: &[u8]) -> io::Result<()> {
    match tokio::time::timeout(SEND, agent.send(message, None)).await {
        Ok(sent) => sent,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}
