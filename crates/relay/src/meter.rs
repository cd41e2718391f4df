//! Counting.

/// Counts the bytes of one connection as they are written on.
///
/// Called on the data path for every chunk: implementations add to a counter and nothing else.
pub trait Meter {
    /// `bytes` more went from the client to the server.
    fn sent(&self, bytes: u64);
    /// `bytes` more went from the server to the client.
    fn received(&self, bytes: u64);
}

/// Counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unmetered;

impl Meter for Unmetered {
    fn sent(&self, _bytes: u64) {}
    fn received(&self, _bytes: u64) {}
}

impl<M: Meter + ?Sized> Meter for &M {
    fn sent(&self, bytes: u64) {
        (**self).sent(bytes);
    }
    fn received(&self, bytes: u64) {
        (**self).received(bytes);
    }
}
