//! Writes what is generated from our types: `crds/`, the templates of the chart `heddle-crds` and
//! `docs/crds.md`. Run by `make gen`; a test refuses a tree in which they differ. Decides nothing:
//! what they say is said in `resources/src/crd/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use heddle_resources::crd::definition::definitions;
use serde_json::Value;

mod reference;

/// A generated file, relative to the root of the repository.
struct File {
    path: String,
    text: String,
}

const HEADER: &str = "# Generated from resources/src/crd by `make gen`; edit that.\n";

fn main() -> ExitCode {
    for file in files() {
        let path = root().join(&file.path);
        let folder = path.parent().expect("a file is in a folder");
        if let Err(error) = fs::create_dir_all(folder).and_then(|()| fs::write(&path, &file.text)) {
            eprintln!("heddle-gen: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("resources/ has a parent").to_owned()
}

fn files() -> Vec<File> {
    let definitions = definitions();
    let mut files = vec![File { path: "docs/crds.md".into(), text: reference::page(&definitions) }];
    for definition in &definitions {
        let plural = definition["spec"]["names"]["plural"].as_str().expect("a kind has a plural");
        let text = format!("{HEADER}{}", yaml(definition));
        files.push(File { path: format!("crds/{plural}.yaml"), text });
        let path = format!("charts/heddle-crds/templates/{plural}.yaml");
        files.push(File { path, text: template(definition) });
    }
    files
}

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("JSON can be written as YAML")
}

/// The chart's template: Helm keeps the definitions when it is uninstalled, because with them every
/// object of ours would go.
fn template(definition: &Value) -> String {
    let metadata = "metadata:\n";
    let text = yaml(definition);
    assert!(!text.contains("{{"), "a definition would be read as a template");
    let (before, after) = text.split_once(metadata).expect("a definition has metadata");
    format!(
        "{HEADER}{before}{metadata}  annotations:\n    helm.sh/resource-policy: keep\n  labels:\n    \
         app.kubernetes.io/name: {{{{ .Chart.Name }}}}\n    \
         app.kubernetes.io/part-of: heddle\n    \
         app.kubernetes.io/version: {{{{ .Chart.AppVersion | quote }}}}\n    \
         app.kubernetes.io/managed-by: {{{{ .Release.Service }}}}\n    \
         helm.sh/chart: {{{{ printf \"%s-%s\" .Chart.Name .Chart.Version | replace \"+\" \"_\" }}}}\n\
         {after}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_holds_what_the_types_say() {
        for file in files() {
            let there = fs::read_to_string(root().join(&file.path)).unwrap_or_default();
            assert!(there == file.text, "{} differs from the types: run `make gen`", file.path);
        }
    }

    #[test]
    fn nothing_is_left_of_kinds_that_are_gone() {
        let files = files();
        for folder in ["crds", "charts/heddle-crds/templates"] {
            for entry in fs::read_dir(root().join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let path = format!("{folder}/{name}");
                let generated = files.iter().any(|file| file.path == path);
                assert!(generated || !name.ends_with(".yaml"), "{path} is of no kind: remove it");
            }
        }
    }
}
