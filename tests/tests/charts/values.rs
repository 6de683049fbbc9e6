//! The table of values, made of the comments in values.yaml.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

/// A value with its comment.
struct Documented {
    path: String,
    comment: String,
}

const HEADING: &str = "\
# Values of the chart heddle

Made from the comments in `charts/heddle/values.yaml`; change them there. Whatever is not listed here is refused, and so is a value
of the wrong shape. How to begin is in [install.md](install.md).
";

/// The document, or what is wrong with the comments.
pub(crate) fn page(yaml: &str) -> Result<String, String> {
    let values: Value = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
    let documented = comments(yaml)?;
    let paths: BTreeSet<_> = documented.iter().map(|one| one.path.clone()).collect();
    let mut undocumented = Vec::new();
    leaves(&values, "", &paths, &mut undocumented);
    if !undocumented.is_empty() {
        return Err(format!("no comment `# -- ` above {}", undocumented.join(", ")));
    }
    let mut page = HEADING.to_owned();
    let mut section = "";
    for one in &documented {
        let first = one.path.split('.').next().unwrap_or_default();
        if first != section {
            section = first;
            let _ = write!(page, "\n## {section}\n\n| value | default | |\n|---|---|---|\n");
        }
        let pointer = format!("/{}", one.path.replace('.', "/"));
        let default = values.pointer(&pointer).ok_or(format!("{} is not a value", one.path))?;
        let comment = one.comment.replace('|', "\\|");
        let _ = writeln!(page, "| `{}` | `{default}` | {comment} |", one.path);
    }
    Ok(page)
}

/// Every key under a comment that begins with `# -- `.
fn comments(yaml: &str) -> Result<Vec<Documented>, String> {
    let mut documented: Vec<Documented> = Vec::new();
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut comment: Option<&str> = None;
    for line in yaml.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(said) = text.strip_prefix("# -- ") {
            if let Some(unused) = comment.replace(said) {
                return Err(format!("a comment of nothing: {unused}"));
            }
            continue;
        }
        let Some((key, _)) = text.split_once(':').filter(|_| !text.starts_with(['#', '-'])) else {
            continue;
        };
        above.retain(|(before, _)| *before < indent);
        above.push((indent, key));
        if let Some(comment) = comment.take() {
            let path: Vec<_> = above.iter().map(|(_, key)| *key).collect();
            documented.push(Documented { path: path.join("."), comment: comment.to_owned() });
        }
    }
    Ok(documented)
}

/// Notes every value that has no comment, neither itself nor what it is part of.
fn leaves(value: &Value, path: &str, documented: &BTreeSet<String>, missing: &mut Vec<String>) {
    if documented.contains(path) {
        return;
    }
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, documented, missing);
            }
        }
        None => missing.push(path.to_owned()),
    }
}

#[test]
fn comments_become_rows() {
    let yaml = "a:\n  # -- What b is | for.\n  b: \"\"\n# -- Lists.\nc:\n  - name: d\n";
    let page = page(yaml).unwrap();
    assert!(page.contains("| `a.b` | `\"\"` | What b is \\| for. |"), "{page}");
    assert!(page.contains("| `c` | `[{\"name\":\"d\"}]` | Lists. |"), "{page}");
    assert!(page.contains("\n## a\n") && page.contains("\n## c\n"), "{page}");
}

#[test]
fn a_value_without_a_comment_is_noticed() {
    assert_eq!(page("a:\n  b: 1\n").unwrap_err(), "no comment `# -- ` above a.b");
    assert!(page("# -- One\n# -- Two\na: 1\n").unwrap_err().contains("a comment of nothing"));
}
