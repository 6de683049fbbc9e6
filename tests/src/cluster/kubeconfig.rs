//! Kubeconfig files: who talks to which API server, as what.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::pki::{Pair, write_secret};

/// Writes a kubeconfig that holds everything itself.
///
/// # Errors
/// As the file system's.
pub fn write(path: &Path, server: &str, authority: &str, user: &Pair) -> anyhow::Result<()> {
    let encode = |text: &str| STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "heddle",
            "cluster": { "server": server, "certificate-authority-data": encode(authority) },
        }],
        "users": [{
            "name": "heddle",
            "user": {
                "client-certificate-data": encode(&user.certificate),
                "client-key-data": encode(&user.key),
            },
        }],
        "contexts": [{ "name": "heddle", "context": { "cluster": "heddle", "user": "heddle" } }],
        "current-context": "heddle",
    });
    // JSON is YAML.
    write_secret(path, &format!("{config:#}\n"))
}
