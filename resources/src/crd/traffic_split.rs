//! TrafficSplit: the callers of one Service are divided over backends by weight.

use k8s_openapi::NamespaceResourceScope;
use serde::{Deserialize, Serialize};

use super::{Custom, CustomSpec, Selector};

pub type TrafficSplit = Custom<TrafficSplitSpec>;

impl CustomSpec for TrafficSplitSpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "TrafficSplit";
    const PLURAL: &'static str = "trafficsplits";
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSplitSpec {
    /// The Service whose callers are split, in the split's own namespace.
    pub service: String,
    pub backends: Vec<Backend>,
}

impl TrafficSplitSpec {
    /// The weights in the order of the backends, as people say them: `95/5`.
    #[must_use]
    pub fn weights(&self) -> String {
        let weights: Vec<_> = self.backends.iter().map(|b| b.weight.to_string()).collect();
        weights.join("/")
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// A Service of the same namespace.
    pub service: String,
    /// Share, relative to the other backends' weights.
    pub weight: u32,
    /// Only the Service's pods with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For a backend whose ports have other numbers than the Service's. A port that is not listed
    /// keeps its number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Port of the Service that was called.
    pub from: u16,
    /// Port of the backend.
    pub to: u16,
}
