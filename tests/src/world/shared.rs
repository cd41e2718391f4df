//! A world that several tests use.

use std::ops::Deref;
use std::sync::LazyLock;

use parking_lot::RwLock;

use super::World;
use crate::plan::Plan;

/// A world that several tests use, started by the first.
///
/// Tests that only send traffic share it ([`Shared::with_others`]); tests that change manifests or
/// end programs have it to themselves ([`Shared::alone`]) and leave it as they found it.
#[derive(Debug)]
pub struct Shared(LazyLock<RwLock<World>>);

impl Shared {
    /// A world not started yet.
    #[must_use]
    pub const fn new(start: fn() -> RwLock<World>) -> Self {
        Self(LazyLock::new(start))
    }

    /// The world, at the same time as other tests.
    pub fn with_others(&self) -> Held<impl Deref<Target = World>> {
        Held(self.0.read())
    }

    /// The world, for one test alone.
    pub fn alone(&self) -> Held<impl Deref<Target = World>> {
        Held(self.0.write())
    }
}

/// Starts a world for a [`Shared`].
///
/// # Panics
///
/// The world does not start.
#[must_use]
pub fn started(plan: Plan) -> RwLock<World> {
    RwLock::new(World::start(plan).unwrap_or_else(|error| panic!("{error:?}")))
}

/// A shared world in a test's hands; keeps the logs when the test fails.
#[derive(Debug)]
pub struct Held<G: Deref<Target = World>>(G);

impl<G: Deref<Target = World>> Deref for Held<G> {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl<G: Deref<Target = World>> Drop for Held<G> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.keep_logs();
            self.0.restore();
        }
    }
}
