//! The cases of the namespace world. Each needs root, and fails without it.

mod badinput;
mod bytes;
mod contract;
mod enrolment;
mod failure;
mod mesh;
mod network;
mod observe;
mod policy;
mod waypoint;
mod wire;
