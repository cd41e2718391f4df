//! The mesh's own answers.

use std::net::IpAddr;
use std::sync::Arc;

use ambit_model::View;
use ambit_model::service::{HealthPolicy, Service};
use ambit_model::workload::Health;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record};

use crate::Transport;
use crate::lookup::{self, Found, Scope};
use crate::query::{Query, encode};
use crate::walk::{self, Header, Section, flag, put};

/// How long a client may keep an answer, in seconds: what Istio says, and about as long as a pod takes to go.
pub const TTL: u32 = 30;

/// An answer of the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<'v> {
    /// The message.
    pub bytes: Vec<u8>,
    /// The service that was meant.
    pub service: &'v Arc<Service>,
    /// Addresses that it has; over UDP not all of them may be told.
    pub addresses: usize,
}

/// Answers `query` if it asks for addresses of a service that the client may see.
///
/// `random` gives uniform numbers, by which the order of addresses is drawn.
#[must_use]
pub fn answer<'v>(
    view: &'v View,
    scope: &Scope<'_>,
    query: &Query<'_>,
    transport: Transport,
    random: &mut impl FnMut() -> u64,
) -> Option<Answer<'v>> {
    let ipv6 = query.asks_ipv6()?;
    let asked = query.name()?;
    let found = lookup::find(view, scope, asked)?;
    let mut told = Vec::new();
    if scope.ipv6 || !ipv6 {
        told = addresses(view, scope, found.service, ipv6);
        shuffle(&mut told, random);
    }
    Some(Answer {
        addresses: told.len(),
        bytes: compose(query, &found, &told, query.limit(transport)),
        service: found.service,
    })
}

/// The addresses of one family that a client in `scope` reaches `service` at.
fn addresses(view: &View, scope: &Scope<'_>, service: &Service, ipv6: bool) -> Vec<IpAddr> {
    let family = |address: &IpAddr| address.is_ipv6() == ipv6;
    if lookup::has_address(service) {
        let near = service
            .vips
            .iter()
            .filter(|vip| vip.network == *scope.network);
        return near.filter_map(|vip| vip.exact()).filter(family).collect();
    }
    let Some(endpoints) = view.endpoints(&service.key) else {
        return Vec::new();
    };
    let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
    let workloads = endpoints.iter().map(|endpoint| &endpoint.workload);
    // An address of another network leads somewhere else, or nowhere.
    let reached = workloads.filter(|workload| {
        workload.network == *scope.network && (all || workload.health == Health::Healthy)
    });
    reached
        .filter_map(|workload| workload.addresses.iter().copied().find(family))
        .collect()
}

/// Fisher and Yates; an order of which each is as likely but for the remainder of a division.
fn shuffle(addresses: &mut [IpAddr], random: &mut impl FnMut() -> u64) {
    for left in (1..addresses.len()).rev() {
        let among = u64::try_from(left).unwrap_or(u64::MAX).saturating_add(1);
        let other = usize::try_from(random() % among).unwrap_or_default();
        addresses.swap(left, other);
    }
}

fn compose(
    query: &Query<'_>,
    found: &Found<'_, '_>,
    addresses: &[IpAddr],
    limit: usize,
) -> Vec<u8> {
    if query.edns().is_some_and(|edns| edns.version > 0) {
        return query.refuse(ResponseCode::BADVERS);
    }
    let mut message = query.response(ResponseCode::NoError);
    message.metadata.authoritative = true;
    let Some(asked) = message
        .queries
        .first()
        .map(|question| question.name().clone())
    else {
        return query.refuse(ResponseCode::ServFail);
    };
    let owner = match found.alias {
        // Without an address an alias would lead the client to ask again, and the question was answered.
        Some(alias) if !addresses.is_empty() => match absolute(alias) {
            Some(alias) => {
                let data = RData::CNAME(CNAME(alias.clone()));
                message.add_answer(Record::from_rdata(asked, TTL, data));
                alias
            }
            None => asked,
        },
        _ => asked,
    };
    let Some(first) = addresses.first() else {
        return encode(&message);
    };
    message.add_answer(address_record(owner, *first));
    repeat(&encode(&message), addresses, limit).unwrap_or_else(|| {
        message.answers.clear();
        message.metadata.truncation = true;
        encode(&message)
    })
}

fn address_record(owner: Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(owner, TTL, data)
}

/// The message, whose last answer is the first of `addresses`, with all of them, or with as many as fit into `limit`
/// bytes; `None` where the rest of it does not. The library gives up writing pointers after some names, and long answers
/// would be several times as long.
fn repeat(message: &[u8], addresses: &[IpAddr], limit: usize) -> Option<Vec<u8>> {
    let header = Header::read(message).ok()?;
    let records = walk::records(message, &header, walk::question_end(message).ok()?);
    let answers = records.map_while(Result::ok);
    let last = answers
        .filter(|record| record.section == Section::Answer)
        .last()?;
    let (head, tail) = (message.get(..last.start)?, message.get(last.end..)?);
    let fixed = message.get(last.start..last.data)?;
    let room = limit.checked_sub(head.len() + tail.len())? / (last.end - last.start);
    let told = addresses.get(..room.min(addresses.len()))?;
    let mut whole =
        Vec::with_capacity(head.len() + tail.len() + told.len() * (last.end - last.start));
    whole.extend_from_slice(head);
    for address in told {
        whole.extend_from_slice(fixed);
        match address {
            IpAddr::V4(address) => whole.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => whole.extend_from_slice(&address.octets()),
        }
    }
    whole.extend_from_slice(tail);
    let [answers, ..] = header.records;
    let answers = usize::from(answers) - 1 + told.len();
    put(&mut whole, 6, &u16::try_from(answers).ok()?.to_be_bytes());
    if told.len() < addresses.len() {
        put(
            &mut whole,
            2,
            &(header.flags | flag::TRUNCATED).to_be_bytes(),
        );
    }
    Some(whole)
}

/// The name that a lower-case text of plain characters writes.
fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_labels(text.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests;
