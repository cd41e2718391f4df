//! Which pods are in the mesh: one pure function, and the reason for each answer.
//!
//! The first condition that holds decides, from top to bottom of [`decide`]. The defaults say: a pod that carries
//! `istio.io/dataplane-mode: ambient` is in; so is one whose namespace carries it, unless the pod says
//! `none`. Labels of services play no part, and waypoints do not either.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The label by which namespaces and pods opt in (`ambient`) and out (`none`).
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Written by the injector of sidecars.
pub const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";

/// Labels of a namespace or a pod.
pub type Labels = BTreeMap<String, String>;

/// One way to be selected: both must match; one that is absent matches everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Against the labels of the pod.
    #[serde(default)]
    pub pod_selector: LabelSelector,
    /// Against the labels of its namespace.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
}

/// The settings of the decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// A pod is in when one of these matches.
    pub selectors: Vec<Selector>,
    /// Namespaces that never are, whatever the labels say.
    pub exclude_namespaces: Vec<String>,
    /// The namespace of the node proxy itself.
    pub system_namespace: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            selectors: default_selectors(),
            exclude_namespaces: vec!["kube-system".to_owned()],
            system_namespace: "istio-system".to_owned(),
        }
    }
}

/// The decision for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// In the mesh, because of this.
    In(Why),
    /// Not in the mesh, because of this.
    Out(Why),
    /// The pod has ended; what was done for it is undone.
    Ended(Why),
}

impl Decision {
    /// Whether the pod is in the mesh.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        matches!(self, Self::In(_))
    }

    /// The reason.
    #[must_use]
    pub const fn why(&self) -> &Why {
        match self {
            Self::In(why) | Self::Out(why) | Self::Ended(why) => why,
        }
    }
}

/// Why a pod is in the mesh or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its namespace is on the list of those left out.
    NamespaceExcluded,
    /// It has no network namespace of its own.
    HostNetwork,
    /// It has a sidecar already.
    Sidecar,
    /// It ran to its end, with this phase.
    Finished(String),
    /// It is the node proxy.
    NodeProxy,
    /// Its own label says so.
    PodLabel,
    /// The label of its namespace says so.
    NamespaceLabel,
    /// A configured selector matches, the one at this place in the list.
    Selector(usize),
    /// Its own label keeps it out.
    OptedOut,
    /// Nothing selects it.
    NotSelected,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamespaceExcluded => f.write_str("its namespace is excluded"),
            Self::HostNetwork => f.write_str("it uses the network of the host"),
            Self::Sidecar => write!(f, "it has a sidecar (annotation {SIDECAR_ANNOTATION})"),
            Self::Finished(phase) => write!(f, "it has ended (phase {phase})"),
            Self::NodeProxy => f.write_str("it is the node proxy"),
            Self::PodLabel => write!(f, "the pod is labelled {MODE_LABEL}=ambient"),
            Self::NamespaceLabel => write!(f, "its namespace is labelled {MODE_LABEL}=ambient"),
            Self::Selector(index) => write!(f, "enablement selector {index} matches"),
            Self::OptedOut => write!(f, "the pod is labelled {MODE_LABEL}=none"),
            Self::NotSelected => {
                write!(
                    f,
                    "neither the pod nor its namespace is labelled {MODE_LABEL}=ambient"
                )
            }
        }
    }
}

/// Whether `pod`, in a namespace with these labels, is in the mesh. A namespace that is not known has no labels.
#[must_use]
pub fn decide(policy: &Policy, pod: &Pod, namespace_labels: &Labels) -> Decision {
    let empty = Labels::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if policy
        .exclude_namespaces
        .iter()
        .any(|excluded| excluded == namespace)
    {
        return Decision::Out(Why::NamespaceExcluded);
    }
    if pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false)
    {
        return Decision::Out(Why::HostNetwork);
    }
    if annotations.contains_key(SIDECAR_ANNOTATION) {
        return Decision::Out(Why::Sidecar);
    }
    if let Some(phase) = ended(pod) {
        return Decision::Ended(Why::Finished(phase.to_owned()));
    }
    if namespace == policy.system_namespace && labels.get("app").is_some_and(|app| app == "ztunnel")
    {
        return Decision::Out(Why::NodeProxy);
    }
    let selected = policy.selectors.iter().position(|selector| {
        matches(&selector.pod_selector, labels)
            && matches(&selector.namespace_selector, namespace_labels)
    });
    let mode = labels.get(MODE_LABEL).map(String::as_str);
    match selected {
        Some(_) if mode == Some("ambient") => Decision::In(Why::PodLabel),
        Some(_)
            if namespace_labels
                .get(MODE_LABEL)
                .is_some_and(|mode| mode == "ambient") =>
        {
            Decision::In(Why::NamespaceLabel)
        }
        Some(index) => Decision::In(Why::Selector(index)),
        None if mode == Some("none") => Decision::Out(Why::OptedOut),
        None => Decision::Out(Why::NotSelected),
    }
}

fn ended(pod: &Pod) -> Option<&str> {
    let phase = pod.status.as_ref()?.phase.as_deref()?;
    matches!(phase, "Succeeded" | "Failed").then_some(phase)
}

/// Kubernetes' rule for label selectors: every part must hold, and an empty selector matches everything. An operator
/// that is not known matches nothing.
fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut wanted = selector.match_labels.iter().flatten();
    wanted.all(|(key, value)| labels.get(key) == Some(value))
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|one| holds(one, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = |value: &String| {
        requirement
            .values
            .iter()
            .flatten()
            .any(|candidate| candidate == value)
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

fn default_selectors() -> Vec<Selector> {
    let ambient = || LabelSelector {
        match_labels: Some(Labels::from([(
            MODE_LABEL.to_owned(),
            "ambient".to_owned(),
        )])),
        ..LabelSelector::default()
    };
    let not_none = LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: MODE_LABEL.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(vec!["none".to_owned()]),
        }]),
        ..LabelSelector::default()
    };
    vec![
        Selector {
            pod_selector: ambient(),
            namespace_selector: LabelSelector::default(),
        },
        Selector {
            pod_selector: not_none,
            namespace_selector: ambient(),
        },
    ]
}
