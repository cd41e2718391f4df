//! Which packets of a pod are redirected to the node proxy: the rule set as plain values.
//!
//! # Purpose
//! [`capture`] and [`drain`] are pure: options in, rules out. [`crate::nftables`] turns the rules into
//! one kernel transaction and finds out whether the kernel still holds them.
//!
//! # Theory of operation
//! Outbound connections are redirected to 15001, inbound ones to 15006, and those to 15008 reach the
//! proxy's listener as they are. Three choices differ from a plain "redirect everything":
//!
//! * **Only the opening segment (SYN) is redirected.** The kernel picks up connections that were open
//!   before the rules came in the middle of their stream; redirecting those would reset them. So a
//!   running pod can be enrolled without breaking what it has open.
//! * **A guard drops what should have been redirected and was not.** A SYN that reaches the
//!   application, or leaves the pod, without having been redirected (a connection-tracking entry
//!   left over from an old connection, a family we do not redirect) is dropped, so the first choice opens no hole.
//! * **The proxy's mark is honoured only on what the pod sends.** A mark on a packet that came from
//!   outside the pod means nothing.
//!
//! The proxy reaches the application with the client's own address as source. Policy routing by a
//! mark, the tag, sends the application's answers back over `lo` to the proxy and not out of the
//! pod. How an answer comes by it:
//!
//! * The opening segment carries it, and the application's end of the connection takes over what
//!   that carries, where the kernel was asked to ([`crate::redirect`]). So its answers are routed
//!   right from the start, once for the connection.
//! * What has no tag is given it from its connection, and routed anew: where the kernel was not
//!   asked, and for what it answers by itself. It costs a twentieth of the CPU time that a small
//!   message takes in all, so nothing else is tagged: not what the proxy itself sends, nor the
//!   connections that were redirected to it, whose translation brings them back.
//!
//! The port beside that address is
//! picked by the pod's kernel, and the client, on a kernel of its own, may be using the same one
//! with the same application. Connection tracking must not take the two for one connection: what
//! the proxy sends is looked up in a zone of its own ([`PROXY_ZONE`]), and where the application
//! could not tell the two apart either, the kernel's NAT picks another port.
//!
//! # Not done here
//! UDP other than DNS, ICMP and SCTP are left alone. A container with `CAP_NET_ADMIN` can change
//! its own pod's rules; the agent mends them, and nothing but the pod itself is at stake.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[cfg(test)]
mod tests;

/// The port on which the proxy accepts HBONE.
pub const HBONE_PORT: u16 = 15008;
/// The port to which inbound plaintext is redirected.
pub const INBOUND_PORT: u16 = 15006;
/// The port to which outbound connections are redirected.
pub const OUTBOUND_PORT: u16 = 15001;
/// The port to which DNS is redirected.
pub const DNS_PORT: u16 = 15053;
/// The bits of a mark that belong to the mesh; the rest is other people's.
pub const MARK_MASK: u32 = 0xfff;
/// The mark that the proxy sets on each of its own sockets.
pub const PROXY_MARK: u32 = 0x539;
/// The mark of a connection between the proxy and the application, and of the application's answers.
pub const TAG_MARK: u32 = 0x111;
/// The connection-tracking zone of the proxy's own DNS queries: they must not share port pairs
/// with the query of the application that caused them.
pub const DNS_ZONE: u16 = 1;
/// The connection-tracking zone of the proxy's connections to the application, in the direction
/// from the proxy only: the application's answers carry no mark by which to find a zone.
pub const PROXY_ZONE: u16 = 2;
/// The address from which health probes of the node reach an enrolled pod, when that exemption is on.
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// As [`PROBE_V4`], for IPv6.
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(
    0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
);

/// The base chains of our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// Inbound, before connection tracking: zones for DNS.
    RawIn,
    /// Outbound, before connection tracking: zones for what the proxy sends.
    RawOut,
    /// Outbound: tags the proxy's connections to the application, and their answers; a change of mark
    /// routes the packet anew.
    MarkOut,
    /// Inbound: redirection to the proxy.
    In,
    /// Outbound: redirection to the proxy.
    Out,
    /// Inbound, after redirection: drops what escaped it.
    GuardIn,
    /// Outbound, after redirection: drops what escaped it.
    GuardOut,
}

/// Where a chain hangs in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// The chain's type, in nftables' word.
    pub kind: &'static str,
    /// The hook's number in the inet family (0 prerouting, 1 input, 3 output).
    pub hook: u32,
    /// The priority at that hook; lower runs first.
    pub priority: i32,
}

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;

impl Chain {
    /// The chain's name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RawIn => "raw-in",
            Self::RawOut => "raw-out",
            Self::MarkOut => "mark-out",
            Self::In => "redirect-in",
            Self::Out => "redirect-out",
            Self::GuardIn => "guard-in",
            Self::GuardOut => "guard-out",
        }
    }

    /// The hook and priority: the standard ones of nftables for raw (before connection tracking),
    /// mangle, destination NAT and filter.
    #[must_use]
    pub const fn attachment(self) -> Attachment {
        let (kind, hook, priority) = match self {
            Self::RawIn => ("filter", PREROUTING, -300),
            Self::RawOut => ("filter", OUTPUT, -300),
            Self::MarkOut => ("route", OUTPUT, -150),
            Self::In => ("nat", PREROUTING, -100),
            Self::Out => ("nat", OUTPUT, -100),
            Self::GuardIn => ("filter", INPUT, 0),
            Self::GuardOut => ("filter", OUTPUT, 0),
        };
        Attachment {
            kind,
            hook,
            priority,
        }
    }
}

/// What a packet must be for a rule to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It entered over `lo` (or, when false, over another interface).
    FromLoopback(bool),
    /// It leaves over `lo` (or, when false, over another interface), as routed before redirection.
    ToLoopback(bool),
    /// It entered over the interface of this name.
    FromInterface(String),
    /// It carries the proxy's mark (or, when false, does not).
    ProxyMark(bool),
    /// Its connection carries the tag.
    TaggedConnection,
    /// It opens a TCP connection: SYN without ACK and RST.
    OpensTcp,
    /// It is TCP.
    Tcp,
    /// It is UDP.
    Udp,
    /// The transport's destination port.
    ToPort(u16),
    /// Any other destination port.
    NotToPort(u16),
    /// The transport's source port.
    FromPort(u16),
    /// It comes from this address.
    From(IpAddr),
    /// It is IPv4.
    V4,
    /// Its connection was not redirected.
    NotRedirected,
}

/// What happens to a packet for which a rule holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// No further rule of this chain is looked at.
    Accept,
    /// The packet is gone.
    Drop,
    /// The connection goes to this local port.
    Redirect(u16),
    /// The connection gets the tag; the other bits of its mark stay.
    TagConnection,
    /// The packet gets the tag; the other bits of its mark stay.
    TagPacket,
    /// The packet gets its connection's mark.
    CopyMark,
    /// The packet is tracked in this zone.
    Zone(u16),
    /// The connection that the packet opens is tracked in this zone in the packet's direction, and
    /// in the default zone in the other one.
    ZoneOneWay(u16),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain it is appended to.
    pub chain: Chain,
    /// All of these must hold.
    pub when: Vec<Match>,
    /// Then this is done.
    pub then: Action,
    /// Why, in a few words; stored with the rule, so that `nft list ruleset` tells it.
    pub why: &'static str,
}

/// A whole table: the chains that exist and their rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// The chains, each of them a base chain with the policy accept.
    pub chains: Vec<Chain>,
    /// The rules in the order of evaluation within their chain.
    pub rules: Vec<Rule>,
}

/// What may differ between pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Redirect inbound connections. False for a pod that takes traffic from outside the mesh
    /// itself (`ambient.istio.io/bypass-inbound-capture`).
    pub inbound: bool,
    /// Redirect IPv6. When false and the pod has IPv6 all the same, its TCP over IPv6 is dropped.
    pub ipv6: bool,
    /// Redirect DNS (`ambient.istio.io/dns-capture`). Needs a proxy that serves it.
    pub dns: bool,
    /// Let health probes from [`PROBE_V4`] and [`PROBE_V6`] reach the application directly.
    pub probes: bool,
    /// Interfaces of virtual machines inside the pod: what enters there is outbound
    /// (`istio.io/reroute-virtual-interfaces`).
    pub virtual_interfaces: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            inbound: true,
            ipv6: true,
            dns: false,
            probes: false,
            virtual_interfaces: Vec::new(),
        }
    }
}

/// The rules of an enrolled pod.
#[must_use]
pub fn capture(options: &Options) -> RuleSet {
    let mut set = drain();
    if options.dns {
        set.chains.push(Chain::RawIn);
        set.rules.extend(dns_zones());
    }
    set.rules.extend(inbound(options));
    set.rules.extend(outbound(options));
    set.chains.push(Chain::GuardOut);
    set.rules.push(rule(
        Chain::GuardOut,
        vec![
            Match::ToLoopback(false),
            Match::OpensTcp,
            Match::ProxyMark(false),
            Match::NotRedirected,
        ],
        Action::Drop,
        "escaped redirection",
    ));
    if options.inbound {
        set.chains.push(Chain::GuardIn);
        set.rules.extend(guard_inbound(options));
    }
    set
}

/// The rules of a pod that is leaving the mesh: nothing new is redirected, while connections that
/// were redirected keep working until they end. The empty NAT chains keep the kernel translating
/// those.
#[must_use]
pub fn drain() -> RuleSet {
    RuleSet {
        chains: vec![Chain::RawOut, Chain::MarkOut, Chain::In, Chain::Out],
        rules: vec![
            rule(
                Chain::RawOut,
                vec![Match::ToLoopback(true), Match::Tcp, Match::ProxyMark(true)],
                Action::ZoneOneWay(PROXY_ZONE),
                "proxy to application",
            ),
            rule(
                Chain::MarkOut,
                vec![
                    Match::ToLoopback(true),
                    Match::Tcp,
                    Match::ProxyMark(true),
                    Match::NotRedirected,
                ],
                Action::TagConnection,
                "proxy to application",
            ),
            rule(
                Chain::MarkOut,
                vec![
                    Match::ToLoopback(true),
                    Match::OpensTcp,
                    Match::ProxyMark(true),
                ],
                Action::TagPacket,
                "the application takes it over",
            ),
            rule(
                Chain::MarkOut,
                vec![Match::ProxyMark(false), Match::TaggedConnection],
                Action::CopyMark,
                "answers return to the proxy",
            ),
        ],
    }
}

fn inbound(options: &Options) -> Vec<Rule> {
    let mut rules = Vec::new();
    for name in &options.virtual_interfaces {
        let mut when = vec![Match::FromInterface(name.clone()), Match::OpensTcp];
        when.extend(family(options));
        rules.push(rule(
            Chain::In,
            when,
            Action::Redirect(OUTBOUND_PORT),
            "outbound of a virtual machine",
        ));
        let when = vec![Match::FromInterface(name.clone()), Match::Tcp];
        rules.push(rule(Chain::In, when, Action::Accept, "not inbound"));
    }
    if !options.inbound {
        return rules;
    }
    if options.probes {
        rules.extend(probes(Chain::In));
    }
    let mut when = vec![
        Match::FromLoopback(false),
        Match::OpensTcp,
        Match::NotToPort(HBONE_PORT),
    ];
    when.extend(family(options));
    rules.push(rule(
        Chain::In,
        when,
        Action::Redirect(INBOUND_PORT),
        "inbound plaintext",
    ));
    rules
}

fn outbound(options: &Options) -> Vec<Rule> {
    let mut rules = Vec::new();
    if options.dns {
        for (transport, name) in [(Match::Udp, "DNS"), (Match::OpensTcp, "DNS over TCP")] {
            let mut when = vec![
                Match::ToLoopback(false),
                transport,
                Match::ToPort(53),
                Match::ProxyMark(false),
            ];
            when.extend(family(options));
            rules.push(rule(Chain::Out, when, Action::Redirect(DNS_PORT), name));
        }
    }
    let mut when = vec![
        Match::ToLoopback(false),
        Match::OpensTcp,
        Match::ProxyMark(false),
    ];
    when.extend(family(options));
    rules.push(rule(
        Chain::Out,
        when,
        Action::Redirect(OUTBOUND_PORT),
        "outbound",
    ));
    rules
}

fn guard_inbound(options: &Options) -> Vec<Rule> {
    let mut rules = if options.probes {
        probes(Chain::GuardIn)
    } else {
        Vec::new()
    };
    rules.push(rule(
        Chain::GuardIn,
        vec![
            Match::FromLoopback(false),
            Match::OpensTcp,
            Match::NotToPort(HBONE_PORT),
            Match::NotRedirected,
        ],
        Action::Drop,
        "escaped redirection",
    ));
    rules
}

fn probes(chain: Chain) -> Vec<Rule> {
    [IpAddr::V4(PROBE_V4), IpAddr::V6(PROBE_V6)]
        .into_iter()
        .map(|address| {
            rule(
                chain,
                vec![Match::From(address), Match::Tcp],
                Action::Accept,
                "health probe",
            )
        })
        .collect()
}

fn dns_zones() -> Vec<Rule> {
    vec![
        rule(
            Chain::RawOut,
            vec![Match::Udp, Match::ToPort(53), Match::ProxyMark(true)],
            Action::Zone(DNS_ZONE),
            "the proxy's own query",
        ),
        rule(
            Chain::RawIn,
            vec![Match::Udp, Match::FromPort(53), Match::ProxyMark(false)],
            Action::Zone(DNS_ZONE),
            "answer to the proxy's query",
        ),
    ]
}

fn family(options: &Options) -> Option<Match> {
    (!options.ipv6).then_some(Match::V4)
}

fn rule(chain: Chain, when: Vec<Match>, then: Action, why: &'static str) -> Rule {
    Rule {
        chain,
        when,
        then,
        why,
    }
}
