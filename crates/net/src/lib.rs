//! Named system calls: sockets, network namespaces and passed descriptors. No policy.
//!
//! # Purpose
//!
//! Every other crate asks the kernel through this one, so that the questions have names, the
//! answers have one error type, and unsafe code has one home.
//!
//! # Theory of operation
//!
//! A socket belongs for ever to the network namespace in which it was made. So a namespace is
//! entered only for the instant of making a socket ([`netns::Netns::run`]); everything done with
//! the socket afterwards may happen on any thread, in any namespace.
//!
//! # Invariants
//!
//! * A thread that entered a namespace through [`netns::Netns::run`] is back where it was when the
//!   call returns, also when the closure panics. If it cannot come back the process aborts: a
//!   thread that silently makes sockets in the wrong pod is worse than no process.
//! * Every descriptor made or received here closes on `exec`.
//!
//! # Not done here
//!
//! Deciding addresses, marks, timeouts or retries: those are arguments.

pub mod datagram;
pub mod dial;
pub mod limits;
pub mod listen;
pub mod netlink;
pub mod netns;
pub mod options;
pub mod original_dst;
pub mod program_pages;
pub mod seqpacket;
pub mod splice;

mod error;
mod sysctl;

pub use error::Error;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;
