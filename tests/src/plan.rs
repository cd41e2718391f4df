//! What a world consists of.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Second bytes of the nodes' ranges of pod addresses, 10.X.NODE.0/24: a node has one of each.
pub(crate) const RANGES: RangeInclusive<u8> = 244..=249;
/// Pods of one range.
const RANGE: u16 = 250;

/// A world to be made: a builder, every method of which adds something.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub(crate) name: String,
    pub(crate) nodes: usize,
    pub(crate) namespaces: Vec<(String, Labels)>,
    pub(crate) pods: Vec<PodPlan>,
    pub(crate) services: Vec<ServicePlan>,
    pub(crate) waypoints: Vec<WaypointPlan>,
    pub(crate) manifests: Vec<(String, String)>,
    pub(crate) mesh: bool,
    /// Waypoints are Envoys.
    pub(crate) envoy: bool,
    /// What stands in for our node proxy, by node.
    pub(crate) node_proxies: BTreeMap<usize, PathBuf>,
    pub(crate) environment: BTreeMap<String, String>,
}

/// A pod: a network namespace on a node.
#[derive(Debug, Clone)]
pub struct PodPlan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) service_account: String,
    pub(crate) host_network: bool,
    /// Its number, unique in the world; addresses follow from it.
    pub(crate) number: u16,
}

/// A service in front of the pods with a label.
#[derive(Debug, Clone)]
pub struct ServicePlan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) selector: Labels,
    /// Port and target port.
    pub(crate) ports: Vec<(String, u16, u16)>,
    pub(crate) labels: Labels,
    pub(crate) number: u8,
}

/// A waypoint: a gateway object, its service, and one pod that runs the program.
#[derive(Debug, Clone)]
pub struct WaypointPlan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pod: String,
}

/// Makes labels of pairs.
#[must_use]
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// The label that takes a namespace or pod into the mesh.
pub const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

impl Plan {
    /// An empty mesh on two nodes. `name` is short: it becomes part of the names of namespaces.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 2,
            mesh: true,
            ..Self::default()
        }
        .namespace("istio-system", &[])
    }

    /// Nodes and pods only: no programs, no manifests.
    #[must_use]
    pub fn without_mesh(mut self) -> Self {
        self.mesh = false;
        self
    }

    /// A namespace of the cluster, with labels.
    #[must_use]
    pub fn namespace(mut self, name: &str, with: &[(&str, &str)]) -> Self {
        self.namespaces.push((name.to_owned(), labels(with)));
        self
    }

    /// A pod `NAMESPACE/NAME` on node 1 or 2, with label `app: NAME` and a service account of its
    /// name, both of which `shape` may change.
    #[must_use]
    pub fn pod_with(
        mut self,
        path: &str,
        node: usize,
        shape: impl FnOnce(PodPlan) -> PodPlan,
    ) -> Self {
        let (namespace, name) = split(path);
        let pod = PodPlan {
            namespace,
            node,
            labels: labels(&[("app", &name)]),
            annotations: Labels::new(),
            service_account: name.clone(),
            host_network: false,
            number: 10 + u16::try_from(self.pods.len()).expect("at most 1,240 pods"),
            name,
        };
        assert!(
            (1..=self.nodes).contains(&node),
            "{path}: there is no node {node}"
        );
        self.pods.push(shape(pod));
        self
    }

    /// A pod as [`pod_with`](Self::pod_with) makes it.
    #[must_use]
    pub fn pod(self, path: &str, node: usize) -> Self {
        self.pod_with(path, node, |pod| pod)
    }

    /// A service `NAMESPACE/NAME` in front of the pods with label `app: APP`, with ports (name,
    /// port, target port); a name such as `http` or `tcp` says the protocol.
    #[must_use]
    pub fn service(mut self, path: &str, app: &str, ports: &[(&str, u16, u16)]) -> Self {
        let (namespace, name) = split(path);
        self.services.push(ServicePlan {
            namespace,
            name,
            selector: labels(&[("app", app)]),
            ports: ports
                .iter()
                .map(|(name, a, b)| ((*name).to_owned(), *a, *b))
                .collect(),
            labels: Labels::new(),
            number: 10 + u8::try_from(self.services.len()).expect("at most 240 services"),
        });
        self
    }

    /// Adds a label to the service made last.
    ///
    /// # Panics
    ///
    /// There is no service yet.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        let last = self.services.last_mut().expect("a service to label");
        last.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A waypoint `NAMESPACE/NAME` on a node; `waypoint_for` is `service`, `workload` or `all`.
    #[must_use]
    pub fn waypoint(mut self, path: &str, node: usize, waypoint_for: &str) -> Self {
        let (namespace, name) = split(path);
        let app = format!("{namespace}-{name}");
        self.waypoints.push(WaypointPlan {
            namespace: namespace.clone(),
            name: name.clone(),
            pod: name.clone(),
        });
        let gateway = crate::manifests::gateway(&namespace, &name, waypoint_for);
        self.manifest(&format!("gateway-{namespace}-{name}"), &gateway)
            .pod_with(path, node, |pod| {
                pod.label("app", &app)
                    .label("gateway.networking.k8s.io/gateway-name", &name)
                    .label("istio.io/dataplane-mode", "none")
            })
            .service(path, &app, &[("mesh", 15008, 15008)])
    }

    /// Runs a real Envoy in the place of every waypoint.
    #[must_use]
    pub fn envoy_waypoints(mut self) -> Self {
        self.envoy = true;
        self
    }

    /// Runs another program, which takes Istio's settings, as the proxy of every node.
    #[must_use]
    pub fn node_proxy(self, program: &Path) -> Self {
        (1..=self.nodes).fold(self, |plan, node| plan.node_proxy_of(node, program))
    }

    /// Runs another program, which takes Istio's settings, as the proxy of one node.
    #[must_use]
    pub fn node_proxy_of(mut self, node: usize, program: &Path) -> Self {
        self.node_proxies.insert(node, program.to_owned());
        self
    }

    /// A file of manifests that is there from the start.
    #[must_use]
    pub fn manifest(mut self, file: &str, text: &str) -> Self {
        self.manifests.push((file.to_owned(), text.to_owned()));
        self
    }

    /// A variable for every proxy. `{run}` in it is the run's folder.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl PodPlan {
    /// Adds or replaces a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds or replaces an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Runs as this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Says in its manifest that it uses the node's network, which keeps it out of the mesh. Its
    /// namespace stays its own.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The pod's address of one of its node's ranges.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        let [range, last] = [self.number / RANGE, self.number % RANGE];
        let [range, last] = [range, last].map(|byte| u8::try_from(byte).expect("a byte"));
        let first = RANGES.start() + range;
        assert!(RANGES.contains(&first), "at most 1,240 pods");
        Ipv4Addr::new(10, first, node_byte(self.node), last)
    }

    /// The pod's IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        let node = u16::from(node_byte(self.node));
        // The last group reads like the last byte of the IPv4 address.
        let number = u16::from_str_radix(&self.number.to_string(), 16).expect("decimal is hex");
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node, 0, 0, 0, number)
    }

    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The last part of its network namespace's name.
    pub(crate) fn netns(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }
}

impl ServicePlan {
    /// The cluster addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        let number = u16::from_str_radix(&self.number.to_string(), 16).expect("decimal is hex");
        [
            Ipv4Addr::new(10, 96, 0, self.number).into(),
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number).into(),
        ]
    }

    /// Whether a pod is behind this service.
    #[must_use]
    pub fn selects(&self, pod: &PodPlan) -> bool {
        pod.namespace == self.namespace
            && self
                .selector
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

/// A node's number as a byte of addresses.
pub(crate) fn node_byte(node: usize) -> u8 {
    u8::try_from(node).expect("few nodes")
}

fn split(path: &str) -> (String, String) {
    let (namespace, name) = path.split_once('/').expect("NAMESPACE/NAME");
    (namespace.to_owned(), name.to_owned())
}
