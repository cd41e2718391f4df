//! What one waypoint serves: its services with their ports, and pods that name it themselves.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ambit_objects::Name;
use ambit_proto::istio::workload::AppProtocol;

use crate::cluster::{Binding, Cluster, Waypoint, by_age};
use crate::translate::service::{app_protocol, tcp_ports};

/// Everything one waypoint serves.
#[derive(Debug)]
pub(super) struct Served<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) waypoint: &'a Waypoint,
    /// Oldest first, as istiod lists them.
    pub(super) services: Vec<Service>,
    /// Addresses of pods whose own traffic goes here.
    pub(super) pods: Vec<IpAddr>,
}

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: Name,
    pub(super) hostname: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) protocol: Protocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
    Tcp,
    /// Not said: the first bytes decide.
    Unknown,
}

impl Protocol {
    pub(super) fn has_http(self) -> bool {
        self != Self::Tcp
    }

    pub(super) fn has_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Unknown)
    }
}

impl<'a> Served<'a> {
    pub(super) fn new(cluster: &'a Cluster, waypoint: &'a Waypoint) -> Self {
        let bound = |binding: Binding<'_>| matches!(binding, Binding::To(to) if to == waypoint);
        let services = by_age(&cluster.objects().services, |service| &service.metadata)
            .into_iter()
            .filter(|(name, object)| bound(cluster.service_waypoint(name, &object.metadata)))
            .filter_map(|(name, _)| Service::find(cluster, name))
            .collect();
        let pods: BTreeSet<IpAddr> = cluster
            .pods()
            .filter(|(name, pod, _)| bound(cluster.pod_waypoint(name, &pod.metadata)))
            .flat_map(|(_, _, addresses)| addresses.iter().copied())
            .collect();
        Self {
            cluster,
            waypoint,
            services,
            pods: pods.into_iter().collect(),
        }
    }

    /// One of the services that are served here.
    pub(super) fn service(&self, name: &Name) -> Option<&Service> {
        self.services.iter().find(|service| service.name == *name)
    }
}

impl Service {
    pub(super) fn find(cluster: &Cluster, name: &Name) -> Option<Self> {
        let (object, addresses) = cluster.service(name)?;
        let ports = tcp_ports(object.spec.as_ref()).filter_map(|port| {
            Some(Port {
                number: u16::try_from(port.port).ok()?,
                protocol: match app_protocol(port) {
                    AppProtocol::Http11 => Protocol::Http1,
                    AppProtocol::Http2 | AppProtocol::Grpc => Protocol::Http2,
                    AppProtocol::Tcp | AppProtocol::Tls => Protocol::Tcp,
                    AppProtocol::Unknown => Protocol::Unknown,
                },
            })
        });
        Some(Self {
            name: name.clone(),
            hostname: cluster.mesh().hostname(&name.namespace, &name.name),
            addresses: addresses.to_vec(),
            ports: ports.collect(),
        })
    }

    pub(super) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Name of the chain, and of the cluster, of one port.
    pub(super) fn chain(&self, port: u16, http: bool) -> String {
        let protocol = if http { "http" } else { "tcp" };
        format!("inbound-vip|{port}|{protocol}|{}", self.hostname)
    }
}
