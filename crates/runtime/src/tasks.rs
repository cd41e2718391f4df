//! The one place that spawns: every task has a name, a bounded size, and a panic of its own.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

/// Bytes a task's future may take. A future lives as long as its connection, so its size is
/// memory per connection; one that outgrows this holds a buffer or a cold branch that belongs
/// in a box.
pub const TASK_BYTES: usize = 16 * 1024;

/// Starts a task on the calling data thread; it never leaves it.
///
/// A panic in `task` is logged with `name` and ends this task only. The handle answers `None`
/// after a panic. Dropping the handle leaves the task running.
///
/// # Panics
///
/// Outside a data thread's runtime (or another local runtime). Futures over [`TASK_BYTES`] do not
/// compile.
#[track_caller]
pub fn spawn_local<F>(name: &'static str, task: F) -> JoinHandle<Option<F::Output>>
where
    F: Future + 'static,
{
    const {
        assert!(
            size_of::<F>() <= TASK_BYTES,
            "the task's future is too large: box it"
        )
    };
    tokio::task::spawn_local(guarded(name, task))
}

/// Starts a task on the control runtime.
///
/// As [`spawn_local`], for futures that may move between threads.
///
/// # Panics
///
/// Outside a runtime.
#[track_caller]
pub fn spawn<F>(name: &'static str, task: F) -> JoinHandle<Option<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    const {
        assert!(
            size_of::<F>() <= TASK_BYTES,
            "the task's future is too large: box it"
        )
    };
    tokio::spawn(guarded(name, task))
}

/// Runs `task`, turning a panic into a log line. No `async fn`, which would have room for the task twice: as its argument and as
/// what it awaits.
fn guarded<F: Future>(
    name: &'static str,
    task: F,
) -> impl Future<Output = Option<F::Output>> + use<F> {
    AssertUnwindSafe(task)
        .catch_unwind()
        .map(move |ended| match ended {
            Ok(output) => Some(output),
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .copied()
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("no message");
                tracing::error!(task = name, message, "a task panicked; this is a bug");
                None
            }
        })
}

#[cfg(test)]
mod tests {
    use super::{guarded, spawn, spawn_local};

    #[test]
    fn a_task_has_room_for_its_future_once() {
        let large = std::future::pending::<[u8; 0]>;
        let held = async move {
            let bytes = [0_u8; 1024];
            large().await;
            bytes
        };
        let size = size_of_val(&held);
        assert!(size >= 1024);
        assert!(size_of_val(&guarded("large", held)) < size + 100);
    }

    #[tokio::test(flavor = "local")]
    async fn a_panic_ends_its_task_alone() {
        let other = spawn_local("other", async {
            tokio::task::yield_now().await;
            7
        });
        let broken = spawn_local("broken", async { assert_eq!(1, 2, "on purpose") });
        assert_eq!(broken.await.unwrap(), None);
        assert_eq!(other.await.unwrap(), Some(7));
        assert_eq!(spawn("control", async { 8 }).await.unwrap(), Some(8));
    }
}
