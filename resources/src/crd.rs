//! Our own kinds. A type holds only what proxies enforce: a field arrives together with its
//! enforcement, and until then it is an error.

use std::borrow::Cow;
use std::collections::BTreeMap;

use heddle_api::names::API_VERSION;
use k8s_openapi::ResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod authorization_policy;
pub mod definition;
pub mod duration;
pub mod mesh;
pub mod mesh_tls_policy;
pub(crate) mod schema;
pub mod status;
pub mod traffic_policy;
pub mod traffic_split;

pub use authorization_policy::AuthorizationPolicy;
pub use duration::Duration;
pub use mesh::Mesh;
pub use mesh_tls_policy::MeshTLSPolicy;
pub use status::Status;

use definition::Column;
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
    /// Written by the control plane; in files, what an object that was read back still carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

/// What the API server has to know of a kind beside its fields. Implemented by the kinds' specs.
pub trait CustomSpec: JsonSchema {
    /// Namespaced or cluster-scoped.
    type Scope: ResourceScope;
    const KIND: &'static str;
    /// As in the API's paths and in `kubectl get`.
    const PLURAL: &'static str;
    const SHORT_NAMES: &'static [&'static str];
    /// What `kubectl explain` says of the kind.
    const ABOUT: &'static str;
    /// What `kubectl get` prints between the name and the columns that all kinds share.
    const COLUMNS: &'static [Column];
    /// Rules in CEL about the object as a whole, with what to write instead.
    const RULES: &'static [(&'static str, &'static str)] = &[];
}

impl<S: CustomSpec> Custom<S> {
    /// A complete object, ready to be applied.
    #[must_use]
    pub fn new(metadata: ObjectMeta, spec: S) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: S::KIND.to_owned(),
            metadata,
            spec,
            status: None,
        }
    }
}

/// Group and version of our kinds.
#[must_use]
pub fn group_version() -> (&'static str, &'static str) {
    API_VERSION.split_once('/').expect("our apiVersion has a group")
}

impl<S: CustomSpec> Resource for Custom<S> {
    type DynamicType = ();
    type Scope = S::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        S::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        group_version().0.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        group_version().1.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Labels that a pod must all carry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(transform = schema::selector)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodsRef {
    /// What is spoken of.
    pub kind: PodsKind,
    /// Labels that the pods must all carry, 1 to 8. Pods of other namespaces are never meant.
    pub selector: Selector,
}

/// The only kind a [`PodsRef`] may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodsKind {
    /// Pods of the object's own namespace.
    #[default]
    Pods,
}

/// Whether a port takes only mesh TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// Whatever is not mesh TLS is refused.
    #[default]
    Strict,
    /// Plaintext is let in, and marked.
    Permissive,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kind;

    #[test]
    fn the_api_server_finds_our_kinds_where_they_are() {
        let path = TrafficSplit::url_path(&(), Some("shop"));
        assert_eq!(path, "/apis/heddle.io/v1alpha1/namespaces/shop/trafficsplits");
        assert_eq!(Mesh::url_path(&(), None), "/apis/heddle.io/v1alpha1/meshes");
        assert_eq!(MeshTLSPolicy::kind(&()), Kind::MeshTLSPolicy.as_str());
    }

    #[test]
    fn a_new_object_is_complete() {
        let meta = ObjectMeta { name: Some("default".to_owned()), ..ObjectMeta::default() };
        let json = serde_json::to_value(Mesh::new(meta, mesh::MeshSpec::default())).unwrap();
        assert_eq!((&json["apiVersion"], &json["kind"]), (&API_VERSION.into(), &"Mesh".into()));
        assert_eq!(json.get("status"), None);
    }

    /// A status of a later version is read as far as it is known: it must never cost the object.
    #[test]
    fn an_unknown_status_is_tolerated() {
        let text = r#"{"metadata": {"name": "default"}, "spec": {}, "status": {
            "programmed": "1/2", "later": {"a": 1}, "conditions": [{"type": "Accepted", "status":
            "True", "reason": "Accepted", "message": "", "why": 1,
            "lastTransitionTime": "2026-11-21T10:00:00Z"}]}}"#;
        let status = serde_json::from_str::<Mesh>(text).unwrap().status.unwrap();
        assert_eq!(status.programmed.as_deref(), Some("1/2"));
        assert_eq!(status.conditions[0].type_, "Accepted");
        assert_eq!(status.weights, None);
    }
}
