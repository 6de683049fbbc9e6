//! Objects that must be taken: one of each kind with every field, and those of the documents.

use std::fs;

use serde_json::Value;

use super::{parse, root};

/// One of each kind, every field set. The bad objects are made from them.
pub(crate) const EVERY_FIELD: [&str; 5] = [SPLIT, POLICY, AUTHORIZATION, TLS, MESH];

pub(crate) const SPLIT: &str = r"
apiVersion: heddle.io/v1alpha1
kind: TrafficSplit
metadata: { name: web, namespace: default }
spec:
  service: web
  backends:
    - { service: web-v1, weight: 95 }
    - { service: web, weight: 5, selector: { app.kubernetes.io/version: v2 }, ports: [{ from: 80, to: 8080 }] }
";

pub(crate) const POLICY: &str = r#"
apiVersion: heddle.io/v1alpha1
kind: TrafficPolicy
metadata: { name: payments, namespace: default }
spec:
  targetRef: { kind: Service, name: payments }
  timeouts: { request: 2s, perTry: 500ms, connect: 1s, idle: 1h }
  retries: { attempts: 2, when: [connect, "503"], budget: { percent: 20, minPerSecond: 10 }, backoff: { base: 25ms, max: 1s } }
  circuitBreaker: { consecutiveFailures: 5, openFor: 30s, maxEjectedPercent: 50 }
  loadBalancer: { algorithm: peakEwma }
"#;

pub(crate) const AUTHORIZATION: &str = r#"
apiVersion: heddle.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: payments, namespace: default }
spec:
  targetRef: { kind: Pods, selector: { app: payments } }
  rules:
    - action: Allow
      from: [{ serviceAccount: frontend, namespace: shop }, { anyone: true }]
      to: [{ ports: [8080], methods: [POST], paths: ["/charge"] }]
"#;

pub(crate) const TLS: &str = r"
apiVersion: heddle.io/v1alpha1
kind: MeshTLSPolicy
metadata: { name: legacy, namespace: default }
spec:
  targetRef: { kind: Pods, selector: { app: legacy } }
  mode: Strict
  ports: [{ port: 9090, mode: Permissive }]
";

pub(crate) const MESH: &str = r#"
apiVersion: heddle.io/v1alpha1
kind: Mesh
metadata: { name: default }
spec:
  trustDomain: cluster.local
  tls: Strict
  authorization: Deny
  outboundPassthrough: Deny
  clusterRanges: ["10.0.0.0/8", "fd00::/64"]
"#;

/// Every object of ours in the documents and in the examples, each with its place.
pub(crate) fn documented() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("docs"), root().join("examples")];
    let readme = root().join("README.md");
    let mut files = vec![readme];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let blocks: Vec<&str> = match path.extension().and_then(|extension| extension.to_str()) {
            Some("md") => {
                let blocks = text.split("```yaml\n").skip(1);
                blocks.filter_map(|rest| rest.split("```").next()).collect()
            }
            Some("yaml") => vec![&text],
            _ => continue,
        };
        for document in blocks.iter().flat_map(|block| block.split("\n---")) {
            if document.contains("apiVersion: heddle.io/") {
                found.push((path.display().to_string(), parse(document)));
            }
        }
    }
    found
}
