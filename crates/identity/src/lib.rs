//! Certificates per identity: issued, renewed, shared.
//!
//! # Purpose
//! A node proxy acts for many identities, a waypoint for one. This crate holds a valid certificate
//! for each, gets new ones in time, and says plainly when there is none.
//!
//! # Theory of operation
//! [`state::Life`] is the life of one certificate as a pure state machine. [`Renewer`] drives all
//! lives on the control runtime: it asks an [`Issuer`] for what is due, most urgent first, a few
//! at a time. [`Certificates`] is what everybody else holds; a [`Lease`] on it reads the current
//! certificate of one identity without a lock.
//!
//! # Invariants
//! - A certificate is handed out only while it is valid; after its end there is none.
//! - A certificate in use is for the identity asked for and for the key at hand: made here, or by the agent of
//!   this machine that handed out both.
//! - A failed renewal leaves the current certificate in use; attempts are never closer together
//!   than their backoff, but for the sake of a pod that is new.
//! - An issuer that tells of successors by itself is heard through one stream for each identity, for as long
//!   as the identity is wanted.
//!
//! # Failure modes
//! While the authority is away, certificates stay in use until they expire. Whoever asks for an
//! identity without one gets the last error at once, until the next attempt. [`Health`] tells both
//! apart, as metrics too. A wall clock that is set forward or back is noticed within half a minute.

mod certificates;
mod dump;
mod health;
mod issuer;
mod renew;
pub mod spire;
pub mod state;

pub use certificates::{Certificates, Lease};
pub use dump::CertificateDump;
pub use health::Health;
pub use issuer::{CaIssuer, IssueError, Issued, Issuer, Subject};
pub use renew::Renewer;

use std::sync::Arc;
use std::time::Duration;

use ambit_model::identity::Identity;
use thiserror::Error;

/// Why there is no certificate for an identity.
#[derive(Debug, Clone, Error)]
pub enum CertificateError {
    /// Peer or environment: the last attempt failed; the next one is under way by itself.
    #[error("no certificate for {identity}: {reason}")]
    Unavailable {
        /// For whom.
        identity: Identity,
        /// What the last attempt met.
        reason: Arc<IssueError>,
    },
    /// Peer: the authority did not answer while the caller waited.
    #[error("no certificate for {identity} within {waited:?}")]
    Timeout {
        /// For whom.
        identity: Identity,
        /// How long the caller waited.
        waited: Duration,
    },
    /// Us: more identities than a node can have.
    #[error("too many identities: {0} is one more than {1}")]
    TooMany(Identity, usize),
}
