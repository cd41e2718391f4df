//! Gateway API `Gateway` and `GatewayClass`, the fields a waypoint is made of.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A `Gateway`: here, the declaration of a waypoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Metadata; the label `istio.io/waypoint-for` says what the waypoint handles.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: GatewaySpec,
    /// What is known about it.
    pub status: Option<GatewayStatus>,
}

/// What a `Gateway` asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Name of its `GatewayClass`; `istio-waypoint` for a waypoint.
    pub gateway_class_name: String,
    /// Its listeners; a waypoint has one of protocol HBONE on 15008.
    pub listeners: Option<Vec<Listener>>,
    /// Requested addresses.
    pub addresses: Option<Vec<GatewayAddress>>,
    /// What is copied to the objects made for it.
    pub infrastructure: Option<Infrastructure>,
}

/// One listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name, unique in the Gateway.
    pub name: String,
    /// Host it serves; unused for HBONE.
    pub hostname: Option<String>,
    /// Its port.
    pub port: u16,
    /// Its protocol, such as `HBONE`.
    pub protocol: String,
    /// TLS settings; unused for HBONE.
    pub tls: Option<Value>,
    /// Which namespaces may attach to it.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// By namespace.
    pub namespaces: Option<RouteNamespaces>,
    /// By kind.
    pub kinds: Option<Vec<Value>>,
}

/// Namespaces that may attach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteNamespaces {
    /// All, the Gateway's own (the default), or by selector.
    pub from: Option<From>,
    /// For [`From::Selector`].
    pub selector: Option<LabelSelector>,
}

/// Which namespaces are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum From {
    /// Every namespace.
    All,
    /// Those whose labels match the selector.
    Selector,
    /// The Gateway's own.
    #[default]
    Same,
    /// None.
    None,
}

/// An address of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayAddress {
    /// `IPAddress` (the default) or `Hostname`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The address.
    pub value: String,
}

/// Labels and annotations for generated objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Infrastructure {
    /// Labels to copy.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations to copy.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Overlay object.
    pub parameters_ref: Option<Value>,
}

/// What is known about a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Where it can be reached; a waypoint is usable once this is not empty.
    pub addresses: Option<Vec<GatewayAddress>>,
    /// Its conditions.
    pub conditions: Option<Vec<Condition>>,
    /// Conditions of its listeners.
    pub listeners: Option<Vec<Value>>,
}

/// A `GatewayClass`; the label `istio.io/waypoint-for` is the default of its Gateways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Who implements it.
    pub spec: GatewayClassSpec,
    /// What is known about it.
    pub status: Option<Value>,
}

/// Who implements a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Domain-prefixed name of the controller.
    pub controller_name: String,
    /// Parameters.
    pub parameters_ref: Option<Value>,
    /// For people.
    pub description: Option<String>,
}
