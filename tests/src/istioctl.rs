//! Reads a node proxy's state as istioctl and Kiali do: fields of these names in these types, or nothing at all.
//!
//! Written from what `istioctl ztunnel-config` and Kiali decode. As there, what is missing or null is empty, and what is not
//! known is left alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Null is as good as missing.
fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A struct of which every field may be missing or null.
macro_rules! read {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[expect(missing_docs, reason = "the names are those of the state")]
        pub struct $name {
            $(#[serde(deserialize_with = "or_empty")] pub $field: $kind,)*
        }
    )*};
}

read! {
    /// The whole.
    State {
        workloads: Vec<Workload>,
        services: Vec<Service>,
        policies: Vec<Policy>,
        certificates: Vec<Certificates>,
        workload_state: BTreeMap<String, Pod>,
        config: Config,
    }
    /// A workload.
    Workload {
        uid: String,
        workload_ips: Vec<String>,
        waypoint: Option<Gateway>,
        network_gateway: Option<Gateway>,
        protocol: String,
        name: String,
        namespace: String,
        service_account: String,
        workload_name: String,
        workload_type: String,
        canonical_name: String,
        canonical_revision: String,
        cluster_id: String,
        trust_domain: String,
        locality: Locality,
        node: String,
        network: String,
        network_mode: String,
        status: String,
        hostname: String,
        capacity: u32,
        application_tunnel: ApplicationTunnel,
        authorization_policies: Vec<String>,
        services: Vec<String>,
    }
    /// Where it runs.
    Locality {
        region: String,
        zone: String,
        subzone: String,
    }
    /// How its application is reached.
    ApplicationTunnel {
        protocol: String,
        port: Option<u16>,
    }
    /// Where a waypoint or gateway is.
    Gateway {
        destination: String,
        hbone_mtls_port: i64,
    }
    /// A service.
    Service {
        name: String,
        namespace: String,
        hostname: String,
        vips: Vec<String>,
        cidr_vips: Vec<String>,
        ports: BTreeMap<String, i64>,
        load_balancer: Option<LoadBalancer>,
        waypoint: Option<Gateway>,
        endpoints: BTreeMap<String, Endpoint>,
        subject_alt_names: Vec<String>,
        ip_families: String,
        canonical: bool,
        visibility: String,
    }
    /// How an endpoint is chosen.
    LoadBalancer {
        mode: String,
        routing_preferences: Vec<String>,
        health_policy: String,
    }
    /// A workload behind a service.
    Endpoint {
        workload_uid: String,
        service: String,
        address: String,
        status: String,
        port: BTreeMap<u16, u16>,
    }
    /// A policy.
    Policy {
        name: String,
        namespace: String,
        scope: String,
        action: String,
        rules: Vec<Vec<Vec<Match>>>,
    }
    /// A match of a rule.
    Match {
        namespaces: Vec<Text>,
        not_namespaces: Vec<Text>,
        principals: Vec<Text>,
        not_principals: Vec<Text>,
        source_ips: Vec<String>,
        not_source_ips: Vec<String>,
        destination_ips: Vec<String>,
        not_destination_ips: Vec<String>,
        destination_ports: Vec<u16>,
        not_destination_ports: Vec<u16>,
        service_accounts: Vec<Account>,
        not_service_accounts: Vec<Account>,
    }
    /// An account in a rule.
    Account {
        namespace: String,
        service_account: String,
    }
    /// One identity's certificates.
    Certificates {
        identity: String,
        state: String,
        cert_chain: Vec<Certificate>,
        root_certs: Vec<Certificate>,
    }
    /// One certificate.
    Certificate {
        pem: String,
        serial_number: String,
        valid_from: String,
        expiration_time: String,
    }
    /// A pod of the node.
    Pod {
        state: String,
        connections: Connections,
        info: Info,
    }
    /// Who it is.
    Info {
        name: String,
        namespace: String,
        trust_domain: String,
        service_account: String,
    }
    /// What it has open.
    Connections {
        inbound: Vec<Connection>,
        outbound: Vec<Connection>,
    }
    /// One of them.
    Connection {
        src: String,
        original_dst: String,
        actual_dst: String,
        protocol: String,
    }
    /// Settings, as far as Kiali gives them a type.
    Config {
        admin_addr: Localhost,
        alt_ca_hostname: Option<String>,
        alt_xds_hostname: Option<String>,
        ca_address: String,
        ca_root_cert: File,
        cluster_domain: String,
        cluster_id: String,
        connection_window_size: i64,
        dns_proxy: bool,
        dns_proxy_addr: Localhost,
        fake_ca: bool,
        fake_self_inbound: bool,
        frame_size: i64,
        illegal_ports: Vec<i64>,
        inbound_addr: String,
        inbound_plaintext_addr: String,
        inpod_port_reuse: bool,
        inpod_uds: String,
        local_node: String,
        network: String,
        num_worker_threads: i64,
        outbound_addr: String,
        packet_mark: i64,
        pool_max_streams_per_conn: i64,
        proxy: bool,
        proxy_args: String,
        proxy_metadata: BTreeMap<String, String>,
        proxy_mode: String,
        readiness_addr: Socket,
        require_original_source: Option<String>,
        socks5_addr: Option<String>,
        stats_addr: Socket,
        window_size: i64,
        xds_address: String,
        xds_on_demand: bool,
        xds_root_cert: File,
    }
}

/// A test on a text. The words begin with capitals.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "the names are those of the state")]
pub struct Text {
    pub exact: String,
    pub prefix: String,
    pub suffix: String,
    pub presence: Option<Value>,
}

/// An address on the loopback: whether IPv6 is used, and the port.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "the names are those of the state")]
pub struct Localhost {
    pub localhost: Vec<Value>,
}

/// An address.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "the names are those of the state")]
pub struct Socket {
    pub socket_addr: String,
}

/// A file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "the names are those of the state")]
pub struct File {
    pub file: String,
}
