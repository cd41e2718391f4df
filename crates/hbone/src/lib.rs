//! Tunnels: many TCP streams over one HTTP/2 connection over mutual TLS (HBONE).
//!
//! # Purpose
//! Offer a stream opened by a CONNECT request, as halves that [`ambit_relay`] moves bytes between,
//! and hide the HTTP/2 engine: no caller sees its types.
//!
//! # Theory of operation
//! One task drives one connection: for a dialled tunnel it is [`client::Driver`], for an accepted
//! one it is whoever polls [`server::Incoming`]. After each turn of the engine the driver moves what
//! arrived from the engine into each stream's own inbox (see `inbox.rs`), joining small pieces, and
//! then wakes that stream's reader. So a reader that stands still holds at most its window, and what
//! it holds never counts against the engine's per-connection allowance for small frames, which would
//! end its neighbours too.
//!
//! # Invariants
//! - Credit to send more is given back only when the reader asks for the next piece, that is, when it
//!   has got rid of the one before.
//! - The connection's window is larger than all stream windows together: a stream that stands still
//!   never holds up another one.
//! - Nothing here is `Send`: a tunnel, its streams and its pool live on one thread.
//!
//! # Failure modes
//! A stream's failure is an [`std::io::Error`] of its halves; a connection's is a [`TunnelError`] of
//! its driver, and then every stream fails with the same kind.

mod backlog;
pub mod client;
mod ends;
mod error;
mod expiry;
mod heads;
mod inbox;
mod keepalive;
pub mod pool;
mod request;
pub mod server;
pub mod settings;
mod stream;
mod turn;

pub use error::{OpenError, TunnelError};
pub use request::{Malformed, Request};
pub use settings::Settings;
pub use stream::{Stream, StreamIo, StreamSink, StreamSource};

#[cfg(test)]
mod tests;
