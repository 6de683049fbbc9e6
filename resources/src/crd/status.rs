//! What the control plane says of an object of ours. One shape for every kind, so that one writer
//! serves them all. Decides nothing: who writes which condition is the status writer's matter.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::schema::set;

/// The object is understood and in force, or says why not.
pub const ACCEPTED: &str = "Accepted";
/// Everything that the object refers to exists.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Proxies run this version of the object.
pub const PROGRAMMED: &str = "Programmed";

/// Written by the control plane alone. Unknown fields are passed over: a later version's status must
/// not make the object unreadable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "What the control plane says of the object.")]
pub struct Status {
    /// The `metadata.generation` that this status speaks of. Smaller than the object's own: the
    /// control plane has not seen the last change yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// `Accepted`: the object is understood and in force. `ResolvedRefs`: everything that it refers
    /// to exists. `Programmed`: all connected proxies that need it run this version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// How many of the connected proxies that need the object run this version: `118/120`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = ratio)]
    pub programmed: Option<String>,
    /// The weights in the order of the backends: `95/5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = weights)]
    pub weights: Option<String>,
}

fn ratio(schema: &mut Schema) {
    set(schema, json!({ "maxLength": 21, "pattern": "^[0-9]+/[0-9]+$" }));
}

/// 32 backends, each of up to a million, and what is between them.
fn weights(schema: &mut Schema) {
    set(schema, json!({ "maxLength": 255, "pattern": "^[0-9]+(/[0-9]+)*$" }));
}

/// The bounds are those of Kubernetes' own conditions.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the object's state.",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {
                    "description": "`Accepted`, `ResolvedRefs` or `Programmed`.",
                    "type": "string",
                    "maxLength": 63,
                    "pattern": "^[A-Za-z]+$",
                },
                "status": {
                    "description": "Whether it holds.",
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                },
                "reason": {
                    "description": "Why, in one word for programs.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {
                    "description": "Why, and what to do, for people.",
                    "type": "string",
                    "maxLength": 32_768,
                },
                "lastTransitionTime": {
                    "description": "When `status` last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "observedGeneration": {
                    "description": "The `metadata.generation` that the condition speaks of.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
            },
        },
    })
}
