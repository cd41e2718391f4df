//! The node agent: which pods are in the mesh, how their traffic gets to the node proxy, and how the proxy hears of it.
//!
//! # Purpose
//! The only program of the mesh that changes a pod's network. It needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
//!
//! # Theory of operation
//! [`reconcile`] turns manifests into one [`pod`] task each. [`enrol`] decides who is in; [`pod::plan`] says in which order things
//! happen; [`namespace`] proves whose a network namespace is; [`rules`] says what is redirected, [`nftables`] and [`redirect`] put it in force;
//! [`drift`] hears when somebody changes it; [`sockets`] sees when what was redirected has ended; [`session`] speaks ZDS with the node proxy; [`report`] tells people.
//!
//! # Failure modes
//! The agent can be killed at any moment: rules and proxies work without it, and the next one finds out from the kernel
//! where things stand.

pub mod app;
pub mod config;
pub mod drift;
pub mod enrol;
pub mod namespace;
mod netlink;
pub mod nftables;
pub mod pod;
pub mod reconcile;
pub mod redirect;
pub mod report;
mod route;
pub mod rules;
pub mod session;
pub mod sockets;
