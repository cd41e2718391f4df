//! The file of revocation lists (`CRL_PATH`): read, looked after, put in force.
//!
//! # Theory of operation
//! What `stat` says of the file is looked at every second. When it differs from what was read last,
//! and is the same for two looks, the file is read as a whole: not while it is being written or a
//! volume is being swapped. Looked at rather than watched, because the kubelet swaps symbolic links in
//! folders above, and because it costs one system call. New lists count for handshakes from that
//! moment; data threads are told to ask about the connections they have.
//!
//! # Failure modes
//! - A file that is there at start and cannot be used stops the start: to go on would let in whom it
//!   keeps out.
//! - No file at start is no list yet: Istio's chart mounts a volume that may be empty. It is warned of,
//!   and taken in when it comes.
//! - A file that cannot be used later, or is gone, leaves the lists in force; the log says so once for
//!   each change, `ambit_crl_not_current` until it is mended.
//! - A list past its next update counts on, and `ambit_crl_lists_overdue` says how many there are: to
//!   refuse everybody because a list is late would end the mesh with its authority.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_observe::metrics::{Descriptor, Kind, Registry};
use ambit_tls::Revocations;
use ambit_tls::revocation::{Lists, Summary};
use anyhow::Context;
use arc_swap::ArcSwapOption;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);

/// Largest file read: some 400,000 entries.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The lists in force, and what is known of their file.
#[derive(Debug, Default)]
pub struct Revocation {
    /// Where handshakes find them.
    pub lists: Revocations,
    /// Raised when there are others.
    changed: watch::Sender<u64>,
    /// Why what is in force is not what the file says.
    problem: ArcSwapOption<String>,
}

impl Revocation {
    /// Reads the file, if there is to be one.
    ///
    /// # Errors
    /// It is there and cannot be used.
    pub fn start(path: Option<&Path>) -> anyhow::Result<(Self, Option<Watch>)> {
        let Some(path) = path else {
            return Ok((Self::default(), None));
        };
        let revocation = Self {
            lists: Revocations::watched(),
            ..Self::default()
        };
        let mut watch = Watch::new(path);
        match read(path).with_context(|| format!("CRL_PATH: {}", path.display()))? {
            Some((lists, stamp)) => {
                revocation.put(lists);
                watch.settle(Some(stamp));
            }
            None => tracing::warn!(path = %path.display(), "there is no revocation list yet"),
        }
        Ok((revocation, Some(watch)))
    }

    /// Tells when there are other lists.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The lists in force, for the admin page; null where there are never any.
    #[must_use]
    pub fn shown(&self) -> Value {
        let Some(lists) = self.lists.current() else {
            return Value::Null;
        };
        let list = |list: Summary| {
            let since = list.next_update.duration_since(SystemTime::UNIX_EPOCH);
            json!({
                "issuer": list.issuer,
                "certificates": list.certificates,
                "nextUpdateUnix": since.unwrap_or_default().as_secs(),
                "overdue": list.next_update <= SystemTime::now(),
                "signatureVerified": list.proven,
            })
        };
        let lists: Vec<_> = lists.summaries().into_iter().map(list).collect();
        json!({ "lists": lists, "problem": self.problem.load().as_deref() })
    }

    fn put(&self, lists: Lists) {
        let all = lists.summaries();
        let certificates: usize = all.iter().map(|list| list.certificates).sum();
        tracing::info!(
            lists = all.len(),
            certificates,
            "revocation lists are in force"
        );
        let now = SystemTime::now();
        for list in all.iter().filter(|list| list.next_update <= now) {
            tracing::warn!(
                issuer = list.issuer,
                "a revocation list is overdue; it counts on"
            );
        }
        self.problem.store(None);
        self.lists.put(lists);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Says once that what is in force is not what the file says.
    fn report(&self, path: &Path, problem: String) {
        if self.problem.load().as_deref() != Some(&problem) {
            tracing::error!(path = %path.display(), problem, "revocation lists are not read; those in force stay");
            self.problem.store(Some(Arc::new(problem)));
        }
    }

    fn count(&self, which: impl Fn(&Summary) -> bool) -> f64 {
        let lists = self.lists.current();
        let all = lists.map(|lists| lists.summaries()).unwrap_or_default();
        let count = all.iter().filter(|list| which(list)).count();
        u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
    }
}

/// Looks after the file for as long as the program runs.
pub async fn keep(revocation: Arc<Revocation>, mut watch: Watch) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        watch.look(&revocation).await;
    }
}

/// When the file is read.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// How the file was when it was last read; `None` while there was none.
    read: Option<Stamp>,
    /// How it was at the last look.
    seen: Option<Stamp>,
}

/// What tells one content of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Watch {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read: None,
            seen: None,
        }
    }

    fn settle(&mut self, stamp: Option<Stamp>) {
        self.read = stamp;
        self.seen = stamp;
    }

    /// One look: reads the file if it is another one and at rest.
    async fn look(&mut self, revocation: &Revocation) {
        let stamp = match std::fs::metadata(&self.path) {
            Ok(found) => Some(Stamp::of(&found)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return revocation.report(&self.path, error.to_string()),
        };
        if !self.due(stamp) {
            return;
        }
        let path = self.path.clone();
        // Megabytes to be read and sorted: not on a thread that others wait for.
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        match read.unwrap_or_else(|_panic| Err(Unread::Content("internal error".into()))) {
            Ok(Some((lists, stamp))) => {
                self.settle(Some(stamp));
                revocation.put(lists);
            }
            Ok(None) => {
                self.settle(None);
                revocation.report(&self.path, "the file is gone".into());
            }
            // This content will not become any better.
            Err(error @ Unread::Content(_)) => {
                self.settle(stamp);
                revocation.report(&self.path, error.to_string());
            }
            Err(error @ Unread::Io(_)) => revocation.report(&self.path, error.to_string()),
        }
    }

    /// Whether a file that looks like this is to be read now.
    fn due(&mut self, stamp: Option<Stamp>) -> bool {
        let at_rest = self.seen == stamp;
        self.seen = stamp;
        at_rest && self.read != stamp
    }
}

impl Stamp {
    fn of(file: &std::fs::Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// Why a file gave no lists.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Content(String),
}

/// The lists of a file and how it was when it was opened; nothing if there is no file.
fn read(path: &Path) -> Result<Option<(Lists, Stamp)>, Unread> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stamp = Stamp::of(&file.metadata()?);
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|size| size > MAX_FILE) {
        return Err(Unread::Content(format!("more than {MAX_FILE} bytes")));
    }
    let lists = Lists::read(&bytes).map_err(|error| Unread::Content(error.to_string()))?;
    Ok(Some((lists, stamp)))
}

/// Adds what is to be known of the lists. For a program that has a file of them.
pub fn register(registry: &Registry, revocation: &Arc<Revocation>) {
    let gauge = |name, help, value: fn(&Revocation) -> f64| {
        let revocation = Arc::clone(revocation);
        let kind = Kind::Gauge;
        let descriptor = Descriptor { name, help, kind };
        registry.computed(descriptor, move || Some(value(&revocation)));
    };
    gauge(
        "ambit_crl_lists",
        "Revocation lists in force (unstable).",
        |revocation| revocation.count(|_| true),
    );
    gauge(
        "ambit_crl_lists_overdue",
        "Revocation lists in force that should have been replaced by now (unstable).",
        |revocation| revocation.count(|list| list.next_update <= SystemTime::now()),
    );
    gauge(
        "ambit_crl_lists_unproven",
        "Revocation lists in force that name a peer's certificate, and no authority of theirs that was seen has signed (unstable).",
        |revocation| revocation.count(|list| list.proven == Some(false)),
    );
    gauge(
        "ambit_crl_not_current",
        "1 while the revocation lists in force are not what the file says, because it cannot be used (unstable).",
        |revocation| {
            if revocation.problem.load().is_some() {
                1.0
            } else {
                0.0
            }
        },
    );
}

#[cfg(test)]
mod tests;
