//! What passes over the wires between the nodes.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ambit_net::netns::Netns;
use anyhow::{Context, Result};
use memchr::memmem;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Every Ethernet protocol, in network byte order (`ETH_P_ALL`).
const ALL: i32 = 0x0300;
/// Room in the kernel for packets not read yet: a second of traffic at full speed.
const KERNEL_BUFFER: usize = 256 << 20;
/// Packets kept. A capture is for exchanges of messages, not for bulk.
const MOST: usize = 512 << 20;
/// A segment before it is cut into packets may be this long.
const LONGEST: usize = 70_000;

/// Reading on after the end, under traffic that does not stop: many times what the kernel keeps
/// waiting, as packets are read faster than they are sent.
const LAST: Duration = Duration::from_secs(1);

/// A running capture of every packet in a namespace.
#[derive(Debug)]
pub struct Capture {
    ending: Arc<AtomicBool>,
    reader: JoinHandle<io::Result<Packets>>,
}

/// What was captured, in order. On the fabric each packet is seen at each port it passes.
#[derive(Debug, Default)]
pub struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Capture {
    /// Begins; every packet from now on is seen.
    ///
    /// # Errors
    ///
    /// Not root.
    pub fn begin(netns: &Netns) -> Result<Self> {
        let socket = netns.run(|| {
            Socket::new(
                Domain::PACKET,
                Type::RAW.cloexec(),
                Some(Protocol::from(ALL)),
            )
        })?;
        let socket = socket.context("packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let ending = Arc::new(AtomicBool::new(false));
        let reader = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn({
                let ending = Arc::clone(&ending);
                move || read(&socket, &ending)
            })?;
        Ok(Self { ending, reader })
    }

    /// Ends, after everything sent so far was read.
    ///
    /// # Panics
    ///
    /// The capture failed or grew too large, so that it proves nothing.
    #[must_use]
    pub fn end(self) -> Packets {
        self.ending.store(true, Ordering::SeqCst);
        self.reader
            .join()
            .expect("the capture's thread")
            .expect("the capture is whole")
    }
}

fn read(mut socket: &Socket, ending: &AtomicBool) -> io::Result<Packets> {
    let mut packets = Packets::default();
    let mut buffer = vec![0; LONGEST];
    let mut end: Option<Instant> = None;
    loop {
        // Looked at before the read: what was sent before the end is read before the end.
        let last = ending.load(Ordering::SeqCst);
        if last && end.get_or_insert_with(Instant::now).elapsed() > LAST {
            return Ok(packets); // traffic goes on; what was waiting at the end has been read
        }
        match socket.read(&mut buffer) {
            Ok(length) => {
                packets.bytes.extend_from_slice(&buffer[..length]);
                packets.ends.push(packets.bytes.len());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && last => return Ok(packets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if packets.bytes.len() > MOST {
            return Err(io::Error::other("more was captured than a capture is for"));
        }
    }
}

impl Packets {
    /// How many packets were seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The packets.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }

    /// How many packets hold `marker`.
    #[must_use]
    pub fn with(&self, marker: impl AsRef<[u8]>) -> usize {
        let marker = memmem::Finder::new(marker.as_ref());
        self.iter()
            .filter(|packet| marker.find(packet).is_some())
            .count()
    }

    /// How many TCP packets go to a port.
    #[must_use]
    pub fn to_port(&self, port: u16) -> usize {
        self.iter()
            .filter(|packet| destination_port(packet) == Some(port))
            .count()
    }
}

/// The TCP destination port of an Ethernet frame, IPv4 or IPv6 without extension headers.
fn destination_port(frame: &[u8]) -> Option<u16> {
    const TCP: u8 = 6;
    let tcp = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(frame.get(14)? & 0x0f) * 4;
            (*frame.get(23)? == TCP).then_some(14 + header)?
        }
        [0x86, 0xdd] => (*frame.get(20)? == TCP).then_some(14 + 40)?,
        _ => return None,
    };
    let port = frame.get(tcp + 2..tcp + 4)?;
    Some(u16::from_be_bytes([port[0], port[1]]))
}
