//! Addresses of workloads of which the control plane knows a name only: hosts outside the cluster.
//!
//! # Theory of operation
//! The name is asked of the servers of this proxy's own `resolv.conf`, from its own namespace, search
//! domains and hosts file included, once the decision fell on that workload. Answers are kept for
//! as long as they say, by each data thread for itself; a resolver is made when the first name is
//! needed, and anew when the file changes.
//!
//! # Invariants
//! - An address that means this machine, or nobody, is no answer: a name that somebody else serves must
//!   not lead to what listens on a pod's loopback.
//!
//! # Failure modes
//! No answer in [`PATIENCE`], or none with an address: the connection is refused, or takes another
//! endpoint.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ambit_model::reason::Reason;
use ambit_model::workload::Workload;
use ambit_observe::metrics::Family;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::time::timeout;

use crate::dns::places::{Conf, OWN, Watched};
use crate::record::{Outcome, source_labels};

/// How long a name may take: as long as resolvers of applications wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers kept by a thread: as many as Istio's node proxy keeps. Made use of by nobody, they take nothing.
const KEPT: u64 = 4096;

ambit_observe::series! {
    /// Connections for which a name was resolved.
    pub struct Named {
        /// Asked, of the cache or of a server.
        asked: Counter = ("istio_on_demand_dns", "The total number of requests that used on-demand DNS (unstable)."),
    }
}

/// The names that one data thread resolves.
pub struct Names {
    ipv6: bool,
    counted: Family<Named>,
    file: Watched,
    resolver: RefCell<Option<(Rc<Conf>, TokioResolver)>>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    /// No name resolved yet. Without `ipv6` only IPv4 addresses are asked for.
    #[must_use]
    pub fn new(ipv6: bool, counted: Family<Named>) -> Self {
        Self {
            ipv6,
            counted,
            file: Watched::new(PathBuf::from(OWN)),
            resolver: RefCell::default(),
        }
    }

    /// One of the addresses of `hostname`, drawn at random from those of the family of `like`, or from all
    /// when it has none. Waits no longer than `limit`.
    ///
    /// # Errors
    /// [`Reason::HostnameUnresolved`], with what went wrong.
    pub async fn resolve(
        &self,
        source: &Workload,
        hostname: &str,
        like: IpAddr,
        limit: Option<Duration>,
    ) -> Result<IpAddr, Outcome> {
        let counted = self.counted.resolve(|labels| {
            source_labels(labels, source);
            labels.open("hostname", hostname);
        });
        counted.asked.inc();
        let unresolved = |why: &dyn fmt::Display| {
            let what = format_args!("{hostname}: {why}");
            Outcome::because(Reason::HostnameUnresolved, what)
        };
        let resolver = self.resolver().map_err(|error| unresolved(&error))?;
        let patience = limit.map_or(PATIENCE, |limit| limit.min(PATIENCE));
        // Boxed: large, and few connections need it.
        let asking = Box::pin(resolver.lookup_ip(hostname));
        let answer = timeout(patience, asking)
            .await
            .map_err(|elapsed| unresolved(&elapsed))?
            .map_err(|error| unresolved(&error))?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        draw(&addresses, like, fastrand::u64(..))
            .ok_or_else(|| unresolved(&"it has no address that leads to another machine"))
    }

    /// The resolver of what the file says now.
    fn resolver(&self) -> Result<TokioResolver, hickory_resolver::net::NetError> {
        let conf = self.file.now();
        let mut kept = self.resolver.borrow_mut();
        if let Some((of, resolver)) = &*kept
            && Rc::ptr_eq(of, &conf)
        {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio()?;
        let options = builder.options_mut();
        options.cache_size = KEPT;
        options.ip_strategy = if self.ipv6 {
            LookupIpStrategy::Ipv4AndIpv6
        } else {
            LookupIpStrategy::Ipv4Only
        };
        let resolver = builder.build()?;
        *kept = Some((conf, resolver.clone()));
        Ok(resolver)
    }
}

/// One of `addresses`, of the family of `like` if there is one.
fn draw(addresses: &[IpAddr], like: IpAddr, random: u64) -> Option<IpAddr> {
    let elsewhere = |ip: &&IpAddr| {
        let ip = ip.to_canonical();
        !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
    };
    let usable = || addresses.iter().filter(elsewhere);
    let alike = || usable().filter(|ip| ip.is_ipv4() == like.is_ipv4());
    let pick = |count: usize| {
        let random = usize::try_from(random).unwrap_or(usize::MAX);
        random.checked_rem(count)
    };
    match pick(alike().count()) {
        Some(index) => alike().nth(index).copied(),
        None => usable().nth(pick(usable().count())?).copied(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::draw;

    fn addresses(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn draws_from_the_clients_family_and_never_this_machine() {
        let four: IpAddr = "10.0.0.1".parse().unwrap();
        let six: IpAddr = "fd00::1".parse().unwrap();
        let mixed = addresses(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "127.0.0.1"]);
        let drawn = |like| -> Vec<String> {
            (0..4)
                .map(|random| draw(&mixed, like, random).unwrap().to_string())
                .collect()
        };
        assert_eq!(
            drawn(four),
            ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"]
        );
        assert_eq!(drawn(six), ["2001:db8::1"; 4]);
        assert_eq!(
            draw(&addresses(&["192.0.2.1"]), six, 7),
            Some("192.0.2.1".parse().unwrap()),
            "another family is better than none"
        );
        let here = [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ];
        assert_eq!(draw(&addresses(&here), four, 1), None);
        assert_eq!(draw(&[], four, 1), None);
    }
}
