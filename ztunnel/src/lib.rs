//! The node proxy.

pub mod config;
