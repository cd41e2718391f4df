//! DNS: what a message asks, which names of the mesh answer it, and what is kept of other servers' answers.
//!
//! # Purpose
//!
//! A node proxy answers address queries (A, AAAA) for services of the mesh itself and passes everything else on. This
//! crate is the deciding part: [`query::Query`] reads what was asked, [`lookup::find`] searches the view as the client's
//! resolver would, [`answer::answer`] writes the reply, [`reply`] judges and fits what another server said, and
//! [`cache::Cache`] keeps it.
//!
//! # Theory of operation
//!
//! Replies of our own are composed by `hickory-proto`. Messages of others are never decoded and composed again: they
//! are walked in place ([`walk`]), so that a record type nobody here has heard of passes unharmed. Three things are
//! changed in them at most: the id, the remaining lifetimes of what comes out of the cache, and the end, where a
//! client without TCP can take no more.
//!
//! # Invariants
//!
//! * No clock, no randomness, no environment, no I/O: what a decision needs is an argument.
//! * Nothing in a message makes anything here panic, loop or allocate more than a small multiple of its size.
//! * A name that is not ours is never answered, not even with "there is none": whoever is asked next may know it.

pub mod answer;
pub mod cache;
pub mod lookup;
pub mod query;
pub mod reply;
pub mod walk;

#[cfg(test)]
mod fixture;

/// Where a message travels, and so how long it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, each message behind two bytes of length (RFC 1035 section 4.2.2).
    Tcp,
}

impl Transport {
    /// As metrics and logs write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}
