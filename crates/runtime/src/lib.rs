//! Threads, tasks, accept loops, drain, readiness and time: the mechanics of a running program.
//!
//! # Theory of operation
//!
//! A program has one control runtime (its main thread) and N data threads
//! ([`threads::DataThreads`]), each with a runtime of its own whose tasks never move. A
//! connection is accepted, served and closed on one data thread. The control side reaches a data
//! thread only by sending it a closure.
//!
//! Stopping is told through [`drain`]: first a request to finish, then, at a deadline, an order
//! to stop. Starting is told through [`ready`]: a gate for each thing that must have happened.
//!
//! # Invariants
//!
//! * No task runs without a name, and a panic in a task ends that task alone, with a log line.
//! * Nothing retries in a tight loop: [`backoff::Backoff`] stands between attempts.
//!
//! # Not done here
//!
//! What the programs do. This crate knows no mesh.

pub mod accept;
pub mod backoff;
pub mod clock;
pub mod drain;
pub mod program;
pub mod ready;
pub mod settle;
pub mod signal;
pub mod tasks;
pub mod threads;
