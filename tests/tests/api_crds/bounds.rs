//! Every bound and every rule of the definitions, and which of them an answer of the API server
//! shows to have been hit.

use std::collections::BTreeSet;

use serde_json::Value;

use super::server::Refusal;

/// `Kind field: what`, for every bound and rule of every kind.
pub(crate) fn of(definitions: &[Value]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for definition in definitions {
        let kind = definition["spec"]["names"]["kind"].as_str().expect("a kind");
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(kind, "", schema, &mut all);
    }
    all
}

fn walk(kind: &str, path: &str, schema: &Value, all: &mut BTreeSet<String>) {
    for keyword in [
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "minimum",
        "maximum",
        "enum",
        "maxProperties",
        "minProperties",
    ] {
        if schema.get(keyword).is_some() {
            all.insert(name(kind, path, keyword));
        }
    }
    // A number's format tells its width; the bounds are narrower.
    if schema.get("format").is_some() && schema["type"] == "string" {
        all.insert(name(kind, path, "format"));
    }
    if matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map")) {
        all.insert(name(kind, path, "duplicate"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let field = below(path, required.as_str().expect("a field's name"));
        // Without metadata there is no name, and the request is refused before the schema is asked.
        if field != "metadata" {
            all.insert(name(kind, &field, "required"));
        }
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let at = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        all.insert(name(kind, &at, rule["message"].as_str().expect("a message")));
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        walk(kind, &below(path, field), schema, all);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get(key) {
            walk(kind, &format!("{path}[]"), schema, all);
        }
    }
}

fn name(kind: &str, path: &str, what: &str) -> String {
    format!("{kind} {path}: {what}")
}

fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Those of `wanted` that an answer names.
pub(crate) fn hit(kind: &str, refusal: &Refusal, wanted: &BTreeSet<String>) -> BTreeSet<String> {
    let mut hit = BTreeSet::new();
    for (field, message) in &refusal.causes {
        let field = if field == "<nil>" { "" } else { field };
        for what in keywords(message) {
            for path in places(field) {
                hit.insert(name(kind, &path, &what));
            }
        }
    }
    hit.intersection(wanted).cloned().collect()
}

/// A field as the schema has it: indexes gone; a label's key is in front of its value.
fn places(field: &str) -> Vec<String> {
    let mut place = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('[') {
        place.push_str(before);
        place.push_str("[]");
        rest = after.split_once(']').map_or("", |(_, rest)| rest);
    }
    place.push_str(rest);
    // `spec.service[]` for an item of a list; `duplicate` is said of an item, and is the list's.
    let list = place.strip_suffix("[]").map(str::to_owned);
    let map = place.split_once(".selector.").map(|(before, _)| format!("{before}.selector[]"));
    [Some(place.clone()), list, map].into_iter().flatten().collect()
}

/// Which keyword a message is about; for a rule, its own words.
fn keywords(message: &str) -> Vec<String> {
    let known = [
        ("may not be more than", "maxLength"),
        ("chars long", "minLength"),
        ("should match", "pattern"),
        ("must have at most", "maxItems"),
        ("must have at most", "maxProperties"),
        ("should have at least 1 items", "minItems"),
        ("should have at least 1 properties", "minProperties"),
        ("greater than or equal to", "minimum"),
        ("less than or equal to", "maximum"),
        ("Unsupported value", "enum"),
        ("Required value", "required"),
        ("Duplicate value", "duplicate"),
        ("must be of type date-time", "format"),
    ];
    let known = known.iter().filter(|(piece, _)| message.contains(piece));
    let mut all: Vec<_> = known.map(|(_, keyword)| (*keyword).to_owned()).collect();
    // `Invalid value: "…": what the rule says`
    for (at, _) in message.match_indices(": ") {
        all.push(message[at + 2..].to_owned());
    }
    all
}
