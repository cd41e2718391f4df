//! The namespace world: pods and nodes as network namespaces of this machine, with the real programs
//! on them, for tests, for the bench and for whoever wants to look.
//!
//! # Theory of operation
//!
//! A [`plan::Plan`] says which nodes, namespaces, pods, services and waypoints there are.
//! [`world::World::start`] makes them: a namespace for each node and pod, cables between them, a
//! folder of Kubernetes manifests, and the programs — controller, agents, ztunnels, waypoints —
//! started as on one machine anywhere. Applications are threads of the test that live in a pod's
//! namespace ([`apps`]); clients are calls from a pod ([`pod::Pod`]).
//!
//! ```text
//!   fabric   a switch between the nodes; captures are taken here
//!   n1, n2   nodes: 10.250.0.1, .2; each routes its pods' 10.244.N.0/24 and fd00:10:244:N::/64
//!   control  the controller: 10.250.0.100
//!   pods     one namespace each, cabled to their node
//! ```
//!
//! # Invariants
//!
//! * Everything a world made is removed when it ends, also when the test process is killed: a small
//!   process of its own waits for that ([`run::Run`]).
//! * Names carry the process id, so worlds of several runs live side by side.
//! * No packet leaves the namespaces: they have no cable to anything else.
//! * Without root everything here fails; nothing is skipped.

pub mod apps;
pub mod capture;
pub mod discovery;
pub mod dns;
pub mod envoy;
pub mod expect;
pub mod hostile;
pub mod http;
pub mod istioctl;
pub mod manifests;
pub mod metrics;
pub mod mint;
pub mod network;
pub mod plan;
pub mod pod;
pub mod programs;
pub mod raw;
pub mod records;
pub mod run;
pub mod spire;
pub mod world;
