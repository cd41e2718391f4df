//! The node proxy.

pub mod config;
pub mod inpod;
