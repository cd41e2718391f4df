//! The namespace world: real pods, real rules, real programs
