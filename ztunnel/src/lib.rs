//! The node proxy
