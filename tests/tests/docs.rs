//! The documents against the code: every example is read by the reader that users meet, every link
//! leads somewhere, every variable and every metric family is where the documents say, and only
//! there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use heddle_resources::reader;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Paths of the Markdown files, relative to the root.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["", "docs"] {
        for entry in fs::read_dir(root().join(folder)).expect("the folder can be read") {
            let name = entry.expect("the entry can be read").file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".md") {
                found.push(Path::new(folder).join(&*name).to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The code blocks of a language, each with the line it begins at.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, bool, Vec<&'a str>)> = None;
    for (at, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(tag)) => open = Some((at + 2, tag.trim() == language, Vec::new())),
            (Some((begin, wanted, lines)), Some(_)) => {
                if *wanted {
                    blocks.push((*begin, lines.join("\n")));
                }
                open = None;
            }
            (Some((_, _, lines)), None) => lines.push(line),
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn every_example_is_accepted() {
    let mut examples = 0;
    for path in documents() {
        for (line, yaml) in blocks(&read(&path), "yaml") {
            let reading = reader::read(&format!("{path}:{line}"), &yaml);
            assert_eq!(reading.errors, [], "{path}, the example at line {line}");
            assert!(!reading.objects.is_empty(), "{path}: nothing in the example at line {line}");
            examples += 1;
        }
    }
    assert!(examples >= 8, "only {examples} examples were found");
}

#[test]
fn a_wrong_example_is_noticed() {
    let text = "# Title\n```yaml\nkind: TrafficSplit\n```\n```sh\nls\n```\n";
    let found = blocks(text, "yaml");
    assert_eq!(found, [(3, "kind: TrafficSplit".to_owned())]);
    assert!(!reader::read("x", &found[0].1).errors.is_empty());
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for path in documents() {
        let text = without_code(&read(&path));
        let folder = Path::new(&path).parent().expect("a file has a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if link.starts_with("http") || file.is_empty() {
                continue;
            }
            if !root().join(&folder).join(file).exists() {
                broken.push(format!("{path}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "links to nowhere:\n{}", broken.join("\n"));
}

/// The text less what stands in backticks: a pattern such as `[a-z]([a-z0-9])` is no link.
fn without_code(text: &str) -> String {
    text.lines().flat_map(|line| line.split('`').step_by(2).chain(["\n"])).collect()
}

/// `file.rs: name` in backticks: the file is there and declares the name.
fn check_place(place: &str) -> Result<(), String> {
    let (path, name) = place.split_once(": ").map_or((place, None), |(p, n)| (p, Some(n)));
    let path = path.trim_end_matches('/');
    let full = root().join(path);
    if !full.exists() {
        return Err(format!("{path} does not exist"));
    }
    let Some(name) = name else { return Ok(()) };
    let text = fs::read_to_string(full).map_err(|error| format!("{path}: {error}"))?;
    let declares = ["fn", "struct", "enum", "const"].iter().any(|kind| {
        let declaration = format!("{kind} {name}");
        text.match_indices(&declaration)
            .any(|(at, _)| !text[at + declaration.len()..].starts_with(char::is_alphanumeric))
    });
    if declares { Ok(()) } else { Err(format!("{path} does not declare {name}")) }
}

#[test]
fn the_map_is_true() {
    let text = read("ARCHITECTURE.md");
    let mut places = 0;
    let mut wrong = Vec::new();
    for line in text.lines() {
        for place in line.split('`').skip(1).step_by(2) {
            let is_path = place.contains(".rs") || place.contains(".proto") || place.ends_with('/');
            if is_path && place.contains('/') && !place.contains('{') {
                places += 1;
                wrong.extend(check_place(place).err());
            }
        }
    }
    assert!(places > 40, "only {places} places were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(check_place("policy/src/split.rs: drawn").is_err());
    assert!(check_place("policy/src/splits.rs").is_err());
}

/// Every name in `text` that begins so: letters, digits and `_`.
fn names<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(inside))
        .map(|(at, _)| {
            let rest = &text[at..];
            &rest[..rest.find(|c| !inside(c)).unwrap_or(rest.len())]
        })
        .filter(|name| name.len() > prefix.len())
        .collect()
}

/// The part of a file that is not its tests.
fn code(path: &str) -> String {
    let text = read(path);
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].to_owned()
}

#[test]
fn every_variable_is_documented_and_exists() {
    let configs = [
        "proxy/src/config.rs",
        "control-plane/src/config.rs",
        "control-plane/src/admission/options.rs",
        "init/src/config.rs",
        "api/src/probes.rs",
    ];
    let configs = configs.map(code);
    let mut read_by_code: BTreeSet<_> =
        configs.iter().flat_map(|config| names(config, "HEDDLE_")).collect();
    // An example in a comment, of what Kubernetes sets.
    read_by_code.remove("HEDDLE_WEB_SERVICE_HOST");
    let document = read("docs/operations.md");
    assert_eq!(names(&document, "HEDDLE_"), read_by_code);
}

#[test]
fn every_metric_is_documented_and_exists() {
    const CONTROL_PLANE: &str = "heddle_control_plane_";
    let proxy = code("proxy/src/metrics/scrape.rs");
    let control_plane = code("control-plane/src/metrics.rs");
    let document = read("docs/metrics.md");
    let documented = names(&document, "heddle_");

    let quoted = |text: &str, name: &str| text.contains(&format!("\"{name}\""));
    for name in &documented {
        let exists = name.strip_prefix(CONTROL_PLANE).map_or_else(
            || quoted(&proxy, name) || quoted(&control_plane, name),
            |short| quoted(&control_plane, short) || quoted(&control_plane, name),
        );
        // Not a family: the filter's example.
        assert!(exists || *name == "heddle_proxy", "{name} is documented and does not exist");
    }
    for name in names(&proxy, "heddle_").into_iter().filter(|name| quoted(&proxy, name)) {
        assert!(documented.contains(name), "{name} is not documented");
    }
    let registered = control_plane.split("families").skip(1);
    for name in registered.filter_map(|rest| rest.split('"').nth(1)) {
        let whole = format!("{CONTROL_PLANE}{name}");
        assert!(documented.contains(&*whole), "{whole} is not documented");
    }
}

/// Every string that follows `before` in the tests' Rust files.
fn literals(folder: &Path, before: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the entry can be read").path();
        if path.is_dir() {
            literals(&path, before, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("the file can be read");
            let rest = text.split(before).skip(1);
            found.extend(rest.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

#[test]
fn what_tests_need_is_prepared() {
    let script = read("scripts/prepare");
    let prepared: BTreeSet<_> =
        script.split(|c: char| c.is_whitespace() || "()".contains(c)).collect();
    let mut packages = BTreeSet::new();
    for folder in ["tests/src/real", "tests/tests"] {
        literals(&root().join(folder), concat!("pack", "age: \""), &mut packages);
    }
    // Of a test of the search itself.
    packages.remove("no-such-package");
    packages.remove("dash");
    assert!(!packages.is_empty());
    for package in packages {
        assert!(
            prepared.contains(&*package),
            "{package} is not among the packages of scripts/prepare"
        );
    }
}
