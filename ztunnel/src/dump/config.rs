//! The settings as the admin page shows them: ours, and beside them those that Istio's node proxy has, by its names and in its
//! types. Kiali reads these, and reads nothing at all where one of them has another type.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::config::{
    DNS_PORT, DnsAddress, Endpoint, HBONE_PORT, Mode, OUTBOUND_PORT, OWN_PORTS, PASSTHROUGH_PORT,
    Roots, Settings, Source,
};

/// All settings.
#[must_use]
pub fn config(settings: &Settings) -> Value {
    let mut shown = json!(settings);
    if let (Value::Object(shown), Value::Object(theirs)) = (&mut shown, as_istio(settings)) {
        shown.extend(theirs);
    }
    shown
}

fn as_istio(settings: &Settings) -> Value {
    let listen = |port| SocketAddr::new(settings.wildcard(), port);
    let metadata: serde_json::Map<String, Value> = settings
        .proxy_metadata
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect();
    let xds = match &settings.xds {
        Source::ControlPlane(endpoint) => Some(endpoint),
        Source::File(_) | Source::Inline(_) => None,
    };
    let alternative = |endpoint: &Endpoint| endpoint.alternative_name.clone();
    json!({
        "proxy": true,
        "proxyMode": match settings.mode {
            Mode::Shared => "Shared",
            Mode::Dedicated(_) => "Dedicated",
        },
        "proxyMetadata": metadata,
        "adminAddr": localhost(settings, settings.admin_addr.port()),
        "statsAddr": { "SocketAddr": settings.stats_addr.to_string() },
        "readinessAddr": { "SocketAddr": settings.readiness_addr.to_string() },
        "inboundAddr": listen(HBONE_PORT).to_string(),
        "inboundPlaintextAddr": listen(PASSTHROUGH_PORT).to_string(),
        "outboundAddr": listen(OUTBOUND_PORT).to_string(),
        "illegalPorts": OWN_PORTS,
        "socks5Addr": null,
        "dnsProxy": settings.dns_proxy.is_some(),
        "dnsProxyAddr": match settings.dns_proxy {
            None => localhost(settings, DNS_PORT),
            Some(DnsAddress::Localhost(port)) => localhost(settings, port),
            Some(DnsAddress::At(address)) => json!({ "SocketAddr": address.to_string() }),
        },
        "caAddress": settings.ca.address,
        "caRootCert": roots(&settings.ca.roots),
        "altCaHostname": alternative(&settings.ca),
        "xdsAddress": xds.map(|endpoint| &endpoint.address),
        "xdsRootCert": xds.map(|endpoint| roots(&endpoint.roots)),
        "altXdsHostname": xds.and_then(alternative),
        "xdsOnDemand": settings.xds_on_demand,
        "fakeCa": false,
        "fakeSelfInbound": false,
        "windowSize": settings.http2.stream_window,
        "connectionWindowSize": settings.http2.connection_window,
        "frameSize": settings.http2.frame_size,
        "poolMaxStreamsPerConn": settings.pool_max_streams_per_connection,
        "selfTerminationDeadline": settings.termination_deadline,
    })
}

/// An address on the loopback, with whether IPv6 is used.
fn localhost(settings: &Settings, port: u16) -> Value {
    json!({ "Localhost": [settings.ipv6_enabled, port] })
}

fn roots(roots: &Roots) -> Value {
    match roots {
        Roots::File(path) => json!({ "File": path }),
        // An object always: a bare word would be another type.
        Roots::Pem(_) => json!({ "Static": null }),
        Roots::System => json!({ "System": null }),
    }
}
