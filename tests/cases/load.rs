//! Traffic that goes on while something happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use ambit_tests::world::World;

/// Failures kept: enough to see what went wrong.
const KEPT: usize = 100;

/// One exchange after the other, each on a connection of its own, until it is ended.
pub struct Load {
    ending: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    /// Begins; `exchange` says what failed. Returns when some went well.
    #[track_caller]
    pub fn begin(
        world: &World,
        exchange: impl Fn() -> Result<(), String> + Send + 'static,
    ) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let good = Arc::new(AtomicUsize::new(0));
        let thread = std::thread::spawn({
            let (ending, good) = (Arc::clone(&ending), Arc::clone(&good));
            move || {
                let mut failures = Vec::new();
                while !ending.load(Ordering::Relaxed) {
                    match exchange() {
                        Ok(()) => {
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(failure) if failures.len() < KEPT => failures.push(failure),
                        Err(_) => {}
                    }
                }
                failures
            }
        });
        let load = Self {
            ending,
            good,
            thread,
        };
        load.more(world);
        load
    }

    /// Waits for some more exchanges to go well.
    #[track_caller]
    pub fn more(&self, world: &World) {
        let before = self.good.load(Ordering::Relaxed);
        world.eventually("the load goes on", || {
            self.good.load(Ordering::Relaxed) > before + 10
        });
    }

    /// Ends the load; what failed.
    pub fn end(self) -> Vec<String> {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
