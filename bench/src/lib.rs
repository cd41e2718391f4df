//! What the mesh costs, as ratios within one run.
//!
//! # Theory of operation
//!
//! Worlds of two nodes hold pairs of pods that differ in what stands between them: nothing, the
//! *limit*, somebody else's node proxy, an Envoy beside each pod, ours ([`place`]). The limit ([`relay`]) is a
//! bare relay of two hops with no encryption and no framing, placed by redirect rules where node proxies are: it
//! bounds what any proxy in user space can do on this machine. Each shape of load ([`load`], [`http`]) runs on
//! each pair in turn, several rounds of all, so that what else the machine does falls on all alike; medians are
//! compared ([`report`]) and drawn ([`plot`]). [`tunnel`] compares node proxies, [`waypoint`] waypoints. [`scale`]
//! compares meshes: what one of 50,000 workloads costs a node proxy beside one of 500. [`crowd`] compares nodes: what
//! one of 1,000 pods costs beside one of ten. [`hostile`] says what a peer that means harm costs others. [`soak`]
//! looks whether memory and descriptors stay where they are.
//! [`resources`] compares what the mesh takes of a node with what sidecars take, at a fixed rate ([`paced`]).
//!
//! Absolute numbers say something about the machine. The ratios say something about the mesh.

pub mod crowd;
pub mod hostile;
pub mod http;
pub mod load;
pub mod paced;
pub mod place;
pub mod plot;
pub mod relay;
pub mod report;
pub mod resources;
pub mod scale;
pub mod soak;
pub mod tunnel;
pub mod waypoint;
pub mod window;
