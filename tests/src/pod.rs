//! A pod, as its own clients see the world.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ambit_net::dial::Dial;
use ambit_net::netns::Netns;

use crate::plan::PodPlan;

/// A connection attempt that takes longer has failed: everything is on one machine.
pub const CONNECT: Duration = Duration::from_secs(10);
/// A read or write that takes longer hangs.
pub const ANSWER: Duration = Duration::from_secs(20);

/// Addresses by name: `SERVICE.NAMESPACE` of services, `NAMESPACE/POD` of pods; IPv4, then IPv6.
pub type Names = BTreeMap<String, [IpAddr; 2]>;

/// A pod of a running world. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(crate) plan: PodPlan,
    pub(crate) netns: Arc<Netns>,
    /// The full name of its network namespace.
    pub(crate) netns_name: String,
    pub(crate) names: Arc<Names>,
}

/// Which of an endpoint's two addresses to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Pod {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        self.plan.path()
    }

    /// The identity its certificate carries.
    #[must_use]
    pub fn identity(&self) -> String {
        let PodPlan {
            namespace,
            service_account,
            ..
        } = &self.plan;
        format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.plan.ipv4()
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.plan.ipv6()
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What `HOST:PORT` means: an address, `SERVICE.NAMESPACE` or `NAMESPACE/POD`.
    ///
    /// # Panics
    ///
    /// No such name in this world.
    #[must_use]
    pub fn resolve(&self, to: &str, family: Family) -> SocketAddr {
        if let Ok(address) = to.parse() {
            return address;
        }
        let (host, port) = to.rsplit_once(':').expect("HOST:PORT");
        let found = self
            .names
            .get(host)
            .unwrap_or_else(|| panic!("nothing is named {host}"));
        let ip = match family {
            Family::V4 => found[0],
            Family::V6 => found[1],
        };
        SocketAddr::new(ip, port.parse().expect("a port"))
    }

    /// Connects from this pod, over IPv4 when `to` is a name. Reads and writes end with an error
    /// after [`ANSWER`].
    ///
    /// # Errors
    ///
    /// Nobody answers, or with a refusal.
    pub fn connect(&self, to: &str) -> io::Result<TcpStream> {
        self.connect_over(to, Family::V4)
    }

    /// As [`connect`](Self::connect), over the address family given.
    ///
    /// # Errors
    ///
    /// Nobody answers, or with a refusal.
    pub fn connect_over(&self, to: &str, family: Family) -> io::Result<TcpStream> {
        let to = self.resolve(to, family);
        let stream = self
            .netns
            .run(|| TcpStream::connect_timeout(&to, CONNECT))??;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Connects from this pod, for asynchronous clients.
    ///
    /// # Errors
    ///
    /// Nobody answers, or with a refusal.
    pub async fn dial(&self, to: &str) -> io::Result<tokio::net::TcpStream> {
        let to = self.resolve(to, Family::V4);
        let dial = Dial {
            netns: Some(&self.netns),
            ..Dial::new(to, CONNECT)
        };
        Ok(dial.connect().await?)
    }

    /// Sends `message` on a connection of its own, ends the sending, and returns all that comes
    /// back.
    ///
    /// # Errors
    ///
    /// The connection is refused, reset, or silent.
    pub fn ask(&self, to: &str, message: &[u8]) -> io::Result<Vec<u8>> {
        ask(self.connect(to)?, message)
    }

    /// As [`ask`](Self::ask), over the address family given.
    ///
    /// # Errors
    ///
    /// The connection is refused, reset, or silent.
    pub fn ask_over(&self, to: &str, family: Family, message: &[u8]) -> io::Result<Vec<u8>> {
        ask(self.connect_over(to, family)?, message)
    }

    /// Whether an echo server at `to` answers this pod: a connection that is accepted (by a proxy
    /// on the way) and then broken does not count.
    #[must_use]
    pub fn reaches(&self, to: &str) -> bool {
        const MESSAGE: &[u8] = b"is anybody there?";
        self.ask(to, MESSAGE).is_ok_and(|answer| answer == MESSAGE)
    }

    /// A command to be run in this pod.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns_name, program]);
        command
    }
}

fn ask(mut stream: TcpStream, message: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(message)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
