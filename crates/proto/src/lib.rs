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

/// `opentelemetry.proto.*`: log records and spans, and where they are sent.
pub mod opentelemetry {
    /// Package level.
    pub mod proto {
        /// `opentelemetry.proto.common.v1`: named values.
        pub mod common {
            /// Package level.
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.common.v1");
            }
        }

        /// `opentelemetry.proto.resource.v1`: who speaks.
        pub mod resource {
            /// Package level.
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.resource.v1");
            }
        }

        /// `opentelemetry.proto.logs.v1`: log records.
        pub mod logs {
            /// Package level.
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.logs.v1");
            }
        }

        /// `opentelemetry.proto.trace.v1`: spans.
        pub mod trace {
            /// Package level.
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.trace.v1");
            }
        }

        /// `opentelemetry.proto.collector`: the services that take them.
        pub mod collector {
            /// Package level.
            pub mod logs {
                /// Package level.
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.logs.v1");
                }
            }

            /// Package level.
            pub mod trace {
                /// Package level.
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
                }
            }
        }
    }
}

/// Log records and spans with the services that take them.
pub mod otlp {
    pub use crate::opentelemetry::proto::collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse, logs_service_client,
        logs_service_server,
    };
    pub use crate::opentelemetry::proto::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_client,
        trace_service_server,
    };
    pub use crate::opentelemetry::proto::common::v1::{
        AnyValue, InstrumentationScope, KeyValue, any_value,
    };
    pub use crate::opentelemetry::proto::logs::v1::{
        LogRecord, ResourceLogs, ScopeLogs, SeverityNumber,
    };
    pub use crate::opentelemetry::proto::resource::v1::Resource;
    pub use crate::opentelemetry::proto::trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status, span, status,
    };
}

/// SPIFFE's package, which has no name.
pub mod spiffe {
    /// The Workload API: an agent to the workloads of its machine.
    pub mod workload {
        tonic::include_proto!("_");
    }
}

/// SPIRE's packages.
pub mod spire {
    /// Package level.
    pub mod api {
        /// `spire.api.types`.
        pub mod types {
            tonic::include_proto!("spire.api.types");
        }

        /// Package level.
        pub mod agent {
            /// Package level.
            pub mod delegatedidentity {
                /// `spire.api.agent.delegatedidentity.v1`: an agent to a proxy that acts for workloads.
                pub mod v1 {
                    tonic::include_proto!("spire.api.agent.delegatedidentity.v1");
                }
            }
        }
    }

    pub use api::agent::delegatedidentity::v1 as delegated;
    pub use api::types;
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
