//! Names of everything a lab owns: network namespaces, directories, files.
//!
//! One lab belongs to one directory of manifests. Its id is a short hash of that directory's
//! canonical path, so that every name can be found again from the path alone, also after a crash.
//! Nothing here creates or removes anything.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};

/// Every lab keeps its files in a directory of its own below this one.
pub const RUN_ROOT: &str = "/run/heddle-lab";

/// Where `ip netns` keeps its names.
pub const NETNS_ROOT: &str = "/run/netns";

/// Names and paths of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    id: String,
    dir: PathBuf,
}

impl Layout {
    /// The lab of the manifests in `dir`, whether or not it is up.
    ///
    /// # Errors
    /// When `dir` is not a directory.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let canonical = dir
            .canonicalize()
            .with_context(|| format!("{}: cannot be opened as a directory", dir.display()))?;
        if !canonical.is_dir() {
            bail!("{} is not a directory: name the directory of manifests", dir.display());
        }
        Ok(Self::of_canonical(canonical))
    }

    /// Finds the lab a command means: the one of `dir`, else the only one there is.
    ///
    /// # Errors
    /// When there is none, or several and none was named.
    pub fn find(dir: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(dir) = dir {
            // The directory may be gone while its lab still stands.
            let Ok(canonical) = dir.canonicalize() else {
                return Ok(Self::of_canonical(std::path::absolute(dir)?));
            };
            return Ok(Self::of_canonical(canonical));
        }
        let mut labs = Self::all();
        match (labs.pop(), labs.is_empty()) {
            (Some(lab), true) => Ok(lab),
            (None, _) => bail!("no lab is up: start one with `heddle-lab up DIR`"),
            (Some(last), false) => {
                labs.push(last);
                let dirs: Vec<_> =
                    labs.iter().map(|lab| format!("  --dir {}", lab.dir.display())).collect();
                bail!("several labs are up; say which one:\n{}", dirs.join("\n"))
            }
        }
    }

    /// Every lab that has a directory below [`RUN_ROOT`].
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(RUN_ROOT) else { return Vec::new() };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("dir")).ok())
            .map(|dir| Self::of_canonical(PathBuf::from(dir)))
            .collect()
    }

    fn of_canonical(dir: PathBuf) -> Self {
        Self { id: short_hash(dir.as_os_str().as_encoded_bytes()), dir }
    }

    /// Eight hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory of manifests.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a cluster's controllers would fill in, below the manifests.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join(".state")
    }

    /// The lab's own directory.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.id)
    }

    /// Locked by `up` and `down` while they work; outlives the lab's directory for a moment.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(format!("{}.lock", self.id))
    }

    /// Copies of the mesh's programs, readable by every uid of the lab.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.run().join("bin")
    }

    /// Where the node process takes commands.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run().join("node.sock")
    }

    /// Output of the node process.
    #[must_use]
    pub fn node_log(&self) -> PathBuf {
        self.run().join("node.log")
    }

    /// The trust bundle as the proxies read it.
    #[must_use]
    pub fn trust_bundle(&self) -> PathBuf {
        self.run().join("trust-bundle.pem")
    }

    /// Files of one pod.
    #[must_use]
    pub fn pod(&self, pod: &PodKey) -> PathBuf {
        self.run().join("pods").join(format!("{}.{}", pod.namespace, pod.name))
    }

    /// Output of one container.
    #[must_use]
    pub fn log(&self, pod: &PodKey, container: &str) -> PathBuf {
        self.run().join("logs").join(format!("{}.{}.{container}.log", pod.namespace, pod.name))
    }

    /// Output of the control plane.
    #[must_use]
    pub fn control_plane_log(&self) -> PathBuf {
        self.run().join("logs").join("control-plane.log")
    }

    /// The router every pod is wired to.
    #[must_use]
    pub fn node_netns(&self) -> String {
        format!("{}node", self.netns_prefix())
    }

    /// Home of the control plane.
    #[must_use]
    pub fn control_plane_netns(&self) -> String {
        format!("{}control-plane", self.netns_prefix())
    }

    /// A pod's namespace. No Kubernetes namespace has a dot in its name, so two pods never share it.
    #[must_use]
    pub fn pod_netns(&self, pod: &PodKey) -> String {
        format!("{}{}.{}", self.netns_prefix(), pod.namespace, pod.name)
    }

    /// How every network namespace of this lab begins.
    #[must_use]
    pub fn netns_prefix(&self) -> String {
        format!("hl-{}-", self.id)
    }

    /// The network namespaces of this lab that exist now.
    #[must_use]
    pub fn existing_netns(&self) -> Vec<String> {
        let prefix = self.netns_prefix();
        let Ok(entries) = std::fs::read_dir(NETNS_ROOT) else { return Vec::new() };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }
}

/// FNV-1a, folded to 32 bits: stable across builds, which `std`'s hasher does not promise.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

/// A pod's name within the lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
}

impl PodKey {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodKey {
    type Err = anyhow::Error;

    /// `name` (namespace `default`) or `namespace/name`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if !heddle_api::identity::is_label(namespace) || !heddle_api::identity::is_subdomain(name) {
            bail!("{text:?} is not a pod: write NAME or NAMESPACE/NAME");
        }
        Ok(Self::new(namespace, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_apart() {
        let lab = Layout::of_canonical(PathBuf::from("/srv/mesh"));
        assert_eq!(lab.id(), Layout::of_canonical(PathBuf::from("/srv/mesh")).id());
        assert_ne!(lab.id(), Layout::of_canonical(PathBuf::from("/srv/mesh2")).id());
        assert_eq!(lab.id().len(), 8);
        assert_ne!(
            lab.pod_netns(&PodKey::new("a-b", "c")),
            lab.pod_netns(&PodKey::new("a", "b-c"))
        );
        assert!(lab.pod_netns(&PodKey::new("a", "b")).starts_with(&lab.netns_prefix()));
    }

    #[test]
    fn pod_keys_read_both_spellings() {
        assert_eq!("web-1".parse::<PodKey>().unwrap(), PodKey::new("default", "web-1"));
        assert_eq!("shop/web-1".parse::<PodKey>().unwrap(), PodKey::new("shop", "web-1"));
        for bad in ["", "/", "a/", "/b", "a/b/c", "A", "a b"] {
            assert!(bad.parse::<PodKey>().is_err(), "{bad:?}");
        }
    }
}
