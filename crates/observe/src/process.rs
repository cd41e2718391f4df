//! Metrics of the process itself, read from `/proc` when they are asked for.

use std::fs;
use std::time::Instant;

use crate::metrics::{Descriptor, Kind, Registry};

/// Size of a page on every platform we build for; `/proc/self/statm` counts pages.
const PAGE: f64 = 4096.0;

/// Adds `process_open_fds`, `process_max_fds`, `process_resident_memory_bytes`,
/// `process_uptime_seconds` and, with a runtime to ask, the gauges of that tokio runtime.
pub fn register(registry: &Registry, runtime: Option<&tokio::runtime::Handle>) {
    let gauge = |name, help| Descriptor {
        name,
        help,
        kind: Kind::Gauge,
    };
    registry.computed(gauge("process_open_fds", "Open file descriptors."), || {
        let entries = fs::read_dir("/proc/self/fd").ok()?;
        // One of them is the directory being read.
        Some(count(entries.count().saturating_sub(1)))
    });
    registry.computed(
        gauge("process_max_fds", "Limit of open file descriptors."),
        || {
            let limits = fs::read_to_string("/proc/self/limits").ok()?;
            let line = limits
                .lines()
                .find(|line| line.starts_with("Max open files"))?;
            line.split_whitespace().nth(3)?.parse().ok()
        },
    );
    registry.computed(
        gauge("process_resident_memory_bytes", "Resident memory."),
        || {
            let statm = fs::read_to_string("/proc/self/statm").ok()?;
            let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
            Some(pages * PAGE)
        },
    );
    let started = Instant::now();
    registry.computed(
        gauge("process_uptime_seconds", "Time since the start."),
        move || Some(started.elapsed().as_secs_f64()),
    );
    let Some(runtime) = runtime else { return };
    let metrics = runtime.metrics();
    let tasks = metrics.clone();
    let queue = metrics.clone();
    registry.computed(
        gauge("tokio_num_workers", "Threads of the control runtime."),
        move || Some(count(metrics.num_workers())),
    );
    registry.computed(
        gauge("tokio_num_alive_tasks", "Tasks of the control runtime."),
        move || Some(count(tasks.num_alive_tasks())),
    );
    registry.computed(
        gauge("tokio_global_queue_depth", "Tasks waiting to run."),
        move || Some(count(queue.global_queue_depth())),
    );
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;

    #[test]
    fn shows_this_process() {
        let registry = Registry::default();
        register(&registry, None);
        let text = registry.render(Format::Text);
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split(' ').nth(1).unwrap().parse().unwrap()
        };
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_resident_memory_bytes") > 100_000.0);
    }
}
