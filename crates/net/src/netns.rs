//! Run one closure in another network namespace, on the calling thread, and always come back.
//!
//! A namespace belongs to a thread, so the closure must not await, spawn, or block for long; it
//! makes a socket and returns it.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

use crate::error::Named;
use crate::{Error, Result};

/// The calling thread's own entry, not the process': namespaces belong to threads.
const THREAD_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Which namespace a descriptor names: the device and inode of its file, which the kernel keeps
/// unique among the namespaces alive at one time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device number of the namespace file.
    pub device: u64,
    /// Inode number of the namespace file.
    pub inode: u64,
}

impl fmt::Debug for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netns({}:{})", self.device, self.inode)
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    descriptor: OwnedFd,
    id: NetnsId,
}

thread_local! {
    /// Where this thread lives: opened at its first visit elsewhere and kept, so that a visit
    /// costs two system calls and not four.
    static HOME: OnceCell<Netns> = const { OnceCell::new() };
    /// How many visits are nested. Zero: the thread is at home.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Set once the thread moved for good, which makes a kept `HOME` wrong.
    static MOVED: Cell<bool> = const { Cell::new(false) };
}

impl Netns {
    /// Opens the namespace at a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    ///
    /// The path cannot be opened, or is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = File::open(path.as_ref()).named("open (network namespace)")?;
        Self::from_fd(file.into())
    }

    /// Takes a descriptor that names a network namespace, for example one passed by another
    /// process.
    ///
    /// # Errors
    ///
    /// The descriptor is something else than a network namespace.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self> {
        if !is_network_namespace(descriptor.as_fd()) {
            return Err(Error::System {
                call: "ioctl NS_GET_NSTYPE",
                source: std::io::Error::from(std::io::ErrorKind::InvalidInput),
            });
        }
        let status = fstat(&descriptor).named("fstat (network namespace)")?;
        let id = NetnsId {
            device: status.st_dev,
            inode: status.st_ino,
        };
        Ok(Self { descriptor, id })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or no descriptor is left.
    pub fn current() -> Result<Self> {
        Self::open(THREAD_NAMESPACE)
    }

    /// Which namespace this is; two descriptors of one namespace have one id.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// A second descriptor of the same namespace.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn try_clone(&self) -> Result<Self> {
        let descriptor = self
            .descriptor
            .try_clone()
            .named("dup (network namespace)")?;
        Ok(Self {
            descriptor,
            id: self.id,
        })
    }

    /// Runs `visit` inside this namespace, on the calling thread, and comes back.
    ///
    /// Calls may be nested. The closure cannot await; what it spawns stays in this namespace
    /// for ever, so it must not spawn.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered: a missing capability (`CAP_SYS_ADMIN`, which a thread that
    /// lives in this namespace does not need), or no descriptor left. `visit` has then not run.
    ///
    /// # Aborts
    ///
    /// When the thread cannot return to where it was.
    pub fn run<T>(&self, visit: impl FnOnce() -> T) -> Result<T> {
        let _way_back = WayBack::enter(self)?;
        Ok(visit())
    }

    /// Moves the calling thread into this namespace for good: for threads, such as a test's
    /// application server, that live in one namespace.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered: a missing capability (`CAP_SYS_ADMIN`).
    pub fn enter(&self) -> Result<()> {
        setns(&self.descriptor, CloneFlags::CLONE_NEWNET).named("setns")?;
        MOVED.set(true);
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Where a visit returns to.
enum Origin {
    /// The thread's kept home.
    Home,
    /// The namespace of an outer visit, or of a thread that moved.
    Elsewhere(Netns),
}

/// Returns the thread when dropped, so that a panic in the closure cannot strand it.
struct WayBack(Origin);

impl WayBack {
    /// None where the thread is there already: to stay needs no capability.
    fn enter(to: &Netns) -> Result<Option<Self>> {
        let origin = if DEPTH.get() == 0 && !MOVED.get() {
            HOME.with(|home| match home.get() {
                Some(_) => Ok(()),
                None => Netns::current().map(|here| drop(home.set(here))),
            })?;
            if HOME.with(|home| home.get().is_some_and(|home| home.id == to.id)) {
                return Ok(None);
            }
            Origin::Home
        } else {
            Origin::Elsewhere(Netns::current()?)
        };
        setns(&to.descriptor, CloneFlags::CLONE_NEWNET).named("setns")?;
        DEPTH.set(DEPTH.get() + 1);
        Ok(Some(Self(origin)))
    }

    fn back(&self) -> nix::Result<()> {
        match &self.0 {
            Origin::Home => HOME.with(|home| match home.get() {
                Some(home) => setns(&home.descriptor, CloneFlags::CLONE_NEWNET),
                None => Err(nix::Error::EBADF),
            }),
            Origin::Elsewhere(outer) => setns(&outer.descriptor, CloneFlags::CLONE_NEWNET),
        }
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        if self.back().is_err() {
            // Every later socket of this thread would be made in somebody else's pod.
            std::process::abort();
        }
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Asks the kernel what kind of namespace a descriptor names.
#[expect(unsafe_code, reason = "nix has no wrapper for NS_GET_NSTYPE")]
fn is_network_namespace(descriptor: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;
    /// `_IO(0xb7, 0x3)` of `linux/nsfs.h`.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: NS_GET_NSTYPE takes no argument and writes no memory; the descriptor is open for
    // the length of the call because it is borrowed. Any other kind of file answers ENOTTY.
    let kind = unsafe { libc::ioctl(descriptor.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests;
