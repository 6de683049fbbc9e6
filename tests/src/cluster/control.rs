//! Kubernetes' own control plane, on the first node.

use std::path::PathBuf;

use super::layout::{API_PORT, FIRST_NODE, Layout, MOST_NODES, Node};
use super::pki::{Authority, write_service_account_keys};
use super::process::{self, Launch};
use super::programs::Programs;
use super::{kubeconfig, server_arguments};

/// Makes every certificate and kubeconfig that the cluster will need.
///
/// # Errors
/// As the file system's.
pub(crate) fn write_credentials(layout: &Layout, nodes: &[Node]) -> anyhow::Result<Authority> {
    let dir = layout.control();
    let authority = Authority::new(&format!("heddle-cluster {}", layout.name()))?;
    authority.pair().write(&dir, "ca")?;
    write_service_account_keys(&dir)?;
    let first = Node::first(MOST_NODES)[0];
    let mut names = server_arguments::server_names(first.address_v4().parse()?);
    names.push("fd00:10:96::1".into());
    authority.server("kube-apiserver", &names)?.write(&dir, "server")?;
    authority.client("kube-apiserver", &["system:masters"])?.write(&dir, "kubelet-client")?;
    let url = format!("https://{}:{API_PORT}", first.address_v4());
    let write = |name: &str, user: &str, groups: &[&str]| {
        let pair = authority.client(user, groups)?;
        let path = dir.join(format!("{name}.kubeconfig"));
        kubeconfig::write(&path, &url, authority.certificate(), &pair)
    };
    write("controllers", "system:kube-controller-manager", &[])?;
    write("scheduler", "system:kube-scheduler", &[])?;
    write("proxy", "system:kube-proxy", &[])?;
    for node in nodes {
        let name = node.name();
        write(&name, &format!("system:node:{name}"), &["system:nodes"])?;
        let addresses = [name.clone(), node.address_v4(), node.address_v6()];
        let pair = authority.server(&format!("system:node:{name}"), &addresses)?;
        pair.write(&dir, &format!("kubelet-{name}"))?;
    }
    Ok(authority)
}

/// Starts etcd and the API server.
///
/// # Errors
/// When one cannot be started at all.
pub(crate) fn start_server(layout: &Layout, programs: &Programs) -> anyhow::Result<()> {
    let dir = layout.control();
    start(layout, programs, "etcd", server_arguments::etcd(&dir))?;
    let first = Node::first(1)[0];
    let mut arguments = server_arguments::api_server(&dir, first.address_v4().parse()?, API_PORT);
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    arguments.extend([
        format!("--advertise-address={}", first.address_v4()),
        "--enable-admission-plugins=NodeRestriction".into(),
        file("kubelet-certificate-authority", "ca.crt"),
        file("kubelet-client-certificate", "kubelet-client.crt"),
        file("kubelet-client-key", "kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP".into(),
    ]);
    start(layout, programs, "kube-apiserver", arguments)
}

/// Starts what makes a server's objects come true: the controllers and the scheduler.
///
/// # Errors
/// When one cannot be started at all.
pub(crate) fn start_controllers(layout: &Layout, programs: &Programs) -> anyhow::Result<()> {
    let dir = layout.control();
    let arguments = server_arguments::controllers(&dir);
    start(layout, programs, "kube-controller-manager", arguments)?;
    let arguments = vec![
        format!("--kubeconfig={}", dir.join("scheduler.kubeconfig").display()),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
        "--profiling=false".into(),
    ];
    start(layout, programs, "kube-scheduler", arguments)
}

fn start(
    layout: &Layout,
    programs: &Programs,
    name: &str,
    arguments: Vec<String>,
) -> anyhow::Result<()> {
    let program = programs.path(name).display().to_string();
    let launch = Launch {
        name: name.into(),
        node: FIRST_NODE.into(),
        cwd: layout.control(),
        argv: [program].into_iter().chain(arguments).collect(),
    };
    process::start(layout, &launch).map(drop)
}

/// etcd's socket, which works from outside its namespace.
#[must_use]
pub(crate) fn etcd_socket(layout: &Layout) -> PathBuf {
    layout.control().join("etcd.sock")
}
