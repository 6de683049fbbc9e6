//! The calling side: one request or many, each printed as a block of lines
//! (`[n] StatusCode=…`, `[n] ResponseHeader=…`, `[n body] …`), blocks apart by an empty line.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{GRPC_PATH, MESSAGE_LIMIT, Text, frame, unframe};

/// For everything about one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of a batch that are under way at once.
const CONCURRENCY: usize = 8;

/// What is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `http://host[:port]/path` or `grpc://host:port`.
    url: Uri,
    #[arg(long, default_value = "GET")]
    method: Method,
    /// `Name:value`; `Host` replaces the URL's.
    #[arg(short = 'H', value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Requests, each on a connection of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
}

fn parse_header(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("write Name:value")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

/// Makes the requests and prints what was answered.
///
/// # Errors
/// The first request that got no answer.
pub async fn run(options: Options) -> anyhow::Result<String> {
    let calls = (0..options.count).map(|index| {
        let options = options.clone();
        async move {
            let call = call(&options, index);
            tokio::time::timeout(TIMEOUT, call).await.context("no answer in time")?
        }
    });
    let mut blocks = Vec::with_capacity(usize::try_from(options.count)?);
    let mut answers = stream::iter(calls).buffered(CONCURRENCY);
    while let Some(answer) = answers.next().await {
        blocks.push(answer?);
    }
    Ok(blocks.join("\n"))
}

async fn call(options: &Options, index: u32) -> anyhow::Result<String> {
    let host = options.url.host().context("the URL names no host")?;
    let (grpc, default_port) = match options.url.scheme_str() {
        Some("http") => (false, 80),
        Some("grpc") => (true, 7070),
        _ => bail!("write http://… or grpc://…"),
    };
    let port = options.url.port_u16().unwrap_or(default_port);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    let mut block = format!("[{index}] Url={}\n", options.url);
    if grpc {
        call_grpc(options, stream, index, &mut block).await?;
    } else {
        call_http(options, stream, index, &mut block).await?;
    }
    Ok(block)
}

async fn call_http(
    options: &Options,
    stream: TcpStream,
    index: u32,
    block: &mut String,
) -> anyhow::Result<()> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = options.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut request = Request::builder().method(&options.method).uri(path);
    let headers = request.headers_mut().context("the URL's path is malformed")?;
    let authority = options.url.authority().context("the URL names no host")?;
    headers.insert(HOST, authority.as_str().parse()?);
    set_headers(headers, options);
    let response = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MESSAGE_LIMIT).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    print(block, index, head.status.as_u16(), &head.headers, &String::from_utf8_lossy(&body));
    Ok(())
}

async fn call_grpc(
    options: &Options,
    stream: TcpStream,
    index: u32,
    block: &mut String,
) -> anyhow::Result<()> {
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let authority = options.url.authority().context("the URL names no host")?;
    let uri = Uri::builder().scheme("http").authority(authority.clone()).path_and_query(GRPC_PATH);
    let mut request = Request::post(uri.build()?).version(Version::HTTP_2);
    let headers = request.headers_mut().context("the URL is malformed")?;
    set_headers(headers, options);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    let body = Full::new(frame(&Text { message: String::new() }));
    let (head, body) = sender.send_request(request.body(body)?).await?.into_parts();
    let body = Limited::new(body, MESSAGE_LIMIT).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or(head.headers.get("grpc-status"));
    let status = status.and_then(|status| status.to_str().ok()).unwrap_or("none");
    ensure!(status == "0", "gRPC status {status} (HTTP {})", head.status);
    let text = unframe(&body.to_bytes())?;
    print(block, index, head.status.as_u16(), &head.headers, &text.message);
    Ok(())
}

fn set_headers(headers: &mut HeaderMap, options: &Options) {
    headers.insert(USER_AGENT, HeaderValue::from_static("heddle-echo"));
    for (name, value) in &options.headers {
        if name == HOST {
            headers.insert(name, value.clone());
        } else {
            headers.append(name, value.clone());
        }
    }
}

fn print(block: &mut String, index: u32, status: u16, headers: &HeaderMap, body: &str) {
    let _ = writeln!(block, "[{index}] StatusCode={status}");
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let _ = writeln!(block, "[{index}] ResponseHeader={name}:{value}");
    }
    for line in body.lines() {
        let _ = writeln!(block, "[{index} body] {line}");
    }
}
