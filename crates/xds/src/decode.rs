//! Istio's messages as changes of the model.
//!
//! # Guarantees
//! Pure, never panics. A message is taken whole or refused whole, with the field and what is wrong
//! with it. Policies are the exception, because leaving one out, or the one before in force, permits
//! more than enforcing a stricter one: a value that makes no sense stays in its place as unparsable,
//! and a policy with a field, action or scope that we do not know is refused by name *and* taken, closed.

mod policy;
mod service;
mod unknown;
mod workload;

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ambit_model::address::{GatewayAddress, GatewayDestination};
use ambit_model::intern::Interned;
use ambit_model::policy::{Action, Policy};
use ambit_model::service::{Port, ServiceKey};
use ambit_model::text::Text;
use ambit_model::update::Change;
use ambit_proto::istio::security::Authorization;
use ambit_proto::istio::workload::{self as wire, Address, address, gateway_address};
use ambit_proto::type_url;
use prost::Message;
use thiserror::Error;

pub use self::policy::policy;
pub use self::service::service;
pub use self::workload::workload;

use crate::{Rejected, Resource, Update};

/// Why a resource is refused. The peer's fault, always.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// The bytes are no message of the type.
    #[error("{0}")]
    Encoding(#[from] prost::DecodeError),
    /// A field has a value that we cannot act on.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// No decoder for this type.
    #[error("type {0} is not known")]
    Type(String),
}

impl Invalid {
    fn field(field: &str, problem: impl Display) -> Self {
        Self::Field {
            field: field.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// The same, for a field inside `parent`.
    fn inside(self, parent: &str) -> Self {
        match self {
            Self::Field { field, problem } => Self::Field {
                field: format!("{parent}.{field}"),
                problem,
            },
            other => other,
        }
    }
}

/// The changes of an update, which share what `interned` has seen, and the resources that are refused.
pub fn changes(update: Update, interned: &mut Interned) -> (Vec<Change>, Vec<Rejected>) {
    let Update {
        type_url,
        resources,
        removed,
    } = update;
    let mut changes = Vec::with_capacity(resources.len() + removed.len());
    let mut rejected = Vec::new();
    for resource in resources {
        match change(&type_url, &resource) {
            Ok(mut change) => {
                interned.change(&mut change);
                if let Change::UpsertPolicy(policy) = &change
                    && !policy.not_understood.is_empty()
                {
                    rejected.push(Rejected {
                        name: resource.name.to_string(),
                        reason: closed(policy),
                    });
                }
                changes.push(change);
            }
            Err(invalid) => {
                rejected.push(Rejected {
                    name: resource.name.to_string(),
                    reason: invalid.to_string(),
                });
            }
        }
    }
    let policies = type_url == type_url::AUTHORIZATION;
    changes.extend(removed.into_iter().map(|name| {
        if policies {
            Change::RemovePolicy(name.into())
        } else {
            Change::RemoveAddress(name.into())
        }
    }));
    (changes, rejected)
}

/// Tells the sender what became of a policy that was not understood.
fn closed(policy: &Policy) -> String {
    let effect = match policy.action {
        Action::Allow => "permits nothing",
        Action::Deny => "refuses everything",
    };
    let fields = policy.not_understood.join(", ");
    format!("authorization.{fields}; until it is understood it {effect}")
}

/// One resource as a change. A policy may be one that is not wholly understood.
///
/// # Errors
/// See [`Invalid`].
pub fn change(type_url: &str, resource: &Resource) -> Result<Change, Invalid> {
    let bytes = resource.payload.clone();
    // Removal is by resource name, so a resource under another name could never be removed.
    let named = |name: &str| match *name == *resource.name {
        true => Ok(()),
        false => Err(Invalid::field("name", format!("the content is {name}"))),
    };
    match type_url {
        type_url::ADDRESS => match Address::decode(bytes)?.r#type {
            Some(address::Type::Workload(message)) => workload_change(message, named, resource),
            Some(address::Type::Service(message)) => {
                let service = service(message)?;
                named(&service.key.to_string())?;
                Ok(Change::UpsertService(service))
            }
            None => Err(Invalid::field("type", "neither a workload nor a service")),
        },
        type_url::WORKLOAD => workload_change(wire::Workload::decode(bytes)?, named, resource),
        type_url::AUTHORIZATION => {
            let mut policy = policy(Authorization::decode(bytes.clone())?)?;
            let unknown = unknown::fields(&unknown::AUTHORIZATION, bytes);
            policy
                .not_understood
                .extend(unknown.into_iter().map(Text::from));
            named(&policy.key.to_string())?;
            Ok(Change::UpsertPolicy(policy))
        }
        other => Err(Invalid::Type(other.to_owned())),
    }
}

fn workload_change(
    message: wire::Workload,
    named: impl Fn(&str) -> Result<(), Invalid>,
    resource: &Resource,
) -> Result<Change, Invalid> {
    let mut workload = workload(message)?;
    named(&workload.uid)?;
    // In memory once, with the name that its version is kept under.
    workload.uid = resource.name.clone();
    Ok(Change::UpsertWorkload(workload))
}

/// 4 or 16 bytes as an address; IPv4 mapped into IPv6 becomes IPv4.
fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(Ipv6Addr::from(v6)).to_canonical()),
        Err(_length) => Err(Invalid::field(
            field,
            format!("{} bytes are no address", bytes.len()),
        )),
    }
}

/// A port number that can be connected to.
fn port(field: &str, number: u32) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Invalid::field(field, format!("{number} is no port"))),
    }
}

/// Ports of a service or of an endpoint; a target of 0 means that the other side knows it.
fn ports(field: &str, list: &[wire::Port]) -> Result<Vec<Port>, Invalid> {
    let one = |(index, from): (usize, &wire::Port)| {
        let path = |name| format!("{field}[{index}].{name}");
        let service_port = port(&path("service_port"), from.service_port)?;
        let target_port = match from.target_port {
            0 => 0,
            number => port(&path("target_port"), number)?,
        };
        Ok(Port {
            service_port,
            target_port,
        })
    };
    list.iter().enumerate().map(one).collect()
}

/// A waypoint or gateway.
fn gateway(field: &str, from: wire::GatewayAddress) -> Result<GatewayAddress, Invalid> {
    let path = |name| format!("{field}.{name}");
    let destination = match from.destination {
        Some(gateway_address::Destination::Hostname(host)) => {
            let text = format!("{}/{}", host.namespace, host.hostname);
            let key = ServiceKey::parse(&text).ok_or_else(|| {
                Invalid::field(
                    &path("hostname"),
                    format!("{text:?} is not namespace/hostname"),
                )
            })?;
            GatewayDestination::Hostname(key)
        }
        Some(gateway_address::Destination::Address(address)) => GatewayDestination::Address {
            network: address.network.into(),
            address: ip(&path("address"), &address.address)?,
        },
        None => return Err(Invalid::field(&path("destination"), "missing")),
    };
    let hbone_port = port(&path("hbone_mtls_port"), from.hbone_mtls_port)?;
    Ok(GatewayAddress {
        destination,
        hbone_port,
    })
}

/// An enum value that we know.
fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, Invalid> {
    T::try_from(value).map_err(|_unknown| Invalid::field(field, format!("unknown value {value}")))
}

#[cfg(test)]
mod tests;
