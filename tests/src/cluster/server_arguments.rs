//! The flags of etcd, the API server and the controllers: one place, so that an API server by
//! itself and the one of a cluster are the same.

use std::net::IpAddr;
use std::path::Path;

/// The Service ranges: IPv4 first, so that it is the primary family.
pub(crate) const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The Service `kubernetes` in `default`: the first address of its range.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// Issuer of service-account tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The server's own names, for its certificate, besides the address it listens on.
pub(crate) fn server_names(address: IpAddr) -> Vec<String> {
    [
        "localhost",
        "127.0.0.1",
        API_SERVICE,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([address.to_string()])
    .collect()
}

/// etcd with all its sockets in `dir`, where it has to run: its peers' socket has a relative name.
/// It never waits for the disk, which nobody's test survives anyway.
pub(crate) fn etcd(dir: &Path) -> Vec<String> {
    let client = format!("unix://{}", dir.join("etcd.sock").display());
    [
        "--name=default",
        "--data-dir=etcd",
        "--unsafe-no-fsync",
        "--log-level=error",
        "--listen-peer-urls=unix://peer.sock:0",
        // Announced to other members, of which there are none.
        "--advertise-client-urls=http://localhost:2379",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!("--listen-client-urls={client}")])
    .collect()
}

/// The API server, with certificates from `dir`.
pub(crate) fn api_server(dir: &Path, address: IpAddr, port: u16) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    vec![
        format!("--etcd-servers=unix://{}", dir.join("etcd.sock").display()),
        format!("--bind-address={address}"),
        format!("--secure-port={port}"),
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "server.crt"),
        file("tls-private-key-file", "server.key"),
        file("service-account-key-file", "service-account.pub"),
        file("service-account-signing-key-file", "service-account.key"),
        format!("--service-account-issuer={ISSUER}"),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ]
}

/// The controllers, with the kubeconfig `controllers.kubeconfig` of `dir`.
pub(crate) fn controllers(dir: &Path) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    vec![
        file("kubeconfig", "controllers.kubeconfig"),
        file("root-ca-file", "ca.crt"),
        file("service-account-private-key-file", "service-account.key"),
        file("cluster-signing-cert-file", "ca.crt"),
        file("cluster-signing-key-file", "ca.key"),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
        "--profiling=false".into(),
    ]
}
