//! A namespace of a test's own.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;

/// The demo application.
pub const SHOP: &str = include_str!("../../../examples/kubernetes/shop.yaml");
/// 95 to 5.
pub const SPLIT: &str = include_str!("../../../examples/kubernetes/split.yaml");

pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const POLL: Duration = Duration::from_millis(200);

/// A namespace in a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Space<'a> {
    cluster: &'a Cluster,
    name: &'a str,
}

impl<'a> Space<'a> {
    /// Makes a namespace whose pods are injected. One that an earlier run has left goes first.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn meshed(cluster: &'a Cluster, name: &'a str) -> anyhow::Result<Self> {
        let this = Self::plain(cluster, name).await?;
        cluster.ask(&["label", "namespace", name, "heddle.io/inject=enabled"]).await?;
        Ok(this)
    }

    /// Makes a namespace outside the mesh.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn plain(cluster: &'a Cluster, name: &'a str) -> anyhow::Result<Self> {
        let delete = ["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"];
        cluster.ask(&delete).await?;
        cluster.ask(&["create", "namespace", name]).await?;
        Ok(Self { cluster, name })
    }

    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Applies manifests without a namespace of their own.
    ///
    /// # Errors
    /// What kubectl says against them.
    pub async fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        let arguments = ["apply", "--namespace", self.name, "--filename", "-"];
        self.cluster.kubectl_with(&arguments, manifests).await?.ok().map(drop)
    }

    /// Runs `kubectl` in the namespace and returns what it prints.
    ///
    /// # Errors
    /// What it says.
    pub async fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.ask(&[&["--namespace", self.name], arguments].concat()).await
    }

    /// Waits until Deployments or StatefulSets run what is declared.
    ///
    /// # Errors
    /// Which does not, and how its pods are.
    pub async fn rolled_out(&self, workloads: &[&str]) -> anyhow::Result<()> {
        for workload in workloads {
            let status = self.ask(&["rollout", "status", workload, "--timeout=120s"]).await;
            if let Err(error) = status {
                let pods = self.ask(&["get", "pods,events", "-o", "wide"]).await?;
                return Err(error).context(pods);
            }
        }
        Ok(())
    }

    /// Deploys the demo application and waits until it is Ready, with a sidecar in every pod.
    ///
    /// # Errors
    /// What is not.
    pub async fn deploy_shop(&self) -> anyhow::Result<()> {
        self.apply(SHOP).await?;
        self.rolled_out(&["deploy/frontend", "deploy/web-v1", "deploy/web-v2"]).await?;
        let path = "-o=jsonpath={range .items[*]}{.metadata.name} \
                    {.spec.initContainers[*].name}{\"\\n\"}{end}";
        let pods = self.ask(&["get", "pods", path]).await?;
        for pod in pods.lines() {
            ensure!(pod.contains(heddle_api::names::PROXY_CONTAINER), "not injected: {pod}");
        }
        Ok(())
    }

    /// Says whether every subscribed proxy runs the last version of a split.
    ///
    /// # Errors
    /// What its conditions say instead.
    pub async fn wait_until_programmed(&self, split: &str) -> anyhow::Result<()> {
        let name = format!("trafficsplit/{split}");
        let wait = ["wait", "--for=condition=Programmed", &name, "--timeout=60s"];
        if let Err(error) = self.ask(&wait).await {
            let status = self.ask(&["get", &name, "-o", "yaml"]).await?;
            return Err(error).context(status);
        }
        Ok(())
    }

    /// Sets the weights of the split `web`.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn set_weights(&self, v1: u8, v2: u8) -> anyhow::Result<()> {
        let patch = serde_json::json!({ "spec": { "backends": [
            { "service": "web-v1", "weight": v1 },
            { "service": "web-v2", "weight": v2 },
        ] } });
        let patch = patch.to_string();
        self.ask(&["patch", "trafficsplit", "web", "--type=merge", "-p", &patch]).await.map(drop)
    }

    /// Asks until the output satisfies.
    ///
    /// # Errors
    /// What it was last.
    pub async fn until(
        &self,
        what: &str,
        arguments: &[&str],
        is_it: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            // An API server that is away is what some tests are about.
            let found = self.ask(arguments).await;
            match found {
                Ok(output) if is_it(&output) => return Ok(output),
                found if begun.elapsed() > PATIENCE => {
                    anyhow::bail!("{what}: not after {PATIENCE:?}, but {found:?}")
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// Deletes the namespace and what is in it.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn remove(self) -> anyhow::Result<()> {
        let delete = ["delete", "namespace", self.name, "--timeout=120s"];
        self.cluster.ask(&delete).await.map(drop)
    }
}
