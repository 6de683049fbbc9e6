//! `docs/crds.md`: every field of every kind with its type, bounds, default and meaning, and the
//! rules between fields.

use std::fmt::Write;

use serde_json::Value;

const INTRODUCTION: &str = "\
# Reference of the resources

Generated from the types by `make gen`. `kubectl explain KIND --recursive` says the same. Group and version: `heddle.io/v1alpha1`;
`kubectl get heddle -A` lists every object. The same bounds and rules hold for the files of a control plane without a cluster.

A **bold** field is required. Bounds are those of the value; for a list, how many entries it may have. Every kind has the `status`
that is described [at the end](#status).
";

/// Patterns that have a name among people.
const PATTERNS: [(&str, &str); 4] = [
    ("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "an RFC 1123 label"),
    ("^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", "an RFC 1123 subdomain"),
    ("^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", "a label's value"),
    ("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "one word"),
];

/// The page.
pub(crate) fn page(definitions: &[Value]) -> String {
    let mut page = INTRODUCTION.to_owned();
    for definition in definitions {
        kind(&mut page, definition);
    }
    // TrafficSplit's: it has every field that any kind has.
    let status = &schema(&definitions[0])["properties"]["status"];
    page.push_str("\n## Status\n\nWritten by the control plane, read by everybody.\n\n");
    fields(&mut page, "status", status);
    page
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

fn kind(page: &mut String, definition: &Value) {
    let names = &definition["spec"]["names"];
    let schema = schema(definition);
    line(page, &format!("\n## {}\n\n{}\n", text(&names["kind"]), text(&schema["description"])));
    let short = list(&names["shortNames"]);
    let short = if short.is_empty() { short } else { format!(", for short {short}") };
    let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array();
    let columns: Vec<_> =
        columns.into_iter().flatten().map(|column| text(&column["name"]).to_uppercase()).collect();
    line(
        page,
        &format!(
            "{}. `kubectl get {}`{short}, prints NAME, {}.\n",
            text(&definition["spec"]["scope"]),
            text(&names["plural"]),
            columns.join(", "),
        ),
    );
    fields(page, "spec", &schema["properties"]["spec"]);
    let mut all = Vec::new();
    rules("", schema, &mut all);
    if !all.is_empty() {
        line(page, "\nRules:\n");
        all.iter().for_each(|rule| line(page, &format!("- {rule}")));
    }
}

fn fields(page: &mut String, path: &str, schema: &Value) {
    line(page, "| field | type | bounds | default | meaning |\n|---|---|---|---|---|");
    field_rows(page, path, schema);
}

fn field_rows(page: &mut String, path: &str, schema: &Value) {
    let required = schema["required"].as_array();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let required =
            required.is_some_and(|required| required.iter().any(|one| text(one) == name));
        let shown = if required { format!("**`{path}`**") } else { format!("`{path}`") };
        let default = field.get("default").map_or(String::new(), |value| format!("`{value}`"));
        let about = cell(text(&field["description"]));
        line(
            page,
            &format!("| {shown} | {} | {} | {default} | {about} |", kind_of(field), bounds(field)),
        );
        match text(&field["type"]) {
            "array" => field_rows(page, &format!("{path}[]"), &field["items"]),
            _ => field_rows(page, &path, field),
        }
    }
}

fn kind_of(field: &Value) -> String {
    match text(&field["type"]) {
        "array" => format!("list of {}", kind_of(&field["items"])),
        "object" if field.get("additionalProperties").is_some() => "map of strings".to_owned(),
        kind => kind.to_owned(),
    }
}

fn bounds(field: &Value) -> String {
    let own = own_bounds(field);
    match field.get("items").map(own_bounds).filter(|bounds| !bounds.is_empty()) {
        Some(items) if own.is_empty() => format!("each {items}"),
        Some(items) => format!("{own}; each {items}"),
        None => own,
    }
}

fn own_bounds(field: &Value) -> String {
    let mut bounds = Vec::new();
    let values = list(&field["enum"]);
    if !values.is_empty() {
        bounds.push(values);
    }
    for (low, high, unit) in [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ] {
        match (field.get(low), field.get(high)) {
            (Some(low), Some(high)) => bounds.push(format!("{low} to {high}{unit}")),
            (Some(low), None) => bounds.push(format!("{low} or more{unit}")),
            (None, Some(high)) => bounds.push(format!("up to {high}{unit}")),
            (None, None) => {}
        }
    }
    if matches!(text(&field["x-kubernetes-list-type"]), "set") {
        bounds.push("no duplicates".to_owned());
    }
    if let Some(key) = field["x-kubernetes-list-map-keys"][0].as_str() {
        bounds.push(format!("one for each `{key}`"));
    }
    if let Some(pattern) = field["pattern"].as_str() {
        let named = PATTERNS.iter().find(|(known, _)| *known == pattern);
        bounds
            .push(named.map_or_else(|| format!("`{}`", cell(pattern)), |(_, name)| (*name).into()));
    }
    bounds.join(", ")
}

/// What the rules in CEL say, each with the field that it is about.
fn rules(path: &str, schema: &Value, all: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let at = format!("{path}{}", text(&rule["fieldPath"]));
        let at = if at.is_empty() { "the object".to_owned() } else { format!("`{at}`") };
        let said = rule["message"].as_str().unwrap_or_else(|| text(&rule["messageExpression"]));
        all.push(format!("{at}: {said}"));
    }
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules(&below(name), field, all);
    }
    if let Some(items) = schema.get("items") {
        rules(&format!("{path}[]"), items, all);
    }
}

fn list(values: &Value) -> String {
    let values: Vec<_> =
        values.as_array().into_iter().flatten().map(|value| format!("`{}`", text(value))).collect();
    values.join(", ")
}

/// As a table's cell takes it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("\n\n", "<br>")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn line(page: &mut String, line: &str) {
    writeln!(page, "{line}").expect("a string takes every text");
}
