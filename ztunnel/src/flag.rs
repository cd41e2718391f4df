//! A one-way flag of one thread that many tasks wait for.
//!
//! A drain is told across threads once for each pod; its connections hear of it through this, so
//! that a connection neither takes a lock nor touches another thread for it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

#[derive(Default)]
struct Inner {
    raised: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

/// The flag. Clones are the same flag.
#[derive(Clone, Default)]
pub struct Flag(Rc<Inner>);

impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Flag").field(&self.0.raised.get()).finish()
    }
}

impl Flag {
    /// Raises it for good and wakes all who wait.
    pub fn raise(&self) {
        self.0.raised.set(true);
        let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Whether it is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.raised.get()
    }

    /// Waits until it is raised. Cancel safe.
    #[must_use]
    pub fn wait(&self) -> Wait {
        Wait {
            flag: self.clone(),
            key: None,
        }
    }
}

/// The future of [`Flag::wait`].
#[derive(Debug)]
pub struct Wait {
    flag: Flag,
    key: Option<usize>,
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.flag.is_raised() {
            self.key = None;
            return Poll::Ready(());
        }
        let mut waiting = self.flag.0.waiting.borrow_mut();
        match self.key.and_then(|key| waiting.get_mut(key)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                let key = waiting.insert(cx.waker().clone());
                drop(waiting);
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.flag.is_raised() {
            return;
        }
        if let Some(key) = self.key {
            self.flag.0.waiting.borrow_mut().try_remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::Flag;

    #[tokio::test]
    async fn wakes_those_who_wait_and_forgets_those_who_left() {
        let flag = Flag::default();
        let gone = flag.wait();
        let local = tokio::task::LocalSet::new();
        let waiting = local.spawn_local({
            let flag = flag.clone();
            async move { flag.wait().await }
        });
        local.run_until(tokio::task::yield_now()).await;
        assert_eq!(flag.0.waiting.borrow().len(), 1);
        drop(gone);
        let mut left = flag.wait();
        assert!((&mut left).now_or_never().is_none());
        drop(left);
        assert_eq!(flag.0.waiting.borrow().len(), 1);
        flag.raise();
        local.run_until(waiting).await.unwrap();
        assert!(flag.wait().now_or_never().is_some());
    }
}
