//! Hears of changes to packet filter, routes and rules in a pod's namespace.
//!
//! A notice only says when to look; [`crate::redirect::inspect`] says what is there. Our own changes are heard too, and
//! found to be as they should be.

use std::io;

use ambit_net::netlink::Notices;
use ambit_net::netns::Netns;

use crate::netlink::{Family, Netlink};
use crate::{nftables, route};

/// Listens in one namespace.
#[derive(Debug)]
pub struct Drift {
    netfilter: Notices,
    route: Notices,
}

impl Drift {
    /// Starts to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// The namespace cannot be entered or no descriptor is left.
    pub fn listen(netns: &Netns) -> io::Result<Self> {
        let (netfilter, route) = netns.run(|| {
            let netfilter = Netlink::listen(Family::Netfilter, &[nftables::CHANGES])?;
            let route = Netlink::listen(Family::Route, &route::CHANGES)?;
            io::Result::Ok((netfilter, route))
        })??;
        Ok(Self {
            netfilter: Notices::new(&netfilter)?,
            route: Notices::new(&route)?,
        })
    }

    /// Returns when something changed. Notices that were lost count as a change. Cancel safe.
    ///
    /// At once and not after some quiet time: while rules are missing the pod speaks past the mesh.
    pub async fn changed(&self) {
        // An error is an overrun: something changed, and we do not know what.
        tokio::select! {
            _notice = self.netfilter.next() => {}
            _notice = self.route.next() => {}
        }
    }
}
