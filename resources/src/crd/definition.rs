//! CustomResourceDefinitions from our types: what `make gen` writes into `crds/`. Pure; says nothing
//! that a type does not say.

use serde_json::{Value, json};

use crate::kinds::Kind;

use super::schema::structural;
use super::{
    AuthorizationPolicy, Custom, CustomSpec, Mesh, MeshTLSPolicy, Status, TrafficPolicy,
    TrafficSplit, group_version,
};

/// `kubectl get heddle` lists every object of ours.
pub const CATEGORY: &str = "heddle";

/// A column of `kubectl get`.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// Of the value: `string`, `date`.
    pub kind: &'static str,
    pub path: &'static str,
    pub about: &'static str,
    /// Shown with `-o wide` alone.
    pub wide: bool,
}

impl Column {
    /// A column of text.
    #[must_use]
    pub const fn text(name: &'static str, path: &'static str, about: &'static str) -> Self {
        Self { name, kind: "string", path, about, wide: false }
    }

    /// The same, shown with `-o wide` alone.
    #[must_use]
    pub const fn wide(name: &'static str, path: &'static str, about: &'static str) -> Self {
        Self { wide: true, ..Self::text(name, path, about) }
    }
}

/// The last columns of every kind: is it working?
const COMMON: [Column; 4] = [
    Column::text(
        "Accepted",
        ".status.conditions[?(@.type==\"Accepted\")].status",
        "Whether the object is understood and in force.",
    ),
    Column::text(
        "Programmed",
        ".status.programmed",
        "How many of the connected proxies that need the object run this version.",
    ),
    Column {
        kind: "date",
        ..Column::text("Age", ".metadata.creationTimestamp", "Time since the object was created.")
    },
    Column::wide(
        "Reason",
        ".status.conditions[?(@.type==\"Programmed\")].reason",
        "Why the object is programmed, or is not.",
    ),
];

/// The definitions of all our kinds.
#[must_use]
pub fn definitions() -> Vec<Value> {
    vec![
        TrafficSplit::definition(),
        TrafficPolicy::definition(),
        AuthorizationPolicy::definition(),
        MeshTLSPolicy::definition(),
        Mesh::definition(),
    ]
}

impl<S: CustomSpec> Custom<S> {
    /// The CustomResourceDefinition of the kind.
    #[must_use]
    pub fn definition() -> Value {
        let (group, version) = group_version();
        let columns: Vec<_> = S::COLUMNS.iter().chain(&COMMON).map(column).collect();
        let is_namespaced = Kind::parse(S::KIND).is_none_or(Kind::is_namespaced);
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.{group}", S::PLURAL) },
            "spec": {
                "group": group,
                "names": {
                    "kind": S::KIND,
                    "listKind": format!("{}List", S::KIND),
                    "plural": S::PLURAL,
                    "singular": S::KIND.to_lowercase(),
                    "shortNames": S::SHORT_NAMES,
                    "categories": [CATEGORY],
                },
                "scope": if is_namespaced { "Namespaced" } else { "Cluster" },
                "versions": [{
                    "name": version,
                    "served": true,
                    "storage": true,
                    "additionalPrinterColumns": columns,
                    "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": object::<S>() },
                }],
            },
        })
    }
}

fn column(column: &Column) -> Value {
    let mut json = json!({
        "name": column.name,
        "type": column.kind,
        "jsonPath": column.path,
        "description": column.about,
    });
    if column.wide {
        json["priority"] = 1.into();
    }
    json
}

/// The schema of the whole object.
fn object<S: CustomSpec>() -> Value {
    let mut status = structural::<Status>();
    if !S::COLUMNS.iter().any(|column| column.path == ".status.weights") {
        // One status type serves every kind; what only some print is only theirs.
        let properties = status["properties"].as_object_mut().expect("a status has fields");
        properties.remove("weights");
    }
    let mut schema = json!({
        "type": "object",
        "description": S::ABOUT,
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {
                "type": "string",
                "description": "Version of the schema that the object is written in.",
            },
            "kind": { "type": "string", "description": "The kind of the object." },
            "metadata": { "type": "object" },
            "spec": structural::<S>(),
            "status": status,
        },
    });
    if !S::RULES.is_empty() {
        let rule = |(rule, message)| json!({ "rule": rule, "message": message });
        schema["x-kubernetes-validations"] = S::RULES.iter().copied().map(rule).collect();
    }
    schema
}

#[cfg(test)]
mod tests;
