//! hyper's HTTP/2 with our limits, its tasks staying on their thread, and the bodies that join it to
//! retries and to the one place where requests are recorded.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use heddle_api::names::header;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::error::Error;
use crate::http1::Refusal;
use crate::metrics::Direction;
use crate::stream::Conn;

mod limits;
mod response;
mod serve;

pub use limits::{Limit, Limits, Moved};
pub use response::{ResponseBody, ResponseEnd, ResponseError};
pub use serve::serve;

/// Flow-control window of a stream.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Flow-control window of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Decoded size of a header list.
const HEADER_LIST: u32 = 32 * 1024;
/// Fields of a header list.
const HEADER_FIELDS: usize = 100;
/// Streams a peer may reset before they are taken up; beyond that the connection ends.
const PENDING_RESETS: usize = 20;
/// Streams one connection carries at once, from meshed peers and the application.
pub const STREAMS: u32 = 250;
/// The same for callers without an identity.
pub const PLAINTEXT_STREAMS: u32 = 100;
/// Ping of a connection that is silent, and how long its answer may take.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(20);
/// Longest body that is kept for another attempt, in bytes.
const REPLAY_SIZE: usize = 64 * 1024;

/// Sends requests on one connection.
pub type Sender = client::SendRequest<RequestBody>;

/// Runs hyper's tasks on the thread they were born on.
#[derive(Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Begins an HTTP/2 client on a connection.
///
/// # Errors
/// The connection broke during the preface.
pub async fn connect(conn: Conn) -> Result<Sender, Error> {
    let (sender, connection) = client::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .handshake(TokioIo::new(conn))
        .await
        .map_err(lost)?;
    tokio::task::spawn_local(async move {
        // What ended it is told to every stream that was on it.
        let _ = connection.await;
    });
    Ok(sender)
}

/// What a failed request means: the proofs that it was not processed are GOAWAY below its stream,
/// REFUSED_STREAM, and that hyper never dispatched it.
#[must_use]
pub fn failure(error: hyper::Error) -> Error {
    if error.is_canceled() {
        return Error::NotDelivered;
    }
    let h2 = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    match h2 {
        Some(h2) if h2.is_remote() && h2.is_go_away() => Error::NotDelivered,
        Some(h2) if h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            Error::NotDelivered
        }
        _ => lost(error),
    }
}

fn lost(error: hyper::Error) -> Error {
    Error::ConnectionLost(std::io::Error::other(error))
}

/// Takes the mesh's own fields out of what an application, or a peer without identity, sent.
///
/// # Errors
/// There are too many fields.
pub fn clean(headers: &mut HeaderMap) -> Result<(), Error> {
    if headers.len() > HEADER_FIELDS {
        return Err(Error::HeaderLimit("more than 100 fields"));
    }
    remove_ours(headers);
    Ok(())
}

/// The mesh's own fields mean nothing in trailers, but an application may merge those into the head.
fn cleaned_trailers<E>(frame: Result<Frame<Bytes>, E>) -> Result<Frame<Bytes>, E> {
    frame.map(|mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            remove_ours(trailers);
        }
        frame
    })
}

fn remove_ours(headers: &mut HeaderMap) {
    // `_` is folded to `-` by servers that make variables of fields.
    let ours = |name: &HeaderName| {
        let name = name.as_str().as_bytes();
        name.len() >= header::PREFIX.len()
            && name[..header::PREFIX.len()]
                .iter()
                .map(|byte| if *byte == b'_' { b'-' } else { *byte })
                .eq(header::PREFIX.bytes())
    };
    if headers.keys().any(ours) {
        let names: Vec<_> = headers.keys().filter(|name| ours(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Makes of a request from one HTTP/2 connection one that can go on to another.
///
/// # Errors
/// Its path is none: what is judged must be what is forwarded.
pub fn prepare<B>(request: &mut Request<B>) -> Result<(), Error> {
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let asterisk = target == "*" && request.method() == Method::OPTIONS;
    if !asterisk && !target.starts_with('/') {
        return Err(Error::MalformedRequest(Refusal::TargetForm));
    }
    if request.uri().authority().is_none() {
        // Legal with a `host` field (RFC 9113, 8.3.1), but h2 sends it on only as if it came over
        // HTTP/1.
        *request.version_mut() = Version::HTTP_11;
    }
    clean(request.headers_mut())
}

/// An answer of the proxy itself; a gRPC caller gets a status it can read.
#[must_use]
pub fn answer(
    error: &Error,
    direction: Direction,
    grpc: bool,
    not_delivered: bool,
) -> Response<Bytes> {
    let facts = error.reason().facts();
    let message = error.to_string();
    let (status, body) = if grpc {
        (StatusCode::OK, Bytes::new())
    } else {
        let status = StatusCode::from_u16(facts.status).unwrap_or(StatusCode::BAD_GATEWAY);
        (status, Bytes::from(format!("{message}\n")))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::ERROR, HeaderValue::from_static(facts.name));
    headers.insert(header::ERROR_PROXY, HeaderValue::from_static(direction.name()));
    if not_delivered {
        headers.insert(header::NOT_DELIVERED, HeaderValue::from_static(facts.name));
    }
    if grpc {
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(facts.grpc as u8)));
        if let Ok(message) = HeaderValue::from_str(&percent_encode(&message)) {
            headers.insert("grpc-message", message);
        }
    } else {
        headers.insert("content-type", HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    response
}

/// As the gRPC over HTTP/2 specification asks of `grpc-message`.
fn percent_encode(message: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// True for requests whose callers read `grpc-status`.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A request's body that can be sent again while it is small. Every attempt gets a handle of its
/// own; only the latest reads on.
#[derive(Clone)]
pub struct Replay(Rc<RefCell<Source>>);

struct Source {
    inner: Incoming,
    kept: Vec<Frame<Bytes>>,
    kept_bytes: usize,
    replayable: bool,
    attempt: u32,
    /// How many of the kept frames the present attempt has had.
    next: usize,
    /// Of the present attempt, while it waits.
    waker: Option<Waker>,
    /// Told of every frame, where somebody waits for silence.
    moved: Option<Moved>,
}

impl Replay {
    /// Takes over a body of which nothing was read.
    #[must_use]
    pub fn new(inner: Incoming) -> Self {
        Self(Rc::new(RefCell::new(Source {
            inner,
            kept: Vec::new(),
            kept_bytes: 0,
            replayable: true,
            attempt: 0,
            next: 0,
            waker: None,
            moved: None,
        })))
    }

    /// Tells of every frame that is sent.
    #[must_use]
    pub fn watched(self, moved: Option<Moved>) -> Self {
        self.0.borrow_mut().moved = moved;
        self
    }

    /// The body from its first byte. Earlier handles break off.
    #[must_use]
    pub fn handle(&self) -> RequestBody {
        let mut source = self.0.borrow_mut();
        source.attempt += 1;
        source.next = 0;
        if let Some(superseded) = source.waker.take() {
            superseded.wake();
        }
        RequestBody { source: self.0.clone(), attempt: source.attempt }
    }

    /// True while every byte that was read is kept.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.0.borrow().replayable
    }

    /// There will be no other attempt: nothing more is kept.
    pub fn settle(&self) {
        self.0.borrow_mut().settle();
    }
}

impl Source {
    fn settle(&mut self) {
        self.replayable = false;
        if self.next >= self.kept.len() {
            self.kept = Vec::new();
            self.next = 0;
        }
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.replayable {
            return;
        }
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                self.kept_bytes += data.len();
                Frame::data(data.clone())
            }
            (None, Some(trailers)) => Frame::trailers(trailers.clone()),
            (None, None) => return,
        };
        if self.kept_bytes > REPLAY_SIZE {
            self.settle();
        } else {
            self.kept.push(copy);
            self.next = self.kept.len();
        }
    }

    /// The next frame that an earlier attempt has read already.
    fn kept_frame(&mut self) -> Option<Frame<Bytes>> {
        let Some(kept) = self.kept.get(self.next) else {
            if !self.replayable {
                self.settle();
            }
            return None;
        };
        self.next += 1;
        Some(match (kept.data_ref(), kept.trailers_ref()) {
            (Some(data), _) => Frame::data(data.clone()),
            (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
        })
    }
}

/// One attempt's view of a request's body.
pub struct RequestBody {
    source: Rc<RefCell<Source>>,
    attempt: u32,
}

/// Why a request's body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Another attempt has taken over. An orderly end would make a whole request of a part.
    #[error("another attempt is made")]
    Superseded,
    /// The client broke it off.
    #[error(transparent)]
    Client(#[from] hyper::Error),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut source = self.source.borrow_mut();
        if source.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(frame) = source.kept_frame() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Poll::Ready(frame) = Pin::new(&mut source.inner).poll_frame(cx) else {
            source.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if let Some(moved) = &source.moved {
            moved.touch();
        }
        let frame = frame.map(cleaned_trailers);
        if let Some(Ok(frame)) = &frame {
            source.keep(frame);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Client)))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.borrow();
        source.attempt == self.attempt
            && source.next >= source.kept.len()
            && source.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.borrow();
        if source.kept.is_empty() { source.inner.size_hint() } else { SizeHint::new() }
    }
}
