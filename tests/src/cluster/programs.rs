//! Where the programs of Kubernetes are. Builds nothing: `scripts/kubernetes` does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// What an API server by itself consists of.
pub const API: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];
/// What a cluster needs besides.
pub const CLUSTER: [&str; 5] = ["kube-scheduler", "kubelet", "kube-proxy", "coredns", "helm"];

/// The folder of programs of the versions that `scripts/kubernetes` names.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Finds the folder and makes sure that it holds `needed`.
    ///
    /// # Errors
    /// Names what is missing and the command that builds it.
    pub fn find(needed: &[&str]) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kubernetes");
        let output = Command::new(&script).arg("path").output();
        let output = output.with_context(|| format!("run {}", script.display()))?;
        ensure!(output.status.success(), "{} path: {}", script.display(), output.status);
        let this = Self(String::from_utf8(output.stdout)?.trim_end().into());
        let missing: Vec<_> =
            needed.iter().copied().filter(|name| !this.path(name).is_file()).collect();
        let what = if missing.iter().all(|name| API.contains(name)) { "api" } else { "cluster" };
        ensure!(
            missing.is_empty(),
            "{} lacks {}: run `scripts/kubernetes {what}`",
            this.0.display(),
            missing.join(", ")
        );
        Ok(this)
    }

    /// Where the program is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The folder, for the search path of whoever calls `kubectl` or `helm` by name.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The definitions of the Gateway API: `standard` or `experimental`.
    #[must_use]
    pub fn gateway_api(&self, channel: &str) -> PathBuf {
        self.0.join("gateway-api").join(channel)
    }
}
