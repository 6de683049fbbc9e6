//! The application behind every contender: an HTTP/1.1 and an HTTP/2 server whose answers carry the
//! id of the request, a sink for one TCP stream, and ports where the server speaks first. One
//! thread per contender, in the server's network namespace, fast enough never to be what is
//! measured.

use std::net::Ipv4Addr;
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::netns::{Door, Netns};
use crate::process::Pinned;

/// HTTP/1.1.
pub(crate) const HTTP1: u16 = 8080;
/// HTTP/1.1 too, for contenders that carry it over HTTP/2 between their sidecars.
pub(crate) const HTTP1_OVER_HTTP2: u16 = 8081;
/// HTTP/2 with prior knowledge.
pub(crate) const HTTP2: u16 = 8082;
/// Swallows a stream and answers its length.
pub(crate) const SINK: u16 = 9000;
/// The server speaks first; as many ports as there are pairs to measure.
pub(crate) const GREETERS: std::ops::Range<u16> = 9101..9131;

pub(crate) const GREETING: &[u8] = b"220 bench ready\r\n";
/// Length of every HTTP answer.
pub(crate) const BODY: usize = 1024;
/// Length of an id: 16 hexadecimal digits.
pub(crate) const ID: usize = 16;

const MAX_HEAD: usize = 16 << 10;
/// A gRPC message is preceded by a flag and its length.
pub(crate) const GRPC_PREFIX: usize = 5;

/// Runs until dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    _stop: oneshot::Sender<()>,
}

impl Backend {
    /// Returns when every port is open.
    pub(crate) fn start(netns: &Netns, cpu: Option<usize>) -> anyhow::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let door = netns.door()?;
        std::thread::Builder::new().name("backend".into()).spawn(move || {
            let outcome = run(door, cpu, stopped, &ready);
            if let Err(error) = outcome {
                // The one who started us may have seen success already: then this is lost, and
                // requests that fail tell the rest.
                let _ = ready.send(Err(error));
            }
        })?;
        started.recv().context("the backend's thread ended without a word")??;
        Ok(Self { _stop: stop })
    }
}

fn run(
    door: Door,
    cpu: Option<usize>,
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    door.pass()?;
    let _pinned = cpu.map(Pinned::to).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        listen(HTTP1, serve_http1).await?;
        listen(HTTP1_OVER_HTTP2, serve_http1).await?;
        listen(HTTP2, serve_http2).await?;
        listen(SINK, swallow).await?;
        for port in GREETERS {
            listen(port, greet).await?;
        }
        ready.send(Ok(()))?;
        // An error means that the other end was dropped, which is how it says "stop".
        let _ = stopped.await;
        Ok(())
    })
}

async fn listen<F>(port: u16, serve: fn(TcpStream) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("listen on port {port}"))?;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A connection that breaks is the client's to report: it counts what it lost.
            tokio::task::spawn_local(async move {
                stream.set_nodelay(true).map(|()| serve(stream))?.await
            });
        }
    });
    Ok(())
}

/// The answer to every request, with room for its id.
fn answer() -> (Vec<u8>, [usize; 2]) {
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\nx-id: ");
    let header_id = head.len();
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&[b'-'; ID]);
    answer.extend_from_slice(b"\r\n\r\n");
    let body_id = answer.len();
    answer.extend_from_slice(&body(&[b'-'; ID]));
    (answer, [header_id, body_id])
}

/// The body that answers a request.
pub(crate) fn body(id: &[u8; ID]) -> [u8; BODY] {
    let mut body = [b'.'; BODY];
    body[..ID].copy_from_slice(id);
    body
}

/// Enough of HTTP/1.1 for requests without a body: `GET /<id>`.
async fn serve_http1(mut stream: TcpStream) -> anyhow::Result<()> {
    let (mut answer, places) = answer();
    let mut buffer = BytesMut::with_capacity(MAX_HEAD);
    let end = memmem::Finder::new(b"\r\n\r\n");
    loop {
        let Some(length) = end.find(&buffer) else {
            if buffer.len() >= MAX_HEAD {
                bail!("a request head without an end");
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let id = buffer.strip_prefix(b"GET /").and_then(|rest| rest.first_chunk::<ID>());
        let id = *id.context("not a request of ours")?;
        buffer.advance(length + 4);
        for place in places {
            answer[place..place + ID].copy_from_slice(&id);
        }
        stream.write_all(&answer).await?;
        // Keeps its allocation instead of creeping through memory.
        buffer.reserve(MAX_HEAD - buffer.len());
    }
}

async fn serve_http2(stream: TcpStream) -> anyhow::Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        tokio::task::spawn_local(answer_grpc(request, respond));
    }
    Ok(())
}

/// A unary call: the message's first bytes are the id, the answer a message of [`BODY`] bytes.
async fn answer_grpc(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> anyhow::Result<()> {
    let message = read_body(&mut request.into_body()).await?;
    let id = message.get(GRPC_PREFIX..).and_then(|rest| rest.first_chunk::<ID>());
    let id = id.context("a message without an id")?;
    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(grpc_message(&body(id)), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}

/// A whole body, its window given back. Trailers are left in `body`.
pub(crate) async fn read_body(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut whole = Bytes::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        // One frame is the rule, and needs no copy.
        whole = if whole.is_empty() { data } else { [whole, data].concat().into() };
    }
    Ok(whole)
}

/// A message as gRPC frames it.
pub(crate) fn grpc_message(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages here are small");
    let mut framed = BytesMut::with_capacity(GRPC_PREFIX + message.len());
    framed.extend_from_slice(&[0]);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    framed.freeze()
}

async fn swallow(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => total += length as u64,
        }
    }
    stream.write_all(&total.to_be_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn greet(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.write_all(GREETING).await?;
    // The client closes first, so that it is not the server's port that lingers.
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_a_place_for_the_id_in_head_and_body() {
        let (mut answer, places) = answer();
        for place in places {
            answer[place..place + ID].copy_from_slice(b"0123456789abcdef");
        }
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("x-id: 0123456789abcdef"), "{head}");
        assert!(body.starts_with("0123456789abcdef...") && body.len() == BODY);
    }

    #[test]
    fn grpc_messages_say_their_length() {
        assert_eq!(&grpc_message(b"abc")[..], b"\0\0\0\0\x03abc");
    }
}
