//! What holds for every schema: everything is described, everything is bounded, every rule says what
//! to write instead, and what the rules accept is what the reader accepts.

use kube_cel::{ErrorKind, Validator};

use super::*;
use crate::reader;

/// Calls `visit` with every schema below (and with) the one at `path`.
fn walk<'a>(path: &str, schema: &'a Value, visit: &mut dyn FnMut(&str, &'a Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(below) = schema.get(key) {
            walk(&format!("{path}{mark}"), below, visit);
        }
    }
}

/// What `missing` says of any schema of ours. `metadata`, `apiVersion` and `kind` are Kubernetes'.
fn check(missing: impl Fn(&str, &Value) -> Option<&'static str>) {
    let mut failures = Vec::new();
    for definition in definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(&kind, schema, &mut |path, schema| {
            let field = path.strip_prefix(&kind).unwrap();
            if let Some(what) = missing(field, schema)
                && !matches!(field, ".apiVersion" | ".kind" | ".metadata")
            {
                failures.push(format!("{path}: {what}"));
            }
        });
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_field_says_what_it_means() {
    check(|path, schema| {
        let about = schema["description"].as_str().unwrap_or_default();
        // Of a list or a map of plain values the field says it all.
        let is_plain = schema.get("properties").is_none() && path.ends_with(['}', ']']);
        (about.len() < 8 && !is_plain).then_some("has no description")
    });
}

#[test]
fn everything_is_bounded() {
    check(|_, schema| {
        let has = |key: &str| schema.get(key).is_some();
        let holds = match schema["type"].as_str() {
            Some("string") => has("maxLength") || has("enum") || has("format"),
            // A generation counts up for as long as the object lives.
            Some("integer") => has("minimum") && (has("maximum") || schema["format"] == "int64"),
            Some("array") => has("maxItems") && has("x-kubernetes-list-type"),
            Some("object") if has("additionalProperties") => has("maxProperties"),
            Some("object") => has("properties"),
            Some("boolean") => true,
            _ => false,
        };
        (!holds).then_some("has no bound, or no type")
    });
}

#[test]
fn nothing_but_what_structural_schemas_know() {
    check(|_, schema| {
        let foreign = ["$ref", "$defs", "$schema", "title", "anyOf", "oneOf", "allOf", "nullable"];
        let foreign = foreign.iter().any(|key| schema.get(*key).is_some());
        let closed = schema["additionalProperties"] == Value::Bool(false);
        let unsigned = schema["format"].as_str().is_some_and(|format| format.starts_with("uint"));
        (foreign || closed || unsigned).then_some("is not what the API server takes")
    });
}

/// kubectl reads YAML 1.1: it would send `on:` as `true:`.
#[test]
fn no_field_is_named_like_a_boolean() {
    let booleans = ["y", "n", "yes", "no", "on", "off", "true", "false"];
    check(|path, _| {
        let name = path.rsplit('.').next().unwrap();
        booleans.contains(&name).then_some("is a boolean for kubectl; give it another name")
    });
}

#[test]
fn every_rule_says_what_to_write() {
    check(|_, schema| {
        let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
        let mut silent = rules.filter(|rule| {
            let message = rule["message"].as_str().unwrap_or_default();
            !["write", "name ", "keep", "remove", "give", "raise"]
                .iter()
                .any(|verb| message.contains(verb))
        });
        silent.next().map(|_| "has a rule without a cure")
    });
}

/// The rules, run without an API server, agree with the reader about every example of the documents.
#[test]
fn the_examples_of_the_documents_pass() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
    let mut examples = 0;
    for entry in std::fs::read_dir(docs).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            for object in block.split("---\n").filter(|text| text.contains("heddle.io/v1alpha1")) {
                let errors = broken_rules(object);
                assert!(errors.is_empty(), "{object}\n{errors:#?}");
                examples += 1;
            }
        }
    }
    assert!(examples >= 8, "{examples}");
}

#[test]
fn a_broken_rule_is_told() {
    let split = |backends: &str| {
        format!(
            "apiVersion: heddle.io/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: web }}\n\
             spec: {{ service: web, backends: [{backends}] }}"
        )
    };
    assert_eq!(broken_rules(&split("{ service: a, weight: 1 }")), [""; 0]);
    for (backends, piece) in [
        ("{ service: a, weight: 0 }", "the weights add up to 0"),
        ("{ service: web, weight: 1 }", "splits do not nest"),
        ("{ service: a, weight: 1 }, { service: a, weight: 2 }", "names a backend twice"),
        ("{ service: a, weight: 1, selector: { -a: b } }", "write a label's key"),
    ] {
        let broken = broken_rules(&split(backends));
        assert!(broken.len() == 1 && broken[0].contains(piece), "{backends}: {broken:?}");
        assert_eq!(reader::read("a.yaml", &split(backends)).errors.len(), 1, "{backends}");
    }
}

fn broken_rules(yaml: &str) -> Vec<String> {
    let object: Value = serde_saphyr::from_str(yaml).unwrap();
    let definitions = definitions();
    let definition = definitions
        .iter()
        .find(|definition| definition["spec"]["names"]["kind"] == object["kind"])
        .unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let outcome = Validator::new().validate(schema, &object, None);
    let told = outcome.err().map_or_else(Vec::new, |errors| errors.into_vec());
    let told = told.into_iter().map(|error| {
        assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error:?}");
        error.message
    });
    told.collect()
}
