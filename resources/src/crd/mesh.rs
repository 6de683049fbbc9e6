//! Mesh: settings of the whole mesh. Cluster-scoped, one object, named `default`.

use k8s_openapi::ClusterResourceScope;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::definition::Column;
use super::schema::{items, list_set, rule, set};
use super::{Custom, CustomSpec, TlsMode};

pub type Mesh = Custom<MeshSpec>;

pub(crate) const MAX_RANGES: usize = 256;
/// An IPv6 address in full, and its prefix length.
const MAX_RANGE_BYTES: usize = 43;
/// SPIFFE's.
const TRUST_DOMAIN: &str = "^[a-z0-9._-]+$";

impl CustomSpec for MeshSpec {
    type Scope = ClusterResourceScope;
    const KIND: &'static str = "Mesh";
    const PLURAL: &'static str = "meshes";
    const SHORT_NAMES: &'static [&'static str] = &[];
    const ABOUT: &'static str = "Settings of the whole mesh: one object, named `default`. Where it \
                                 says nothing, and where it does not exist, the defaults hold.";
    const COLUMNS: &'static [Column] = &[
        Column::text("Trust Domain", ".spec.trustDomain", "First part of every identity."),
        Column::text("TLS", ".spec.tls", "Whether ports take mesh TLS only."),
        Column::text("Authorization", ".spec.authorization", "For ports that no rule selects."),
    ];
    const RULES: &'static [(&'static str, &'static str)] =
        &[("self.metadata.name == 'default'", "there is one Mesh; name it `default`")];
}

/// What is in force when no Mesh object exists, field by field, is this type's `Default`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(description = "Settings of the whole mesh.")]
pub struct MeshSpec {
    /// First part of every identity: `spiffe://<trustDomain>/ns/<namespace>/sa/<service account>`.
    /// Cannot be changed: every certificate of the mesh carries it.
    #[schemars(transform = trust_domain)]
    pub trust_domain: String,
    /// What ports take that no MeshTLSPolicy speaks of.
    pub tls: TlsMode,
    /// Who may call ports that no Allow rule selects.
    pub authorization: DefaultAuthorization,
    /// What becomes of calls to destinations that nobody in the mesh answers.
    pub outbound_passthrough: Passthrough,
    /// The cluster's own Service and Pod ranges, as CIDRs. Calls to addresses outside them need no
    /// question to the control plane, and so outlive it.
    #[schemars(length(max = MAX_RANGES), transform = list_set, transform = items(range))]
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

fn trust_domain(schema: &mut Schema) {
    set(schema, json!({ "minLength": 1, "maxLength": 255, "pattern": TRUST_DOMAIN }));
    rule(
        "self == oldSelf",
        "cannot be changed: every certificate of the mesh carries it; write the old value again",
    )(schema);
}

fn range(schema: &mut Schema) {
    set(schema, json!({ "maxLength": MAX_RANGE_BYTES }));
    rule("isCIDR(self)", "write a CIDR, e.g. \"10.96.0.0/12\"")(schema);
    rule(
        "!isCIDR(self) || cidr(self) == cidr(self).masked()",
        "has bits set after its prefix; write the range's first address, e.g. \"10.96.0.0/12\"",
    )(schema);
}

/// Who may call ports that no Allow rule selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DefaultAuthorization {
    /// Everybody whom `tls` lets in.
    AllowAuthenticated,
    /// Nobody.
    Deny,
}

/// What becomes of calls to destinations that nobody in the mesh answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Passthrough {
    /// They are spliced through as they are.
    Allow,
    /// They are refused with `passthrough-denied`.
    Deny,
}
