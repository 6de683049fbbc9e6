//! Makes a cluster, from nothing to Ready.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Client, ResourceExt as _};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::api::{client_of, is_ready};
use super::layout::{Layout, MOST_NODES, Node, WIRE};
use super::pki::Authority;
use super::programs::{API, CLUSTER, Programs};
use super::{cgroup, control, dns, down, kubeconfig, network, node, process};

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u8,
    /// Archives of images to load into every node.
    pub images: Vec<PathBuf>,
    pub patience: Duration,
}

const POLL: Duration = Duration::from_millis(50);
/// The name of the process that forwards to the API server.
const FORWARDER: &str = "forwarder";

/// Makes the cluster; returns when its nodes are Ready and names are resolved. What is left of an
/// earlier attempt is removed first.
///
/// # Errors
/// What does not get ready, with the end of its log. What there is by then stays, to be looked at.
pub async fn up(layout: &Layout, options: &Options) -> anyhow::Result<()> {
    ensure!(
        (1..=MOST_NODES).contains(&options.nodes),
        "--nodes {}: a cluster has 1 to {MOST_NODES}",
        options.nodes
    );
    let programs = Programs::find(&[&API[..], &CLUSTER].concat())?;
    let images = [dns::images(&programs)?, options.images.clone()].concat();
    for image in &images {
        ensure!(image.is_file(), "there is no image archive {}", image.display());
    }
    let _lock = lock(layout)?;
    if layout.ready().exists() {
        bail!(
            "cluster {0} is up already; remove it: heddle-cluster --name {0} down",
            layout.name()
        );
    }
    down::remove(layout).await?;
    let begun = Instant::now();
    let nodes = Node::first(options.nodes);
    let made = make(layout, &programs, &nodes, &images, options.patience);
    made.await.with_context(|| format!("cluster {} did not come up", layout.name()))?;
    fs::write(layout.ready(), options.nodes.to_string())?;
    tracing::info!(seconds = begun.elapsed().as_secs(), "the cluster is ready");
    Ok(())
}

/// One at a time changes a cluster.
///
/// # Errors
/// Somebody else is at it, or this is not root.
pub fn lock(layout: &Layout) -> anyhow::Result<Flock<File>> {
    ensure!(nix::unistd::geteuid().is_root(), "a cluster needs root: run it again with sudo -E");
    let path = layout.lock();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755))?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!("cluster {} is being changed by somebody else: {error}", layout.name())
    })
}

async fn make(
    layout: &Layout,
    programs: &Programs,
    nodes: &[Node],
    images: &[PathBuf],
    patience: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let names: Vec<_> = nodes.iter().map(|node| node.name()).collect();
    for dir in [layout.dir(), layout.control(), layout.processes(), layout.logs()] {
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        // Keys of an administrator are in here.
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
    }
    for name in &names {
        fs::create_dir_all(layout.node(name))?;
    }
    cgroup::create(layout, &names)?;
    let authority = control::write_credentials(layout, nodes)?;
    let wire = process::start_holder(layout, WIRE)?;
    let mut holders = Vec::new();
    for node in nodes {
        holders.push((*node, process::start_holder(layout, &node.name())?));
    }
    network::connect(wire, &holders)?;
    control::start_server(layout, programs)?;
    for node in nodes {
        node::write_files(layout, *node)?;
        node::start_containerd(layout, *node).await?;
        for image in images {
            node::load_image(layout, *node, image).await?;
        }
    }
    let client = reach(layout, &authority, deadline).await?;
    control::start_controllers(layout, programs)?;
    for node in nodes {
        node::start_programs(layout, programs, *node)?;
    }
    for manifest in dns::manifests() {
        apply(&client, &manifest, deadline).await?;
    }
    for node in nodes {
        wait_for_node(layout, &client, *node, deadline).await?;
    }
    wait_for_dns(layout, &client, deadline).await
}

/// Makes the API server reachable from the host, and waits until it is ready.
async fn reach(
    layout: &Layout,
    authority: &Authority,
    deadline: Instant,
) -> anyhow::Result<Client> {
    process::start_own(layout, FORWARDER, &["__forward"])?;
    let port_file = layout.dir().join("port");
    let port = loop {
        if let Ok(port) = fs::read_to_string(&port_file) {
            break port;
        }
        wait_a_little(layout, &[FORWARDER], deadline, "the way to the API server").await?;
    };
    let admin = authority.client("admin", &["system:masters"])?;
    let url = format!("https://127.0.0.1:{port}");
    kubeconfig::write(&layout.kubeconfig(), &url, authority.certificate(), &admin)?;
    let client = client_of(&layout.kubeconfig()).await?;
    while !is_ready(&client).await {
        let needed = ["etcd", "kube-apiserver", FORWARDER];
        wait_a_little(layout, &needed, deadline, "the API server").await?;
    }
    Ok(client)
}

async fn apply(
    client: &Client,
    manifest: &serde_json::Value,
    deadline: Instant,
) -> anyhow::Result<()> {
    let object: DynamicObject = serde_json::from_value(manifest.clone())?;
    let types = object.types.as_ref().context("a manifest without a kind")?;
    let gvk = kube::core::GroupVersionKind::try_from(types)?;
    let resource = kube::core::ApiResource::from_gvk(&gvk);
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = PatchParams::apply("heddle-cluster").force();
    loop {
        match api.patch(&object.name_any(), &parameters, &Patch::Apply(&object)).await {
            Ok(_) => return Ok(()),
            // The namespace is made a moment after the server is ready.
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("apply {}", object.name_any()));
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

async fn wait_for_node(
    layout: &Layout,
    client: &Client,
    node: Node,
    deadline: Instant,
) -> anyhow::Result<()> {
    let name = node.name();
    let programs = [format!("kubelet-{name}"), format!("containerd-{name}")];
    let programs: Vec<_> = programs.iter().map(String::as_str).collect();
    let api: Api<NodeObject> = Api::all(client.clone());
    // The CNI configuration is ours, so what it uses is said here and not chosen by a controller.
    let ranges = json!({ "spec": {
        "podCIDR": node.pods_v4(), "podCIDRs": [node.pods_v4(), node.pods_v6()] } });
    loop {
        match api.get_opt(&name).await? {
            Some(found) if has_condition(&found, "Ready") => return Ok(()),
            Some(found) if found.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_none()) => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&ranges)).await?;
            }
            _ => wait_a_little(layout, &programs, deadline, &name).await?,
        }
    }
}

fn has_condition(node: &NodeObject, wanted: &str) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == wanted && condition.status == "True")
}

async fn wait_for_dns(layout: &Layout, client: &Client, deadline: Instant) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    loop {
        let status = api.get("coredns").await?.status.unwrap_or_default();
        if status.available_replicas.unwrap_or(0) > 0 {
            return Ok(());
        }
        wait_a_little(layout, &["kubelet-node1"], deadline, "CoreDNS").await?;
    }
}

/// Fails when one of `programs` has ended, or when it is late.
async fn wait_a_little(
    layout: &Layout,
    programs: &[&str],
    deadline: Instant,
    what: &str,
) -> anyhow::Result<()> {
    for program in programs {
        process::check(layout, program)?;
    }
    if Instant::now() > deadline {
        let logs: Vec<_> = programs.iter().map(|name| process::log_tail(layout, name)).collect();
        bail!("{what} is not ready in time:\n{}", logs.join("\n"));
    }
    sleep(POLL).await;
    Ok(())
}

/// Loads an archive of images into every node of a cluster that is up.
///
/// # Errors
/// What containerd says.
pub async fn load_image(layout: &Layout, archive: &Path) -> anyhow::Result<()> {
    for node in layout.nodes()? {
        node::load_image(layout, node, archive).await?;
    }
    Ok(())
}
