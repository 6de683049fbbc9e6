//! What Kubernetes and the mesh's own control plane can lose while traffic goes on: each loss under
//! GETs and POSTs that nobody repeats, with no failed request, and with the mesh whole afterwards.
//!
//! Runs under `make e2e`, on a cluster of the harness, whose parts it kills.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::cluster::layout::Layout;
use heddle_tests::cluster::{Cluster, compact, process};
use heddle_tests::e2e::{CONTROL_PLANE, Ledgers, Load, NAMESPACE, Plan, SPLIT, Space, install};
use heddle_tests::faults::{Account, now_us};
use nix::sys::signal::Signal;
use tokio::time::sleep;

/// How long a part stays away.
const AWAY: Duration = Duration::from_secs(8);

/// A shop under load, and the part that is about to be lost.
struct Stage<'a> {
    space: Space<'a>,
    ledgers: Ledgers,
    load: Load<'a>,
}

impl<'a> Stage<'a> {
    async fn begin(cluster: &'a Cluster, name: &'a str, seconds: u32) -> anyhow::Result<Self> {
        install(cluster).await?;
        let space = Space::meshed(cluster, name).await?;
        space.deploy_shop().await?;
        let ledgers = Ledgers::follow(space, "app=web");
        let load = Load::start(space, "load", &Plan::of("http://web/", seconds)).await?;
        space.apply(SPLIT).await?;
        space.wait_until_programmed("web").await?;
        Ok(Self { space, ledgers, load })
    }

    /// The mesh is whole: a change reaches the proxies, and a new pod joins.
    async fn converges(&self) -> anyhow::Result<()> {
        self.space.set_weights(0, 100).await?;
        self.space.wait_until_programmed("web").await?;
        self.space.ask(&["rollout", "restart", "deploy/web-v1"]).await?;
        self.space.rolled_out(&["deploy/web-v1"]).await?;
        let exec = ["exec", "deploy/frontend", "--", "heddle-app", "call", "http://web/"];
        let answer = self.space.ask(&exec).await?;
        ensure!(answer.contains("web-v2"), "the new weights are not in force: {answer}");
        Ok(())
    }

    /// The load was there throughout, and every request was answered once.
    async fn end(self) -> anyhow::Result<()> {
        let over_us = now_us();
        let records = self.load.finish().await?;
        let last_us = records.iter().map(|record| record.started_us).max().unwrap_or(0);
        ensure!(last_us > over_us, "the load ended before the fault was over");
        let entries = self.ledgers.finish(&records).await;
        Account::new(records, entries).expect_clean()?;
        self.space.remove().await
    }
}

fn layout(cluster: &Cluster) -> anyhow::Result<&Layout> {
    cluster.layout().context("this kills parts of a cluster: it needs one of `make e2e`'s own")
}

async fn scale(cluster: &Cluster, replicas: u32) -> anyhow::Result<()> {
    let deployment = format!("deployment/{CONTROL_PLANE}");
    let replicas = format!("--replicas={replicas}");
    cluster.ask(&["scale", "-n", NAMESPACE, &deployment, &replicas]).await?;
    cluster.ask(&["rollout", "status", "-n", NAMESPACE, &deployment, "--timeout=120s"]).await?;
    Ok(())
}

async fn leader(cluster: &Cluster) -> anyhow::Result<String> {
    let path = "-o=jsonpath={.spec.holderIdentity}";
    cluster.ask(&["get", "lease", "-n", NAMESPACE, CONTROL_PLANE, path]).await
}

#[tokio::test]
async fn without_a_control_plane() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    let stage = Stage::begin(&cluster, "no-control-plane", 75).await?;
    scale(&cluster, 0).await?;
    sleep(AWAY).await;
    scale(&cluster, 2).await?;
    stage.converges().await?;
    stage.end().await
}

#[tokio::test]
async fn without_its_leader() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    let stage = Stage::begin(&cluster, "no-leader", 75).await?;
    let old = leader(&cluster).await?;
    let pod = old.split('/').next_back().unwrap_or_default();
    cluster.ask(&["delete", "pod", "-n", NAMESPACE, pod, "--force", "--grace-period=0"]).await?;
    let begun = tokio::time::Instant::now();
    while leader(&cluster).await? == old {
        ensure!(begun.elapsed() < Duration::from_secs(60), "nobody takes over from {old}");
        sleep(Duration::from_millis(200)).await;
    }
    eprintln!("another leader after {:.1} s", begun.elapsed().as_secs_f32());
    stage.converges().await?;
    stage.end().await
}

#[tokio::test]
async fn without_the_api_server() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    let layout = layout(&cluster)?;
    let stage = Stage::begin(&cluster, "no-api-server", 120).await?;
    process::stop(layout, "kube-apiserver", Signal::SIGKILL).await?;
    sleep(AWAY).await;
    process::restart(layout, "kube-apiserver")?;
    stage.space.until("the API server", &["get", "pods"], |_| true).await?;
    stage.converges().await?;
    stage.end().await
}

#[tokio::test]
async fn after_a_compaction_of_everything_that_watches_could_resume_from() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    let layout = layout(&cluster)?;
    let stage = Stage::begin(&cluster, "compacted", 120).await?;
    process::stop(layout, "kube-apiserver", Signal::SIGKILL).await?;
    // What happens meanwhile is in no watch cache of the server that comes back.
    compact(layout).await?;
    process::restart(layout, "kube-apiserver")?;
    stage.space.until("the API server", &["get", "pods"], |_| true).await?;
    stage.space.set_weights(50, 50).await?;
    compact(layout).await?;
    stage.converges().await?;
    stage.end().await
}

#[tokio::test]
async fn with_a_new_webhook_certificate() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    let stage = Stage::begin(&cluster, "new-certificate", 75).await?;
    let read =
        ["get", "secret", "-n", NAMESPACE, "heddle-webhook", "-o=jsonpath={.data.tls\\.crt}"];
    let old = cluster.ask(&read).await?;
    cluster.ask(&["delete", "secret", "-n", NAMESPACE, "heddle-webhook"]).await?;
    let begun = tokio::time::Instant::now();
    loop {
        let new = cluster.ask(&[&read[..], &["--ignore-not-found"]].concat()).await?;
        if !new.is_empty() && new != old {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "no new certificate");
        sleep(Duration::from_millis(200)).await;
    }
    stage.converges().await?;
    stage.end().await
}

#[tokio::test]
async fn with_a_new_kubelet() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    let layout = layout(&cluster)?;
    let stage = Stage::begin(&cluster, "new-kubelet", 100).await?;
    for node in layout.nodes()? {
        let kubelet = format!("kubelet-{}", node.name());
        process::stop(layout, &kubelet, Signal::SIGKILL).await?;
        sleep(AWAY / 2).await;
        process::restart(layout, &kubelet)?;
        // A kubelet that starts calls its pods unready until their next probe: the other node's
        // stay, if they do.
        sleep(AWAY).await;
        stage.space.rolled_out(&["deploy/web-v1", "deploy/web-v2"]).await?;
    }
    stage
        .space
        .until("a log", &["logs", "deploy/web-v1", "-c", "app", "--tail=1"], |_| true)
        .await?;
    stage.converges().await?;
    stage.end().await
}
