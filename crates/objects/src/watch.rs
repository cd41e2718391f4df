//! Follows the folder: a new snapshot whenever something in it changed.
//!
//! inotify says when to look, reading the folder says what is there; an event is never trusted for
//! more than that. A periodic look covers what inotify cannot see, such as a full event queue, a
//! folder that was replaced, or a network file system.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::folder::Folder;
use crate::snapshot::Objects;

/// Quiet time after the last event before the folder is read: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(100);

/// Longest time events can put off a reading: a folder that is written without end is still followed.
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);

/// Time between two looks without any event.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Room for a batch of events; what does not fit is read in the next round.
const EVENT_BYTES: usize = 16 << 10;

/// Follows one folder.
#[derive(Debug)]
pub struct Watch {
    folder: Folder,
    events: EventStream<Vec<u8>>,
    last: Option<Arc<Objects>>,
    next_look: Instant,
}

impl Watch {
    /// Starts to follow `folder`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no inotify instance left or the folder of manifests cannot be listed.
    pub fn start(mut folder: Folder) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; EVENT_BYTES])?;
        add_watches(&mut events.watches(), &folder);
        folder.read()?;
        Ok(Self {
            folder,
            events,
            last: None,
            next_look: Instant::now() + LOOK_AGAIN,
        })
    }

    /// The next snapshot: at once the first time, then when one differs from the one before.
    /// A folder that cannot be listed is no change. Cancel safe.
    pub async fn next(&mut self) -> Arc<Objects> {
        loop {
            if self.last.is_some() {
                self.wait().await;
            }
            self.next_look = Instant::now() + LOOK_AGAIN;
            // Before the reading, so that nothing in a folder found now is missed.
            add_watches(&mut self.events.watches(), &self.folder);
            match self.folder.read() {
                Ok(objects) => {
                    let seen = self
                        .last
                        .as_ref()
                        .is_some_and(|last| Arc::ptr_eq(last, &objects));
                    if !seen {
                        self.last = Some(Arc::clone(&objects));
                        return objects;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the folder of manifests cannot be read; nothing changes");
                    self.last.get_or_insert_default();
                }
            }
        }
    }

    /// Until events came and settled, or it is time to look anyway.
    async fn wait(&mut self) {
        tokio::select! {
            biased;
            () = drain(&mut self.events) => {}
            () = sleep_until(self.next_look) => return,
        }
        let end = Instant::now() + SETTLE_AT_MOST;
        loop {
            let quiet = Instant::now() + SETTLE;
            let more = timeout_at(quiet.min(end), drain(&mut self.events))
                .await
                .is_ok();
            if !more || Instant::now() >= end {
                return;
            }
        }
    }
}

/// Waits for at least one event and drops all that are there.
async fn drain(events: &mut EventStream<Vec<u8>>) {
    if events.next().await.is_none() {
        // inotify is gone; the periodic look goes on.
        return std::future::pending().await;
    }
    while events
        .next()
        .now_or_never()
        .flatten()
        .is_some_and(|event| event.is_ok())
    {}
}

/// Watches every folder there is; watching one twice is the same watch.
fn add_watches(watches: &mut Watches, folder: &Folder) {
    let mask = WatchMask::CREATE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ATTRIB;
    for path in folder.folders() {
        // One that is missing shows up in its parent when it comes; the rest the periodic look sees.
        drop(watches.add(path, mask));
    }
}

#[cfg(test)]
mod tests;
