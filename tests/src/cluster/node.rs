//! What makes a namespace a node: containerd, kubelet and kube-proxy, and what they read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::layout::{DNS_V4, Layout, Node, POD_RANGES};
use super::process::{self, Launch};
use super::programs::Programs;

/// Where containerd listens, in the node.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of the container that keeps a pod's namespaces.
pub(crate) const PAUSE: &str = "heddle-cluster/pause:1";
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Writes what the node's programs read. Once: kube-proxy exits when its file changes.
///
/// # Errors
/// As the file system's.
pub(crate) fn write_files(layout: &Layout, node: Node) -> anyhow::Result<()> {
    let dir = layout.node(&node.name());
    let cni = dir.join("cni");
    fs::create_dir_all(&cni)?;
    let write = |path: PathBuf, text: String| {
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write(dir.join("containerd.toml"), containerd_config(layout, &cni)?)?;
    write(cni.join("10-heddle.conflist"), format!("{:#}", cni_config(node)))?;
    write(dir.join("kubelet.yaml"), format!("{:#}", kubelet_config(layout, node)))?;
    write(dir.join("kube-proxy.yaml"), format!("{:#}", kube_proxy_config(layout, node)))?;
    write(dir.join("resolv.conf"), format!("nameserver {DNS_V4}\n"))
}

/// Starts containerd and waits for its socket, without which the kubelet would give up.
///
/// # Errors
/// The end of its log.
pub(crate) async fn start_containerd(layout: &Layout, node: Node) -> anyhow::Result<()> {
    let name = format!("containerd-{}", node.name());
    let config = layout.node(&node.name()).join("containerd.toml");
    let argv = ["containerd", "--config", &config.display().to_string()].map(str::to_owned);
    start(layout, node, &name, argv.into())?;
    let begun = Instant::now();
    while !ctr(layout, node, &["version"]).await?.status.success() {
        process::check(layout, &name)?;
        if begun.elapsed() > PATIENCE {
            bail!("{name} does not answer:\n{}", process::log_tail(layout, &name));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Starts the kubelet and kube-proxy.
///
/// # Errors
/// When one cannot be started at all.
pub(crate) fn start_programs(
    layout: &Layout,
    programs: &Programs,
    node: Node,
) -> anyhow::Result<()> {
    let name = node.name();
    let dir = layout.node(&name);
    let kubeconfig = layout.control().join(format!("{name}.kubeconfig"));
    let kubelet = vec![
        programs.path("kubelet").display().to_string(),
        format!("--config={}", dir.join("kubelet.yaml").display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={},{}", node.address_v4(), node.address_v6()),
    ];
    start(layout, node, &format!("kubelet-{name}"), kubelet)?;
    let kube_proxy = vec![
        programs.path("kube-proxy").display().to_string(),
        format!("--config={}", dir.join("kube-proxy.yaml").display()),
    ];
    start(layout, node, &format!("kube-proxy-{name}"), kube_proxy)
}

/// Loads the images of an archive into the node.
///
/// # Errors
/// What containerd says.
pub(crate) async fn load_image(layout: &Layout, node: Node, archive: &Path) -> anyhow::Result<()> {
    let path = archive.display().to_string();
    let output = ctr(layout, node, &["-n", "k8s.io", "image", "import", &path]).await?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("load {path} into {}: {}", node.name(), error.trim());
    }
    Ok(())
}

async fn ctr(
    layout: &Layout,
    node: Node,
    arguments: &[&str],
) -> anyhow::Result<std::process::Output> {
    let mut command = Command::new(super::own_program()?);
    command.args(["--name", layout.name(), "exec", &node.name(), "--", "ctr"]);
    command.args(["--address", SOCKET]).args(arguments).kill_on_drop(true);
    command.output().await.context("run ctr (is containerd installed?)")
}

fn start(layout: &Layout, node: Node, name: &str, argv: Vec<String>) -> anyhow::Result<()> {
    let launch = Launch { name: name.into(), node: node.name(), cwd: "/".into(), argv };
    process::start(layout, &launch).map(drop)
}

/// All paths are the defaults: in the node they are the node's own.
fn containerd_config(layout: &Layout, cni: &Path) -> anyhow::Result<String> {
    // An overlay cannot lie on an overlay, which is what a machine that is itself a container has.
    let on_overlay = statfs(&layout.dir())?.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
    let snapshotter = if on_overlay { "native" } else { "overlayfs" };
    let cni = cni.display();
    Ok(format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# To lower it takes a privilege that not every machine's root has.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
"#
    ))
}

fn cni_config(node: Node) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "heddle",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                // Proxies check who calls them by address: it has to be the pod's.
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{ "subnet": node.pods_v4() }], [{ "subnet": node.pods_v6() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn kubelet_config(layout: &Layout, node: Node) -> Value {
    let control = layout.control();
    let file = |name: &str| control.join(name).display().to_string();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": file("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": file(&format!("kubelet-{}.crt", node.name())),
        "tlsPrivateKeyFile": file(&format!("kubelet-{}.key", node.name())),
        "clusterDNS": [DNS_V4],
        "clusterDomain": "cluster.local",
        "resolvConf": layout.node(&node.name()).join("resolv.conf"),
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": Path::new("/").join(layout.pods_cgroup(&node.name())),
        "failSwapOn": false,
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "evictionHard": { "memory.available": "100Mi" },
        // A load client writes a line per request.
        "containerLogMaxSize": "200Mi",
        // There is no registry to get an image back from.
        "imageGCHighThresholdPercent": 100,
        "maxPods": 250,
        "oomScoreAdj": 0,
        "registerNode": true,
    })
}

fn kube_proxy_config(layout: &Layout, node: Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": node.name(),
        "clusterCIDR": POD_RANGES,
        "clientConnection": { "kubeconfig": layout.control().join("proxy.kubeconfig") },
        // The table of connections belongs to the whole machine.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "oomScoreAdj": 0,
    })
}
