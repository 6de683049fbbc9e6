//! A server connection: its limits, its floods, its drain.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    CONNECTION_WINDOW, HEADER_LIST, LocalExecutor, PENDING_RESETS, PING, PONG, ResponseError,
    STREAM_WINDOW,
};
use crate::error::Error;
use crate::flood::{FLOOD, Guarded};
use crate::metrics::Direction;
use crate::stream::Conn;
use crate::telemetry;
use crate::worker::Worker;

/// Serves at most `streams` at once until the connection ends; a drain is announced with GOAWAY.
pub async fn serve<R, F, B>(
    down: Conn,
    worker: &Worker,
    direction: Direction,
    streams: u32,
    respond: R,
) where
    R: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error = ResponseError> + 'static,
{
    let service = service_fn(|request| {
        let response = respond(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let (io, flooded) = Guarded::new(down);
    let connection = builder(streams).serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = worker.shared.drain.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if flooded.get() {
        telemetry::connection_error(worker, direction, &Error::Overload(FLOOD));
    }
    if let Err(error) = ended {
        tracing::debug!(direction = direction.name(), %error, "HTTP/2 connection ended");
    }
}

fn builder(streams: u32) -> server::Builder<LocalExecutor> {
    let mut builder = server::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    builder
}
