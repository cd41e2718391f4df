//! The discovery client: delta ADS from the control plane, and the decoding of its resources.
//!
//! # Purpose
//! Keep a program's picture of the mesh equal to the control plane's, for any resource types: the
//! node proxy's (`istio.workload.Address`, `istio.security.Authorization`) and the waypoint's
//! (Envoy's).
//!
//! # Theory of operation
//! [`delta::Session`] is the protocol without I/O: what we subscribed to, which version we hold of
//! each resource, what to answer. [`client::run`] drives it over a gRPC stream, for ever. What a
//! resource means is the business of a [`Handler`]; [`decode`] is the part of it that turns Istio's
//! messages into changes of the model.
//!
//! # Invariants
//! - Every response is answered once: ACK, or NACK naming the refused resources. The good
//!   resources of a NACKed response are in force.
//! - A refused resource leaves its last accepted version in force, and is asked for again after
//!   a reconnect.
//! - No attempt follows another without a pause with jitter, however the stream ended.
//! - One bad resource does not keep a program unready: a processed first response counts.
//!
//! # Failure modes
//! While the control plane is away everything received stays in force.

pub mod client;
pub mod decode;
pub mod delta;

use std::collections::BTreeSet;

use ambit_model::text::Text;
use bytes::Bytes;

/// One resource as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its name, the key under which it is updated and removed. Shared with the record of it.
    pub name: Text,
    /// The sender's version; may be empty.
    pub version: String,
    /// The encoded message of the response's type.
    pub payload: Bytes,
}

/// What one response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The type of all of it.
    pub type_url: String,
    /// New or changed resources, in the order of the response.
    pub resources: Vec<Resource>,
    /// Names of resources that are no more.
    pub removed: Vec<String>,
}

/// A resource that was refused, and why, in words for the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Names the field and what is wrong with it.
    pub reason: String,
}

/// What the server said of a name that was asked for on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The name that was asked for.
    pub name: String,
    /// There is such a resource.
    pub exists: bool,
    /// It was refused, so what it says is not known.
    pub refused: bool,
}

/// What a program does with resources.
pub trait Handler {
    /// Puts the good part of `update` in force and names the rest. Called in order of arrival.
    fn update(&mut self, update: Update) -> Vec<Rejected>;

    /// For a type subscribed by name: the names wanted now. Asked after every update of any type,
    /// so that one resource can lead to another. `None` leaves the subscription as it is.
    fn wanted(&self, type_url: &str) -> Option<BTreeSet<String>> {
        let _ = type_url;
        None
    }

    /// For a type subscribed on demand: what became of names that were asked for. Called after the update that brought it.
    fn answered(&mut self, type_url: &str, answers: Vec<Answered>) {
        let _ = (type_url, answers);
    }

    /// A stream is open and has brought something, or is over.
    fn connected(&mut self, up: bool) {
        let _ = up;
    }
}
