//! Installs the mesh as an operator would: two charts, no values.

use std::path::Path;

use anyhow::Context as _;
use tokio::time::sleep;

use super::space::{PATIENCE, POLL};
use crate::cluster::Cluster;

/// The control plane's namespace.
pub const NAMESPACE: &str = heddle_api::names::CONTROL_PLANE_NAMESPACE;
/// Its Deployment, Service and Lease.
pub const CONTROL_PLANE: &str = "heddle-control-plane";

/// Installs both charts, unless they are; returns when the control plane is available and the API
/// server reaches its webhook.
///
/// # Errors
/// What helm says, or what is not ready.
pub async fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let listed = cluster.helm(&["list", "--namespace", NAMESPACE, "--short"]).await?.ok()?.out;
    for chart in ["heddle-crds", "heddle"] {
        if listed.lines().any(|release| release == chart) {
            continue;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts").join(chart);
        let path = path.display().to_string();
        let arguments = ["install", chart, &path, "--namespace", NAMESPACE, "--create-namespace"];
        let wait = ["--wait", "--timeout", "180s"];
        let ran = cluster.helm(&[&arguments[..], &wait].concat()).await?;
        if let Err(error) = ran.ok() {
            let pods = cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "wide"]).await?;
            let select = "app.kubernetes.io/component=control-plane";
            let logs = ["logs", "-n", NAMESPACE, "-l", select, "--tail=30", "--prefix"];
            let logs = cluster.kubectl(&logs).await?;
            return Err(error)
                .with_context(|| format!("install {chart}\n{}\n{}", pods.out, logs.excerpt()));
        }
    }
    let deployment = format!("deployment/{CONTROL_PLANE}");
    let status = ["rollout", "status", "-n", NAMESPACE, &deployment, "--timeout=120s"];
    cluster.ask(&status).await?;
    wait_for_webhook(cluster).await
}

/// Waits until the leader has written its authority into every webhook.
async fn wait_for_webhook(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = tokio::time::Instant::now();
    let kind = "mutatingwebhookconfiguration/heddle";
    let path = "-o=jsonpath={range .webhooks[*]}{.clientConfig.caBundle}{\"\\n\"}{end}";
    loop {
        let bundles = cluster.ask(&["get", kind, path]).await?;
        if bundles.lines().count() > 0 && bundles.lines().all(|bundle| !bundle.is_empty()) {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "{kind} has no caBundle after {PATIENCE:?}");
        sleep(POLL).await;
    }
}
