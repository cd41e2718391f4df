//! One connection's telemetry: its counters and its one access-log record.
//!
//! # Invariants
//! - Every connection that was accepted ends in exactly one record, with exactly one reason, also
//!   when its task is dropped.
//! - `opened` is counted at most once and before `closed`; whatever ends with a flag is counted as
//!   `failed` too.

use std::cell::Cell;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ambit_model::admit::Refusal;
use ambit_model::identity::Identity;
use ambit_model::reason::{NO_FLAG, Reason};
use ambit_model::service::Service;
use ambit_model::workload::Workload;
use ambit_observe::access::{self, Direction, Trace};
use ambit_observe::labels::Labels;
use ambit_observe::metrics::Handle;
use ambit_observe::traffic::{self, Reporter, Side, Tcp, Traffic};
use ambit_relay::{Closed, How, Meter, Side as Half};
use ambit_wire::Authority;
use ambit_wire::baggage::Baggage;
use tokio::time::Instant;

use crate::metrics::{Records, Telemetry};

/// How a connection ended: the reason, and what it was in this case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The reason, from which flag and status follow.
    pub reason: Reason,
    /// The text for the log.
    pub detail: String,
}

impl Outcome {
    /// A reason with what caused it.
    pub fn because(reason: Reason, cause: impl Display) -> Self {
        Self {
            reason,
            detail: format!("{reason}: {cause}"),
        }
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            detail: reason.to_string(),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self {
            reason: refusal.reason,
            detail: refusal.to_string(),
        }
    }
}

impl Outcome {
    /// How a relay ended, seen from the proxy of its `direction`: the near side is the application
    /// of this node.
    #[must_use]
    pub fn of(closed: &Closed, direction: Direction) -> Self {
        let near = match direction {
            Direction::Outbound => Half::Client,
            Direction::Inbound => Half::Server,
        };
        match &closed.how {
            How::Clean => Reason::Ok.into(),
            How::ResetBy(side) if *side == near => Reason::LocalReset.into(),
            How::ResetBy(_) => Reason::PeerReset.into(),
            How::Failed(side, error) if error.kind() == ErrorKind::OutOfMemory => {
                Self::because(Reason::Overloaded, format_args!("{side}: {error}"))
            }
            How::Failed(side, error) => Self::because(Reason::Io, format_args!("{side}: {error}")),
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Party {
    /// Its record, which overrides what it says of itself.
    pub workload: Option<Arc<Workload>>,
    /// What it says of itself.
    pub said: Option<Box<Baggage>>,
    /// Who it proved to be.
    pub identity: Option<Identity>,
}

/// Writes the labels of a client that `workload` is.
pub fn source_labels(labels: &mut Labels, workload: &Workload) {
    known_side(workload, Some(&workload.identity)).write_as_source(labels);
}

fn known_side<'a>(known: &'a Workload, principal: Option<&'a dyn access::Shown>) -> Side<'a> {
    Side {
        workload: &known.workload_name,
        canonical_service: &known.canonical_name,
        canonical_revision: &known.canonical_revision,
        namespace: &known.namespace,
        principal,
        app: &known.canonical_name,
        version: &known.canonical_revision,
        cluster: &known.cluster,
        region: &known.locality.region,
        zone: &known.locality.zone,
    }
}

impl Party {
    fn side(&self) -> Side<'_> {
        let principal = self
            .identity
            .as_ref()
            .map(|identity| identity as &dyn access::Shown);
        match (&self.workload, &self.said) {
            (Some(known), _) => known_side(known, principal),
            (None, Some(said)) => Side {
                workload: text(said.workload_name.as_ref()),
                canonical_service: text(said.service_name.as_ref()),
                canonical_revision: text(said.service_version.as_ref()),
                namespace: text(said.namespace.as_ref()),
                principal,
                app: text(said.workload_name.as_ref()),
                version: text(said.service_version.as_ref()),
                cluster: text(said.cluster.as_ref()),
                region: text(said.region.as_ref()),
                zone: text(said.zone.as_ref()),
            },
            (None, None) => Side {
                principal,
                ..Side::default()
            },
        }
    }

    fn endpoint(&self) -> access::Endpoint<'_> {
        let identity = self
            .identity
            .as_ref()
            .map(|identity| identity as &dyn access::Shown);
        match (&self.workload, &self.said) {
            (Some(known), _) => access::Endpoint {
                workload: if known.name().is_empty() {
                    &known.canonical_name
                } else {
                    known.name()
                },
                namespace: &known.namespace,
                identity,
                cluster: &known.cluster,
            },
            (None, Some(said)) => access::Endpoint {
                workload: text(said.service_name.as_ref()),
                namespace: text(said.namespace.as_ref()),
                identity,
                cluster: text(said.cluster.as_ref()),
            },
            (None, None) => access::Endpoint {
                identity,
                ..access::Endpoint::default()
            },
        }
    }

    /// Whether the labels depend on its record alone.
    fn is_plain(&self) -> bool {
        match (&self.workload, &self.identity) {
            (Some(known), Some(proved)) => known.identity == *proved,
            (None, proved) => proved.is_none() && self.said.is_none(),
            (Some(_), None) => true,
        }
    }
}

fn text(value: Option<&Arc<str>>) -> &str {
    value.map_or("", |value| value)
}

/// The telemetry of one connection.
#[derive(Debug)]
pub struct Record {
    telemetry: Rc<Telemetry>,
    direction: Direction,
    started: Instant,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The service that was meant.
    pub service: Option<Arc<Service>>,
    /// The client's address.
    pub source_address: SocketAddr,
    /// The next hop outbound, the address connected to inbound.
    pub destination_address: Option<SocketAddr>,
    /// The tunnel's authority.
    pub authority: Option<Authority>,
    /// Its place in a trace.
    pub trace: Option<Trace>,
    /// Both ends are on this node: who they are is known, and no TLS lies between them.
    pub neighbours: bool,
    /// How it ended if nobody says so. Tasks are dropped with their thread, when the process stops.
    pub if_dropped: Reason,
    counters: Option<Handle<Tcp>>,
    sent: Cell<u64>,
    received: Cell<u64>,
    finished: bool,
}

impl Record {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new(telemetry: &Rc<Telemetry>, direction: Direction, source: SocketAddr) -> Self {
        Self {
            telemetry: Rc::clone(telemetry),
            direction,
            started: Instant::now(),
            source: Party::default(),
            destination: Party::default(),
            service: None,
            source_address: source,
            destination_address: None,
            authority: None,
            trace: None,
            neighbours: false,
            if_dropped: Reason::Drained,
            counters: None,
            sent: Cell::new(0),
            received: Cell::new(0),
            finished: false,
        }
    }

    /// Counts it as opened. Call when both ends are as well known as they will be: outbound, when the
    /// way is open, since another endpoint may have taken the place of the first; later calls do
    /// nothing.
    pub fn open(&mut self) {
        if self.counters.is_some() {
            return;
        }
        let counters = self.counters_with(NO_FLAG);
        counters.opened.inc();
        self.sockets().inc();
        self.counters = Some(counters);
    }

    /// Ends it: the counters and the one record. Bytes were counted as they went.
    pub fn finish(mut self, outcome: &Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: &Outcome) {
        self.finished = true;
        self.open();
        let flag = outcome.reason.flag();
        self.sockets().dec();
        if flag == NO_FLAG {
            if let Some(counters) = &self.counters {
                counters.closed.inc();
            }
        } else {
            let counters = self.counters_with(flag);
            counters.closed.inc();
            counters.failed.inc();
        }
        self.log(outcome);
    }

    fn sockets(&self) -> &ambit_observe::metrics::Gauge {
        match self.direction {
            Direction::Outbound => &self.telemetry.outbound_sockets.open,
            Direction::Inbound => &self.telemetry.inbound_sockets.open,
        }
    }

    fn reporter(&self) -> Reporter {
        match self.direction {
            Direction::Outbound => Reporter::Source,
            Direction::Inbound => Reporter::Destination,
        }
    }

    fn counters_with(&self, flag: &'static str) -> Handle<Tcp> {
        let mutual_tls = self.source.identity.is_some() && !self.neighbours;
        let resolve = |family: &ambit_observe::metrics::Family<Tcp>| {
            family.resolve(|labels| self.write_labels(labels, flag, mutual_tls))
        };
        if !self.source.is_plain() || !self.destination.is_plain() {
            return resolve(&self.telemetry.metrics.tcp);
        }
        let records = Records {
            source: self.source.workload.clone(),
            destination: self.destination.workload.clone(),
            service: self.service.clone(),
        };
        self.telemetry
            .counters(self.reporter(), &records, flag, mutual_tls, resolve)
    }

    fn write_labels(&self, labels: &mut Labels, flag: &str, mutual_tls: bool) {
        let service = self.service.as_deref();
        let mut destination = self.destination.side();
        // Whom the record names, also where no TLS proved it: what Istio's dashboards join on.
        let known = self
            .destination
            .workload
            .as_ref()
            .map(|known| &known.identity);
        destination.principal = destination
            .principal
            .or(known.map(|identity| identity as &dyn access::Shown));
        Traffic {
            reporter: self.reporter(),
            source: self.source.side(),
            destination,
            service: traffic::Service {
                host: service.map_or("", |service| &service.key.hostname),
                namespace: service.map_or("", |service| &service.key.namespace),
                name: service.map_or("", |service| &service.name),
            },
            protocol: "tcp",
            flags: flag,
            mutual_tls,
            locality: self.source.workload.is_some() || self.destination.workload.is_some(),
        }
        .write(labels);
    }

    fn log(&self, outcome: &Outcome) {
        let (sent, received) = match self.direction {
            Direction::Outbound => (self.sent.get(), self.received.get()),
            Direction::Inbound => (self.received.get(), self.sent.get()),
        };
        let error = (!outcome.reason.is_ok()).then_some(&outcome.detail as &dyn access::Shown);
        let authority = self
            .authority
            .as_ref()
            .map(|authority| authority as &dyn access::Shown);
        self.telemetry.access.write(&access::Record {
            source_address: Some(self.source_address),
            source: self.source.endpoint(),
            destination_address: self.destination_address,
            hbone_address: authority,
            service: self
                .service
                .as_ref()
                .map_or("", |service| &service.key.hostname),
            destination: self.destination.endpoint(),
            direction: self.direction,
            bytes_sent: sent,
            bytes_received: received,
            duration: self.started.elapsed(),
            error,
            trace: self.trace,
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.end(&self.if_dropped.into());
        }
    }
}

impl Meter for Record {
    fn sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        if let Some(counters) = &self.counters {
            counters.received.add(bytes);
        }
    }

    fn received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        if let Some(counters) = &self.counters {
            counters.sent.add(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
