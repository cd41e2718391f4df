//! How many tasks of one thread are at work for one pod, and a way to wait until none is.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

#[derive(Default)]
struct Inner {
    count: Cell<usize>,
    /// Who waits for the end. Rare: only while the pod is drained.
    waiting: RefCell<Vec<Waker>>,
}

/// Counts tasks. Clones are the same count.
#[derive(Clone, Default)]
pub struct Busy(Rc<Inner>);

/// One task at work. Dropping it takes the task out.
pub struct Work(Rc<Inner>);

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Busy").field(&self.0.count.get()).finish()
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

impl Busy {
    /// Counts a task for as long as the answer lives.
    #[must_use]
    pub fn begin(&self) -> Work {
        self.0.count.set(self.0.count.get() + 1);
        Work(Rc::clone(&self.0))
    }

    /// Waits until no task is at work. Cancel safe.
    pub async fn idle(&self) {
        poll_fn(|cx| {
            if self.0.count.get() == 0 {
                return Poll::Ready(());
            }
            self.0.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let left = self.0.count.get().saturating_sub(1);
        self.0.count.set(left);
        if left == 0 {
            let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::Busy;

    #[tokio::test]
    async fn is_idle_when_the_last_task_ended() {
        let busy = Busy::default();
        assert!(busy.idle().now_or_never().is_some());
        let (one, two) = (busy.begin(), busy.begin());
        let mut idle = Box::pin(busy.idle());
        assert!((&mut idle).now_or_never().is_none());
        drop(one);
        assert!((&mut idle).now_or_never().is_none());
        drop(two);
        idle.await;
    }
}
