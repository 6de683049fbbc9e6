//! The house rules that a machine can hold: arrows between crates, purity, the length and the look
//! of files. Old excess is tolerated by name, new excess is refused. Every rule lies in `tidy/`
//! beside a test that shows it fire; this file applies them all to the tree.

#[path = "tidy/arrows.rs"]
mod arrows;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/text.rs"]
mod text;
#[path = "tidy/tree.rs"]
mod tree;

use std::process::Command;

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn files_read_as_the_house_rules_say() {
    let problems: Vec<_> = tree::files().iter().flat_map(text::problems).collect();
    assert_none(&problems);
}

#[test]
fn files_on_the_list_of_long_ones_exist() {
    let files = tree::files();
    for (path, _) in text::LONGER {
        assert!(files.iter().any(|file| file.path == *path), "{path} is listed and does not exist");
    }
}

#[test]
fn crates_use_only_what_they_may() {
    let files = tree::files();
    let mut problems = Vec::new();
    for file in &files {
        if let Some((folder, "Cargo.toml")) = file.path.split_once('/') {
            problems.extend(arrows::manifest_problems(folder, &file.text));
        }
        if file.is_rust() {
            problems.extend(arrows::use_problems(file));
        }
    }
    assert_none(&problems);
}

#[test]
fn decisions_have_no_effects() {
    let files = tree::files();
    for place in arrows::pure_places() {
        let found = files.iter().any(|file| file.path.starts_with(place));
        assert!(found, "nothing is left at {place}: did its rule move with it?");
    }
    let rust = files.iter().filter(|file| file.is_rust());
    assert_none(&rust.flat_map(arrows::purity_problems).collect::<Vec<_>>());
}

#[test]
fn the_sidecar_knows_nothing_of_kubernetes() {
    let output = Command::new(env!("CARGO"))
        .current_dir(tree::root())
        .args(["tree", "--locked", "--offline", "-p", "heddle-proxy"])
        .args(["--edges", "normal,build", "--prefix", "none"])
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && tree.starts_with("heddle-proxy "),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_none(&arrows::tree_problems(&tree));
}
