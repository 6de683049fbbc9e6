//! One request from inside a pod, and everything a test wants to know about its answer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde::{Deserialize, Serialize};

use crate::load::{Connection, Target};

/// What to send.
#[derive(Clone, Debug, clap::Args)]
pub struct CallOptions {
    /// Plain `http://host[:port]/path`.
    pub url: Target,
    #[arg(long, default_value = "GET")]
    pub method: http::Method,
    /// `name: value`, repeatable.
    #[arg(long = "header", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    #[arg(long, default_value = "")]
    pub body: String,
    /// How long connecting and answering may take together.
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
}

/// What came back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Called {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// Sends one request on a connection of its own. An error means that no whole answer came.
pub async fn call(options: &CallOptions) -> anyhow::Result<Called> {
    let limit = Duration::from_millis(options.timeout_ms);
    let answer = tokio::time::timeout(limit, exchange(options)).await;
    answer.with_context(|| format!("no answer within {limit:?}"))?
}

async fn exchange(options: &CallOptions) -> anyhow::Result<Called> {
    let mut request = Request::builder().method(&options.method).uri(&options.url.path);
    request = request.header(http::header::HOST, options.url.authority());
    for (name, value) in &options.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(options.body.clone())))?;
    let mut connection = Connection::open(&options.url).await?;
    let (head, body) = connection.send(request).await?.into_parts();
    let body = body.collect().await.context("the answer broke off")?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Called {
        status: head.status.as_u16(),
        headers: head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
