//! The cases of the namespace world. Each needs root, and fails without it.

mod network;
