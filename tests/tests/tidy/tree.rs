//! The files of the repository, as a clean clone would have them.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file.
#[derive(Debug)]
pub(crate) struct File {
    /// Relative to the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    is_test: bool,
}

impl File {
    /// A file that exists only in a test.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let is_test = path.starts_with("tests/tests/");
        Self { path: path.into(), text: text.into(), is_test }
    }

    pub(crate) fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|ext| ext == "rs")
    }

    /// Test code that lies in files of its own.
    pub(crate) fn is_test(&self) -> bool {
        self.is_test
    }

    /// The modules that exist for tests alone, as the beginnings of their paths.
    fn test_modules(&self) -> Vec<String> {
        let Some(module) = self.path.strip_suffix(".rs") else { return Vec::new() };
        // The root of a crate has its modules beside it, any other file in a folder of its name.
        let (folder, stem) = module.rsplit_once('/').unwrap_or(("", module));
        let folder = if matches!(stem, "lib" | "main") { folder } else { module };
        let mut lines = self.text.lines().map(str::trim);
        let mut found = Vec::new();
        while let Some(line) = lines.next() {
            if line == "#[cfg(test)]"
                && let Some(name) = lines.next().and_then(module_name)
            {
                found.push(format!("{folder}/{name}"));
            }
        }
        found
    }
}

/// The name in `mod name;`.
fn module_name(line: &str) -> Option<&str> {
    line.trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';')
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Every text file of the tree; what builds leave behind is not part of it.
pub(crate) fn files() -> Vec<File> {
    let root = root();
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree can be read") {
            let entry = entry.expect("an entry of the tree can be read");
            let name = entry.file_name();
            let kind = entry.file_type().expect("an entry of the tree has a type");
            if kind.is_dir() && !["target", ".git", ".state"].iter().any(|skip| name == *skip) {
                folders.push(entry.path());
            } else if kind.is_file() {
                // What is not text has no rules here.
                let Ok(text) = fs::read_to_string(entry.path()) else { continue };
                let path = entry.path().strip_prefix(&root).expect("below the root").to_owned();
                files.push(File::new(&path.to_string_lossy(), &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    mark_tests(&mut files);
    assert!(files.len() > 50, "only {} files below {}", files.len(), root.display());
    files
}

fn mark_tests(files: &mut [File]) {
    let modules: Vec<_> = files.iter().flat_map(File::test_modules).collect();
    for file in files {
        file.is_test |= modules.iter().any(|module| {
            let rest = file.path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
    }
}

#[test]
fn test_code_is_known_by_its_declaration() {
    let mut files = [
        File::new("a/src/lib.rs", "#[cfg(test)]\nmod direct;\nmod door;\n"),
        File::new("a/src/direct.rs", ""),
        File::new("a/src/direct/http.rs", ""),
        File::new(
            "a/src/door.rs",
            "#[cfg(test)]\npub(crate) mod testing;\n#[cfg(test)]\nmod tests;\n",
        ),
        File::new("a/src/door/testing.rs", ""),
        File::new("a/src/door/tests.rs", ""),
        File::new("a/src/door/hinge.rs", ""),
        File::new("tests/tests/tidy.rs", ""),
    ];
    mark_tests(&mut files);
    let tests = files.each_ref().map(File::is_test);
    assert_eq!(tests, [false, true, true, false, true, true, false, true]);
}
