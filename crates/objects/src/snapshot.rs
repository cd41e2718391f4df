//! One immutable picture of all objects in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::kinds::gateway::{Gateway, GatewayClass};
use crate::kinds::route::HttpRoute;
use crate::kinds::security::{AuthorizationPolicy, PeerAuthentication};
use crate::kinds::{Name, Object};
use crate::problem::Problem;

/// All objects of one kind, in the order of their names.
pub type Set<T> = BTreeMap<Name, Arc<T>>;

/// All objects in force, and everything that is wrong with the documents.
///
/// Guarantees: every namespaced object has a namespace and every object a name; a pod carries what
/// its status overlay says. Objects of an unchanged document are the same allocation as before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// `Namespace`s.
    pub namespaces: Set<Namespace>,
    /// `Node`s.
    pub nodes: Set<Node>,
    /// `Pod`s, status overlay applied.
    pub pods: Set<Pod>,
    /// `Service`s.
    pub services: Set<Service>,
    /// `EndpointSlice`s.
    pub endpoint_slices: Set<EndpointSlice>,
    /// `ServiceAccount`s.
    pub service_accounts: Set<ServiceAccount>,
    /// `Gateway`s.
    pub gateways: Set<Gateway>,
    /// `GatewayClass`es.
    pub gateway_classes: Set<GatewayClass>,
    /// `HTTPRoute`s.
    pub http_routes: Set<HttpRoute>,
    /// `AuthorizationPolicy`s.
    pub authorization_policies: Set<AuthorizationPolicy>,
    /// `PeerAuthentication`s.
    pub peer_authentications: Set<PeerAuthentication>,
    /// What is wrong, sorted by file and line.
    pub problems: Vec<Problem>,
}

impl Objects {
    /// Adds one object, in place of the one of the same kind and name.
    pub fn insert(&mut self, object: Object) {
        let name = object.key().name;
        match object {
            Object::Namespace(object) => drop(self.namespaces.insert(name, object)),
            Object::Node(object) => drop(self.nodes.insert(name, object)),
            Object::Pod(object) => drop(self.pods.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(name, object)),
            Object::EndpointSlice(object) => drop(self.endpoint_slices.insert(name, object)),
            Object::ServiceAccount(object) => drop(self.service_accounts.insert(name, object)),
            Object::Gateway(object) => drop(self.gateways.insert(name, object)),
            Object::GatewayClass(object) => drop(self.gateway_classes.insert(name, object)),
            Object::HttpRoute(object) => drop(self.http_routes.insert(name, object)),
            Object::AuthorizationPolicy(object) => {
                drop(self.authorization_policies.insert(name, object));
            }
            Object::PeerAuthentication(object) => {
                drop(self.peer_authentications.insert(name, object));
            }
        }
    }

    /// Every object of one text, for tests and one-shot tools; problems included.
    pub fn from_text(file: &std::path::Path, text: &str) -> Self {
        let parsed = crate::parse::parse(file, text);
        let mut objects = Self {
            problems: parsed.problems,
            ..Self::default()
        };
        for found in parsed.objects {
            objects.insert(found.object);
        }
        objects
    }
}
