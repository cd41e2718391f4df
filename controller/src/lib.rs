//! Objects to resources, and the certificate authority.
//!
//! # Purpose
//! The control plane of the mesh: what stands in manifests becomes what proxies work by.
//!
//! # Theory of operation
//! [`app`] watches the objects. [`cluster`] is the view of them, [`translate`] makes resources of the
//! view, both pure; [`publish`] encodes them with versions by content, [`serve`] keeps every client
//! up to date over incremental discovery. [`authority`] signs certificates, for who a token says
//! the caller is and the view says it may be.
//!
//! # Invariants
//! - The same objects give the same resources, in whatever order they came.
//! - Nothing in an object can stop the others from being served.
//! - Nothing is made more permissive because it cannot be read or enforced; [`finding`] says so.
//!
//! # Not done here
//! Deploying waypoints, writing status to a Kubernetes API.

pub mod admin;
pub mod app;
pub mod authority;
pub mod cluster;
pub mod config;
pub mod finding;
pub mod metrics;
pub mod publish;
pub mod serve;
pub mod translate;
