//! DNS as a pod's resolver speaks it, and a real server to be asked: dnsmasq.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use crate::expect::eventually_true;
use crate::pod::{ANSWER, CONNECT, Pod};

/// A query of a resolver; `edns` is the size of datagrams it takes.
///
/// # Panics
///
/// `name` is none.
#[must_use]
pub fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(0x4d53, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

impl Pod {
    /// Sends a message over UDP to port 53 of `server` and returns what comes back from there.
    ///
    /// # Errors
    ///
    /// Nothing does.
    pub fn dns_over_udp(&self, server: IpAddr, message: &[u8]) -> io::Result<Vec<u8>> {
        let any: SocketAddr = match server {
            IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            IpAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = self.netns().run(|| UdpSocket::bind(any))??;
        // What comes from another address is not heard.
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(Duration::from_secs(6)))?;
        socket.send(message)?;
        let mut answer = vec![0; 65_535];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }

    /// Sends messages over one TCP connection, all at once, and returns as many answers, in the order they come.
    ///
    /// # Errors
    ///
    /// There are fewer.
    pub fn dns_over_tcp(&self, server: IpAddr, messages: &[Vec<u8>]) -> io::Result<Vec<Vec<u8>>> {
        let to = SocketAddr::new(server, 53);
        let mut stream = self
            .netns()
            .run(|| TcpStream::connect_timeout(&to, CONNECT))??;
        stream.set_read_timeout(Some(ANSWER))?;
        for message in messages {
            let length = u16::try_from(message.len()).map_err(io::Error::other)?;
            stream.write_all(&length.to_be_bytes())?;
            stream.write_all(message)?;
        }
        let mut answers = Vec::new();
        for _ in messages {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Gives the pod a `resolv.conf`.
    ///
    /// # Panics
    ///
    /// Not root.
    pub fn write_resolv_conf(&self, text: &str) {
        fs::write(self.resolv_conf(), text).expect("the folder of its namespace");
    }

    /// Where the pod's `resolv.conf` is.
    #[must_use]
    pub fn resolv_conf(&self) -> PathBuf {
        let folder = Path::new("/etc/netns").join(&self.netns_name);
        folder.join("resolv.conf")
    }

    /// Runs dnsmasq in this pod with these records until the answer is dropped.
    ///
    /// # Errors
    ///
    /// It is not installed.
    ///
    /// # Panics
    ///
    /// It does not answer.
    pub fn serve_dns(&self, records: &[&str]) -> Result<Dnsmasq> {
        // Answers from the records alone, and keeps nothing on disk.
        const ALONE: [&str; 7] = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
        ];
        let child = self
            .command("dnsmasq")
            .args(ALONE)
            .args(records)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("dnsmasq: install dnsmasq-base")?;
        let running = Dnsmasq(child);
        let address = IpAddr::from(self.ipv4());
        let asked = query("version.bind", RecordType::A, None).to_vec()?;
        eventually_true(CONNECT, "dnsmasq answers", || {
            self.dns_over_udp(address, &asked).is_ok()
        });
        Ok(running)
    }
}

/// A running dnsmasq.
#[derive(Debug)]
pub struct Dnsmasq(Child);

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
