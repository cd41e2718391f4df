//! Mutual TLS with SPIFFE identities
