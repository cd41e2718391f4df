//! Which service of the mesh a client means by a name.
//!
//! 1. The name itself, then what Kubernetes would complete it to.
//! 2. For each search domain that it ends in, the same without that domain: a resolver appends search domains before
//!    it asks, so `api.example.com` arrives as `api.example.com.shop.svc.cluster.local` first.
//!
//! Each of these is looked for exactly, then as wildcards from the longest. The first hit counts.

use std::sync::Arc;

use ambit_model::View;
use ambit_model::service::Service;

/// Who asks, and how names are completed for it.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The client's namespace.
    pub namespace: &'a str,
    /// The client's network.
    pub network: &'a str,
    /// The cluster's domain, `cluster.local` as a rule.
    pub domain: &'a str,
    /// Search domains of the client's resolver, in order, in lower case and without a last dot; none when they are
    /// not known, which stands for those that Kubernetes gives a pod.
    pub search: Option<&'a [String]>,
    /// Among services of one name in other namespaces: the one of this namespace is preferred, if it is not empty.
    pub preferred_namespace: &'a str,
    /// Whether IPv6 addresses are told.
    pub ipv6: bool,
}

/// The service that was meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found<'v, 'q> {
    /// The service.
    pub service: &'v Arc<Service>,
    /// The name without its search domain, where the answer is an alias to it.
    pub alias: Option<&'q str>,
}

/// Searches for the service that a client means by `asked` (lower case, no last dot).
///
/// A service counts when the client may see it and it has a virtual address of its own, or is one of Kubernetes: that
/// may be headless. Nothing found means that somebody else has to be asked.
#[must_use]
pub fn find<'v, 'q>(view: &'v View, scope: &Scope<'_>, asked: &'q str) -> Option<Found<'v, 'q>> {
    let mut search = Search {
        view,
        scope,
        text: String::with_capacity(asked.len() + 64),
    };
    if let Some((service, _)) = search.completed(asked) {
        return Some(Found {
            service,
            alias: None,
        });
    }
    let found = |(service, wildcard): (_, bool), stripped| Found {
        service,
        alias: (!wildcard).then_some(stripped),
    };
    match scope.search {
        None => {
            let kubernetes = [
                format!("{}.svc.{}", scope.namespace, scope.domain),
                format!("svc.{}", scope.domain),
                scope.domain.to_owned(),
            ];
            kubernetes.iter().find_map(|domain| {
                let stripped = strip(asked, domain)?;
                Some(found(search.completed(stripped)?, stripped))
            })
        }
        Some(domains) => domains.iter().find_map(|domain| {
            let stripped = strip(asked, domain)?;
            let ours = domain == scope.domain || strip(domain, scope.domain).is_some();
            // Under a domain that is not the cluster's, `web.corp.example` is a name of its own: that the shop has
            // a `web` or somebody a `*.example` does not make it ours.
            let hit = if ours {
                search.completed(stripped)?
            } else {
                (search.exact(stripped)?, false)
            };
            Some(found(hit, stripped))
        }),
    }
}

/// `name` without `domain` and the dot before it.
fn strip<'q>(name: &'q str, domain: &str) -> Option<&'q str> {
    let stripped = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!stripped.is_empty() && !domain.is_empty()).then_some(stripped)
}

struct Search<'v, 's> {
    view: &'v View,
    scope: &'s Scope<'s>,
    /// Where names to look for are put together.
    text: String,
}

impl<'v> Search<'v, '_> {
    /// The service of `name` or of what Kubernetes completes it to, and whether by a wildcard.
    fn completed(&mut self, name: &str) -> Option<(&'v Arc<Service>, bool)> {
        self.either(name).or_else(|| {
            let completions = completions(name, self.scope);
            completions
                .iter()
                .flatten()
                .find_map(|completed| self.either(completed))
        })
    }

    fn either(&mut self, name: &str) -> Option<(&'v Arc<Service>, bool)> {
        let exact = self.exact(name).map(|service| (service, false));
        exact.or_else(|| self.wildcard(name).map(|service| (service, true)))
    }

    fn wildcard(&mut self, name: &str) -> Option<&'v Arc<Service>> {
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            let mut text = std::mem::take(&mut self.text);
            text.clear();
            text.push_str("*.");
            text.push_str(parent);
            let found = self.exact(&text);
            self.text = text;
            if found.is_some() {
                return found;
            }
            rest = parent;
        }
        None
    }

    fn exact(&self, name: &str) -> Option<&'v Arc<Service>> {
        let candidates = || {
            let all = self.view.services_named(name).iter();
            all.filter(|service| self.usable(service))
        };
        let of = |namespace: &str| candidates().find(|service| service.key.namespace == *namespace);
        of(self.scope.namespace)
            .or_else(|| candidates().find(|service| service.canonical))
            .or_else(|| of(self.scope.preferred_namespace))
            .or_else(|| candidates().next())
    }

    fn usable(&self, service: &Service) -> bool {
        let answerable = has_address(service) || is_kubernetes(service, self.scope.domain);
        answerable && service.visible_to(self.scope.namespace)
    }
}

/// Whether a service has a virtual address of its own, in whatever network. A block of addresses is none.
pub(crate) fn has_address(service: &Service) -> bool {
    service.vips.iter().any(|vip| vip.exact().is_some())
}

fn is_kubernetes(service: &Service, domain: &str) -> bool {
    strip(&service.key.hostname, domain).is_some_and(|name| name.ends_with(".svc"))
}

/// What Kubernetes completes a name to, by how many labels it has.
fn completions(name: &str, scope: &Scope<'_>) -> [Option<String>; 2] {
    let Scope {
        namespace, domain, ..
    } = scope;
    let own = || Some(format!("{name}.{namespace}.svc.{domain}"));
    let ends_in_svc = name.ends_with(".svc");
    match name.split('.').count() {
        1 if !name.is_empty() => [own(), None],
        2 => [Some(format!("{name}.svc.{domain}")), own()],
        3 => [
            ends_in_svc.then(|| format!("{name}.{domain}")),
            Some(format!("{name}.svc.{domain}")),
        ],
        4 if ends_in_svc => [Some(format!("{name}.{domain}")), None],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests;
