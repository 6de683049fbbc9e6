//! The cluster's name server: CoreDNS in a pod, behind the Service `kube-dns`, as everywhere.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::{Value, json};

use super::layout::{DNS_V4, DNS_V6};
use super::programs::Programs;

const IMAGE: &str = "heddle-cluster/coredns:1";
/// There is nobody to forward to: a name outside the cluster does not exist.
const COREFILE: &str = "cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods verified
        ttl 5
    }
}
.:53 {
    errors
    template ANY ANY {
        rcode NXDOMAIN
    }
}
";

/// The images that every cluster needs.
///
/// # Errors
/// They are not built yet.
pub(crate) fn images(programs: &Programs) -> anyhow::Result<Vec<PathBuf>> {
    let images = ["pause", "coredns"].map(|name| programs.path(&format!("images/{name}.tar")));
    for image in &images {
        ensure!(image.is_file(), "no {}: run `scripts/kubernetes cluster`", image.display());
    }
    Ok(images.into())
}

/// What to apply, in order.
pub(crate) fn manifests() -> Vec<Value> {
    let metadata = |name: &str| json!({ "name": name, "namespace": "kube-system" });
    let labels = json!({ "k8s-app": "kube-dns" });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("coredns") }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:coredns" },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:coredns",
            },
            "subjects": [
                { "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" },
            ],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata("coredns"),
            "data": { "Corefile": COREFILE },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata("kube-dns"),
            "spec": {
                "selector": labels,
                "clusterIP": DNS_V4,
                "clusterIPs": [DNS_V4, DNS_V6],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP" },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
                ],
            },
        }),
        deployment(&metadata("coredns"), &labels),
    ]
}

fn deployment(metadata: &Value, labels: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "serviceAccountName": "coredns",
                    "priorityClassName": "system-cluster-critical",
                    "dnsPolicy": "Default",
                    "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
                    "containers": [{
                        "name": "coredns",
                        "image": IMAGE,
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns" }],
                        "readinessProbe": {
                            "httpGet": { "path": "/ready", "port": 8181 },
                            "periodSeconds": 1,
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
                        },
                    }],
                },
            },
        },
    })
}
