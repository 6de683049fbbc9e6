//! The words in which our types say what the API server checks (bounds, patterns, rules in CEL, list
//! types), and the pass that makes a structural schema of what schemars derives.
//!
//! Every bound is a constant that `validate` uses as well: a directory of files and an API server
//! refuse the same objects.

use std::ops::RangeInclusive;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// RFC 1123 label: Services, namespaces.
const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// RFC 1123 subdomain: most other names.
const SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// An optional DNS prefix and `/`, then a name of at most 63.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
                         [A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// What [`super::Duration`] parses.
const DURATION: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// Four parts of five digits and a unit.
const MAX_DURATION_BYTES: u32 = 28;

/// Most labels of a selector.
pub(crate) const MAX_SELECTOR: usize = 8;

/// Shortest and longest acceptable duration, as people write them.
pub(crate) type DurationRange = (&'static str, &'static str);

/// A step that says something about a field or a type, for `#[schemars(transform = …)]`.
pub(crate) trait Step: FnMut(&mut Schema) {}
impl<F: FnMut(&mut Schema)> Step for F {}

/// A rule in CEL, and what to write instead when it does not hold.
pub(crate) fn rule(rule: &str, message: &str) -> impl Step + use<> {
    add_rule(json!({ "rule": rule, "message": message }))
}

/// A rule about several fields, reported at one of them: `.perTry`.
pub(crate) fn rule_at(field: &str, rule: &str, message: &str) -> impl Step + use<> {
    add_rule(json!({ "rule": rule, "message": message, "fieldPath": field }))
}

fn add_rule(rule: Value) -> impl Step {
    move |schema| {
        let rules = schema
            .ensure_object()
            .entry("x-kubernetes-validations")
            .or_insert_with(|| Value::Array(Vec::new()));
        rules.as_array_mut().expect("rules are a list").push(rule.clone());
    }
}

/// The name of a Service or of a namespace.
pub(crate) fn label(schema: &mut Schema) {
    set(schema, json!({ "minLength": 1, "maxLength": 63, "pattern": LABEL }));
}

/// Most other objects' names.
pub(crate) fn subdomain(schema: &mut Schema) {
    set(schema, json!({ "minLength": 1, "maxLength": 253, "pattern": SUBDOMAIN }));
}

/// A duration within a range. One rule rather than a pattern and a rule: one mistake, one message.
pub(crate) fn duration((low, high): DurationRange) -> impl Step {
    let holds = format!(
        "self.matches('{DURATION}') && duration(self) >= duration('{low}') && duration(self) <= \
         duration('{high}')"
    );
    let message = format!(
        "write {low} to {high}, as whole numbers with their units h, m, s or ms, e.g. \"250ms\", \
         \"2s\" or \"1h30m\""
    );
    let mut rule = rule(&holds, &message);
    move |schema| {
        set(schema, json!({ "type": "string", "maxLength": MAX_DURATION_BYTES }));
        rule(schema);
    }
}

/// Of two durations in one object the first must not be the longer one. Says nothing where one of
/// them is no duration: its own rule does.
pub(crate) fn not_longer(short: &str, long: &str) -> impl Step + use<> {
    let holds = format!(
        "!has(self.{short}) || !has(self.{long}) || !self.{short}.matches('{DURATION}') || \
         !self.{long}.matches('{DURATION}') || duration(self.{short}) <= duration(self.{long})"
    );
    rule_at(&format!(".{short}"), &holds, &format!("is longer than `{long}`; write less"))
}

/// A list in which nothing is said twice, merged entry by entry.
pub(crate) fn list_set(schema: &mut Schema) {
    set(schema, json!({ "x-kubernetes-list-type": "set" }));
}

/// A list that is replaced as a whole.
pub(crate) fn list_atomic(schema: &mut Schema) {
    set(schema, json!({ "x-kubernetes-list-type": "atomic" }));
}

/// A list whose entries are known by one field: no two share it, and they are merged by it.
pub(crate) fn list_map(key: &str) -> impl Step + use<> {
    let kind = json!({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key] });
    move |schema| set(schema, kind.clone())
}

/// Says something of a list's entries.
pub(crate) fn items(mut step: impl Step) -> impl Step {
    move |schema| {
        let items = schema.get_mut("items").expect("only lists have items");
        step(items.try_into().expect("a list's items have a schema"));
    }
}

/// A TCP port.
pub(crate) fn port(schema: &mut Schema) {
    set(schema, json!({ "minimum": 1, "maximum": 65_535 }));
}

/// Labels to select pods by.
pub(crate) fn selector(schema: &mut Schema) {
    let value = json!({ "type": "string", "maxLength": 63, "pattern": LABEL_VALUE });
    set(
        schema,
        json!({
            "type": "object",
            "additionalProperties": value,
            "minProperties": 1,
            "maxProperties": MAX_SELECTOR,
            "x-kubernetes-map-type": "atomic",
        }),
    );
    let holds = format!("self.all(key, key.indexOf('/') <= 253 && key.matches('{LABEL_KEY}'))");
    let message = "write a label's key: an optional DNS prefix and `/`, then 1 to 63 of letters, \
                   digits, `-`, `_` and `.`";
    rule(&holds, message)(schema);
}

/// A number between two bounds, both included.
pub(crate) fn number(range: &RangeInclusive<u32>) -> impl Step + use<> {
    let range = json!({ "minimum": range.start(), "maximum": range.end() });
    move |schema| set(schema, range.clone())
}

/// Adds keywords, or replaces them.
pub(crate) fn set(schema: &mut Schema, keywords: Value) {
    let Value::Object(keywords) = keywords else { unreachable!("keywords are an object") };
    schema.ensure_object().extend(keywords);
}

/// The structural schema of a type.
pub(crate) fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema: Value = SchemaGenerator::new(settings).into_root_schema_for::<T>().into();
    make_structural(&mut schema);
    schema
}

/// Schemars writes JSON Schema; the API server takes the part of it that says one type for each
/// field. `null` is nowhere a value of ours.
fn make_structural(schema: &mut Value) {
    let Value::Object(keywords) = schema else { return };
    for unwanted in ["title", "$schema"] {
        keywords.remove(unwanted);
    }
    // Unknown fields are the server's to refuse (or to prune), not the schema's.
    if keywords.get("additionalProperties") == Some(&Value::Bool(false)) {
        keywords.remove("additionalProperties");
    }
    hoist_nullable(keywords);
    hoist_variants(keywords);
    if let Some(Value::Array(types)) = keywords.get("type") {
        let kind = types.iter().find(|kind| *kind != "null").expect("a field has a type").clone();
        keywords.insert("type".into(), kind);
    }
    if let Some(Value::Array(values)) = keywords.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::String(format)) = keywords.get("format") {
        // The API knows signed integers alone; the bounds keep the values within them.
        match format.as_str() {
            "uint16" | "uint32" => drop(keywords.insert("format".into(), "int32".into())),
            "uint64" => drop(keywords.insert("format".into(), "int64".into())),
            _ => {}
        }
    }
    if let Some(Value::String(text)) = keywords.get_mut("description") {
        *text = prose(text);
    }
    for key in ["items", "additionalProperties"] {
        keywords.get_mut(key).map(make_structural);
    }
    if let Some(Value::Object(properties)) = keywords.get_mut("properties") {
        properties.values_mut().for_each(make_structural);
    }
}

/// `anyOf: [X, null]` → X. What the field says of itself goes before what its type says.
fn hoist_nullable(keywords: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = keywords.remove("anyOf") else { return };
    let inner = choices.into_iter().find(|choice| choice["type"] != "null");
    let Some(Value::Object(inner)) = inner else { unreachable!("something beside null") };
    for (key, value) in inner {
        keywords.entry(key).or_insert(value);
    }
}

/// `oneOf: [{const: A}, …]` → an `enum`, and what the variants mean is told in the description.
fn hoist_variants(keywords: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = keywords.remove("oneOf") else { return };
    let mut description = keywords
        .get("description")
        .and_then(Value::as_str)
        .map_or_else(String::new, |text| format!("{}\n\n", prose(text)));
    let mut names = Vec::with_capacity(variants.len());
    for variant in &variants {
        let name = variant["const"].as_str().expect("our enums are of plain names");
        let about = variant["description"].as_str().expect("every variant says what it means");
        description.push_str(&format!("{name}: {}\n\n", prose(about)));
        names.push(Value::from(name));
    }
    keywords.insert("type".into(), "string".into());
    keywords.insert("enum".into(), names.into());
    keywords.insert("description".into(), description.trim_end().into());
}

/// A doc comment as running text: lines joined, paragraphs kept, links between Rust items undone.
fn prose(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n\n").replace("[`", "`").replace("`]", "`")
}
