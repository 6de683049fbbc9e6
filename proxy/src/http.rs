//! What HTTP/1 and HTTP/2 have in common on both sides of the proxy.

pub mod retry;

use std::time::Duration;

use bytes::BytesMut;
use heddle_api::names::header;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::error::Error;
use crate::exchange::{ReadError, read_request_head};
use crate::http1::{LocalResponse, NewField, RequestHead, write_local_response};
use crate::metrics::Direction;
use crate::stream::{Conn, send};
use crate::telemetry;
use crate::worker::Worker;

/// How long a request's head may take once its first byte is here.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(300);
/// How long, and how much, is still read from a client that was answered and is to be closed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// Closes a connection on which something may still be under way: a plain close would answer it with
/// a reset, and the reset could overtake our last words.
pub async fn linger(conn: &mut Conn) {
    let mut left = LINGER_BYTES;
    let discard = async {
        // Over TLS the end is a message, too, and waits for a peer that does not read.
        if conn.io.shutdown().await.is_err() {
            return;
        }
        loop {
            conn.buf.clear();
            match conn.fill().await {
                Ok(n) if n > 0 && n < left => left -= n,
                Ok(_) | Err(_) => return,
            }
        }
    };
    // The time is up: whoever still sends gets the reset.
    let _ = timeout(LINGER, discard).await;
}

/// How an answer of the proxy itself goes out.
#[derive(Clone, Copy)]
pub struct Answer {
    /// Which proxy.
    pub direction: Direction,
    /// The request was a HEAD.
    pub head_only: bool,
    /// The connection ends with it.
    pub close: bool,
    /// Inbound's proof for outbound that the application never saw the request.
    pub not_delivered: bool,
}

/// Reads the next request's head in the time it may take. `None`: there is none, and whoever sent
/// something else has been told so, as `refused` says.
pub async fn head_or_answer(
    down: &mut Conn,
    worker: &Worker,
    head: &mut RequestHead,
    refused: Answer,
) -> Option<usize> {
    let error = match timeout(HEAD_TIMEOUT, read_request_head(down, head)).await {
        Ok(Ok(read)) => return read,
        Ok(Err(ReadError::Lost(_))) => return None,
        Ok(Err(ReadError::Refused(refusal))) => Error::MalformedRequest(refusal),
        Err(_) => Error::HeadTimeout,
    };
    telemetry::connection_error(worker, refused.direction, &error);
    answer(down, &error, refused).await;
    linger(down).await;
    None
}

/// Answers an HTTP/1 request in place of the application.
pub async fn answer(down: &mut Conn, error: &Error, answer: Answer) {
    let facts = error.reason().facts();
    let (status, reason) = if let Error::MalformedRequest(refusal) = error {
        (refusal.status(), refusal.reason())
    } else {
        (facts.status, facts.name)
    };
    let message = error.to_string();
    let not_delivered = NewField::new(header::NOT_DELIVERED, reason.as_bytes());
    let add = if answer.not_delivered { not_delivered.as_slice() } else { &[] };
    let response = LocalResponse {
        status,
        reason,
        proxy: answer.direction.name(),
        message: &message,
        head_only: answer.head_only,
        close: answer.close,
        add,
    };
    let mut out = BytesMut::new();
    write_local_response(&response, &mut out);
    // A client that is gone has no use for the answer.
    let _ = send(&mut down.io, &out).await;
}

/// Answers the first request of a connection that is refused as a whole.
pub async fn answer_and_close(mut down: Conn, error: &Error, how: Answer) {
    let mut head = RequestHead::new();
    // The answer does not depend on the request; its head is read so that the peer sees no reset.
    let _ = timeout(HEAD_TIMEOUT, read_request_head(&mut down, &mut head)).await;
    answer(&mut down, error, Answer { head_only: head.is_head(), ..how }).await;
    linger(&mut down).await;
}
