//! The node agent: enrolment, redirection and ZDS
pub mod netlink;
pub mod nftables;
pub mod route;
pub mod rules;
