//! The cases of the namespace world. Each needs root, and fails without it.

mod bad_input;
mod bytes;
mod contract;
mod dns;
mod early;
mod enrolment;
mod failure;
mod faults;
mod handshakes;
mod inventory;
mod istio;
mod load;
mod mesh;
mod neighbours;
mod network;
mod observation;
mod on_demand;
mod policy;
mod revocation;
mod sidecar;
mod spire;
mod splice;
mod tunnels;
mod upgrade;
mod waypoint;
mod wire;
