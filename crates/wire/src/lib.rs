//! Bytes and header values to and from typed values.
//!
//! # The decoder contract
//!
//! Every decoder takes bytes that a peer may have made up. It returns the value or an [`Invalid`] that says what is wrong; it never
//! panics, and what it allocates is bounded by [`limits`]. Where input may be incomplete ([`proxy_v2`]) it says so instead of guessing.
//! What a value encodes to decodes to the same value. Each decoder is a fuzz target.

pub mod authority;
pub mod baggage;
pub mod forwarded;
pub mod hpack;
pub mod limits;
pub mod proxy_v2;
pub mod trace;

pub use authority::Authority;

#[cfg(test)]
mod properties;

/// What is wrong with the bytes of a peer. Carries no copy of them, so it is safe to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Longer than the limit for its kind.
    #[error("longer than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A part that has to be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A part cannot be read.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// A part asks for what is not supported.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}
