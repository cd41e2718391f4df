//! Certificates per identity: issued, renewed, shared
