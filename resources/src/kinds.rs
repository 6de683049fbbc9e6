//! Every kind we read: a few of Kubernetes', and ours, as one [`Object`].

use std::fmt;
use std::sync::Arc;

use heddle_api::names::API_VERSION;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::crd::{AuthorizationPolicy, Mesh, MeshTLSPolicy, TrafficPolicy, TrafficSplit};
use crate::gateway::{self, GRPCRoute, HTTPRoute};

/// Declares the kinds once: name, `apiVersion`, whether it lives in a namespace.
macro_rules! kinds {
    ($($kind:ident, $api_version:expr, $scope:ident;)*) => {
        /// The kinds we read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($kind),* }

        /// One object of any kind. Shared, so a clone is cheap.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Object { $($kind(Arc<$kind>)),* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind)),* }
            }

            #[must_use]
            pub fn api_version(self) -> &'static str {
                match self { $(Self::$kind => $api_version),* }
            }

            #[must_use]
            pub fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => Scope::$scope == Scope::Namespaced),* }
            }
        }

        impl Object {
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            #[must_use]
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),* }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })*
    };
}

#[derive(PartialEq)]
enum Scope {
    Cluster,
    Namespaced,
}

kinds! {
    Namespace, "v1", Cluster;
    ServiceAccount, "v1", Namespaced;
    Service, "v1", Namespaced;
    Pod, "v1", Namespaced;
    Deployment, "apps/v1", Namespaced;
    EndpointSlice, "discovery.k8s.io/v1", Namespaced;
    HTTPRoute, gateway::API_VERSION, Namespaced;
    GRPCRoute, gateway::API_VERSION, Namespaced;
    TrafficSplit, API_VERSION, Namespaced;
    TrafficPolicy, API_VERSION, Namespaced;
    AuthorizationPolicy, API_VERSION, Namespaced;
    MeshTLSPolicy, API_VERSION, Namespaced;
    Mesh, API_VERSION, Cluster;
}

impl Kind {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// True for the kinds of the Gateway API.
    #[must_use]
    pub fn is_route(self) -> bool {
        matches!(self, Self::HTTPRoute | Self::GRPCRoute)
    }

    /// True for the kinds that this project defines.
    #[must_use]
    pub fn is_ours(self) -> bool {
        self.api_version() == API_VERSION
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one object. The namespace of cluster-scoped kinds is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl Object {
    /// An object that names no namespace is in `default`, as for kubectl.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let (kind, meta) = (self.kind(), self.metadata());
        let namespace = match kind.is_namespaced() {
            true => meta.namespace.as_deref().unwrap_or("default"),
            false => "",
        };
        ObjectKey::new(kind, namespace, meta.name.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(*kind));
        }
        assert_eq!(Kind::parse("Ingress"), None);
    }

    #[test]
    fn keys_name_scope_and_default_namespace() {
        assert_eq!(Object::from(Service::default()).key().to_string(), "Service default/");
        let mut mesh = Mesh::default();
        mesh.metadata.name = Some("default".to_owned());
        assert_eq!(Object::from(mesh).key().to_string(), "Mesh default");
    }
}
