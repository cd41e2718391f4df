//! Generated types of the standard wires
