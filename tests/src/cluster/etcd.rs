//! What nobody asks of etcd but a test: to forget the past. Its JSON gateway, over its socket.

use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// Compacts everything before now.
pub(crate) async fn compact(socket: &Path) -> anyhow::Result<()> {
    // Any key does; the answer's header carries the revision, as text.
    let header = post(socket, "/v3/kv/range", &json!({ "key": "AA==" })).await?;
    let revision = &header["header"]["revision"];
    ensure!(revision.is_string(), "etcd's answer has no revision: {header}");
    let wanted = json!({ "revision": revision, "physical": true });
    post(socket, "/v3/kv/compaction", &wanted).await.map(drop)
}

async fn post(socket: &Path, path: &str, body: &Value) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(socket).await.context("connect to etcd")?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its error also reaches the request that was on it.
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(body.to_string()));
    let request = Request::post(path).header("host", "etcd").body(body)?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "etcd: {path}: {status}: {}", String::from_utf8_lossy(&bytes));
    Ok(serde_json::from_slice(&bytes)?)
}
