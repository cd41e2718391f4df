//! Tunnels: many TCP streams over one HTTP/2 connection over mutual TLS (HBONE).
//!
//! # Purpose
//! Offer a stream opened by a CONNECT request, as halves that [`ambit_relay`] moves bytes between,
//! and hide the HTTP/2 engine: no caller sees its types.
//!
//! # Theory of operation
//! HTTP/2 is an engine of our own (`engine.rs`): plain data that knows frames, windows and streams, and neither sockets nor tasks.
//! One task drives one connection (`drive.rs`): for a dialled tunnel it is [`client::Driver`], for an accepted one it is whoever
//! polls [`server::Incoming`]. The driver moves bytes between the transport and the engine; the halves of streams take from the
//! engine what arrived and leave there what is to go; `link.rs` lies between and wakes whom it concerns.
//!
//! # Invariants
//! - Credit to send more is given back only when the reader asks for the next piece, that is, when it
//!   has got rid of the one before.
//! - The connection's window is larger than all stream windows together: a stream that stands still
//!   never holds up another one.
//! - Nothing here is `Send`: a tunnel, its streams and its pool live on one thread, and nothing takes a lock.
//!
//! # Failure modes
//! A stream's failure is an [`std::io::Error`] of its halves; a connection's is a [`TunnelError`] of
//! its driver, and then every stream fails with the same kind.

mod backlog;
pub mod client;
mod drive;
mod engine;
mod error;
mod expiry;
mod halves;
mod keepalive;
mod link;
pub mod pool;
mod request;
pub mod server;
pub mod settings;
mod stream;

pub use error::{OpenError, TunnelError};
pub use request::{Malformed, Request};
pub use settings::Settings;
pub use stream::{Stream, StreamIo, StreamSink, StreamSource};

/// Tells an engine anything, for `fuzz/`.
#[cfg(fuzzing)]
pub fn tell_engine(bytes: &[u8]) {
    engine::fuzzing::told(bytes);
}

#[cfg(test)]
mod tests;
