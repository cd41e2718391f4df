//! Logs, access records, metrics and the local HTTP servers.
//!
//! # Purpose
//! Everything that a person or a tool learns about a running program passes here: lines on
//! standard output, counters on the metrics port, state on the admin port, readiness.
//!
//! # Theory of operation
//! - A data-plane thread never waits for an observer. Lines go to a bounded queue that drops, and
//!   counts what it dropped ([`writer`]). Counters are plain atomics behind a handle that a
//!   connection resolves once ([`metrics`]).
//! - Nothing grows with the number of peers: label sets have a cap with an overflow set, and sets
//!   that nobody holds any more expire.
//! - The HTTP servers ([`server`]) bind where the caller says (the admin one: localhost); what
//!   changes state is POST.
//!
//! # Not done here
//! What the labels of a connection are worth: the programs know their peers and fill
//! [`traffic::Traffic`] and [`access::Record`].

pub mod access;
pub mod admin;
pub mod count;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod server;
pub mod traffic;
pub mod version;
pub mod writer;
