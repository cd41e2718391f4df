//! From a rule to the kernel's expressions.
//!
//! A rule in nf_tables is a list of small operations on registers: load a field, mask it, compare it, and at the
//! end a verdict. A comparison that does not hold ends the rule. We need one register only.
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use super::attribute::{Attributes, find, read};
use crate::rules::{Action, MARK_MASK, Match, PROXY_MARK, Rule, TAG_MARK};

/// `NFTA_LIST_ELEM`: one expression in a rule's list.
const ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`.
const NAME: u16 = 1;
/// `NFTA_EXPR_DATA`.
const DATA: u16 = 2;
/// The register that holds the verdict.
const VERDICT_REGISTER: u32 = 0;
/// The register that we compute in.
const REGISTER: u32 = 1;
/// The interface index of `lo`, the same in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// `IPS_DST_NAT`: the connection's destination was translated.
const STATUS_DESTINATION_NAT: u32 = 1 << 5;
/// TCP flags SYN, RST and ACK.
const FLAG_SYN: u8 = 0x02;
const FLAGS_SYN_RST_ACK: u8 = 0x16;
/// `IFNAMSIZ`: interface names are compared with their padding.
const INTERFACE_NAME: usize = 16;

#[derive(Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

#[derive(Clone, Copy)]
enum Meta {
    Mark = 3,
    InIndex = 4,
    OutIndex = 5,
    InName = 6,
    Family = 15,
    Protocol = 16,
}

#[derive(Clone, Copy)]
enum Tracking {
    Status = 2,
    Mark = 3,
    Zone = 17,
}

/// The value of `NFTA_RULE_EXPRESSIONS` for `rule`.
pub(super) fn encode(rule: &Rule) -> Attributes {
    let mut list = Expressions(Attributes::new());
    for condition in &rule.when {
        list.condition(condition);
    }
    list.add("counter", Attributes::new());
    list.action(rule.then);
    list.0
}

/// Whether the kernel's expressions are those of `expected`, values of counters aside.
pub(super) fn same(actual: &[u8], expected: &[u8]) -> bool {
    let name = |bytes| find(bytes, NAME).map(|attribute| attribute.value.to_vec());
    let mut actual = read(actual);
    let all = read(expected).all(|wanted| {
        actual.next().is_some_and(|found| {
            name(found.value) == name(wanted.value)
                && super::attribute::covers(found.value, wanted.value)
        })
    });
    all && actual.next().is_none()
}

struct Expressions(Attributes);

impl Expressions {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::FromLoopback(is) => {
                self.meta_is(Meta::InIndex, *is, &LOOPBACK_INDEX.to_ne_bytes())
            }
            Match::ToLoopback(is) => {
                self.meta_is(Meta::OutIndex, *is, &LOOPBACK_INDEX.to_ne_bytes())
            }
            Match::FromInterface(name) => {
                let mut padded = name.as_bytes().to_vec();
                padded.resize(INTERFACE_NAME, 0);
                self.meta_is(Meta::InName, true, &padded);
            }
            Match::ProxyMark(is) => {
                self.load_meta(Meta::Mark);
                self.mask(&MARK_MASK.to_ne_bytes(), &[0; 4]);
                self.compare(*is, &PROXY_MARK.to_ne_bytes());
            }
            Match::TaggedConnection => {
                self.load_tracking(Tracking::Mark);
                self.mask(&MARK_MASK.to_ne_bytes(), &[0; 4]);
                self.compare(true, &TAG_MARK.to_ne_bytes());
            }
            Match::OpensTcp => {
                self.meta_is(Meta::Protocol, true, &[PROTOCOL_TCP]);
                self.load(Base::Transport, 13, 1);
                self.mask(&[FLAGS_SYN_RST_ACK], &[0]);
                self.compare(true, &[FLAG_SYN]);
            }
            Match::Tcp => self.meta_is(Meta::Protocol, true, &[PROTOCOL_TCP]),
            Match::Udp => self.meta_is(Meta::Protocol, true, &[PROTOCOL_UDP]),
            Match::ToPort(port) => self.port(2, true, *port),
            Match::NotToPort(port) => self.port(2, false, *port),
            Match::FromPort(port) => self.port(0, true, *port),
            Match::From(address) => self.source(*address),
            Match::V4 => self.meta_is(Meta::Family, true, &[FAMILY_V4]),
            Match::NotRedirected => {
                self.load_tracking(Tracking::Status);
                self.mask(&STATUS_DESTINATION_NAT.to_ne_bytes(), &[0; 4]);
                self.compare(true, &[0; 4]);
            }
        }
    }

    fn action(&mut self, action: Action) {
        /// `NF_DROP` and `NF_ACCEPT`.
        const DROP: u32 = 0;
        const ACCEPT: u32 = 1;
        /// `NF_NAT_RANGE_PROTO_SPECIFIED`: the registers hold ports.
        const PORTS_GIVEN: u32 = 2;
        match action {
            Action::Accept => self.verdict(ACCEPT),
            Action::Drop => self.verdict(DROP),
            Action::Redirect(port) => {
                self.immediate(&port.to_be_bytes());
                let mut data = Attributes::new();
                data.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, PORTS_GIVEN);
                self.add("redir", data);
            }
            Action::TagConnection => {
                self.load_tracking(Tracking::Mark);
                self.mask(&(!MARK_MASK).to_ne_bytes(), &TAG_MARK.to_ne_bytes());
                self.set_tracking(Tracking::Mark);
            }
            Action::TagPacket => {
                self.load_meta(Meta::Mark);
                self.mask(&(!MARK_MASK).to_ne_bytes(), &TAG_MARK.to_ne_bytes());
                self.set_mark();
            }
            Action::CopyMark => {
                self.load_tracking(Tracking::Mark);
                self.set_mark();
            }
            Action::Zone(zone) => {
                self.immediate(&zone.to_ne_bytes());
                self.set_tracking(Tracking::Zone);
            }
            Action::ZoneOneWay(zone) => {
                /// `IP_CT_DIR_ORIGINAL`.
                const ORIGINAL: u8 = 0;
                self.immediate(&zone.to_ne_bytes());
                let mut data = Attributes::new();
                data.number(2, Tracking::Zone as u32)
                    .bytes(3, &[ORIGINAL])
                    .number(4, REGISTER);
                self.add("ct", data);
            }
        }
    }

    fn source(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => {
                self.meta_is(Meta::Family, true, &[FAMILY_V4]);
                self.load(Base::Network, 12, 4);
                self.compare(true, &v4.octets());
            }
            IpAddr::V6(v6) => {
                self.meta_is(Meta::Family, true, &[FAMILY_V6]);
                self.load(Base::Network, 8, 16);
                self.compare(true, &v6.octets());
            }
        }
    }

    fn port(&mut self, offset: u32, is: bool, port: u16) {
        self.load(Base::Transport, offset, 2);
        self.compare(is, &port.to_be_bytes());
    }

    fn meta_is(&mut self, key: Meta, is: bool, value: &[u8]) {
        self.load_meta(key);
        self.compare(is, value);
    }

    fn load(&mut self, base: Base, offset: u32, length: u32) {
        let mut data = Attributes::new();
        data.number(1, REGISTER)
            .number(2, base as u32)
            .number(3, offset)
            .number(4, length);
        self.add("payload", data);
    }

    fn load_meta(&mut self, key: Meta) {
        let mut data = Attributes::new();
        data.number(1, REGISTER).number(2, key as u32);
        self.add("meta", data);
    }

    fn load_tracking(&mut self, key: Tracking) {
        let mut data = Attributes::new();
        data.number(1, REGISTER).number(2, key as u32);
        self.add("ct", data);
    }

    fn set_mark(&mut self) {
        let mut data = Attributes::new();
        data.number(2, Meta::Mark as u32).number(3, REGISTER);
        self.add("meta", data);
    }

    fn set_tracking(&mut self, key: Tracking) {
        let mut data = Attributes::new();
        data.number(2, key as u32).number(4, REGISTER);
        self.add("ct", data);
    }

    /// register = (register & mask) ^ flip
    fn mask(&mut self, mask: &[u8], flip: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let mut data = Attributes::new();
        data.number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, length);
        data.list(4, value(mask)).list(5, value(flip));
        self.add("bitwise", data);
    }

    fn compare(&mut self, equal: bool, with: &[u8]) {
        let mut data = Attributes::new();
        data.number(1, REGISTER)
            .number(2, u32::from(!equal))
            .list(3, value(with));
        self.add("cmp", data);
    }

    fn immediate(&mut self, with: &[u8]) {
        let mut data = Attributes::new();
        data.number(1, REGISTER).list(2, value(with));
        self.add("immediate", data);
    }

    fn verdict(&mut self, code: u32) {
        let mut inner = Attributes::new();
        inner.number(1, code);
        let mut outer = Attributes::new();
        outer.list(2, inner);
        let mut data = Attributes::new();
        data.number(1, VERDICT_REGISTER).list(2, outer);
        self.add("immediate", data);
    }

    fn add(&mut self, name: &str, data: Attributes) {
        let mut expression = Attributes::new();
        expression.text(NAME, name).list(DATA, data);
        self.0.list(ELEMENT, expression);
    }
}

/// `NFTA_DATA_VALUE`.
fn value(bytes: &[u8]) -> Attributes {
    let mut data = Attributes::new();
    data.bytes(1, bytes);
    data
}

#[cfg(test)]
mod tests {
    use super::{encode, same};
    use crate::rules::{Action, Chain, Match, Options, Rule, capture};

    #[test]
    fn each_rule_is_the_same_as_itself_and_no_other() {
        let options = Options {
            dns: true,
            probes: true,
            virtual_interfaces: vec!["vm0".into()],
            ..Options::default()
        };
        let rules = capture(&options).rules;
        for (i, a) in rules.iter().enumerate() {
            for (j, b) in rules.iter().enumerate() {
                let equal = a.when == b.when && a.then == b.then;
                let same = same(&encode(a).into_bytes(), &encode(b).into_bytes());
                assert_eq!(same, equal, "{i} {j}: {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_rule_with_one_expression_more_or_less_is_another_rule() {
        let rule = |when: Vec<Match>| {
            let rule = Rule {
                chain: Chain::In,
                when,
                then: Action::Drop,
                why: "",
            };
            encode(&rule).into_bytes()
        };
        let (short, long) = (rule(vec![Match::Tcp]), rule(vec![Match::Tcp, Match::V4]));
        assert!(!same(&short, &long));
        assert!(!same(&long, &short));
    }
}
