//! Names, numbers and places of a cluster. Nothing is recorded that a name does not give already,
//! so that a cluster can be removed whatever a crash has left of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;

/// Below it, one directory per cluster.
const ROOT: &str = "/var/lib/heddle-cluster";
/// The namespace that joins the nodes.
pub const WIRE: &str = "wire";
/// The node with the control plane of Kubernetes.
pub const FIRST_NODE: &str = "node1";
/// Addresses are one digit of the node's number.
pub const MOST_NODES: u8 = 2;
/// Where the API server listens, on the first node's address.
pub const API_PORT: u16 = 6443;
/// Every pod's name server, an address of the Service range.
pub const DNS_V4: &str = "10.96.0.10";
pub const DNS_V6: &str = "fd00:10:96::a";
/// The ranges of all pods of all nodes.
pub const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/48";

/// A cluster, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    name: String,
}

impl Layout {
    /// The cluster with this name, whether or not there is one.
    ///
    /// # Errors
    /// The name cannot be one of a directory and a control group.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.len() <= 40 && name.chars().all(good),
            "--name {name:?}: use up to 40 small letters, digits and hyphens"
        );
        Ok(Self { name: name.to_owned() })
    }

    /// Every cluster that something is left of.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().filter_map(|name| Self::new(name).ok()).collect()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster's own directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// Held by whoever changes the cluster; beside its directory, which comes and goes.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        Path::new(ROOT).join(format!(".{}.lock", self.name))
    }

    /// Certificates, keys, kubeconfigs; etcd's data and socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.dir().join("control")
    }

    /// One node's files.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.dir().join(node)
    }

    /// What was started: how, and as which process.
    #[must_use]
    pub fn processes(&self) -> PathBuf {
        self.dir().join("processes")
    }

    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    /// The administrator's kubeconfig, for use on the host.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Written last of all by `up`: how many nodes there are.
    #[must_use]
    pub fn ready(&self) -> PathBuf {
        self.dir().join("ready")
    }

    /// The cluster's control group, below the root of every hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        Path::new("heddle-cluster").join(&self.name)
    }

    /// The control group of a node's pods.
    #[must_use]
    pub fn pods_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup().join(node)
    }

    /// The nodes of a cluster that is up.
    ///
    /// # Errors
    /// It is not.
    pub fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        let count = fs::read_to_string(self.ready()).ok().and_then(|text| text.trim().parse().ok());
        let Some(count) = count else {
            anyhow::bail!("cluster {0} is not up: heddle-cluster --name {0} up", self.name);
        };
        Ok(Node::first(count))
    }
}

/// A node, by its number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(u8);

impl Node {
    /// The first so many.
    #[must_use]
    pub fn first(count: u8) -> Vec<Self> {
        (1..=count).map(Self).collect()
    }

    #[must_use]
    pub fn name(self) -> String {
        format!("node{}", self.0)
    }

    #[must_use]
    pub fn is_first(self) -> bool {
        self.0 == 1
    }

    #[must_use]
    pub fn address_v4(self) -> String {
        format!("10.254.0.{}", self.0)
    }

    #[must_use]
    pub fn address_v6(self) -> String {
        format!("fd00:254::{}", self.0)
    }

    #[must_use]
    pub fn pods_v4(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    #[must_use]
    pub fn pods_v6(self) -> String {
        format!("fd00:10:244:{}::/64", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_directories() {
        for name in ["default", "e2e-4711"] {
            assert_eq!(Layout::new(name).unwrap().name(), name);
        }
        for name in ["", "..", "a/b", "A", "a b", ".x", &"a".repeat(41)] {
            assert!(Layout::new(name).is_err(), "{name}");
        }
    }
}
