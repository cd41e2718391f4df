//! The policy route that brings the application's answers back to the proxy.
//!
//! `ip rule fwmark 0x111/0xfff lookup 100 pref 32764` and `ip route local default dev lo table 100`, per family: a packet
//! that carries the tag is delivered locally, although its destination is the client's address.

use std::io;

use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};

use crate::netlink::{ACKNOWLEDGE, CREATE, EXCLUSIVE, Message, Netlink, REPLACE, REQUEST};
use crate::rules::{MARK_MASK, TAG_MARK};

/// The routing table of the mesh.
const TABLE: u8 = 100;
/// Just above the main table's rule (32766), so that it is looked up first.
const PREFERENCE: u32 = 32764;
/// The interface index of `lo`, the same in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
/// The multicast groups in which the kernel tells changes of routes and rules: v4 routes, v4 rules, v6 routes, v6 rules.
pub(crate) const CHANGES: [u32; 4] = [7, 8, 11, 19];

/// The family of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    const fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// Adds the rule and the route; both there already is success.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn install(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    netlink.transact(&[change(NEW_ROUTE, CREATE | REPLACE, &route(family))])?;
    tolerate(
        netlink.transact(&[change(NEW_RULE, CREATE | EXCLUSIVE, &rule(family))]),
        &[io::ErrorKind::AlreadyExists],
    )
}

/// Removes the rule and the route; neither there is success.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn remove(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    tolerate_missing(netlink.transact(&[change(DELETE_RULE, 0, &rule(family))]))?;
    tolerate_missing(netlink.transact(&[change(DELETE_ROUTE, 0, &route(family))]))
}

/// Whether both the rule and the route are there.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn present(netlink: &mut Netlink, family: Family) -> io::Result<bool> {
    let wanted = rule(family);
    let rules = netlink.dump(request(GET_RULE, &wanted))?;
    let rule_present = rules.iter().any(|message| {
        parse::<RuleMessage>(&message.payload).is_some_and(|found| same_rule(&found, &wanted))
    });
    if !rule_present {
        return Ok(false);
    }
    let wanted = route(family);
    let routes = netlink.dump(request(GET_ROUTE, &wanted))?;
    Ok(routes.iter().any(|message| {
        parse::<RouteMessage>(&message.payload).is_some_and(|found| same_route(&found, &wanted))
    }))
}

fn same_rule(found: &RuleMessage, wanted: &RuleMessage) -> bool {
    found.header.family == wanted.header.family
        && found.header.action == wanted.header.action
        && wanted
            .attributes
            .iter()
            .all(|attribute| found.attributes.contains(attribute))
}

fn same_route(found: &RouteMessage, wanted: &RouteMessage) -> bool {
    found.header.table == TABLE
        && found.header.kind == RouteType::Local
        && found.header.destination_prefix_length == 0
        && found.header.address_family == wanted.header.address_family
        && found
            .attributes
            .contains(&RouteAttribute::Oif(LOOPBACK_INDEX))
}

fn rule(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: family.address_family(),
        table: TABLE,
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    message.attributes = vec![
        RuleAttribute::Priority(PREFERENCE),
        RuleAttribute::FwMark(TAG_MARK),
        RuleAttribute::FwMask(MARK_MASK),
        RuleAttribute::Table(u32::from(TABLE)),
    ];
    message
}

fn route(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family.address_family(),
        table: TABLE,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Oif(LOOPBACK_INDEX)];
    message
}

fn change(kind: u16, flags: u16, body: &impl Emitable) -> Message {
    let message = request(kind, body);
    Message {
        flags: flags | REQUEST | ACKNOWLEDGE,
        ..message
    }
}

fn request(kind: u16, body: &impl Emitable) -> Message {
    let mut payload = vec![0; body.buffer_len()];
    body.emit(&mut payload);
    Message {
        kind,
        flags: 0,
        payload,
    }
}

fn parse<T: netlink_packet_core::Parseable<[u8]>>(payload: &[u8]) -> Option<T> {
    T::parse(payload).ok()
}

/// Deleting what is not there, a table that never existed, or a family that is switched off.
fn tolerate_missing(result: io::Result<()>) -> io::Result<()> {
    /// `ESRCH`, the kernel's word for a route that is not there; `EAFNOSUPPORT` for a family.
    const NO_SUCH_ROUTE: i32 = 3;
    const NO_SUCH_FAMILY: i32 = 97;
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(NO_SUCH_ROUTE | NO_SUCH_FAMILY)) => {
            Ok(())
        }
        result => tolerate(result, &[io::ErrorKind::NotFound]),
    }
}

fn tolerate(result: io::Result<()>, kinds: &[io::ErrorKind]) -> io::Result<()> {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(()),
        result => result,
    }
}
