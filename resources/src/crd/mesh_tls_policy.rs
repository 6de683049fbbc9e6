//! MeshTLSPolicy: Strict or Permissive, for a namespace, for pods, or for ports of them.

use k8s_openapi::NamespaceResourceScope;
use serde::{Deserialize, Serialize};

use super::{Custom, CustomSpec, PodsRef, TlsMode};

pub type MeshTLSPolicy = Custom<MeshTLSPolicySpec>;

impl CustomSpec for MeshTLSPolicySpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "MeshTLSPolicy";
    const PLURAL: &'static str = "meshtlspolicies";
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTLSPolicySpec {
    /// Absent: every pod of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PodsRef>,
    /// Absent: only the listed ports are spoken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// Ports that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMode>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMode {
    pub port: u16,
    pub mode: TlsMode,
}
