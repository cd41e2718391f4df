//! One plaintext connection that arrives for a pod.
//!
//! 1. Where was it going: the destination before redirection.
//! 2. The pod's own record.
//! 3. Decide on one view: [`admit::admit`] with nobody as the peer, which gives an `Admitted`.
//! 4. Connect to the application, from the client's address.
//! 5. Relay, raced with whatever forbids it later.
//! 6. Record one reason.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ambit_model::admit::{self, Admitted, Arrival, Asked, Inbound};
use ambit_model::reason::Reason;
use ambit_model::workload::Workload;
use ambit_net::original_dst::{canonical, original_destination};
use ambit_observe::access::Direction;
use ambit_relay::Closed;
use ambit_relay::tcp::{self, Bulk};
use futures_util::FutureExt;
use tokio::net::TcpStream;

use crate::busy::Work;
use crate::carry::{self, Beginning, Carry, Relay, unless_ended};
use crate::dial;
use crate::inbound::{service, unresolved};
use crate::live::{Decided, Guard};
use crate::outbound::{new_trace, refuse};
use crate::pod::ServedPod;
use crate::record::{Outcome, Record};

/// Carries one connection from accept to close.
pub fn serve(
    pod: Rc<ServedPod>,
    client: TcpStream,
    peer: SocketAddr,
    work: Work,
) -> impl Future<Output = ()> {
    let record = Record::new(&pod.worker.telemetry, Direction::Inbound, canonical(peer));
    carry::serve(work, begun(pod, client, Box::new(record)))
}

/// The beginning, with the end of what it refuses.
async fn begun(pod: Rc<ServedPod>, client: TcpStream, mut record: Box<Record>) -> Beginning<Begun> {
    let begun = match begin(&pod, &client, &mut record).await {
        Ok((guard, application)) => Ok(Begun {
            client,
            bulk: pod.worker.shared.settings.bulk(),
            guard,
            application,
        }),
        Err(outcome) => {
            refuse(&client);
            Err(outcome)
        }
    };
    (record, begun)
}

/// A connection and the application that it leads to.
struct Begun {
    client: TcpStream,
    bulk: Bulk,
    guard: Guard,
    application: TcpStream,
}

impl Carry for Begun {
    fn carry(self, record: &Record) -> Relay<'_> {
        let ends = (tcp::split(self.client), tcp::split(self.application));
        let outcome = |closed: Closed| Outcome::of(&closed, Direction::Inbound);
        let relayed = tcp::relay(ends.0, ends.1, self.bulk, record).map(outcome);
        Box::pin(unless_ended(self.guard, relayed))
    }
}

/// The steps up to the connected application, in order.
async fn begin(
    pod: &ServedPod,
    client: &TcpStream,
    record: &mut Record,
) -> Result<(Guard, TcpStream), Outcome> {
    let destination =
        original_destination(client).map_err(|error| Outcome::because(Reason::Io, error))?;
    record.destination_address = Some(destination);
    record.trace = Some(new_trace());
    let local = pod.workload(destination.ip()).await;
    let local = local.ok_or(Reason::UnknownDestination)?;
    let mut decided = decide(pod, &local, destination, record);
    if unresolved(&decided) && Box::pin(pod.policies_known()).await {
        decided = decide(pod, &local, destination, record);
    }
    record.open();
    let admitted = decided?;
    let guard = pod.register(
        Decided::Inbound(admitted.clone()),
        record.source_address,
        None,
    );
    let application = tokio::select! {
        biased;
        refusal = guard.ended() => return Err(refusal.into()),
        dialled = dial::application(pod, &admitted) => dialled?,
    };
    Ok((guard, application))
}

/// Asks whether the connection may come in, and learns for the record who its ends are.
fn decide(
    pod: &ServedPod,
    local: &Arc<Workload>,
    destination: SocketAddr,
    record: &mut Record,
) -> Result<Admitted, Outcome> {
    let shared = &pod.worker.shared;
    let peer = record.source_address;
    let inbound = Inbound {
        local: &local.uid,
        connection: destination,
        peer_address: peer,
        arrival: Arrival::Plaintext,
    };
    shared.store.read(|view| {
        record.source.workload = view
            .workload_at(&shared.settings.network, peer.ip())
            .cloned();
        record.destination.workload = Some(Arc::clone(local));
        record.service = service(view, local, None, destination.port());
        let told = |asked: &Asked<'_, '_>| pod.tell(asked);
        admit::admit_told(view, &inbound, told).map_err(Outcome::from)
    })
}
