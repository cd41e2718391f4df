//! The numbers of a tunnel, each with its reason.

use std::time::Duration;

/// How a tunnel behaves. Both ends choose for themselves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes a peer may send on one stream before its reader took any: the most that one standing
    /// reader can hold in memory.
    pub stream_window: u32,
    /// Streams a peer may have open at once on a connection that we accepted.
    pub max_streams: u32,
    /// Largest frame we accept.
    pub max_frame: u32,
    /// Largest piece we send as one frame.
    pub send_piece: usize,
    /// Bytes one stream may have waiting for the connection to take them.
    pub send_buffer: usize,
    /// Largest header block.
    pub max_header_list: u32,
    /// Longest wait for the peer's first HTTP/2 bytes.
    pub handshake_timeout: Duration,
    /// Longest wait for the answer to a CONNECT.
    pub open_timeout: Duration,
    /// A quiet connection is asked for a sign of life after this long, and again each time it passes.
    pub ping_interval: Duration,
    /// Quiet intervals after which the connection is taken for dead.
    pub quiet_intervals: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // A MiB, and whole pieces, so that none is cut for want of credit: 10 Gbit/s across 0.8 ms of
            // round trip, which covers two zones of a region.
            stream_window: 9 * 122 * 1024,
            // Twice what our own pool puts on one connection, as Istio's node proxy advertises.
            max_streams: 200,
            // A whole piece: fewer frames for bulk, and a small stream behind one waits some 0.2 ms at
            // 5 Gbit/s.
            max_frame: 128 * 1024,
            // Eight whole TLS records together with the frame's header.
            send_piece: ambit_relay::LONGEST_PIECE,
            // Four whole pieces: the driver never runs dry between two wakes of the writer, and none is cut.
            send_buffer: 4 * ambit_relay::LONGEST_PIECE,
            // Baggage, trace and forwarding headers take under 2 KiB, and a peer that sends more is careless.
            max_header_list: 32 * 1024,
            handshake_timeout: Duration::from_secs(10),
            // The server dials for up to 10 s before it answers.
            open_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(10),
            // One interval of silence before the question, two for the answer: as long as Istio's.
            quiet_intervals: 3,
        }
    }
}

/// Streams that the pool puts on one tunnel: Istio's default, so that a peer's limit of 200 holds.
pub const POOL_STREAMS: u32 = 100;

/// Time to give a sign of life for a peer that is said to be gone: a lost question or answer is sent
/// again twice within it.
pub(crate) const PROBE: Duration = Duration::from_secs(5);

/// Bytes read from a connection in one turn of its driver, and as many written, before others of the thread get their turn: a
/// fraction of a millisecond.
pub(crate) const TURN_BYTES: usize = 256 * 1024;

/// What a frame counts for in [`TURN_BYTES`] at least: it takes no longer to handle one without data than to open and copy about so
/// many bytes. A peer that sends nothing but heads of frames gets no more of the thread's time in a turn than one that sends data.
pub(crate) const FRAME_COST: usize = 256;

/// Frames of data without data that do not end their stream, less those with data (CVE-2019-9518). Nothing sends them for a
/// reason, so this is how many may come by mistake.
pub(crate) const MAX_EMPTY: u32 = 1000;

/// Streams that a peer opened and reset before we took them (CVE-2023-44487): above what any honest burst shows, since they are
/// taken at once.
pub(crate) const MAX_RESET_BEFORE_ACCEPT: u32 = 20;

/// Streams that we reset for the peer's errors over a connection's life (CVE-2025-8671). An honest peer makes none.
pub(crate) const MAX_ERROR_RESETS: u32 = 256;

/// A stream that has no more than this waiting for its reader goes on when the thread has no room: it is not the cause, and small
/// ones are all that many honest streams are.
pub(crate) const STANDING: usize = 64 * 1024;

/// Requests given up by the peer before our answer, less those answered since: beyond this it is
/// told to calm down and loses the connection. Each costs us a task and a dial, so a peer gets about
/// as many for nothing as two full connections of clients that all hang up.
pub(crate) const MAX_ABANDONED: u32 = 400;

impl Settings {
    /// Window of the whole connection: every stream standing still with a full window, and room for
    /// one more, so that streams never wait for one another.
    pub(crate) fn connection_window(&self, streams: u32) -> u32 {
        /// RFC 9113 6.9.1.
        const MAX: u32 = (1 << 31) - 1;
        self.stream_window
            .saturating_mul(streams.saturating_add(1))
            .min(MAX)
    }
}
