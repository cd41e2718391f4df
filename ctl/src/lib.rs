//! `ambitctl`: what the proxies of the mesh know, as tables for people and JSON for programs.
//!
//! # Theory of operation
//! Everything comes from the admin ports of the node proxy and of the agent, which listen on the localhost of their node: run it there,
//! or name the network namespace with `--netns`. [`fetch`] asks, [`dump`] is the shape of the answers, [`show`] and [`explain`] are
//! pure functions from answers to text.

pub mod cli;
pub mod dump;
pub mod explain;
pub mod fetch;
pub mod show;
pub mod table;
pub mod target;
