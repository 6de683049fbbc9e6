//! Mesh: settings of the whole mesh. Cluster-scoped, one object, named `default`.

use k8s_openapi::ClusterResourceScope;
use serde::{Deserialize, Serialize};

use super::{Custom, CustomSpec, TlsMode};

pub type Mesh = Custom<MeshSpec>;

impl CustomSpec for MeshSpec {
    type Scope = ClusterResourceScope;
    const KIND: &'static str = "Mesh";
    const PLURAL: &'static str = "meshes";
}

/// What is in force when no Mesh object exists, field by field, is this type's `Default`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshSpec {
    pub trust_domain: String,
    pub tls: TlsMode,
    pub authorization: DefaultAuthorization,
    pub outbound_passthrough: Passthrough,
    /// Service and Pod CIDRs.
    pub cluster_ranges: Vec<String>,
}

impl Default for MeshSpec {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            tls: TlsMode::Strict,
            authorization: DefaultAuthorization::AllowAuthenticated,
            outbound_passthrough: Passthrough::Allow,
            cluster_ranges: Vec::new(),
        }
    }
}

/// In force on ports that no Allow rule selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DefaultAuthorization {
    AllowAuthenticated,
    Deny,
}

/// What becomes of calls to destinations that nobody in the mesh answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passthrough {
    Allow,
    Deny,
}
