//! Both directions of bytes between two connections, exactly.
//!
//! # Purpose
//!
//! What one side sends, the other receives: every byte once and in order, an end of sending as an
//! end of sending, a reset as a reset. [`relay`] does this for any two connections that can be
//! split into a [`Source`] and a [`Sink`]; [`tcp::split`] makes such halves of a TCP connection.
//!
//! # Theory of operation
//!
//! One future holds both directions, so a connection is one task and its wake-ups are its own.
//! A direction is read only when everything read before has been written, so what waits here is
//! at most one chunk for each direction: memory is bounded, and a slow reader slows its sender
//! through the connections' own windows.
//!
//! Buffers come from the thread when there is something to read and go back when there is not: an
//! idle connection holds none.
//!
//! Bytes that go from one TCP connection to another need not come here at all: [`tcp::relay`] lets
//! the kernel move them once there are many.
//!
//! # Failure modes
//!
//! * A side that resets: what it sent before is delivered if it can be, then the other side is
//!   reset.
//! * Dropping the relay (a drain's deadline, a revoked connection) resets both sides, because an
//!   orderly end would make half a message look whole.

pub mod tcp;

mod buffers;
mod bypass;
mod close;
mod growth;
mod halves;
mod meter;
mod pipes;
mod pump;
mod splice;

pub use close::{Closed, How, Side};
pub use growth::LONGEST_PIECE;
pub use halves::{Sink, Source};
pub use meter::{Meter, Unmetered};
pub use pump::relay;
