//! What the mesh costs, as ratios within one run.
//!
//! # Theory of operation
//!
//! One world holds three pairs of pods on two nodes: one without a mesh, one behind the *limit*, one
//! in the mesh. The limit ([`relay`]) is a bare relay of two hops with no encryption and no framing,
//! placed by redirect rules where node proxies are: it bounds what any proxy in user space can do
//! on this machine. Each shape of load ([`load`]) runs on each pair in turn, several rounds of all,
//! so that what else the machine does falls on all alike; medians are compared ([`report`]).
//!
//! Absolute numbers say something about the machine. The ratios to the limit say something about
//! the mesh.

pub mod load;
pub mod place;
pub mod relay;
pub mod report;
