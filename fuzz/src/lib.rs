//! What several targets need.

use ambit_model::authorize::Attributes;
use ambit_model::identity::Identity;
use libfuzzer_sys::arbitrary::{self, Unstructured};

/// A connection as rules see it.
#[derive(Debug)]
pub struct Connection {
    /// Who the peer is, if anybody.
    pub peer: Option<Identity>,
    /// Its address.
    pub source: std::net::IpAddr,
    /// What it reached.
    pub destination: std::net::SocketAddr,
}

impl Connection {
    /// A connection of few possible values, so that rules meet them.
    pub fn new(from: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let names = ["a", "b", "ab"];
        let peer = if from.arbitrary()? {
            Identity::new("td", from.choose(&names)?, from.choose(&names)?).ok()
        } else {
            None
        };
        Ok(Self {
            peer,
            source: address(from)?,
            destination: (address(from)?, port(from)?).into(),
        })
    }

    /// The same, borrowed.
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes {
            peer: self.peer.as_ref(),
            source: self.source,
            destination: self.destination,
        }
    }
}

/// One of few addresses.
pub fn address(from: &mut Unstructured<'_>) -> arbitrary::Result<std::net::IpAddr> {
    let last: u8 = from.int_in_range(1..=4)?;
    Ok(if from.arbitrary()? {
        [10, 0, 0, last].into()
    } else {
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)].into()
    })
}

/// One of few ports.
pub fn port(from: &mut Unstructured<'_>) -> arbitrary::Result<u16> {
    from.choose(&[80, 443, 8080, 15008]).copied()
}
