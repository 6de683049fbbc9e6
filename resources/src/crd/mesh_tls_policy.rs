//! MeshTLSPolicy: Strict or Permissive, for a namespace, for pods, or for ports of them.

use k8s_openapi::NamespaceResourceScope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition::Column;
use super::schema::{list_map, port, rule};
use super::{Custom, CustomSpec, PodsRef, TlsMode};

pub type MeshTLSPolicy = Custom<MeshTLSPolicySpec>;

pub(crate) const MAX_PORTS: usize = 64;

impl CustomSpec for MeshTLSPolicySpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "MeshTLSPolicy";
    const PLURAL: &'static str = "meshtlspolicies";
    const SHORT_NAMES: &'static [&'static str] = &["mtls"];
    const ABOUT: &'static str = "Says whether ports take mesh TLS only, for a namespace, for some of \
                                 its pods, or for single ports of them. What is said of a port beats \
                                 what is said of its pod; that beats the namespace; that the Mesh.";
    const COLUMNS: &'static [Column] = &[
        Column::text("Pods", ".spec.targetRef.selector", "Labels of the pods; none: all of them."),
        Column::text("Mode", ".spec.mode", "Of the ports that are not listed by themselves."),
    ];
}

/// Which ports, and what they take. At least one of `mode` and `ports` is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = rule(
    "has(self.mode) || has(self.ports) && self.ports.size() > 0",
    "says nothing; write `mode: Strict` or `mode: Permissive`",
))]
pub struct MeshTLSPolicySpec {
    /// The pods that are spoken of. Absent: every pod of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PodsRef>,
    /// What the pods' ports take. Absent: only the listed ports are spoken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// Ports that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS), transform = list_map("port"))]
    pub ports: Vec<PortMode>,
}

/// What one port takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMode {
    /// The application's port (the pod's, not the Service's).
    #[schemars(transform = port)]
    pub port: u16,
    /// What it takes.
    pub mode: TlsMode,
}
