//! Our table in a pod's network namespace: written in one transaction, compared, removed.
//!
//! # Theory of operation
//! Everything lives in one table, `inet ambit`. [`install`] sends one batch: make the table if it is
//! missing, delete it, make it again with all of its chains and rules. The kernel applies a batch as a whole,
//! so a packet meets the old rules or the new ones, never a part and never nothing. [`remove`] deletes the
//! table. Nobody else's rules are touched.
//!
//! The table carries its [`Owner`], so that an agent that starts after a crash recognises what it left behind.
//!
//! # Failure modes
//! A kernel without nf_tables, or a caller without `CAP_NET_ADMIN`, answers an error at the
//! first call. A batch that fails leaves the state as it was.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::netlink::{ACKNOWLEDGE, APPEND, CREATE, Message, Netlink, REQUEST};
use crate::rules::{Chain, Rule, RuleSet};

pub(crate) mod attribute;
mod expression;

use attribute::{Attributes, covers, find};

/// The name of our table.
pub const TABLE: &str = "ambit";

/// `NFPROTO_INET`: one table for both families.
const FAMILY_INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The multicast group in which the kernel tells changes of tables, chains and rules.
pub(crate) const CHANGES: u32 = 7;

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// Who made a table: written into it, and read back after a restart.
///
/// A name of a node is not enough: several meshes may run on one machine, each with a node of the same name, and
/// an agent must not take the pods of another mesh for its own former ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The node whose agent made it.
    pub node: String,
    /// Which mesh the node is in: a fingerprint of where its objects come from.
    pub realm: String,
    /// The pod for which it was made.
    pub uid: String,
}

impl Owner {
    /// The first bytes of what we store, so that other people's data is not taken for ours.
    const PREFIX: &'static str = "ambit/1";
    /// Longer names are stored as their fingerprint: the kernel keeps 256 bytes (`NFT_USERDATA_MAXLEN`).
    const LONGEST: usize = 100;

    /// An owner; what is too long to be stored is shortened, the same way each time.
    #[must_use]
    pub fn new(node: &str, source: &Path, uid: &str) -> Self {
        Self {
            node: shortened(node),
            realm: fingerprint(source.as_os_str().as_bytes()),
            uid: shortened(uid),
        }
    }

    /// Whether the same agent, or its predecessor, made both.
    #[must_use]
    pub fn same_agent(&self, other: &Self) -> bool {
        self.node == other.node && self.realm == other.realm
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Self { node, realm, uid } = self;
        format!("{}\n{node}\n{realm}\n{uid}", Self::PREFIX).into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes)
            .ok()?
            .split('\n')
            .map(str::to_owned);
        if lines.next()? != Self::PREFIX {
            return None;
        }
        Some(Self {
            node: lines.next()?,
            realm: lines.next()?,
            uid: lines.next()?,
        })
    }
}

fn shortened(name: &str) -> String {
    if name.len() <= Owner::LONGEST {
        return name.to_owned();
    }
    format!("#{}", fingerprint(name.as_bytes()))
}

/// FNV-1a: no secret, but the same in every version of this program.
fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// What the kernel holds, against what it should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is no table of ours.
    Absent,
    /// All is as it should be.
    Same,
    /// There is a table of ours with something missing, added or changed: this, in words.
    Different(String),
}

/// Writes the whole table in one transaction, in place of one that may exist.
///
/// # Errors
/// The kernel's answer; the former state is then still in force.
pub(crate) fn install(netlink: &mut Netlink, set: &RuleSet, owner: &Owner) -> io::Result<()> {
    let mut messages = vec![
        batch(BATCH_BEGIN),
        new_table(None),
        delete_table(),
        new_table(Some(owner)),
    ];
    messages.extend(
        set.chains
            .iter()
            .map(|chain| change(NEW_CHAIN, CREATE, chain_body(*chain))),
    );
    messages.extend(
        set.rules
            .iter()
            .map(|rule| change(NEW_RULE, CREATE | APPEND, rule_body(rule))),
    );
    messages.push(batch(BATCH_END));
    netlink.transact(&messages)
}

/// Deletes the table with all in it; no table is success.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn remove(netlink: &mut Netlink) -> io::Result<()> {
    // Made first, so that deleting it cannot fail for its absence.
    netlink.transact(&[
        batch(BATCH_BEGIN),
        new_table(None),
        delete_table(),
        batch(BATCH_END),
    ])
}

/// Compares the kernel's table with `set` and `owner`.
///
/// # Errors
/// The kernel's answer, `Interrupted` when the table changed meanwhile.
pub(crate) fn inspect(netlink: &mut Netlink, set: &RuleSet, owner: &Owner) -> io::Result<State> {
    let Some(table) = table(netlink)? else {
        return Ok(State::Absent);
    };
    if find(&table, TABLE_FLAGS).and_then(|flags| flags.number()) != Some(0) {
        return Ok(State::Different("the table is dormant".to_owned()));
    }
    if read_owner(&table).as_ref() != Some(owner) {
        return Ok(State::Different(
            "the table was made for another pod".to_owned(),
        ));
    }
    Ok(match difference(netlink, set)? {
        Some(what) => State::Different(what),
        None => State::Same,
    })
}

/// Who made the table, if there is one. `Some(None)` is a table that does not say.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn owner(netlink: &mut Netlink) -> io::Result<Option<Option<Owner>>> {
    Ok(table(netlink)?.map(|table| read_owner(&table)))
}

fn difference(netlink: &mut Netlink, set: &RuleSet) -> io::Result<Option<String>> {
    let chains = bodies(netlink, GET_CHAIN, CHAIN_TABLE)?;
    if chains.len() != set.chains.len() {
        return Ok(Some(format!(
            "{} chains instead of {}",
            chains.len(),
            set.chains.len()
        )));
    }
    for chain in &set.chains {
        let expected = chain_body(*chain).into_bytes();
        if !chains.iter().any(|body| covers(body, &expected)) {
            return Ok(Some(format!(
                "chain {} is missing or changed",
                chain.name()
            )));
        }
    }
    let rules = bodies(netlink, GET_RULE, RULE_TABLE)?;
    for chain in &set.chains {
        let found: Vec<&Vec<u8>> = rules
            .iter()
            .filter(|body| {
                find(body, RULE_CHAIN).is_some_and(|name| name.text() == Some(chain.name()))
            })
            .collect();
        let expected: Vec<&Rule> = set
            .rules
            .iter()
            .filter(|rule| rule.chain == *chain)
            .collect();
        let same = found.len() == expected.len()
            && found
                .iter()
                .zip(&expected)
                .all(|(body, rule)| same_rule(body, rule));
        if !same {
            return Ok(Some(format!(
                "the rules of chain {} are changed",
                chain.name()
            )));
        }
    }
    Ok(None)
}

fn same_rule(body: &[u8], rule: &Rule) -> bool {
    find(body, RULE_EXPRESSIONS).is_some_and(|actual| {
        expression::same(actual.value, &expression::encode(rule).into_bytes())
    })
}

/// The bodies of all objects of one kind that belong to our table.
fn bodies(netlink: &mut Netlink, get: u16, table: u16) -> io::Result<Vec<Vec<u8>>> {
    let mut filter = Attributes::new();
    filter.text(table, TABLE);
    let found = netlink.dump(message(get, 0, filter))?;
    let ours = found.into_iter().filter_map(|message| {
        let body = message.payload.get(GENERIC_HEADER..)?.to_vec();
        (find(&body, table)?.text() == Some(TABLE)).then_some(body)
    });
    Ok(ours.collect())
}

fn table(netlink: &mut Netlink) -> io::Result<Option<Vec<u8>>> {
    let mut body = Attributes::new();
    body.text(TABLE_NAME, TABLE);
    match netlink.query(message(GET_TABLE, 0, body)) {
        Ok(message) => Ok(message.payload.get(GENERIC_HEADER..).map(<[u8]>::to_vec)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_owner(table: &[u8]) -> Option<Owner> {
    Owner::from_bytes(find(table, TABLE_USERDATA)?.value)
}

fn new_table(owner: Option<&Owner>) -> Message {
    let mut body = Attributes::new();
    body.text(TABLE_NAME, TABLE).number(TABLE_FLAGS, 0);
    if let Some(owner) = owner {
        body.bytes(TABLE_USERDATA, &owner.to_bytes());
    }
    change(NEW_TABLE, CREATE, body)
}

fn delete_table() -> Message {
    let mut body = Attributes::new();
    body.text(TABLE_NAME, TABLE);
    change(DELETE_TABLE, 0, body)
}

fn chain_body(chain: Chain) -> Attributes {
    /// `NF_ACCEPT`.
    const ACCEPT: u32 = 1;
    let at = chain.attachment();
    let mut hook = Attributes::new();
    hook.number(1, at.hook).bytes(2, &at.priority.to_be_bytes());
    let mut body = Attributes::new();
    body.text(CHAIN_TABLE, TABLE)
        .text(CHAIN_NAME, chain.name())
        .list(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, ACCEPT)
        .text(CHAIN_TYPE, at.kind);
    body
}

fn rule_body(rule: &Rule) -> Attributes {
    let mut body = Attributes::new();
    body.text(RULE_TABLE, TABLE)
        .text(RULE_CHAIN, rule.chain.name())
        .list(RULE_EXPRESSIONS, expression::encode(rule))
        .bytes(RULE_USERDATA, &comment(rule.why));
    body
}

/// A comment as `nft` stores it: type 0, length, text with the zero that ends it.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The length of `struct nfgenmsg`: family, version and two bytes for the batch.
const GENERIC_HEADER: usize = 4;

fn change(kind: u16, flags: u16, body: Attributes) -> Message {
    message(kind, flags | REQUEST | ACKNOWLEDGE, body)
}

fn message(kind: u16, flags: u16, body: Attributes) -> Message {
    let mut payload = vec![FAMILY_INET, 0, 0, 0];
    payload.extend_from_slice(&body.into_bytes());
    Message {
        kind: SUBSYSTEM << 8 | kind,
        flags,
        payload,
    }
}

fn batch(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message {
        kind,
        flags: REQUEST,
        payload: vec![0, 0, high, low],
    }
}

#[cfg(test)]
mod tests {
    use super::Owner;

    #[test]
    fn the_owner_of_a_table_is_read_back_and_nothing_else_is_taken_for_one() {
        let long = "n".repeat(253);
        for (node, uid) in [("node-1", "6f0d"), (&*long, &*long.repeat(2))] {
            let owner = Owner::new(node, "/manifests".as_ref(), uid);
            let bytes = owner.to_bytes();
            assert!(bytes.len() <= 256, "{}", bytes.len());
            assert_eq!(Owner::from_bytes(&bytes), Some(owner));
        }
        for other in [
            &b""[..],
            b"ambit/1",
            b"ambit/1\nnode\nrealm",
            b"a\nb\nc\nd",
            b"\xff\xfe",
        ] {
            assert_eq!(Owner::from_bytes(other), None);
        }
    }

    #[test]
    fn agents_of_two_meshes_with_nodes_of_one_name_are_told_apart() {
        let of = |source: &str, uid| Owner::new("n1", source.as_ref(), uid);
        assert!(of("/a", "1").same_agent(&of("/a", "2")));
        assert!(!of("/a", "1").same_agent(&of("/b", "1")));
    }
}
