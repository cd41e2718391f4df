//! The node agent: which pods of this node are served.

pub mod reconcile;
