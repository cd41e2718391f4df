//! Kubernetes objects from a folder of manifests.
//!
//! # Purpose
//! The controller and the node agent work on the same objects whether they come from the Kubernetes
//! API or from a folder of YAML. This crate is the folder: [`parse`] is text to objects,
//! [`store`] keeps the last accepted version of each, [`watch`] follows the files, and [`status`]
//! is the way back for what the agent has to say about pods.
//!
//! # Invariants
//! - A document that cannot be accepted changes nothing: see [`store`].
//! - A snapshot is immutable and complete; readers never see half of a change.
//! - No text can make this crate panic.
//!
//! # Not done here
//! What the objects mean together. A service without pods or a policy with an invalid value is
//! a valid object; the one who translates it says so.

pub mod folder;
pub mod kinds;
pub mod parse;
pub mod problem;
pub mod snapshot;
pub mod status;
pub mod store;
mod tree;
pub mod watch;

pub use folder::Folder;
pub use kinds::{Key, Kind, Name, Object};
pub use problem::{Problem, Severity};
pub use snapshot::Objects;
pub use watch::Watch;
