//! Addresses: scoped to a network, blocks, and the address of a waypoint or gateway.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::service::ServiceKey;
use crate::text::Text;

/// A virtual address of a service, or a whole block of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vip {
    /// Network the address belongs to.
    pub network: Text,
    /// A single address has the full prefix length.
    pub block: IpNet,
}

impl Vip {
    /// A single virtual address.
    #[must_use]
    pub fn single(network: Text, address: IpAddr) -> Self {
        Self {
            network,
            block: IpNet::from(address.to_canonical()),
        }
    }

    /// The address when it is a single one, `None` for a block.
    #[must_use]
    pub fn exact(&self) -> Option<IpAddr> {
        (self.block.prefix_len() == self.block.max_prefix_len()).then(|| self.block.addr())
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exact() {
            Some(address) => write!(f, "{}/{address}", self.network),
            None => write!(f, "{}/{}", self.network, self.block),
        }
    }
}

/// Where a waypoint or a network gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayAddress {
    /// Name or address.
    pub destination: GatewayDestination,
    /// Port of its tunnel listener. A service port when the destination is a service.
    pub hbone_port: u16,
}

/// The two ways to name a waypoint or a network gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GatewayDestination {
    /// Key of a service; failing that, the host name of a workload.
    Hostname(ServiceKey),
    /// Address of a workload or a virtual address of a service.
    Address {
        /// Network of the address.
        network: Text,
        /// The address.
        address: IpAddr,
    },
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(key) => key.fmt(f),
            Self::Address { network, address } => write!(f, "{network}/{address}"),
        }
    }
}
