//! The waypoint: an L7 proxy configured only over xDS.
//!
//! # Purpose
//! Node proxies send the traffic of services and workloads that are bound to this waypoint to it
//! over HBONE. It serves HTTP (routing, resilience, authorization) and plain bytes, and passes them
//! on to the endpoints over HBONE with its own identity.
//!
//! # Theory of operation
//! Control side: resources arrive over delta ADS, [`envoy`] compiles them into a [`plan`], and the
//! plan is replaced as a whole behind one atomic pointer. Data side: each data thread accepts HBONE
//! connections and serves each stream from the plan it loads; [`request`] lists the steps of one
//! request.
//!
//! # Failure modes
//! A resource that is not understood is refused by name and path and its last good version stays. A
//! chain that has none refuses its connections. Nothing fails open.

pub mod app;
pub mod attempt;
pub mod body;
pub mod config;
pub mod discovery;
pub mod dump;
pub mod endpoints;
pub mod envoy;
pub mod filter;
pub mod format;
mod forward;
pub mod guard;
pub mod headers;
pub mod metrics;
pub mod plan;
pub mod record;
pub mod request;
pub mod respond;
pub mod routes;
pub mod rules;
pub mod serve;
pub mod server;
pub mod sniff;
pub mod subject;
pub mod tcp;
pub mod tunnel;
pub mod upgrade;
pub mod upstream;
