//! The kinds of object Ambit reads, and one enum over them.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::gateway::{Gateway, GatewayClass};
use crate::kinds::route::HttpRoute;
use crate::kinds::security::{AuthorizationPolicy, PeerAuthentication};

pub mod gateway;
pub mod route;
pub mod security;

/// Where an object lives. Cluster-scoped kinds have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Name {
    /// A name from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One object, by kind and name: what "the same object" means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What every readable kind has in common.
pub trait Readable: Serialize + DeserializeOwned {
    /// The object's metadata.
    fn metadata(&self) -> &ObjectMeta;
}

macro_rules! kinds {
    ($($variant:ident($type:ty) $text:literal $group:literal [$($version:literal),+] $scoped:literal;)+) => {
        /// A kind of object that Ambit reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Kind {
            $(
                #[doc = concat!("`", $text, "`")]
                $variant,
            )+
        }

        impl Kind {
            /// The kind that `apiVersion` and `kind` name; `None` when it is not one we read.
            pub fn find(api_version: &str, kind: &str) -> Option<Self> {
                let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
                match (group, kind) {
                    $(($group, $text) if [$($version),+].contains(&version) => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// `kind` as it is written in a manifest.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// Whether its objects live in a namespace.
            pub const fn namespaced(self) -> bool {
                match self {
                    $(Self::$variant => $scoped,)+
                }
            }

            /// Reads one object of this kind from its JSON form.
            pub(crate) fn read(
                self,
                value: Value,
            ) -> Result<Object, serde_path_to_error::Error<serde_json::Error>> {
                match self {
                    $(Self::$variant => serde_path_to_error::deserialize::<_, $type>(value)
                        .map(|object| Object::$variant(Arc::new(object))),)+
                }
            }
        }

        /// One object of any readable kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(
                #[doc = concat!("A `", $text, "`.")]
                $variant(Arc<$type>),
            )+
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$variant(_) => Kind::$variant,)+
                }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$variant(object) => Readable::metadata(object.as_ref()),)+
                }
            }

            /// Its JSON form; null if it cannot be written, which no readable kind's type allows.
            pub(crate) fn to_json(&self) -> Value {
                match self {
                    $(Self::$variant(object) => serde_json::to_value(object.as_ref()),)+
                }
                .unwrap_or(Value::Null)
            }
        }

        $(
            impl Readable for $type {
                fn metadata(&self) -> &ObjectMeta {
                    &self.metadata
                }
            }
        )+
    };
}

kinds! {
    Namespace(Namespace) "Namespace" "" ["v1"] false;
    Node(Node) "Node" "" ["v1"] false;
    Pod(Pod) "Pod" "" ["v1"] true;
    Service(Service) "Service" "" ["v1"] true;
    EndpointSlice(EndpointSlice) "EndpointSlice" "discovery.k8s.io" ["v1"] true;
    ServiceAccount(ServiceAccount) "ServiceAccount" "" ["v1"] true;
    Gateway(Gateway) "Gateway" "gateway.networking.k8s.io" ["v1", "v1beta1"] true;
    GatewayClass(GatewayClass) "GatewayClass" "gateway.networking.k8s.io" ["v1", "v1beta1"] false;
    HttpRoute(HttpRoute) "HTTPRoute" "gateway.networking.k8s.io" ["v1", "v1beta1"] true;
    AuthorizationPolicy(AuthorizationPolicy) "AuthorizationPolicy" "security.istio.io" ["v1", "v1beta1"] true;
    PeerAuthentication(PeerAuthentication) "PeerAuthentication" "security.istio.io" ["v1", "v1beta1"] true;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Object {
    /// Kind and name.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        Key {
            kind: self.kind(),
            name: Name::new(
                metadata.namespace.clone().unwrap_or_default(),
                metadata.name.clone().unwrap_or_default(),
            ),
        }
    }
}
