//! Redirection of one pod as a whole: our table and the policy route, in the pod's namespace.
//!
//! Besides, the kernel is asked to let the application's end of a connection take over the mark of its opening segment
//! ([`crate::rules`] says why). That saves time and changes nothing else, so it is only tried.
//!
//! All calls here enter the namespace on the calling thread for the instant of opening sockets, and talk to the kernel; they do
//! not wait for anybody else. Call them from a thread that may block for milliseconds.

use std::fs;
use std::io;
use std::net::IpAddr;

use ambit_net::listen::take_marks;
use ambit_net::netns::Netns;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use crate::netlink::{Family, Message, Netlink};
use crate::nftables::{self, Owner, State};
use crate::route;
use crate::rules::{self, Options, RuleSet};

/// What is to be in force in a pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// New connections are redirected.
    Capture,
    /// New connections are left alone, redirected ones live on.
    Drain,
}

/// Puts the mode in force, in place of what was there, without an instant in between. Doing it again changes nothing.
///
/// # Errors
/// What the kernel answers. The table is then as it was before; the policy route may be there already, which has
/// no effect without the table.
pub fn install(netns: &Netns, mode: Mode, options: &Options, owner: &Owner) -> io::Result<()> {
    let mut sockets = Sockets::open(netns)?;
    if !netns.run(|| take_marks(true))? {
        tracing::debug!(
            "net.ipv4.tcp_fwmark_accept cannot be set: each answer of the pod's applications is routed twice"
        );
    }
    for family in sockets.families() {
        route::install(&mut sockets.route, family)?;
    }
    let set = rule_set(mode, options, sockets.ipv6);
    nftables::install(&mut sockets.netfilter, &set, owner)
}

/// Compares what is in force with the mode.
///
/// # Errors
/// What the kernel answers.
pub fn inspect(netns: &Netns, mode: Mode, options: &Options, owner: &Owner) -> io::Result<State> {
    let mut sockets = Sockets::open(netns)?;
    let set = rule_set(mode, options, sockets.ipv6);
    let state = nftables::inspect(&mut sockets.netfilter, &set, owner)?;
    if state != State::Same {
        return Ok(state);
    }
    for family in sockets.families() {
        if !route::present(&mut sockets.route, family)? {
            return Ok(State::Different("the policy route is missing".to_owned()));
        }
    }
    Ok(State::Same)
}

/// Removes everything of ours; nothing there is success.
///
/// # Errors
/// What the kernel answers.
pub fn remove(netns: &Netns) -> io::Result<()> {
    let mut sockets = Sockets::open(netns)?;
    nftables::remove(&mut sockets.netfilter)?;
    for family in [route::Family::V4, route::Family::V6] {
        route::remove(&mut sockets.route, family)?;
    }
    // Without the rules nothing carries a mark.
    let _ = netns.run(|| take_marks(false))?;
    Ok(())
}

/// Whether there is a table of ours, and what it says about its owner.
///
/// # Errors
/// What the kernel answers.
pub fn owner(netns: &Netns) -> io::Result<Option<Option<Owner>>> {
    nftables::owner(&mut netns.run(|| Netlink::open(Family::Netfilter))??)
}

/// The addresses of all interfaces in the namespace.
///
/// # Errors
/// What the kernel answers.
pub fn addresses(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    /// `RTM_GETADDR`.
    const GET_ADDRESS: u16 = 22;
    let mut netlink = netns.run(|| Netlink::open(Family::Route))??;
    let request = AddressMessage::default();
    let mut payload = vec![0; request.buffer_len()];
    request.emit(&mut payload);
    let found = netlink.dump(Message {
        kind: GET_ADDRESS,
        flags: 0,
        payload,
    })?;
    let messages = found
        .iter()
        .filter_map(|message| AddressMessage::parse(&message.payload[..]).ok());
    Ok(messages
        .flat_map(|message| message.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(address),
            _ => None,
        })
        .collect())
}

fn rule_set(mode: Mode, options: &Options, ipv6: bool) -> RuleSet {
    match mode {
        Mode::Capture => rules::capture(&Options {
            ipv6: options.ipv6 && ipv6,
            ..options.clone()
        }),
        Mode::Drain => rules::drain(),
    }
}

struct Sockets {
    netfilter: Netlink,
    route: Netlink,
    /// Whether IPv6 works on `lo`, where redirected connections arrive.
    ipv6: bool,
}

impl Sockets {
    fn open(netns: &Netns) -> io::Result<Self> {
        netns.run(|| {
            Ok(Self {
                netfilter: Netlink::open(Family::Netfilter)?,
                route: Netlink::open(Family::Route)?,
                ipv6: loopback_has_ipv6(),
            })
        })?
    }

    fn families(&self) -> Vec<route::Family> {
        let v6 = self.ipv6.then_some(route::Family::V6);
        std::iter::once(route::Family::V4).chain(v6).collect()
    }
}

/// Reads the calling thread's namespace: `/proc/sys/net` shows that of whoever looks.
fn loopback_has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .is_ok_and(|disabled| disabled.trim() == "0")
}
