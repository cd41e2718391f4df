//! The paths that are counted. Nothing in them depends on time, on threads or on a hash's seed; the keys of TLS are drawn anew
//! in each run, which is why operations are counted by the dozen.

mod decisions;
mod mesh;
mod messages;
mod tunnels;

use anyhow::Result;

/// One path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    /// Its name in the book.
    pub(crate) name: &'static str,
    /// Operations that are counted: enough that a run's chances are less than a percent of them, few enough for seconds.
    pub(crate) times: usize,
    /// Sets up and takes it so many times.
    pub(crate) take: fn(usize) -> Result<()>,
}

/// All of them, in the order of a connection's life.
pub(crate) const PATHS: [Path; 15] = [
    Path {
        name: "DNS query answered, 10,000 workloads",
        times: 2000,
        take: messages::dns,
    },
    Path {
        name: "decision, 100 workloads",
        times: 5000,
        take: |times| decisions::connections(100, false, times),
    },
    Path {
        name: "decision, 10,000 workloads",
        times: 5000,
        take: |times| decisions::connections(10_000, false, times),
    },
    Path {
        name: "decision, 100 workloads, policies",
        times: 5000,
        take: |times| decisions::connections(100, true, times),
    },
    Path {
        name: "decision, 10,000 workloads, policies",
        times: 5000,
        take: |times| decisions::connections(10_000, true, times),
    },
    Path {
        name: "policies asked, one allows",
        times: 5000,
        take: decisions::policies,
    },
    Path {
        name: "header blocks of two CONNECTs",
        times: 2000,
        take: messages::hpack,
    },
    Path {
        name: "TLS handshake, both ends",
        times: 40,
        take: tunnels::handshakes,
    },
    Path {
        name: "TLS record of 64 B, sealed and opened",
        times: 2000,
        take: |times| tunnels::records(64, times),
    },
    Path {
        name: "TLS record of 16 KiB, sealed and opened",
        times: 100,
        take: |times| tunnels::records(16 * 1024, times),
    },
    Path {
        name: "tunnel, both ends: stream opened, closed",
        times: 200,
        take: tunnels::streams,
    },
    Path {
        name: "tunnel, both ends: 64 B there and back",
        times: 500,
        take: tunnels::pings,
    },
    Path {
        name: "tunnel, both ends: 64 KiB one way",
        times: 50,
        take: tunnels::bulk,
    },
    Path {
        name: "access record as text",
        times: 2000,
        take: messages::record_text,
    },
    Path {
        name: "access record as JSON",
        times: 2000,
        take: messages::record_json,
    },
];
