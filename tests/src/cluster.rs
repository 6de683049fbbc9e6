//! Real Kubernetes for tests: an API server by itself, and whole clusters of one or two nodes.
//!
//! The programs are Kubernetes' own, built by `scripts/kubernetes`. Nothing here imitates any of
//! them. An API server ends with the test that started it; a cluster stays until it is taken down,
//! and then leaves nothing.
//!
//! A node is a set of namespaces (network, mounts, host name) with containerd, kubelet and
//! kube-proxy in it. Everything of a cluster is in one control group and in one directory, which is
//! how it is found again whatever has happened to whoever made it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

pub mod api;
pub mod down;
pub mod forward;
pub mod hold;
pub mod kubeconfig;
pub mod layout;
pub mod pki;
pub mod process;
pub mod programs;
pub mod tools;
pub mod up;

mod cgroup;
mod control;
mod daemon;
mod dns;
mod etcd;
mod network;
mod node;
mod server_arguments;
mod temporary;

pub use temporary::{Cluster, mesh_images};

/// `heddle-cluster`: this program, or the one beside a test's.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    const NAME: &str = "heddle-cluster";
    let this = std::env::current_exe()?;
    if this.file_name().is_some_and(|name| name == NAME) {
        return Ok(this);
    }
    let dir = this.parent().and_then(Path::parent).context("no build directory")?;
    let path = dir.join(NAME);
    ensure!(path.is_file(), "{} is not built: run `make lab`", path.display());
    Ok(path)
}

/// Forgets the past of a cluster: a watch that resumes from before is answered 410.
///
/// # Errors
/// What etcd answers instead.
pub async fn compact(layout: &layout::Layout) -> anyhow::Result<()> {
    etcd::compact(&control::etcd_socket(layout)).await
}
