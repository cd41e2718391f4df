//! What the mesh is, and every decision about a connection.
//!
//! # Purpose
//!
//! One immutable [`view::View`] holds the workloads, services and policies that the control plane sent. Every decision about a
//! connection is a function of that view: [`route::outbound`] (where does this one go), [`admit::admit`] (may this one come in),
//! [`balance::pick`] (which endpoint), [`authorize::authorize`] (do the policies permit it).
//!
//! # Theory of operation
//!
//! Received resources become [`update::Change`]s; [`update::apply`] makes the next view from the last one and shares all that did not
//! change. A connection reads the current view once and never waits while it holds it. Values are parsed and policies compiled when
//! they change, never when they are used.
//!
//! # Invariants
//!
//! * No clock, no randomness, no environment, no I/O: what a decision needs is an argument.
//! * A view depends on the set of resources in it, not on the order they came in.
//! * Whatever cannot be understood or resolved makes a decision stricter, never laxer.
//! * Every refusal names one [`reason::Reason`].
//! * [`admit::Admitted`] cannot be built but by [`admit::admit`].
//!
//! # Not done here
//!
//! Resolving host names (a workload without an address is refused).

pub mod address;
pub mod admit;
pub mod authorize;
pub mod balance;
pub mod compile;
pub mod identity;
pub mod intern;
pub mod need;
pub mod policy;
pub mod reason;
pub mod route;
pub mod service;
pub mod text;
pub mod update;
pub mod view;
pub mod workload;

#[cfg(test)]
mod fixture;

pub use identity::Identity;
pub use reason::Reason;
pub use text::Text;
pub use view::View;
