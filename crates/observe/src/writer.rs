//! A bounded queue of lines before a slow output.
//!
//! # Theory of operation
//! Lines go into a fixed ring; one thread writes them out. A submitter neither waits nor wakes
//! that thread (it looks by itself, more rarely while nothing comes), so a data-plane thread pays
//! one allocation and one exchange per line. When the output is slower than the lines, lines are
//! dropped, counted, and the count is written when there is room again. The same when the output
//! fails: a full disk, a reader that went away.

use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Most lines waiting. One slot costs about 40 bytes.
const MAX_LINES: usize = 4096;

/// Most bytes waiting. An access line has some 600 bytes, so this is reached shortly before
/// [`MAX_LINES`] and bounds what long lines can hold.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Lines handed to the output in one system call.
const BATCH: usize = 64;

/// How often the writer looks, busy and idle: 5 ms keeps the ring below its limit at 800,000
/// lines/s; 100 ms of delay is what a person does not mind and costs ten wake-ups a second.
const LOOK_BUSY: Duration = Duration::from_millis(5);
const LOOK_IDLE: Duration = Duration::from_millis(100);

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Submits lines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogWriter {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    dropped: AtomicU64,
}

impl LogWriter {
    /// Starts the thread that writes to `output`. It ends when the last clone is gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(MAX_LINES);
        let shared = Arc::<Shared>::default();
        let seen = shared.clone();
        let builder = thread::Builder::new()
            .name("log".to_owned())
            .stack_size(128 * 1024);
        let thread = builder
            .spawn(move || write_lines(&lines, output, &seen))?
            .thread()
            .clone();
        Ok(Self {
            queue,
            shared,
            thread,
        })
    }

    /// Queues one line, which ends with a newline. Never waits; a line that finds the queue full
    /// is dropped and counted.
    pub fn submit(&self, line: Vec<u8>) {
        let length = line.len();
        if self.shared.queued_bytes.fetch_add(length, Relaxed) + length > MAX_BYTES
            || self.queue.try_send(Message::Line(line)).is_err()
        {
            self.shared.queued_bytes.fetch_sub(length, Relaxed);
            self.shared.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Like [`LogWriter::submit`], and wakes the writer, for lines that are rare and urgent.
    pub fn submit_now(&self, line: Vec<u8>) {
        self.submit(line);
        self.thread.unpark();
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Waits until what was submitted before is written, at most for `timeout`. Blocks: only for
    /// the end of a program. False when the time was too short.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        let deadline = Instant::now() + timeout;
        let mut message = Message::Flush(done);
        while let Err(error) = self.queue.try_send(message) {
            let TrySendError::Full(back) = error else {
                return false;
            };
            if Instant::now() >= deadline {
                return false;
            }
            message = back;
            self.thread.unpark();
            thread::yield_now();
        }
        self.thread.unpark();
        wait.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .is_ok()
    }
}

/// The writer thread.
fn write_lines(queue: &Receiver<Message>, mut output: impl Write, shared: &Shared) {
    let mut reported = 0;
    let mut look = LOOK_BUSY;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let mut flushes = Vec::new();
        let mut ended = false;
        while batch.len() < BATCH && flushes.is_empty() {
            match queue.try_recv() {
                Ok(Message::Line(line)) => {
                    shared.queued_bytes.fetch_sub(line.len(), Relaxed);
                    batch.push(line);
                }
                Ok(Message::Flush(done)) => flushes.push(done),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    ended = true;
                    break;
                }
            }
        }
        let lines = batch.len();
        let dropped = shared.dropped.load(Relaxed);
        if dropped != reported {
            batch.push(format!("log: {} lines dropped\n", dropped - reported).into_bytes());
        }
        let idle = lines == 0 && flushes.is_empty();
        // An output that fails (a full disk, a reader that went away) must not end the program: what
        // was to be written is lost, and told when there is room again.
        match write_batch(&mut output, &batch) {
            Ok(()) => reported = dropped,
            Err(_) => {
                let lost = u64::try_from(lines).unwrap_or(u64::MAX);
                shared.dropped.fetch_add(lost, Relaxed);
            }
        }
        batch.clear();
        for done in flushes {
            let _ = done.try_send(());
        }
        if ended {
            return;
        }
        if idle {
            thread::park_timeout(look);
            look = (look * 2).min(LOOK_IDLE);
        } else {
            look = LOOK_BUSY;
        }
    }
}

fn write_batch(output: &mut impl Write, batch: &[Vec<u8>]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|line| IoSlice::new(line)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match output.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::{Condvar, Mutex};

    /// An output that stands still until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<Shut>);

    #[derive(Default)]
    struct Shut {
        /// Whether it is open, and what was written.
        state: Mutex<(bool, Vec<u8>)>,
        opened: Condvar,
    }

    impl Gate {
        fn open(&self) {
            self.0.state.lock().0 = true;
            self.0.opened.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.state.lock().1.clone()).unwrap()
        }
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.state.lock();
            self.0.opened.wait_while(&mut state, |state| !state.0);
            let part = bytes.len().min(7); // short writes
            state.1.extend_from_slice(&bytes[..part]);
            Ok(part)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writes_lines_in_order() {
        let gate = Gate::default();
        gate.open();
        let writer = LogWriter::start(gate.clone()).unwrap();
        for n in 0..200 {
            writer.submit(format!("line {n}\n").into_bytes());
        }
        assert!(writer.flush(Duration::from_secs(10)));
        let expected: String = (0..200).map(|n| format!("line {n}\n")).collect();
        assert_eq!(gate.text(), expected);
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn a_stalled_output_drops_and_counts_instead_of_waiting() {
        let gate = Gate::default();
        let writer = LogWriter::start(gate.clone()).unwrap();
        let lines = MAX_LINES + 1000;
        for _ in 0..lines {
            writer.submit(b"x\n".to_vec());
        }
        let dropped = writer.dropped();
        assert!(dropped >= 1000 - BATCH as u64, "{dropped}");
        assert!(!writer.flush(Duration::from_millis(1)));
        gate.open();
        while !writer.flush(Duration::from_secs(10)) {}
        let text = gate.text();
        assert_eq!(text.matches("x\n").count() as u64, lines as u64 - dropped);
        assert!(
            text.contains(&format!("log: {dropped} lines dropped\n")),
            "{dropped}"
        );
    }

    /// An output without room, until there is.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(bool, Vec<u8>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock();
            if !state.0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_tells_how_many_when_there_is_room_again() {
        let disk = Disk::default();
        let writer = LogWriter::start(disk.clone()).unwrap();
        for n in 0..100 {
            writer.submit(format!("lost {n}\n").into_bytes());
        }
        assert!(writer.flush(Duration::from_secs(10)));
        assert_eq!(writer.dropped(), 100);
        disk.0.lock().0 = true;
        writer.submit(b"kept\n".to_vec());
        assert!(writer.flush(Duration::from_secs(10)));
        let text = String::from_utf8(disk.0.lock().1.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.contains(&"log: 100 lines dropped") && lines.contains(&"kept"),
            "{text}"
        );
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn long_lines_are_bounded_by_bytes() {
        let gate = Gate::default();
        let writer = LogWriter::start(gate).unwrap();
        for _ in 0..100 {
            writer.submit(vec![b'x'; MAX_BYTES / 4]);
        }
        assert!(writer.dropped() >= 100 - 4 - BATCH as u64);
        assert!(writer.shared.queued_bytes.load(Relaxed) <= MAX_BYTES);
    }
}
