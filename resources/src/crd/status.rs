//! What the control plane says of an object of ours. One shape for every kind, so that one writer
//! serves them all. Decides nothing: who writes which condition is the status writer's matter.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Serialize};

/// The object is understood and in force, or says why not.
pub const ACCEPTED: &str = "Accepted";
/// Everything that the object refers to exists.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Proxies run this version of the object.
pub const PROGRAMMED: &str = "Programmed";

/// Written by the control plane alone. Unknown fields are passed over: a later version's status must
/// not make the object unreadable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The `metadata.generation` that this status speaks of. Smaller than the object's own: the
    /// control plane has not seen the last change yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, ResolvedRefs and Programmed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// How many of the connected proxies that need the object run this version: `118/120`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed: Option<String>,
    /// Of a TrafficSplit: the weights in the order of the backends, `95/5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}
