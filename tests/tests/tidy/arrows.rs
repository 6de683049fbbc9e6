//! Rules about what may use what: the arrows between our crates, the sidecar's own dependencies,
//! and the purity of the files that hold decisions.

use std::collections::BTreeMap;

use super::source::Source;
use super::tree::File;

/// Folder of each crate and what of ours it may use. A new arrow is discussed first.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("resources", &["api"]),
    ("policy", &["api"]),
    ("runtime", &[]),
    ("proxy", &["api", "policy", "runtime"]),
    ("init", &["api"]),
    ("control-plane", &["api", "resources", "policy", "runtime"]),
    ("cli", &["api", "resources", "policy"]),
    ("tests", &["api", "resources", "policy", "runtime", "proxy", "init", "control-plane"]),
    // Measures the programs from outside, as a user would; it only speaks the wire contract.
    ("bench", &["api", "control-plane", "tests"]),
    ("fuzz", &["api", "resources", "policy", "proxy", "control-plane"]),
];

/// What never gets into the sidecar, through nobody.
const NOT_IN_PROXY: &[&str] = &[
    "kube",
    "kube-core",
    "kube-client",
    "kube-runtime",
    "k8s-openapi",
    "serde-saphyr",
    "ring",
    "openssl-sys",
    "heddle-resources",
    "heddle-control-plane",
];

/// Decisions: no runtime, no sockets, no clock, no randomness, no environment.
const PURE: &[&str] = &[
    "policy/src",
    "proxy/src/detect",
    "proxy/src/http1",
    "proxy/src/snapshot",
    "proxy/src/balance",
    "control-plane/src/index",
    "control-plane/src/compile",
];

const IMPURE: &[&str] = &[
    "tokio",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "Instant",
    "SystemTime",
    "rand",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "async",
];

/// What the manifest of the crate in `folder` says against the arrows.
pub(crate) fn manifest_problems(folder: &str, manifest: &str) -> Vec<String> {
    let Some(allowed) = allowed(folder) else {
        return vec![format!("{folder}: a new crate; name what it may use in tests/tests/tidy")];
    };
    let mut section = String::new();
    let mut problems = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            continue;
        }
        if !section.ends_with("dependencies") {
            continue;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if let Some(ours) = name.strip_prefix("heddle-")
            && !allowed.contains(&ours)
        {
            problems.push(format!("{folder}/Cargo.toml: {folder} must not use {ours}"));
        }
    }
    problems
}

/// What the code of `file` uses against the arrows.
pub(crate) fn use_problems(file: &File) -> Vec<String> {
    let Some(folder) = file.path.split('/').next() else { return Vec::new() };
    let Some(allowed) = allowed(folder) else { return Vec::new() };
    let code = Source::read(&file.text).code;
    let mut problems = Vec::new();
    for (ours, _) in ARROWS.iter().filter(|(ours, _)| *ours != folder && !allowed.contains(ours)) {
        let name = format!("heddle_{}", ours.replace('-', "_"));
        for (at, _) in code.iter().enumerate().filter(|(_, line)| has_name(line, &name)) {
            problems.push(format!("{}: line {}: {folder} must not use {ours}", file.path, at + 1));
        }
    }
    problems
}

/// What a pure file uses that has an effect or depends on one.
pub(crate) fn purity_problems(file: &File) -> Vec<String> {
    if !is_pure(&file.path) || file.is_test() {
        return Vec::new();
    }
    let code = Source::read(&file.text).without_tests().code;
    let mut problems = Vec::new();
    for (at, line) in code.iter().enumerate() {
        for name in IMPURE.iter().filter(|name| has_name(line, name)) {
            problems.push(format!("{}: line {}: `{name}` in a pure file", file.path, at + 1));
        }
    }
    problems
}

/// What `cargo tree --prefix none` says is in the sidecar and must not be.
pub(crate) fn tree_problems(tree: &str) -> Vec<String> {
    let names: BTreeMap<_, _> = tree.lines().filter_map(|line| line.split_once(' ')).collect();
    let found = NOT_IN_PROXY.iter().filter(|name| names.contains_key(**name));
    found.map(|name| format!("the proxy depends on {name}")).collect()
}

fn allowed(folder: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(name, _)| *name == folder).map(|(_, allowed)| *allowed)
}

pub(crate) fn is_pure(path: &str) -> bool {
    let beneath = |pure: &str| {
        path.strip_prefix(pure).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    PURE.iter().any(|pure| beneath(pure))
}

/// The pure places, so that a moved file does not take its rule with it.
pub(crate) fn pure_places() -> &'static [&'static str] {
    PURE
}

/// `name` as a whole name, not as a part of a longer one.
fn has_name(line: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + name.len()..].starts_with(part))
}

#[test]
fn a_forbidden_arrow_in_a_manifest_is_found() {
    let good = "[package]\nname = \"heddle-proxy\"\n[dependencies]\nheddle-api.workspace = true\n";
    assert_eq!(manifest_problems("proxy", good), [""; 0]);
    for (folder, line) in [
        ("proxy", "heddle-control-plane.workspace = true"),
        ("proxy", "heddle-resources = { path = \"../resources\" }"),
        ("policy", "heddle-runtime = \"1\""),
        ("api", "heddle-policy.workspace = true"),
    ] {
        for section in ["dependencies", "dev-dependencies", "target.'cfg(unix)'.dependencies"] {
            let found = manifest_problems(folder, &format!("[{section}]\n{line}\n"));
            assert_eq!(found.len(), 1, "{folder} {section} {line}");
        }
    }
    assert_eq!(manifest_problems("dashboards", "").len(), 1);
}

#[test]
fn a_forbidden_use_is_found() {
    for (path, text, wrong) in [
        ("proxy/src/app.rs", "use heddle_control_plane::ca;", true),
        ("proxy/src/app.rs", "let a = heddle_resources::kinds::all();", true),
        ("control-plane/src/app.rs", "use heddle_proxy::app;", true),
        ("policy/src/split.rs", "use heddle_runtime::drain;", true),
        ("proxy/src/app.rs", "use heddle_policy::split; // not heddle_resources", false),
        ("tests/src/lab.rs", "use heddle_proxy::app;", false),
    ] {
        assert_eq!(!use_problems(&File::new(path, text)).is_empty(), wrong, "{path} {text}");
    }
}

#[test]
fn an_effect_in_a_pure_file_is_found() {
    for (path, text, wrong) in [
        ("policy/src/split.rs", "use tokio::time::sleep;", true),
        ("policy/src/split.rs", "let now = std::time::Instant::now();", true),
        ("proxy/src/http1/body.rs", "use std::net::TcpStream;", true),
        ("proxy/src/balance.rs", "let r: u64 = rand::random();", true),
        ("control-plane/src/index/pods.rs", "std::fs::read(path)", true),
        ("control-plane/src/compile.rs", "async fn compile() {}", true),
        ("proxy/src/snapshot.rs", "use std::net::IpAddr; // no tokio", false),
        ("proxy/src/snapshot.rs", "#[cfg(test)]\nmod tests {\n use tokio as _;\n}", false),
        ("tests/tests/pure.rs", "use tokio::io;", false),
        ("proxy/src/http.rs", "use tokio::io;", false),
        ("proxy/src/detect_memory.rs", "use tokio::time::Instant;", false),
    ] {
        assert_eq!(!purity_problems(&File::new(path, text)).is_empty(), wrong, "{path} {text}");
    }
}

#[test]
fn a_forbidden_dependency_of_the_proxy_is_found() {
    let good = "heddle-proxy v0.1.0 (/src/proxy)\ntokio v1.54.0\nkube-like v1.0.0\n";
    assert_eq!(tree_problems(good), [""; 0]);
    assert_eq!(tree_problems(&format!("{good}k8s-openapi v0.28.0\n")).len(), 1);
    assert_eq!(tree_problems(&format!("{good}heddle-resources v0.1.0 (*)\n")).len(), 1);
}
