//! Data threads: each its own runtime, its own state, its own connections.

use std::fmt;
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::rc::Rc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};

use crate::tasks;

/// The thread has stopped, so the closure was not run.
#[derive(Debug, thiserror::Error)]
#[error("the data thread has stopped")]
pub struct Stopped;

type Work = Pin<Box<dyn Future<Output = ()>>>;
type Job<S> = (&'static str, Box<dyn FnOnce(Rc<S>) -> Work + Send>);

/// Handles events between looks at the control channel and at the timers. The runtime's default
/// of 61 looks at the event queue too rarely under many short tasks.
const EVENT_INTERVAL: u32 = 31;

/// N threads, each with a runtime whose tasks never move, and a state of its own.
///
/// Dropping this asks the threads to stop once; tasks are dropped where they stand. Drain before.
pub struct DataThreads<S: 'static> {
    handles: Vec<ThreadHandle<S>>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: 'static> DataThreads<S> {
    /// Starts `count` threads named `NAME-0`, `NAME-1`… and makes each one's state there, by
    /// `init` with the thread's index.
    ///
    /// # Errors
    ///
    /// The system has no thread or no descriptors left.
    pub fn start<I>(name: &str, count: NonZeroUsize, init: I) -> io::Result<Self>
    where
        I: Fn(usize) -> S + Clone + Send + 'static,
    {
        let mut handles = Vec::with_capacity(count.get());
        let mut threads = Vec::with_capacity(count.get());
        for index in 0..count.get() {
            let (send, receive) = mpsc::unbounded_channel();
            let (started, outcome) = std::sync::mpsc::sync_channel(1);
            let init = init.clone();
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || run(&started, receive, || init(index)))?;
            outcome
                .recv()
                .map_err(|_panicked| io::Error::other("data thread's init panicked"))??;
            handles.push(ThreadHandle { index, jobs: send });
            threads.push(thread);
        }
        Ok(Self { handles, threads })
    }

    /// Handles to all threads, in order.
    #[must_use]
    pub fn handles(&self) -> &[ThreadHandle<S>] {
        &self.handles
    }

    /// The handle of a thread, counted round: any index is valid, so that work is spread by
    /// any number.
    #[must_use]
    pub fn handle(&self, index: usize) -> &ThreadHandle<S> {
        #[expect(
            clippy::indexing_slicing,
            reason = "the remainder is below the length, never 0"
        )]
        &self.handles[index % self.handles.len()]
    }

    /// Stops all threads and waits until each has dropped its tasks.
    ///
    /// Blocks while a task's destructor runs; call it last, off the data threads.
    pub fn stop(mut self) {
        for handle in self.handles.drain(..) {
            handle.stop();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a data thread panicked; this is a bug");
            }
        }
    }
}

impl<S> Drop for DataThreads<S> {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.stop();
        }
    }
}

impl<S> fmt::Debug for DataThreads<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataThreads")
            .field("count", &self.handles.len())
            .finish()
    }
}

enum Message<S> {
    Run(Job<S>),
    Stop,
}

/// Sends closures to one data thread. For control paths: each send wakes the thread.
pub struct ThreadHandle<S: 'static> {
    index: usize,
    // Unbounded, because the senders are our own control tasks, which wait for the outcome of
    // what they send; nothing a peer does is queued here.
    jobs: mpsc::UnboundedSender<Message<S>>,
}

impl<S: 'static> ThreadHandle<S> {
    /// Which thread, from zero.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Runs `job` there as a task: it gets the thread's state and may await and spawn.
    ///
    /// # Errors
    ///
    /// The thread has stopped.
    pub fn run<J, F>(&self, name: &'static str, job: J) -> Result<(), Stopped>
    where
        J: FnOnce(Rc<S>) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let job = Box::new(move |state| Box::pin(job(state)) as Work);
        self.jobs
            .send(Message::Run((name, job)))
            .map_err(|_gone| Stopped)
    }

    /// Runs `job` there and returns its output.
    ///
    /// # Errors
    ///
    /// The thread has stopped, or the job panicked.
    pub async fn ask<J, F, T>(&self, name: &'static str, job: J) -> Result<T, Stopped>
    where
        J: FnOnce(Rc<S>) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.run(name, move |state| async move {
            // Whoever asked may be gone, which is no concern of the job.
            let _ = answer.send(job(state).await);
        })?;
        answered.await.map_err(|_gone| Stopped)
    }

    fn stop(&self) {
        // A thread that is gone is stopped.
        let _ = self.jobs.send(Message::Stop);
    }
}

impl<S> Clone for ThreadHandle<S> {
    fn clone(&self) -> Self {
        Self {
            index: self.index,
            jobs: self.jobs.clone(),
        }
    }
}

impl<S> fmt::Debug for ThreadHandle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadHandle")
            .field("index", &self.index)
            .finish()
    }
}

/// The body of one data thread.
fn run<S: 'static>(
    started: &std::sync::mpsc::SyncSender<io::Result<()>>,
    mut messages: mpsc::UnboundedReceiver<Message<S>>,
    init: impl FnOnce() -> S,
) {
    let built = Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build_local(LocalOptions::default());
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    runtime.block_on(async move {
        let state = Rc::new(init());
        let _ = started.send(Ok(()));
        while let Some(Message::Run((name, job))) = messages.recv().await {
            let state = Rc::clone(&state);
            tasks::spawn_local(name, async move { job(state).await });
        }
    });
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::num::NonZeroUsize;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{DataThreads, Stopped};

    fn two() -> NonZeroUsize {
        NonZeroUsize::new(2).unwrap()
    }

    #[tokio::test]
    async fn each_thread_keeps_its_own_state() {
        let threads = DataThreads::start("data", two(), |index| Cell::new(index * 100)).unwrap();
        for turn in 1..=3 {
            for handle in threads.handles() {
                let seen = handle
                    .ask("count", |state| async move {
                        state.set(state.get() + 1);
                        (
                            state.get(),
                            std::thread::current().name().map(str::to_owned),
                        )
                    })
                    .await
                    .unwrap();
                let index = handle.index();
                assert_eq!(seen, (index * 100 + turn, Some(format!("data-{index}"))));
            }
        }
        assert_eq!(threads.handle(5).index(), 1);
    }

    #[tokio::test]
    async fn a_panicking_job_leaves_its_thread_running() {
        let threads = DataThreads::start("data", two(), |_| ()).unwrap();
        let handle = threads.handle(0);
        let broken = handle
            .ask("broken", |_| async { assert_eq!(1, 2, "on purpose") })
            .await;
        assert!(matches!(broken, Err(Stopped)));
        assert_eq!(handle.ask("next", |_| async { 5 }).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn stopping_drops_the_tasks_where_they_stand() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let threads = DataThreads::start("data", two(), |_| ()).unwrap();
        for handle in threads.handles() {
            let held = Counted(Arc::clone(&dropped));
            handle
                .ask("waits", move |_| async move {
                    crate::tasks::spawn_local("for ever", async move {
                        let _held = held;
                        std::future::pending::<()>().await;
                    });
                })
                .await
                .unwrap();
        }
        let handle = threads.handle(0).clone();
        threads.stop();
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
        assert!(handle.run("late", |_| async {}).is_err());
    }
}
