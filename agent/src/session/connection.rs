//! The conversation with one node proxy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ambit_net::seqpacket::SeqPacket;
use ambit_proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_request, workload_response,
};
use prost::Message;
use tokio::time::{Instant, sleep, timeout};

use super::board::Next;
use super::{ANSWER, Hub, RETRY};

/// The longest message, in either direction: the buffer of the contract's other implementations.
const MESSAGE: usize = 1024;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the proxy closed the connection")]
    Closed,
    #[error("the proxy speaks another version ({0})")]
    Version(i32),
    #[error("the proxy may not connect (user {0})")]
    NotAllowed(u32),
    #[error("the proxy did not answer in time")]
    TooLate,
    #[error("the proxy spoke without being asked")]
    Unasked,
    #[error("the proxy's message cannot be read: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Talks with one proxy until it goes.
pub(super) async fn converse(hub: Hub, packet: SeqPacket) {
    let id = match greet(&packet).await {
        Ok(()) => hub.change(super::Board::connect),
        Err(why) => {
            tracing::warn!(%why, "a connection is not that of a node proxy");
            return;
        }
    };
    tracing::info!(proxy = id, "a node proxy is connected");
    let why = talk(&hub, &packet, id).await.err().unwrap_or(Ended::Closed);
    hub.change(|board| board.disconnect(id));
    tracing::warn!(proxy = id, %why, "a node proxy is gone");
}

async fn greet(packet: &SeqPacket) -> Result<(), Ended> {
    // Whoever connects here is given the pods' namespaces: root, or whoever runs this agent.
    let uid = packet.peer_uid().map_err(io::Error::from)?;
    if uid != 0 && uid != own_uid() {
        return Err(Ended::NotAllowed(uid));
    }
    let hello: ZdsHello = receive(packet).await?;
    match hello.version() {
        Version::V1 => Ok(()),
        Version::NotUsed => Err(Ended::Version(hello.version)),
    }
}

async fn talk(hub: &Hub, packet: &SeqPacket, id: u64) -> Result<(), Ended> {
    let mut changes = hub.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let next = hub.board.lock().next(id, Instant::now());
        if let Some(next) = next {
            let error = ask(packet, &next).await?;
            report(&next, &error);
            hub.change(|board| board.answered(id, &next, &error, Instant::now()));
            continue;
        }
        let mut byte = [0];
        tokio::select! {
            _changed = changes.changed() => {}
            () = sleep(RETRY) => {}
            received = packet.recv(&mut byte) => return match received {
                Ok((0, _)) => Err(Ended::Closed),
                _ => Err(Ended::Unasked),
            },
        }
    }
}

/// Sends one message and returns the error text of its answer, empty on success.
async fn ask(packet: &SeqPacket, next: &Next) -> Result<String, Ended> {
    let message = WorkloadRequest {
        payload: Some(payload(next)),
    }
    .encode_to_vec();
    if message.len() > MESSAGE {
        return Ok("the names of the pod are too long for the proxy".to_owned());
    }
    let descriptor: Option<BorrowedFd<'_>> = match next {
        Next::Add { netns, .. } => Some(netns.netns().as_fd()),
        Next::Keep { .. } | Next::Delete { .. } | Next::SnapshotSent => None,
    };
    timeout(ANSWER, packet.send(&message, descriptor))
        .await
        .map_err(|_| Ended::TooLate)??;
    let response: WorkloadResponse = receive(packet).await?;
    Ok(match response.payload {
        Some(workload_response::Payload::Ack(ack)) => ack.error,
        None => String::new(),
    })
}

async fn receive<T: Message + Default>(packet: &SeqPacket) -> Result<T, Ended> {
    let mut buffer = [0; MESSAGE];
    let received = timeout(ANSWER, packet.recv(&mut buffer)).await;
    let (length, descriptors) = received.map_err(|_| Ended::TooLate)??;
    drop(descriptors);
    if length == 0 {
        return Err(Ended::Closed);
    }
    Ok(T::decode(buffer.get(..length).unwrap_or_default())?)
}

fn payload(next: &Next) -> workload_request::Payload {
    use workload_request::Payload;
    match next {
        Next::Add { uid, identity, .. } => Payload::Add(AddWorkload {
            uid: uid.clone(),
            workload_info: Some(WorkloadInfo {
                name: identity.name.clone(),
                namespace: identity.namespace.clone(),
                service_account: identity.service_account.clone(),
            }),
        }),
        Next::Keep { uid } => Payload::Keep(KeepWorkload { uid: uid.clone() }),
        Next::Delete { uid } => Payload::Del(DelWorkload { uid: uid.clone() }),
        Next::SnapshotSent => Payload::SnapshotSent(SnapshotSent {}),
    }
}

fn report(next: &Next, error: &str) {
    match next {
        _ if !error.is_empty() => tracing::warn!(?next, error, "the node proxy refused"),
        Next::SnapshotSent => tracing::info!("the node proxy knows all pods"),
        Next::Add { .. } | Next::Keep { .. } | Next::Delete { .. } => {
            tracing::debug!(?next, "the node proxy accepted");
        }
    }
}

/// The user this process runs as: what the kernel says of a file that is this process.
fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid())
}
