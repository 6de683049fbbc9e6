//! Injection into manifests: every kind that makes pods, and lists of them. What makes none passes
//! as it is.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Outcome, Settings, inject};

/// What became of one pod or template of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// `Kind namespace/name`.
    pub object: String,
    pub outcome: Outcome,
}

/// Where the kinds that make pods hold their template.
const TEMPLATES: [(&str, &str); 8] = [
    ("Pod", ""),
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// Injects into every pod and template that `object` holds, and notes what became of each. A refused
/// one is left as it was.
pub fn inject_manifest(
    object: &mut Value,
    namespace_labels: &BTreeMap<String, String>,
    settings: &Settings,
) -> Vec<Note> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if kind == "List" {
        let items = object["items"].as_array_mut().into_iter().flatten();
        return items.flat_map(|item| inject_manifest(item, namespace_labels, settings)).collect();
    }
    let found = TEMPLATES.iter().find(|(name, _)| *name == kind);
    let name = describe(&kind, object);
    let Some(template) = found.and_then(|(_, place)| object.pointer_mut(place)) else {
        return Vec::new();
    };
    let outcome = inject(template, namespace_labels, settings);
    if let Outcome::Patch { patch, .. } | Outcome::Skip { patch, .. } = &outcome {
        json_patch::patch(template, patch).expect("the patch was made for this template");
    }
    vec![Note { object: name, outcome }]
}

fn describe(kind: &str, object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str();
    let name = text("name").or(text("generateName")).unwrap_or_default();
    match text("namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
