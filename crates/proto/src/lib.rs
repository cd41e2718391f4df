//! Generated types of the standard wires.
//!
//! The definitions are in `proto/` at the top of the repository, each module below is one package of theirs. Nothing else is
//! here: what the messages mean is decided in `xds` (received) and in the controller (sent).
//!
//! Maps are ordered, so equal messages encode to equal bytes. `bytes` fields are [`bytes::Bytes`]. The types of
//! `google.protobuf` are those of [`prost_types`].

/// Istio's packages.
pub mod istio {
    /// `istio.workload`: workloads and services.
    pub mod workload {
        tonic::include_proto!("istio.workload");

        /// `istio.workload.zds`: node agent to node proxy.
        pub mod zds {
            tonic::include_proto!("istio.workload.zds");
        }
    }

    /// `istio.security`: L4 authorization policies.
    pub mod security {
        tonic::include_proto!("istio.security");
    }

    /// `istio.v1.auth`: the certificate authority.
    pub mod ca {
        tonic::include_proto!("istio.v1.auth");
    }
}

/// `envoy.*`: the discovery protocol.
pub mod envoy {
    /// `envoy.config.core.v3`: who is asking.
    pub mod config {
        /// Package level.
        pub mod core {
            /// Package level.
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }

    /// `envoy.service.discovery.v3`: incremental aggregated discovery.
    pub mod service {
        /// Package level.
        pub mod discovery {
            /// Package level.
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

/// Google's packages, but for `google.protobuf`.
pub mod google {
    /// `google.rpc`: errors in messages.
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub use istio::workload::zds;

/// The discovery protocol with the node identifier and the status it carries.
pub mod discovery {
    pub use crate::envoy::config::core::v3::{Locality, Node};
    pub use crate::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource, aggregated_discovery_service_client, aggregated_discovery_service_server,
        resource,
    };
    pub use crate::google::rpc::Status;
}

/// Names of the resource types on a discovery stream.
pub mod type_url {
    /// A workload or a service.
    pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    /// A workload alone, the form waypoints subscribe to.
    pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
    /// An L4 authorization policy.
    pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
    /// Envoy listeners.
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// Envoy clusters.
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// Envoy endpoints.
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
}
