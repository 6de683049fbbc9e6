//! AuthorizationPolicy: who may call the selected pods.

use k8s_openapi::NamespaceResourceScope;
use serde::{Deserialize, Serialize};

use super::{Custom, CustomSpec, PodsRef};

pub type AuthorizationPolicy = Custom<AuthorizationPolicySpec>;

impl CustomSpec for AuthorizationPolicySpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "AuthorizationPolicy";
    const PLURAL: &'static str = "authorizationpolicies";
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    pub target_ref: PodsRef,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub action: Action,
    /// Callers. Empty: nobody.
    #[serde(default)]
    pub from: Vec<Source>,
    /// Ports and requests. Empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Target>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Allow,
    #[default]
    Deny,
}

/// Callers: every field that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// With a service account: the policy's own namespace when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Any caller, authenticated or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anyone: Option<bool>,
}

/// Requests: every list that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// `/charge` is that path alone; `/api/*` is `/api` and everything below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}
