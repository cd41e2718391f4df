//! DNS for the pods of this node.
//!
//! # Theory of operation
//! The agent redirects a pod's DNS queries to 15053 on the pod's loopback. There this proxy answers for the mesh's own
//! names and asks the pod's servers for all others ([`ambit_dns`] decides which is which). The queries it sends leave
//! from the pod's namespace, so that network policies and routes hold for them as if the pod had asked.
//!
//! All of it runs on one thread of its own. So one cache serves the node without a lock, and a flood of queries takes
//! time from no connection. A query that can be answered at once is answered in the turn that read it; only one
//! that has to wait becomes a task.
//!
//! # Invariants
//! - A pod hears only answers to queries that it made itself: caches, ports and servers of two pods never mix.
//! - What a pod may have in flight is bounded, and so is the node. What is beyond is answered at once, with a failure.
//! - A query that was read is answered, unless the pod is gone.
//!
//! # How it fails
//! No server answers: SERVFAIL, before the client's own patience (5 seconds) ends. Who the pod is is not known:
//! SERVFAIL after [`client::UNKNOWN`]. A pod without servers: every name that is not ours fails, and the mesh's names go
//! on working.

pub mod client;
pub mod metrics;
pub mod places;
pub mod serve;
pub mod upstream;

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_dns::cache::{Cache, Place};
use ambit_net::datagram::UdpListen;
use ambit_net::listen::TcpListen;
use ambit_net::netns::Netns;
use ambit_runtime::drain::Draining;
use ambit_runtime::threads::{DataThreads, Stopped, ThreadHandle};
use tokio::time::Instant;

use crate::config::{DnsAddress, Settings};
use crate::dns::places::Watched;
use crate::pod::{Pod, mark};
use crate::worker::Shared;

/// Queries that wait for others, of the whole node: each has a socket, and a process has no more than it was given.
const IN_FLIGHT: u32 = 4096;

/// Longest message there is.
const LONGEST: usize = 65_535;

/// The thread's state.
#[derive(Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
    cache: RefCell<Cache>,
    began: Instant,
    /// What this proxy itself was told about servers.
    own: Watched,
    /// The last number given to a place.
    places: Cell<u64>,
    in_flight: Cell<u32>,
    /// Where datagrams are read before anybody knows how long they are.
    scratch: RefCell<Vec<u8>>,
    /// Makes ids that nobody can foretell: a keyed hash (SipHash) of a counter.
    secret: RandomState,
    drawn: Cell<u64>,
}

impl Resolver {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            cache: RefCell::default(),
            began: Instant::now(),
            own: Watched::new(PathBuf::from(places::OWN)),
            places: Cell::new(0),
            in_flight: Cell::new(0),
            scratch: RefCell::new(vec![0; LONGEST]),
            secret: RandomState::new(),
            drawn: Cell::new(0),
        }
    }

    /// Time since the thread began, by which the cache counts.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A number that nobody can foretell.
    fn draw(&self) -> u64 {
        let next = self.drawn.get().wrapping_add(1);
        self.drawn.set(next);
        self.secret.hash_one(next)
    }

    /// A place that no answer was kept for.
    fn new_place(&self) -> Place {
        self.places.set(self.places.get() + 1);
        Place(self.places.get())
    }

    /// Room for one more query that waits.
    fn begin(self: &Rc<Self>) -> Option<InFlight> {
        let before = self.in_flight.get();
        if before >= IN_FLIGHT {
            return None;
        }
        self.in_flight.set(before + 1);
        Some(InFlight(Rc::clone(self)))
    }
}

/// One query that waits.
#[derive(Debug)]
struct InFlight(Rc<Resolver>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0
            .in_flight
            .set(self.0.in_flight.get().saturating_sub(1));
    }
}

/// The DNS thread, as others see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dns {
    thread: ThreadHandle<Resolver>,
}

/// Starts the DNS thread. It ends when the first part of the answer is dropped.
///
/// # Errors
/// No thread or descriptor is left.
pub fn start(shared: &Arc<Shared>) -> io::Result<(DataThreads<Resolver>, Dns)> {
    let for_thread = Arc::clone(shared);
    let one = NonZeroUsize::MIN;
    let threads = DataThreads::start("dns", one, move |_| Resolver::new(&for_thread))?;
    let thread = threads.handle(0).clone();
    Ok((threads, Dns { thread }))
}

impl Dns {
    /// Serves a pod until `draining` asks to stop.
    ///
    /// # Errors
    /// The thread has stopped, or cannot watch the sockets.
    pub async fn serve(
        &self,
        pod: Arc<Pod>,
        sockets: Sockets,
        draining: Draining,
    ) -> io::Result<()> {
        let served = self.thread.ask("serve DNS", move |resolver| async move {
            serve::serve(&resolver, pod, sockets, draining)
        });
        served.await.map_err(|Stopped| io::Error::other(Stopped))?
    }
}

/// A pod's DNS sockets.
#[derive(Debug, Default)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Binds them in one visit to the pod's namespace; IPv6 where the pod's loopback has it.
    ///
    /// # Errors
    /// The namespace cannot be entered, the port is in use there, or a capability is missing.
    pub fn bind(
        netns: &Netns,
        settings: &Settings,
        at: DnsAddress,
    ) -> Result<Self, ambit_net::Error> {
        netns.run(|| Self::bind_here(settings, at))?
    }

    fn bind_here(settings: &Settings, at: DnsAddress) -> Result<Self, ambit_net::Error> {
        let mut sockets = Self::default();
        match at {
            DnsAddress::At(address) => sockets.add(settings, address)?,
            DnsAddress::Localhost(port) => {
                sockets.add(settings, (Ipv4Addr::LOCALHOST, port).into())?;
                let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
                match settings.ipv6_enabled.then(|| sockets.add(settings, v6)) {
                    Some(Err(error)) if !has_no_such_address(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(sockets)
    }

    fn add(&mut self, settings: &Settings, address: SocketAddr) -> Result<(), ambit_net::Error> {
        let reuse_port = settings.inpod_port_reuse;
        let udp = UdpListen {
            address,
            reuse_port,
            mark: mark(settings),
        };
        let tcp = TcpListen {
            reuse_port,
            mark: mark(settings),
            ..TcpListen::new(address)
        };
        self.udp.push(udp.bind()?);
        self.tcp.push(tcp.bind()?);
        Ok(())
    }
}

/// Whether IPv6 is off in that namespace, on the loopback or altogether.
fn has_no_such_address(error: &ambit_net::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.io().is_some_and(|error| {
        error.kind() == io::ErrorKind::AddrNotAvailable
            || error.raw_os_error() == Some(EAFNOSUPPORT)
    })
}
