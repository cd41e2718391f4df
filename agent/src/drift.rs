//! Hears of changes to packet filter, routes and rules in a pod's namespace.
//!
//! A notice only says when to look; [`crate::redirect::inspect`] says what is there. Our own changes are heard too, and
//! found to be as they should be.

use std::io;
use std::time::Duration;

use ambit_net::netlink::Notices;
use ambit_net::netns::Netns;

use crate::netlink::{Family, Netlink};
use crate::{nftables, route};

/// Quiet time after a notice, so that a change made in several steps is looked at once.
const SETTLE: Duration = Duration::from_millis(20);

/// Notices after which we look although more keep coming.
const MOST_NOTICES: usize = 100;

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
    pub async fn changed(&self) {
        self.next().await;
        for _more in 0..MOST_NOTICES {
            if tokio::time::timeout(SETTLE, self.next()).await.is_err() {
                return;
            }
        }
    }

    async fn next(&self) {
        // An error is an overrun: something changed, and we do not know what.
        tokio::select! {
            _notice = self.netfilter.next() => {}
            _notice = self.route.next() => {}
        }
    }
}
