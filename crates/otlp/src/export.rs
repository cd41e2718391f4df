//! The queue and the task that empties it.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use ambit_observe::access::{Record, Sink};
use ambit_observe::metrics::{Family, Handle, Registry};
use ambit_proto::otlp::logs_service_client::LogsServiceClient;
use ambit_proto::otlp::trace_service_client::TraceServiceClient;
use ambit_runtime::backoff::Backoff;
use ambit_tls::KeyExchange;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Code, Status};

use crate::finished::Finished;
use crate::transport::Transport;
use crate::{OtlpError, Sampling, Settings, Target, batch};

/// Records of one request (`OTEL_BLRP_MAX_EXPORT_BATCH_SIZE`'s default).
const BATCH: usize = 512;

/// How often the queue is looked at (`OTEL_BLRP_SCHEDULE_DELAY`'s default).
const LOOK: Duration = Duration::from_secs(1);

/// Attempts for one request. With the pauses between them and the timeout they last a minute at most; then the batch is lost.
const ATTEMPTS: u32 = 5;
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

ambit_observe::series! {
    /// What the collector took.
    struct Taken {
        records: Counter = ("ambit_otlp_exported_records", "Log records and spans that the collector took (unstable)."),
    }
}

ambit_observe::series! {
    /// What was lost.
    struct Lost {
        records: Counter = ("ambit_otlp_dropped_records", "Log records and spans that were not exported (unstable)."),
    }
}

/// A signal's counters.
#[derive(Debug, Clone)]
struct Counters {
    taken: Handle<Taken>,
    /// The queue was full.
    full: Handle<Lost>,
    /// The collector could not be reached or refused the request.
    failed: Handle<Lost>,
    /// The collector took a part only.
    rejected: Handle<Lost>,
}

impl Counters {
    fn new(signal: &str, taken: &Family<Taken>, lost: &Family<Lost>) -> Self {
        let lost = |reason| {
            lost.resolve(|labels| {
                labels.closed("signal", signal);
                labels.closed("reason", reason);
            })
        };
        Self {
            taken: taken.resolve(|labels| labels.closed("signal", signal)),
            full: lost("queue full"),
            failed: lost("not delivered"),
            rejected: lost("rejected"),
        }
    }
}

/// Takes records on any thread.
pub struct Exporter {
    queue: SyncSender<Box<Finished>>,
    logs: Option<Counters>,
    traces: Option<(Counters, Sampling)>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("logs", &self.logs.is_some())
            .field("traces", &self.traces.is_some())
            .finish_non_exhaustive()
    }
}

/// Asks for what is queued to be sent before the program ends.
#[derive(Debug, Clone)]
pub struct Finish(mpsc::Sender<oneshot::Sender<()>>);

impl Finish {
    /// Sends what is queued, each batch tried once, and waits for it no longer than `limit`.
    pub async fn wait(&self, limit: Duration) {
        let (done, finished) = oneshot::channel();
        let all = async {
            if self.0.send(done).await.is_ok() {
                // An error is the end of the task, which is as final.
                let _ = finished.await;
            }
        };
        if timeout(limit, all).await.is_err() {
            tracing::warn!("some records were not exported before the end");
        }
    }
}

impl Exporter {
    /// An exporter to the collectors of `settings`, https ones by `key_exchange`, the task that does the work, and the way to end it.
    ///
    /// # Assumptions
    /// Called within the control runtime; the task is run there.
    ///
    /// # Errors
    /// See [`OtlpError`].
    pub fn new(
        settings: &Settings,
        key_exchange: KeyExchange,
        registry: &Registry,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + use<>, Finish), OtlpError> {
        let (taken, lost) = (registry.family(), registry.family());
        let (queue, records) = sync_channel(settings.queue);
        let mut exporter = Self {
            queue,
            logs: None,
            traces: None,
        };
        let mut task = Task {
            records,
            resource: settings.resource.clone(),
            logs: None,
            traces: None,
            hurry: watch::Sender::new(false),
        };
        if let Some(target) = &settings.logs {
            let counters = Counters::new("logs", &taken, &lost);
            let client = LogsServiceClient::new(Transport::new(target, key_exchange)?);
            task.logs = Some((client, Delivery::new(&counters, target, &task.hurry)));
            exporter.logs = Some(counters);
        }
        if let Some((target, sampling)) = &settings.traces {
            let counters = Counters::new("traces", &taken, &lost);
            let client = TraceServiceClient::new(Transport::new(target, key_exchange)?);
            task.traces = Some((client, Delivery::new(&counters, target, &task.hurry)));
            exporter.traces = Some((counters, *sampling));
        }
        let (finish, asked) = mpsc::channel(1);
        Ok((Arc::new(exporter), task.run(asked), Finish(finish)))
    }
}

impl Sink for Exporter {
    fn take(&self, record: &Record<'_>, admitted: bool) {
        let logs = self.logs.as_ref().filter(|_| admitted);
        let sampled = |(_, sampling): &&(Counters, Sampling)| {
            record
                .trace
                .is_some_and(|trace| sampling.takes(trace.trace_id))
        };
        let traces = self.traces.as_ref().filter(sampled);
        if logs.is_none() && traces.is_none() {
            return;
        }
        let now = SystemTime::now();
        let finished = Finished::of(record, now, logs.is_some(), traces.is_some());
        // The other end never waits in the queue, so nobody is woken.
        if self.queue.try_send(Box::new(finished)).is_err() {
            if let Some(counters) = logs {
                counters.full.records.inc();
            }
            if let Some((counters, _)) = traces {
                counters.full.records.inc();
            }
        }
    }
}

/// Empties the queue.
struct Task {
    records: Receiver<Box<Finished>>,
    resource: Vec<(String, String)>,
    logs: Option<(LogsServiceClient<Transport>, Delivery)>,
    traces: Option<(TraceServiceClient<Transport>, Delivery)>,
    /// Raised when the end is near: what is tried is tried once.
    hurry: watch::Sender<bool>,
}

impl Task {
    async fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut done = tokio::select! {
                _ = looks.tick() => None,
                Some(done) = asked.recv() => Some(done),
            };
            self.hurry.send_replace(done.is_some());
            let hurry = self.hurry.clone();
            let mut drained = std::pin::pin!(self.drain());
            loop {
                tokio::select! {
                    () = &mut drained => break,
                    Some(asked) = asked.recv(), if done.is_none() => {
                        // Who asks for the end does not wait for a collector that is away.
                        hurry.send_replace(true);
                        done = Some(asked);
                    }
                }
            }
            if let Some(done) = done {
                let _ = done.send(());
            }
        }
    }

    /// Sends what is queued.
    async fn drain(&mut self) {
        while let Some(batch) = self.next() {
            self.send(&batch).await;
        }
    }

    /// The next records, if there are any.
    fn next(&self) -> Option<Vec<Finished>> {
        let batch: Vec<_> = self
            .records
            .try_iter()
            .take(BATCH)
            .map(|one| *one)
            .collect();
        (!batch.is_empty()).then_some(batch)
    }

    async fn send(&mut self, records: &[Finished]) {
        if let Some((client, delivery)) = &mut self.logs
            && let Some(request) = batch::logs(records, &self.resource)
        {
            let count = records.iter().filter(|record| record.logged).count();
            let export = || {
                let (mut client, request) = (client.clone(), request.clone());
                async move {
                    let answer = client.export(request).await?.into_inner();
                    let refused = answer.partial_success.unwrap_or_default();
                    Ok((refused.rejected_log_records, refused.error_message))
                }
            };
            delivery.deliver("log records", count, export).await;
        }
        if let Some((client, delivery)) = &mut self.traces
            && let Some(request) = batch::spans(records, &self.resource)
        {
            let count = records.iter().filter(|record| record.traced).count();
            let export = || {
                let (mut client, request) = (client.clone(), request.clone());
                async move {
                    let answer = client.export(request).await?.into_inner();
                    let refused = answer.partial_success.unwrap_or_default();
                    Ok((refused.rejected_spans, refused.error_message))
                }
            };
            delivery.deliver("spans", count, export).await;
        }
    }
}

/// What is done with one signal's requests.
struct Delivery {
    counters: Counters,
    timeout: Duration,
    /// The end is near.
    hurry: watch::Receiver<bool>,
}

impl Delivery {
    fn new(counters: &Counters, target: &Target, hurry: &watch::Sender<bool>) -> Self {
        Self {
            counters: counters.clone(),
            timeout: target.timeout,
            hurry: hurry.subscribe(),
        }
    }

    /// Sends a request of `count` records until it is taken, refused for good, or tried often enough: once, where the end is near.
    /// `export` answers how many records the collector did not take, and why.
    async fn deliver<F>(&self, what: &'static str, count: usize, export: impl Fn() -> F)
    where
        F: Future<Output = Result<(i64, String), Status>>,
    {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut hurry = self.hurry.clone();
        for left in (0..ATTEMPTS).rev() {
            let failed = match timeout(self.timeout, export()).await {
                Ok(Ok((rejected, why))) => {
                    let rejected = u64::try_from(rejected).unwrap_or_default().min(count);
                    self.counters.taken.records.add(count - rejected);
                    self.counters.rejected.records.add(rejected);
                    if rejected > 0 {
                        tracing::warn!(what, rejected, why, "the collector took a part only");
                    }
                    return;
                }
                Ok(Err(status)) => status,
                Err(_elapsed) => Status::deadline_exceeded("no answer in time"),
            };
            if left == 0 || *hurry.borrow() || !may_pass(&failed) {
                let code = failed.code();
                tracing::warn!(what, count, ?code, error = failed.message(), "not exported");
                break;
            }
            let pause = backoff.next(fastrand::u64(..));
            // Shorter where somebody asks for the end.
            let _ = timeout(pause, hurry.wait_for(|hurry| *hurry)).await;
        }
        self.counters.failed.records.add(count);
    }
}

/// Whether the same request may be taken later (OTLP, "Failures").
fn may_pass(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}

#[cfg(test)]
mod tests;
