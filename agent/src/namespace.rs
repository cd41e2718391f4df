//! Proof that a network namespace is a pod's own.
//!
//! Whoever gives a namespace to the node proxy says "what comes out of here is this pod". So before that is said: the path
//! names a network namespace, not the host's; one of its interfaces has the pod's address;
//! and no other pod holds the same namespace (device and inode) at the same time.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambit_net::netns::{Netns, NetnsId};
use parking_lot::Mutex;

use crate::redirect;

/// Why a namespace is not taken for the pod's.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Configuration: nothing names the namespace.
    #[error(
        "the pod has no annotation {annotation} to name its network namespace, and stays outside the mesh"
    )]
    NotNamed {
        /// The annotation that names it.
        annotation: &'static str,
    },
    /// Configuration: the pod has no address yet, so ownership cannot be checked.
    #[error("the pod has no address yet")]
    NoAddress,
    /// Configuration: the path is no network namespace, or cannot be opened.
    #[error("{} is not a network namespace that can be opened: {source}", path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Configuration: the path is the host's own namespace.
    #[error("{} is the host's own network namespace", .0.display())]
    Host(PathBuf),
    /// Configuration: no interface there has the pod's address.
    #[error("no interface in {} has an address of the pod", .0.display())]
    NotOwned(PathBuf),
    /// Configuration: another pod holds this namespace.
    #[error("the network namespace {id} is that of pod {uid} already")]
    Taken {
        /// The namespace.
        id: NetnsId,
        /// The pod that holds it.
        uid: String,
    },
    /// Environment: the kernel did not tell the addresses.
    #[error("the addresses in {} cannot be listed: {source}", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Which pod holds which namespace.
#[derive(Debug, Default)]
pub struct Claims {
    host: Vec<NetnsId>,
    /// The pod, and how many times it holds the namespace.
    held: Mutex<HashMap<NetnsId, (String, usize)>>,
}

impl Claims {
    /// Nothing claimed, and `host` never to be.
    #[must_use]
    pub fn new(host: Vec<NetnsId>) -> Self {
        Self {
            host,
            held: Mutex::default(),
        }
    }

    /// Nothing claimed; the namespaces of this process and of process 1 are the host's.
    #[must_use]
    pub fn for_this_host() -> Self {
        let own = ["/proc/self/ns/net", "/proc/1/ns/net"];
        Self::new(
            own.iter()
                .filter_map(|path| Some(Netns::open(path).ok()?.id()))
                .collect(),
        )
    }

    fn claim(&self, id: NetnsId, uid: &str) -> Result<(), NamespaceError> {
        let mut held = self.held.lock();
        let (holder, times) = held.entry(id).or_insert_with(|| (uid.to_owned(), 0));
        if holder == uid {
            *times += 1;
            return Ok(());
        }
        Err(NamespaceError::Taken {
            id,
            uid: holder.clone(),
        })
    }

    fn release(&self, id: NetnsId) {
        let mut held = self.held.lock();
        if let Some((_, times)) = held.get_mut(&id) {
            *times = times.saturating_sub(1);
            if *times == 0 {
                held.remove(&id);
            }
        }
    }
}

/// A pod's own namespace; the claim on it ends when this goes.
#[derive(Debug)]
pub struct PodNetns {
    netns: Netns,
    claims: Arc<Claims>,
}

impl PodNetns {
    /// Opens the namespace at `path` for the pod `uid` with these addresses.
    ///
    /// # Errors
    /// When it cannot be proved to be the pod's own.
    pub fn open(
        claims: &Arc<Claims>,
        uid: &str,
        path: &Path,
        addresses: &[IpAddr],
    ) -> Result<Self, NamespaceError> {
        if addresses.is_empty() {
            return Err(NamespaceError::NoAddress);
        }
        let path = path.to_owned();
        let netns = match Netns::open(&path) {
            Ok(netns) => netns,
            Err(error) => {
                return Err(NamespaceError::NotANamespace {
                    path,
                    source: with_cause(&error),
                });
            }
        };
        if claims.host.contains(&netns.id()) {
            return Err(NamespaceError::Host(path));
        }
        let present = match redirect::addresses(&netns) {
            Ok(present) => present,
            Err(source) => return Err(NamespaceError::Unreadable { path, source }),
        };
        if !addresses.iter().any(|address| present.contains(address)) {
            return Err(NamespaceError::NotOwned(path));
        }
        claims.claim(netns.id(), uid)?;
        Ok(Self {
            netns,
            claims: Arc::clone(claims),
        })
    }

    /// The namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.netns.id()
    }

    /// Whether `path` still names this namespace.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        Netns::open(path).is_ok_and(|found| found.id() == self.id())
    }
}

/// The system's word for it, which the error itself leaves to its source.
fn with_cause(error: &ambit_net::Error) -> io::Error {
    match error.io() {
        Some(cause) => io::Error::new(cause.kind(), format!("{error}: {cause}")),
        None => io::Error::other(error.to_string()),
    }
}

impl Drop for PodNetns {
    fn drop(&mut self) {
        self.claims.release(self.netns.id());
    }
}
