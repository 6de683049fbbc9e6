//! Injection into manifests: every kind that makes pods, and lists of them. What makes none passes
//! as it is.

use std::collections::BTreeMap;

use heddle_api::probes::PageKey;
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
/// one is left as it was. `new_key` is asked for each template.
pub fn inject_manifest(
    object: &mut Value,
    namespace_labels: &BTreeMap<String, String>,
    settings: &Settings,
    new_key: &mut dyn FnMut() -> PageKey,
) -> Vec<Note> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if kind == "List" {
        let items = object["items"].as_array_mut().into_iter().flatten();
        let inject = |item| inject_manifest(item, namespace_labels, settings, new_key);
        return items.flat_map(inject).collect();
    }
    let found = TEMPLATES.iter().find(|(name, _)| *name == kind);
    let name = describe(&kind, object);
    let Some(template) = found.and_then(|(_, place)| object.pointer_mut(place)) else {
        return Vec::new();
    };
    let outcome = inject(template, namespace_labels, settings, &new_key());
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
