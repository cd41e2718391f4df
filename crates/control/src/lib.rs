//! Authenticated gRPC channel to the control plane
