//! The directory of manifests: which files count, and the last good content of each.
//!
//! A file that cannot be read in full keeps the objects it had and is reported; what became of its
//! good objects is known, what the spoilt ones mean is not. Says nothing about what objects mean.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use heddle_resources::reader::{self, Located};
use heddle_resources::{Object, ObjectKey};

/// The manifests of one directory.
#[derive(Debug)]
pub(crate) struct Manifests {
    dir: PathBuf,
    files: BTreeMap<PathBuf, FileContent>,
}

#[derive(Debug, Default)]
struct FileContent {
    text: String,
    objects: BTreeMap<ObjectKey, Located>,
    problems: Vec<String>,
}

impl Manifests {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), files: BTreeMap::new() }
    }

    /// Reads what changed since the last call.
    pub(crate) fn reload(&mut self) {
        let paths = list_files(&self.dir);
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            // A file that went away since the listing is noticed at the next event.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let file = self.files.entry(path.clone()).or_default();
            if file.text != text {
                file.replace(&path, text);
            }
        }
    }

    /// Every good object, and every problem. Of two objects with the same name the one in the first
    /// file counts.
    pub(crate) fn objects(&self) -> (Vec<Located>, Vec<String>) {
        let mut problems = Vec::new();
        let mut objects: BTreeMap<&ObjectKey, &Located> = BTreeMap::new();
        for file in self.files.values() {
            problems.extend(file.problems.iter().cloned());
            for (key, object) in &file.objects {
                if let Some(first) = objects.get(key) {
                    problems.push(format!(
                        "{}: {key} is declared at {} already; keep one of the two",
                        object.location, first.location
                    ));
                } else {
                    objects.insert(key, object);
                }
            }
        }
        (objects.into_values().cloned().collect(), problems)
    }
}

impl FileContent {
    fn replace(&mut self, path: &Path, text: String) {
        let reading = reader::read(&path.display().to_string(), &text);
        let new: BTreeMap<_, _> =
            reading.objects.into_iter().map(|located| (located.object.key(), located)).collect();
        if reading.errors.is_empty() {
            self.objects = new;
        } else {
            self.objects.extend(new);
        }
        self.problems = reading.errors.iter().map(ToString::to_string).collect();
        self.text = text;
    }
}

/// `*.yaml`, `*.yml` and `*.json` of the directory itself; names that begin with a dot are an
/// editor's, or the lab's own.
fn list_files(dir: &Path) -> BTreeSet<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| is_manifest(path))
        .collect()
}

/// Whether a path is one that [`Manifests`] reads.
pub(crate) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The trust domain that the manifests ask for.
pub(crate) fn trust_domain(objects: &[Located]) -> String {
    let found = objects.iter().find_map(|located| {
        let Object::Mesh(mesh) = &located.object else { return None };
        Some(mesh.spec.trust_domain.clone())
    });
    found.unwrap_or_else(|| heddle_resources::crd::mesh::MeshSpec::default().trust_domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: web }\n\
                           spec: { ports: [{ port: 80 }] }\n";

    fn names(manifests: &Manifests) -> Vec<String> {
        manifests.objects().0.iter().map(|located| located.object.key().to_string()).collect()
    }

    #[test]
    fn a_spoilt_file_keeps_its_objects_until_it_is_good_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        let mut manifests = Manifests::new(dir.path());
        std::fs::write(&file, SERVICE).unwrap();
        manifests.reload();
        assert_eq!(names(&manifests), ["Service default/web"]);

        std::fs::write(&file, &SERVICE[..40]).unwrap();
        manifests.reload();
        assert_eq!(names(&manifests), ["Service default/web"]);
        let problems = manifests.objects().1;
        assert!(problems.iter().all(|problem| problem.contains("a.yaml:")), "{problems:?}");
        assert!(!problems.is_empty());

        std::fs::write(&file, SERVICE.replace("web", "shop")).unwrap();
        manifests.reload();
        assert_eq!(names(&manifests), ["Service default/shop"]);
        assert_eq!(manifests.objects().1, [""; 0]);

        std::fs::remove_file(&file).unwrap();
        manifests.reload();
        assert_eq!(names(&manifests), [""; 0]);
    }

    #[test]
    fn the_first_of_two_namesakes_counts_and_hidden_files_do_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yml", ".c.yaml", "d.yaml~", "e.txt"] {
            std::fs::write(dir.path().join(name), SERVICE).unwrap();
        }
        let mut manifests = Manifests::new(dir.path());
        manifests.reload();
        let (objects, problems) = manifests.objects();
        assert_eq!(objects.len(), 1);
        assert!(objects[0].location.contains("a.yaml"), "{}", objects[0].location);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("b.yml"), "{problems:?}");
    }
}
