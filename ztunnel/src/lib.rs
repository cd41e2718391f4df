//! The node proxy.

pub mod config;
pub mod inpod;
pub mod live;
pub mod metrics;
pub mod record;
pub mod store;
