//! What a program does once its start is behind it.

use std::time::Duration;

use ambit_net::program_pages;

use crate::tasks;

/// How long after a start what only it needed is given back. By then the first certificates are there
/// and the first pods are served, as far as nothing fails elsewhere.
const SETTLED: Duration = Duration::from_secs(10);

/// Gives the pages of the program that only its start needed back to the kernel, some time after
/// `started` has completed. To be called once, on a runtime.
pub fn after(started: impl Future<Output = ()> + Send + 'static) {
    drop(tasks::spawn("settle", async move {
        started.await;
        tokio::time::sleep(SETTLED).await;
        match program_pages::release() {
            Ok(bytes) => tracing::debug!(bytes, "gave back the pages of the start"),
            // It only takes more memory than it had to.
            Err(error) => tracing::debug!(%error, "the pages of the start stay"),
        }
    }));
}
