//! A response's body on its way to the caller: it tells how it ended, and is given up when it takes
//! too long. Refuses to record: whoever made it is told.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::limits::Timer;
use super::{Limit, Limits, answer, cleaned_trailers, is_grpc};
use crate::error::Reason;
use crate::metrics::Direction;

/// How a response ended, for whoever records it.
pub struct ResponseEnd {
    /// From the trailers, or the head of a trailers-only answer.
    pub grpc_status: Option<u32>,
    /// The response broke off, or the caller reset it.
    pub reason: Option<Reason>,
}

/// A response's body that tells how it ended, exactly once: also when it is dropped half-read.
pub struct ResponseBody<F: FnOnce(ResponseEnd)> {
    inner: Inner,
    timer: Option<Timer>,
    grpc: bool,
    grpc_status: Option<u32>,
    on_end: Option<F>,
}

enum Inner {
    Upstream(Incoming),
    Local(Option<Bytes>),
}

impl<F: FnOnce(ResponseEnd)> ResponseBody<F> {
    /// The application's.
    pub fn upstream(inner: Incoming, headers: &HeaderMap, on_end: F) -> Self {
        Self {
            inner: Inner::Upstream(inner),
            timer: None,
            grpc: is_grpc(headers),
            grpc_status: grpc_status(headers),
            on_end: Some(on_end),
        }
    }

    /// The same, given up when one of the limits passes.
    #[must_use]
    pub fn within(mut self, limits: Option<Limits>) -> Self {
        self.timer = limits.and_then(Limits::timer);
        self
    }

    /// Ours.
    pub fn local(body: Bytes, headers: &HeaderMap, on_end: F) -> Self {
        let inner = Inner::Local((!body.is_empty()).then_some(body));
        let grpc_status = grpc_status(headers);
        Self { inner, timer: None, grpc: false, grpc_status, on_end: Some(on_end) }
    }

    /// A limit has passed in the middle of the response: a gRPC caller is told in the trailers, any
    /// other sees the stream reset. The application's side is reset, too.
    fn give_up(&mut self, limit: Limit) -> Result<Frame<Bytes>, ResponseError> {
        self.inner = Inner::Local(None);
        self.timer = None;
        let error = limit.error();
        let late = ResponseError::Late(error.to_string());
        if !self.grpc {
            self.end(Some(error.reason()));
            return Err(late);
        }
        let answer = answer(&error, Direction::Outbound, true, false);
        let mut trailers = answer.into_parts().0.headers;
        trailers.remove("content-type");
        self.grpc_status = grpc_status(&trailers);
        self.end(Some(error.reason()));
        Ok(Frame::trailers(trailers))
    }

    fn end(&mut self, reason: Option<Reason>) {
        if let Some(on_end) = self.on_end.take() {
            on_end(ResponseEnd { grpc_status: self.grpc_status, reason });
        }
    }
}

/// `grpc-status` of trailers or of a trailers-only head.
fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Why a response breaks off.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The application's side did.
    #[error(transparent)]
    Upstream(#[from] hyper::Error),
    /// It took too long.
    #[error("{0}")]
    Late(String),
}

impl<F: FnOnce(ResponseEnd) + Unpin> Body for ResponseBody<F> {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let this = &mut *self;
        let frame = match &mut this.inner {
            Inner::Upstream(incoming) => match Pin::new(incoming).poll_frame(cx) {
                Poll::Ready(frame) => {
                    frame.map(cleaned_trailers).map(|frame| frame.map_err(ResponseError::Upstream))
                }
                Poll::Pending => {
                    let Some(timer) = &mut this.timer else { return Poll::Pending };
                    let limit = ready!(timer.poll(cx));
                    return Poll::Ready(Some(this.give_up(limit)));
                }
            },
            Inner::Local(body) => body.take().map(|body| Ok(Frame::data(body))),
        };
        if let Some(timer) = &this.timer {
            timer.touch();
        }
        match &frame {
            None => this.end(None),
            Some(Err(_)) => this.end(Some(Reason::ConnectionLost)),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.grpc_status = grpc_status(trailers).or(this.grpc_status);
                    this.end(None);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Upstream(incoming) => incoming.is_end_stream(),
            Inner::Local(body) => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Upstream(incoming) => incoming.size_hint(),
            Inner::Local(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
        }
    }
}

impl<F: FnOnce(ResponseEnd)> Drop for ResponseBody<F> {
    fn drop(&mut self) {
        // hyper drops a finished body without polling it once more.
        self.end(None);
    }
}
