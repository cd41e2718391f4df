//! `istio.workload.Workload`.

use std::collections::BTreeMap;

use ambit_model::identity::Identity;
use ambit_model::policy::PolicyKey;
use ambit_model::service::ServiceKey;
use ambit_model::text::Text;
use ambit_model::workload::{
    ApplicationProtocol, ApplicationTunnel, DEFAULT_CAPACITY, DEFAULT_CLUSTER,
    DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN, Health, Locality, Memberships, NetworkMode,
    Protocol, Workload, WorkloadType,
};
use ambit_proto::istio::workload as wire;

use super::{Invalid, gateway, ip, known, port, ports};

/// A workload of the model.
///
/// # Errors
/// See [`Invalid`].
pub fn workload(from: wire::Workload) -> Result<Workload, Invalid> {
    parse(from).map_err(|invalid| invalid.inside("workload"))
}

fn parse(from: wire::Workload) -> Result<Workload, Invalid> {
    if from.uid.is_empty() {
        return Err(Invalid::field("uid", "empty"));
    }
    let identity = identity(&from)?;
    let mut workload = Workload::new(from.uid.into(), &from.name, identity);
    for (index, bytes) in from.addresses.iter().enumerate() {
        workload
            .addresses
            .push(ip(&format!("addresses[{index}]"), bytes)?);
    }
    workload.hostname = from.hostname.into();
    workload.network = from.network.into();
    workload.protocol = match known("tunnel_protocol", from.tunnel_protocol)? {
        wire::TunnelProtocol::None => Protocol::Tcp,
        wire::TunnelProtocol::Hbone => Protocol::Hbone,
        wire::TunnelProtocol::LegacyIstioMtls => {
            return Err(Invalid::field(
                "tunnel_protocol",
                "LEGACY_ISTIO_MTLS is not supported",
            ));
        }
    };
    workload.waypoint = from.waypoint.map(|w| gateway("waypoint", w)).transpose()?;
    workload.network_gateway = from
        .network_gateway
        .map(|g| gateway("network_gateway", g))
        .transpose()?;
    workload.node = from.node.into();
    workload.canonical_name = from.canonical_name.into();
    workload.canonical_revision = from.canonical_revision.into();
    workload.workload_type = owner(from.workload_type);
    workload.workload_name = from.workload_name.into();
    workload.native_tunnel = from.native_tunnel;
    workload.application_tunnel = from
        .application_tunnel
        .map(application_tunnel)
        .transpose()?;
    workload.services = services(&from.services)?;
    let names = from.authorization_policies.iter();
    workload.policies = names.map(|name| PolicyKey::parse(name)).collect();
    workload.health = match known("status", from.status)? {
        wire::WorkloadStatus::Healthy => Health::Healthy,
        wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
    };
    workload.cluster = Text::from(from.cluster_id).or(DEFAULT_CLUSTER);
    if let Some(locality) = from.locality {
        workload.locality = Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        };
    }
    workload.network_mode = match known("network_mode", from.network_mode)? {
        wire::NetworkMode::Standard => NetworkMode::Standard,
        wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
    };
    workload.capacity = from.capacity.unwrap_or(DEFAULT_CAPACITY);
    Ok(workload)
}

fn identity(from: &wire::Workload) -> Result<Identity, Invalid> {
    let or = |text: &str, default: &'static str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    };
    let trust_domain = or(&from.trust_domain, DEFAULT_TRUST_DOMAIN);
    let service_account = or(&from.service_account, DEFAULT_SERVICE_ACCOUNT);
    Identity::new(&trust_domain, &from.namespace, &service_account).map_err(|error| {
        let parts = format!(
            "{trust_domain:?}, {:?}, {service_account:?}",
            from.namespace
        );
        Invalid::field(
            "trust_domain, namespace, service_account",
            format!("{parts}: {error}"),
        )
    })
}

/// Only telemetry shows it, so a kind of the future is no reason to refuse the workload.
fn owner(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    }
}

fn application_tunnel(from: wire::ApplicationTunnel) -> Result<ApplicationTunnel, Invalid> {
    let protocol = match known("application_tunnel.protocol", from.protocol)? {
        wire::application_tunnel::Protocol::None => ApplicationProtocol::None,
        wire::application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
    };
    let port = match from.port {
        0 => None,
        number => Some(port("application_tunnel.port", number)?),
    };
    Ok(ApplicationTunnel { protocol, port })
}

fn services(from: &BTreeMap<String, wire::PortList>) -> Result<Memberships, Invalid> {
    let one = |(name, list): (&String, &wire::PortList)| {
        let field = format!("services[{name}]");
        let key = ServiceKey::parse(name)
            .ok_or_else(|| Invalid::field(&field, "the key is not namespace/hostname"))?;
        Ok((key, ports(&field, &list.ports)?))
    };
    from.iter().map(one).collect()
}
