//! Our own kinds. A type holds only what proxies enforce: a field arrives together with its
//! enforcement, and until then it is an error.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

pub mod authorization_policy;
pub mod duration;
pub mod mesh;
pub mod mesh_tls_policy;
pub mod traffic_policy;
pub mod traffic_split;

pub use authorization_policy::AuthorizationPolicy;
pub use duration::Duration;
pub use mesh::Mesh;
pub use mesh_tls_policy::MeshTLSPolicy;
pub use traffic_policy::TrafficPolicy;
pub use traffic_split::TrafficSplit;

/// An object of ours. `apiVersion` and `kind` are checked by the reader before it gets here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Custom<S> {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: S,
    /// Written by controllers, tolerated when an object that was read back is applied again.
    #[serde(default, skip_serializing)]
    pub status: Option<serde::de::IgnoredAny>,
}

/// Labels that a pod must all carry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(pub BTreeMap<String, String>);

impl Selector {
    /// True when `labels` has every label of the selector.
    #[must_use]
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0
            .iter()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    }
}

/// The pods a policy speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodsRef {
    pub kind: PodsKind,
    pub selector: Selector,
}

/// The only kind a [`PodsRef`] may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodsKind {
    #[default]
    Pods,
}

/// Whether a port takes only mesh TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// Whatever is not mesh TLS is refused.
    #[default]
    Strict,
    /// Plaintext is let in, and marked.
    Permissive,
}
