//! What the manifests say about one pod, in the agent's terms. Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use ambit_objects::Name;
use ambit_objects::status::REDIRECTION;
use k8s_openapi::api::core::v1::Pod;

use super::plan::{Announced, Want};
use crate::enrol::{self, Decision, Labels, Policy};
use crate::rules::Options;
use crate::session::Identity;

/// The annotation that names the network namespace of a pod that no container runtime made.
pub const NETNS_ANNOTATION: &str = "ambit.io/netns";
const BYPASS_ANNOTATION: &str = "ambient.istio.io/bypass-inbound-capture";
const DNS_ANNOTATION: &str = "ambient.istio.io/dns-capture";
const INTERFACES_ANNOTATION: &str = "istio.io/reroute-virtual-interfaces";
/// The longest name of an interface in Linux; others match nothing.
const LONGEST_INTERFACE: usize = 15;
/// Interfaces of virtual machines taken from one pod; each is two rules.
const MOST_INTERFACES: usize = 16;

/// What holds for all pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Which pods are in.
    pub policy: Policy,
    /// Rules for pods that say nothing else.
    pub options: Options,
}

/// What one pod should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Its name.
    pub name: Name,
    /// By which the node proxy knows it: the uid, or `namespace/name` where there is none.
    pub uid: String,
    /// The uid that its manifest gives.
    pub kubernetes_uid: Option<String>,
    /// In the mesh or not.
    pub want: Want,
    /// Why, for people.
    pub why: String,
    /// Who it is.
    pub identity: Identity,
    /// Where its network namespace is.
    pub netns: Option<PathBuf>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its rules.
    pub options: Options,
    /// What its status says now.
    pub announced: Announced,
}

impl Wish {
    /// Reads a pod.
    #[must_use]
    pub fn of(name: &Name, pod: &Pod, namespace_labels: &Labels, settings: &Settings) -> Self {
        let decision = enrol::decide(&settings.policy, pod, namespace_labels);
        let annotation = |key: &str| {
            pod.metadata
                .annotations
                .as_ref()?
                .get(key)
                .map(String::as_str)
        };
        let spec = pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.clone());
        let host = spec.and_then(|spec| spec.host_network).unwrap_or(false);
        Self {
            name: name.clone(),
            uid: uid(name, pod),
            kubernetes_uid: pod.metadata.uid.clone(),
            want: match decision {
                Decision::In(_) => Want::In,
                Decision::Out(_) => Want::Out,
                Decision::Ended(_) => Want::Gone,
            },
            why: decision.why().to_string(),
            identity: Identity {
                name: name.name.clone(),
                namespace: name.namespace.clone(),
                service_account: account
                    .filter(|account| !account.is_empty())
                    .unwrap_or_else(|| "default".to_owned()),
            },
            // A pod in the host's network has nothing of ours to look for.
            netns: annotation(NETNS_ANNOTATION)
                .filter(|_| !host)
                .map(PathBuf::from),
            addresses: addresses(pod),
            options: Options {
                inbound: !switch(annotation(BYPASS_ANNOTATION), !settings.options.inbound),
                dns: switch(annotation(DNS_ANNOTATION), settings.options.dns),
                virtual_interfaces: interfaces(annotation(INTERFACES_ANNOTATION)),
                ..settings.options.clone()
            },
            announced: match annotation(REDIRECTION) {
                Some("enabled") => Announced::Enabled,
                Some("pending") => Announced::Pending,
                _ => Announced::Nothing,
            },
        }
    }

    /// The same pod, which is no longer there.
    #[must_use]
    pub fn gone(self) -> Self {
        Self {
            want: Want::Gone,
            why: "the pod is gone".to_owned(),
            ..self
        }
    }
}

/// By which the agent and the node proxy know the pod.
pub(crate) fn uid(name: &Name, pod: &Pod) -> String {
    let given = pod.metadata.uid.clone().filter(|uid| !uid.is_empty());
    given.unwrap_or_else(|| format!("{}/{}", name.namespace, name.name))
}

/// A boolean as annotations write it; anything else is the default.
fn switch(value: Option<&str>, default: bool) -> bool {
    match value.map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1" | "t" | "yes" | "on") => true,
        Some("false" | "0" | "f" | "no" | "off") => false,
        _ => default,
    }
}

fn interfaces(value: Option<&str>) -> Vec<String> {
    value
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && name.len() <= LONGEST_INTERFACE)
        .take(MOST_INTERFACES)
        .map(str::to_owned)
        .collect()
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let several = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut found: Vec<IpAddr> = several
        .chain(status.pod_ip.as_deref())
        .filter_map(|text| text.parse().ok())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use ambit_objects::Name;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::{Settings, Wish};
    use crate::enrol::{Labels, Policy};
    use crate::pod::plan::{Announced, Want};
    use crate::rules::Options;

    fn wish(pod: serde_json::Value) -> Wish {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let settings = Settings {
            policy: Policy::default(),
            options: Options::default(),
        };
        let name = Name::new("shop", "web");
        let labels = Labels::from([("istio.io/dataplane-mode".into(), "ambient".into())]);
        Wish::of(&name, &pod, &labels, &settings)
    }

    #[test]
    fn a_pod_is_read_with_its_annotations() {
        let wish = wish(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "annotations": {
                "ambit.io/netns": "/run/netns/web",
                "ambient.istio.io/bypass-inbound-capture": "true",
                "ambient.istio.io/dns-capture": "true",
                "istio.io/reroute-virtual-interfaces": "vm0, vm1,,a-name-that-is-too-long",
                "ambient.istio.io/redirection": "enabled",
            }},
            "spec": {"serviceAccountName": "web", "containers": []},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }));
        assert_eq!(wish.want, Want::In);
        assert_eq!(wish.uid, "u1");
        assert_eq!(wish.identity.service_account, "web");
        assert_eq!(wish.netns.unwrap().to_str(), Some("/run/netns/web"));
        assert_eq!(wish.addresses.len(), 2);
        assert!(!wish.options.inbound && wish.options.dns);
        assert_eq!(wish.options.virtual_interfaces, ["vm0", "vm1"]);
        assert_eq!(wish.announced, Announced::Enabled);
    }

    #[test]
    fn a_pod_that_says_nothing_gets_the_defaults() {
        let wish = wish(json!({"metadata": {"name": "web", "namespace": "shop"}}));
        assert_eq!(wish.uid, "shop/web");
        assert_eq!(wish.identity.service_account, "default");
        assert_eq!(wish.options, Options::default());
        assert_eq!(wish.announced, Announced::Nothing);
        assert_eq!((wish.netns, wish.addresses.len()), (None, 0));
    }

    #[test]
    fn the_namespace_of_a_pod_in_the_network_of_the_host_is_not_even_looked_at() {
        let wish = wish(json!({
            "metadata": {"name": "web", "namespace": "shop",
                "annotations": {"ambit.io/netns": "/proc/1/ns/net"}},
            "spec": {"hostNetwork": true, "containers": []},
        }));
        assert_eq!((wish.want, wish.netns), (Want::Out, None));
    }
}
