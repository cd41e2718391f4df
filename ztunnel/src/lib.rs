//! The node proxy.

pub mod app;
pub mod busy;
pub mod config;
pub mod credential;
pub mod demand;
pub mod dial;
pub mod dns;
pub mod dump;
pub mod explain;
pub mod file;
pub mod flag;
pub mod inbound;
pub mod inpod;
mod issuer;
pub mod live;
pub mod metrics;
pub mod neighbour;
pub mod outbound;
pub mod passthrough;
pub mod pod;
pub mod pods;
pub mod record;
pub mod revocation;
pub mod store;
pub mod unkept;
pub mod verdict;
pub mod worker;
