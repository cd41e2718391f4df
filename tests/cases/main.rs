//! The cases of the namespace world. Each needs root, and fails without it.

mod bytes;
mod enrolment;
mod failure;
mod mesh;
mod network;
mod policy;
mod wire;
