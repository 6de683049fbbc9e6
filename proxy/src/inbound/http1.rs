//! HTTP/1 to the application: per request authorize → send → record once.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use heddle_api::names::header;
use heddle_policy::authorize::Request as Judged;
use heddle_policy::retry::is_idempotent;
use tokio::time::{Duration, Instant, timeout};

use super::{Call, DIAL_TIMEOUT, check, receive, withdrawn};
use crate::error::{Error, Reason};
use crate::exchange::{End, Judgement, Outgoing, Patience, Upstream, exchange};
use crate::hop;
use crate::http::{Answer, answer, head_or_answer, linger};
use crate::http1::{
    Delivery, NewField, RequestEdits, RequestHead, RequestTarget, ResponseEdits, ResponseHead,
    Version, write_request_head, write_response_head,
};
use crate::metrics::{Direction, RequestSeries};
use crate::pool;
use crate::stream::{Conn, Stream, send};
use crate::tcp;
use crate::telemetry::{self, RequestRecord};
use crate::worker::Worker;

/// How long a connection may wait for its next request. Above the outbound side's limit, which so
/// is the one that closes.
const IDLE: Duration = Duration::from_secs(75);

/// An answer of this side to a request whose connection then ends.
pub(super) const INBOUND: Answer =
    Answer { direction: Direction::Inbound, head_only: false, close: true, not_delivered: false };

/// Serves requests until the connection ends.
pub(super) async fn serve(mut down: Conn, worker: &Rc<Worker>, call: &Call) {
    let series = worker.shared.metrics.inbound(call.source.as_ref());
    let source = call.source.as_ref().map(ToString::to_string);
    let mut head = RequestHead::new();
    let mut wire = BytesMut::new();
    // The application's connection stays with this one: its life follows what the caller sees.
    let mut up: Option<Upstream> = None;
    loop {
        let Some(n) = next_head(&mut down, worker, call, &mut head).await else { return };
        let started = Instant::now();
        let head_bytes = down.buf.split_to(n);
        wire.clear();
        write_head(&head, &head_bytes, source.as_deref(), call.local, &mut wire);
        let mut request = match Outgoing::new(&head, std::mem::take(&mut wire), &mut down) {
            Ok(request) => request,
            Err(refusal) => {
                let error = Error::MalformedRequest(refusal);
                telemetry::connection_error(worker, Direction::Inbound, &error);
                answer(&mut down, &error, INBOUND).await;
                return linger(&mut down).await;
            }
        };
        let facts = Facts {
            idempotent: is_idempotent(head.method(&head_bytes)),
            head_only: head.is_head(),
            version: head.version(),
            keep_alive: head.keep_alive(),
        };
        let judged = Judged { method: head.method(&head_bytes), path: head.path(&head_bytes) };
        let exchange = Request { worker, call, facts };
        let ended = exchange.run(&mut down, &mut up, &mut request, judged).await;
        record(worker, call, &series, judged, &ended, started);
        match ended.next {
            Next::Request => {}
            Next::Close => return,
            Next::Linger => return linger(&mut down).await,
            Next::Tunnel(up) => return tunnel(worker, call, down, *up, judged).await,
        }
        wire = request.into_buffer();
    }
}

/// Waits for the next request. An idle mesh connection is retired, not closed: a request that
/// crosses the retirement is known to be undelivered.
async fn next_head(
    down: &mut Conn,
    worker: &Rc<Worker>,
    call: &Call,
    head: &mut RequestHead,
) -> Option<usize> {
    if down.buf.is_empty() {
        tokio::select! {
            biased;
            () = worker.shared.drain.draining() => return retire(down, call).await,
            read = timeout(IDLE, down.fill()) => match read {
                Ok(Ok(n)) if n > 0 => {}
                Ok(Ok(_) | Err(_)) => return None,
                Err(_) => return retire(down, call).await,
            },
        }
    }
    head_or_answer(down, worker, head, INBOUND).await
}

async fn retire(down: &mut Conn, call: &Call) -> Option<usize> {
    if call.source.is_some() && send(&mut down.io, hop::RETIRED).await.is_ok() {
        linger(down).await;
    }
    None
}

fn write_head(
    head: &RequestHead,
    bytes: &[u8],
    source: Option<&str>,
    local: SocketAddr,
    wire: &mut BytesMut,
) {
    let client_id = source.and_then(|id| NewField::new(header::CLIENT_ID, id.as_bytes()));
    let edits = RequestEdits {
        target: RequestTarget::Origin,
        host_if_missing: local,
        close: false,
        host: None,
        edits: &[],
        add: client_id.as_slice(),
    };
    write_request_head(head, bytes, &edits, wire);
}

/// What later steps need to know of a request.
#[derive(Clone, Copy)]
struct Facts {
    idempotent: bool,
    head_only: bool,
    version: Version,
    keep_alive: bool,
}

enum Next {
    Request,
    Close,
    Linger,
    Tunnel(Box<Upstream>),
}

/// How a request ended, for the one place that records it.
struct Ended {
    status: u16,
    reason: Option<Reason>,
    next: Next,
}

struct Request<'a> {
    worker: &'a Rc<Worker>,
    call: &'a Call,
    facts: Facts,
}

impl Request<'_> {
    async fn run(
        &self,
        down: &mut Conn,
        up: &mut Option<Upstream>,
        request: &mut Outgoing,
        judged: Judged<'_>,
    ) -> Ended {
        // One view per request: a long connection follows every change of policy.
        let allowed = receive(self.worker, self.call)
            .and_then(|policy| check(policy.authorize_request(self.call.caller(), judged)));
        if let Err(error) = allowed {
            return self.fail(down, request, &error, false).await;
        }
        let mut sent = false;
        loop {
            let reused = match self.connect(up).await {
                Ok(reused) => reused,
                // What was sent once is no longer known to be undelivered.
                Err(error) => return self.fail(down, request, &error, !sent).await,
            };
            let Some(app) = up.as_mut() else {
                let error = Error::Internal("connected without a connection");
                return self.fail(down, request, &error, true).await;
            };
            let judge = |head: &ResponseHead, buf: &[u8], out: &mut BytesMut| {
                Judgement::Forward(self.write_response(head, buf, out))
            };
            let end = exchange(down, app, request, Patience::ENDLESS, judge).await;
            sent = true;
            // The application closed a kept connection just as it was used again; no byte of an
            // answer came, and what is idempotent may be repeated (RFC 9112, 9.3.1).
            let stale = reused && self.facts.idempotent && request.replayable;
            if stale && matches!(end, End::Failed(Error::ConnectionLost(_))) {
                *up = None;
                continue;
            }
            return self.ended(end, down, up, request).await;
        }
    }

    /// Makes sure that there is a connection to the application. True when it was used before.
    async fn connect(&self, up: &mut Option<Upstream>) -> Result<bool, Error> {
        if let Some(app) = up.as_mut()
            && app.conn.is_quiet()
        {
            return Ok(true);
        }
        let tcp = pool::dial(self.call.local, DIAL_TIMEOUT).await?;
        *up = Some(Upstream::new(Conn::new(Stream::Tcp(tcp)), false));
        Ok(false)
    }

    /// No other request may follow. Asked when the answer's head is written: a drain may have begun
    /// since the request's.
    fn ends_connection(&self) -> bool {
        !self.facts.keep_alive || self.worker.shared.drain.is_draining()
    }

    fn write_response(&self, head: &ResponseHead, buf: &[u8], out: &mut BytesMut) -> Delivery {
        let edits = ResponseEdits {
            client: self.facts.version,
            close: self.ends_connection(),
            rechunk: true,
            edits: &[],
            add: &[],
        };
        write_response_head(head, buf, &edits, out)
    }

    async fn ended(
        &self,
        end: End,
        down: &mut Conn,
        up: &mut Option<Upstream>,
        request: &Outgoing,
    ) -> Ended {
        let (status, reason, next) = match end {
            End::Complete(complete) => {
                if !complete.upstream_reusable {
                    *up = None;
                }
                let keep = complete.client_reusable && self.facts.keep_alive;
                let next = if keep { Next::Request } else { Next::Linger };
                (complete.status, None, next)
            }
            End::Switched { status } => {
                let next = up.take().map_or(Next::Close, |up| Next::Tunnel(Box::new(up)));
                (status, None, next)
            }
            End::Failed(error) => {
                *up = None;
                return self.fail(down, request, &error, false).await;
            }
            End::Refused(refusal) => {
                *up = None;
                let error = Error::MalformedRequest(refusal);
                return self.fail(down, request, &error, false).await;
            }
            End::Broken { status, error } => {
                down.io.reset_on_drop();
                (status, Some(error.reason()), Next::Close)
            }
            End::ClientGone | End::Abandoned => (0, None, Next::Close),
        };
        Ended { status, reason, next }
    }

    /// Nothing of a response has gone to the caller: it gets ours.
    async fn fail(
        &self,
        down: &mut Conn,
        request: &Outgoing,
        error: &Error,
        not_delivered: bool,
    ) -> Ended {
        let close = self.ends_connection() || !request.is_complete();
        let head_only = self.facts.head_only;
        // Proof is given over mesh TLS only; a plaintext caller could not tell who wrote it.
        let not_delivered = not_delivered && self.call.source.is_some();
        answer(down, error, Answer { head_only, close, not_delivered, ..INBOUND }).await;
        let reason = error.reason();
        let next = if close { Next::Linger } else { Next::Request };
        Ended { status: reason.facts().status, reason: Some(reason), next }
    }
}

/// After 101, or 2xx to CONNECT: opaque bytes until both sides have closed, as long as the request
/// that began it would still be allowed.
async fn tunnel(worker: &Rc<Worker>, call: &Call, down: Conn, up: Upstream, judged: Judged<'_>) {
    let record = telemetry::Connection::inbound(worker, call.source.as_ref(), call.local);
    let withdrawn = withdrawn(worker, |policy| policy.authorize_request(call.caller(), judged));
    let transfer = tcp::forward(down, up.conn, None, withdrawn).await;
    record.end(&transfer);
}

fn record(
    worker: &Rc<Worker>,
    call: &Call,
    series: &Arc<RequestSeries>,
    judged: Judged<'_>,
    ended: &Ended,
    started: Instant,
) {
    telemetry::inbound_request(
        worker,
        series,
        &RequestRecord {
            method: judged.method,
            path: judged.path,
            peer: call.peer,
            endpoint: None,
            source: call.source.as_ref(),
            status: ended.status,
            grpc_status: None,
            reason: ended.reason,
            duration: started.elapsed(),
        },
    );
}
