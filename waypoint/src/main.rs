//! Entry point of the waypoint.
fn main() {}
