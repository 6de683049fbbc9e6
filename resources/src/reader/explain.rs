//! serde's words → ours: which field, and what to write instead.

use crate::path::{Path, Segment};

/// The field serde passed over.
pub(crate) fn ignored(path: &serde_ignored::Path<'_>) -> Path {
    fn push(path: &serde_ignored::Path<'_>, segments: &mut Vec<Segment>) {
        match path {
            serde_ignored::Path::Root => {}
            serde_ignored::Path::Seq { parent, index } => {
                push(parent, segments);
                segments.push(Segment::Index(*index));
            }
            serde_ignored::Path::Map { parent, key } => {
                push(parent, segments);
                segments.push(Segment::Field(key.clone()));
            }
            serde_ignored::Path::Some { parent }
            | serde_ignored::Path::NewtypeStruct { parent }
            | serde_ignored::Path::NewtypeVariant { parent } => push(parent, segments),
        }
    }
    let mut segments = Vec::new();
    push(path, &mut segments);
    segments.into_iter().collect()
}

/// The field an error is about, and the error as an instruction.
pub(super) fn error(error: &serde_path_to_error::Error<serde_json::Error>) -> (Path, String) {
    let path: Path = error
        .path()
        .iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::Field(key.clone())),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => {
                None
            }
        })
        .collect();
    let text = error.inner().to_string();
    if let Some(field) = quoted_after(&text, "missing field ") {
        return (path.field(field), "is required".to_owned());
    }
    if let Some(field) = quoted_after(&text, "unknown field ") {
        let known = text.split_once("expected ").map_or("", |(_, known)| known);
        let ends = path.segments().last() == Some(&Segment::Field(field.to_owned()));
        let path = if ends { path } else { path.field(field) };
        return (path, format!("no such field; write {}", or_nothing(known)));
    }
    (path, instruct(&text))
}

/// `invalid type: string "x", expected u16` → `write a port number from 1 to 65535`.
fn instruct(text: &str) -> String {
    let Some((_, expected)) = text.rsplit_once("expected ") else { return text.to_owned() };
    let expected = match expected {
        // Ranges are the validator's to tell; of 16 bits we have nothing but ports.
        "u16" => "a port number from 1 to 65535",
        "u32" => "a whole number of 0 or more",
        "i32" | "i64" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "a string; in quotes if it looks like a number or a boolean",
        "a sequence" | "sequence" => "a list",
        "a map" | "map" => "a mapping of keys to values",
        "IntOrString" => "a port number, or a port's name",
        other if other.starts_with("struct ") || is_type(other) => "a mapping of fields to values",
        other => other,
    };
    format!("write {expected}")
}

fn or_nothing(known: &str) -> &str {
    if known.is_empty() { "nothing there" } else { known }
}

/// True for a type's bare name, which is all k8s-openapi says it expected.
fn is_type(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase()) && !text.contains([' ', '`'])
}

fn quoted_after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.strip_prefix('`')?.split('`').next()
}
