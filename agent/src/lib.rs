//! The node agent: enrolment, redirection and ZDS
pub mod drift;
pub mod enrol;
pub mod namespace;
mod netlink;
pub mod nftables;
pub mod redirect;
mod route;
pub mod rules;
