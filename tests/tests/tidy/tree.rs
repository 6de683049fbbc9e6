//! The files of the repository, as a clean clone would have them.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file.
#[derive(Debug)]
pub struct File {
    /// Relative to the root of the repository, with `/`.
    pub path: String,
    pub text: String,
}

impl File {
    /// A file that exists only in a test.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    pub fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|ext| ext == "rs")
    }

    /// Test code that lies in files of its own.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/tests/")
            || ["/tests.rs", "/testing.rs"].iter().any(|name| self.path.ends_with(name))
            || self.path.contains("/src/") && self.path.contains("/tests/")
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Every text file of the tree; what builds leave behind is not part of it.
pub fn files() -> Vec<File> {
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
                files.push(File { path: path.to_string_lossy().into_owned(), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 50, "only {} files below {}", files.len(), root.display());
    files
}
