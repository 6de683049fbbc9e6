//! HTTP/1 from the application: per request match → draw → pick → send → retry → record once.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use heddle_policy::retry::is_idempotent;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Call, draw};
use crate::error::{Error, Reason};
use crate::exchange::{Outgoing, Upstream};
use crate::http::{Answer, KEEP_ALIVE, answer, head_or_answer, linger};
use crate::http1::{RequestEdits, RequestHead, RequestTarget, Version, write_request_head};
use crate::metrics::Direction;
use crate::snapshot::{Backend, Destination, Endpoint, ServicePort};
use crate::stream::Conn;
use crate::tcp;
use crate::telemetry::{self, RequestRecord};
use crate::worker::Worker;

mod attempt;

/// An answer of this side to a request whose connection then ends.
pub(super) const OUTBOUND: Answer =
    Answer { direction: Direction::Outbound, head_only: false, close: true, not_delivered: false };

/// What the loop over requests does next.
enum Next {
    /// The connection may carry another request.
    Request,
    /// It is over after our last words: the client may still be sending, and must not lose them.
    Linger,
    /// It is over; what has to be said was said.
    Close,
}

/// Serves requests until the connection ends.
pub(super) async fn serve(mut down: Conn, worker: &Rc<Worker>, call: &Call) {
    let mut head = RequestHead::new();
    let mut wire = BytesMut::new();
    loop {
        let Some(n) = next_head(&mut down, worker, &mut head).await else { return };
        let request_bytes = down.buf.split_to(n);
        wire.clear();
        let edits = RequestEdits {
            target: RequestTarget::AsSent,
            host_if_missing: call.original,
            close: false,
            remove: &[],
            add: &[],
        };
        write_request_head(&head, &request_bytes, &edits, &mut wire);
        let mut request = match Outgoing::new(&head, std::mem::take(&mut wire), &mut down) {
            Ok(request) => request,
            Err(refusal) => {
                return refuse(down, worker, &Error::MalformedRequest(refusal)).await;
            }
        };
        let facts = Facts {
            idempotent: is_idempotent(head.method(&request_bytes)) || head.has_idempotency_key(),
            head_only: head.is_head(),
            version: head.version(),
            keep_alive: head.keep_alive(),
            upgrade: head.wants_upgrade() || head.is_connect(),
        };
        let next =
            Request { worker, call, facts, started: Instant::now(), answered: Cell::new(false) }
                .run(down, &mut request, &head, &request_bytes)
                .await;
        match next {
            (Next::Request, Some(conn)) => down = conn,
            (Next::Linger, Some(mut conn)) => return linger(&mut conn).await,
            _ => return,
        }
        wire = request.into_buffer();
    }
}

/// Waits for the next request: idle keep-alive is bounded, and ended by a drain.
async fn next_head(down: &mut Conn, worker: &Rc<Worker>, head: &mut RequestHead) -> Option<usize> {
    if down.buf.is_empty() {
        tokio::select! {
            biased;
            read = timeout(KEEP_ALIVE, down.fill()) => match read {
                Ok(Ok(n)) if n > 0 => {}
                Ok(Ok(_) | Err(_)) | Err(_) => return None,
            },
            () = worker.shared.drain.draining() => return None,
        }
    }
    head_or_answer(down, worker, head, OUTBOUND).await
}

/// What later steps need to know of a request.
#[derive(Clone, Copy)]
struct Facts {
    idempotent: bool,
    head_only: bool,
    version: Version,
    keep_alive: bool,
    upgrade: bool,
}

struct Request<'a> {
    worker: &'a Rc<Worker>,
    call: &'a Call,
    facts: Facts,
    started: Instant,
    /// The head of a final response has been written for the client.
    answered: Cell<bool>,
}

/// How a request ended, for the one place that records it.
struct Ended {
    status: u16,
    reason: Option<Reason>,
    next: Next,
    /// The connection and endpoint that a switched protocol goes on with.
    tunnel: Option<(Upstream, Arc<Endpoint>)>,
    endpoint: Option<Arc<Endpoint>>,
}

impl Request<'_> {
    /// One request, from its head in hand to its record.
    async fn run(
        &self,
        mut down: Conn,
        request: &mut Outgoing,
        head: &RequestHead,
        head_bytes: &[u8],
    ) -> (Next, Option<Conn>) {
        // One view per request: a long connection follows every change.
        let port = match self.worker.find_destination(self.call.original).await {
            Ok(Destination::Service(port) | Destination::Pod(port)) => port,
            Ok(Destination::Unknown) => {
                // It left the mesh's knowledge while the connection was open: the next dial decides.
                let error = Error::NoEndpoints("destination".into());
                self.answer(&mut down, &error, true).await;
                return (Next::Linger, Some(down));
            }
            Err(error) => {
                self.answer(&mut down, &error, true).await;
                return (Next::Linger, Some(down));
            }
        };
        let backend = draw(self.worker, &port).clone();
        let deadline = backend.policy.request_timeout.map(|limit| self.started + limit);
        let attempts = self.attempts(&mut down, request, &backend);
        let outcome = match deadline {
            None => attempts.await,
            Some(by) => timeout_at(by, attempts).await.unwrap_or(Err(Error::RequestTimeout)),
        };
        let ended = match outcome {
            Ok(ended) => ended,
            // The time ran out in the middle of the response: the client must see that it is cut.
            Err(error) if self.answered.get() => {
                down.io.reset_on_drop();
                Ended { reason: Some(error.reason()), ..Ended::gone() }
            }
            Err(error) => self.fail(&mut down, request, &error).await,
        };
        self.record(&port, &backend, head, head_bytes, &ended);
        match ended.tunnel {
            Some(tunnel) => {
                self.tunnel(down, tunnel, &port, &backend).await;
                (Next::Close, None)
            }
            None => (ended.next, Some(down)),
        }
    }

    /// No other request may follow. Asked when the answer's head is written: a drain may have begun
    /// since the request's.
    fn ends_connection(&self) -> bool {
        !self.facts.keep_alive || self.worker.shared.drain.is_draining()
    }

    /// Nothing of a response has gone to the client: it gets ours.
    async fn fail(&self, down: &mut Conn, request: &Outgoing, error: &Error) -> Ended {
        let close = self.ends_connection() || !request.is_complete();
        self.answer(down, error, close).await;
        let facts = error.reason().facts();
        Ended {
            status: facts.status,
            reason: Some(error.reason()),
            next: if close { Next::Linger } else { Next::Request },
            tunnel: None,
            endpoint: None,
        }
    }

    async fn answer(&self, down: &mut Conn, error: &Error, close: bool) {
        answer(down, error, Answer { head_only: self.facts.head_only, close, ..OUTBOUND }).await;
    }

    /// After 101, or 2xx to CONNECT: opaque bytes until both sides have closed.
    async fn tunnel(
        &self,
        down: Conn,
        (up, endpoint): (Upstream, Arc<Endpoint>),
        port: &ServicePort,
        backend: &Backend,
    ) {
        let record = telemetry::Connection::outbound(self.worker, port, backend, &endpoint);
        let idle = backend.policy.idle_timeout;
        let transfer = tcp::forward(down, up.conn, idle, std::future::pending()).await;
        record.end(&transfer);
    }

    fn record(
        &self,
        port: &ServicePort,
        backend: &Backend,
        head: &RequestHead,
        head_bytes: &[u8],
        ended: &Ended,
    ) {
        telemetry::outbound_request(
            self.worker,
            port,
            backend,
            &RequestRecord {
                method: head.method(head_bytes),
                path: head.path(head_bytes),
                peer: self.call.peer,
                endpoint: ended.endpoint.as_deref(),
                source: None,
                status: ended.status,
                grpc_status: None,
                reason: ended.reason,
                duration: self.started.elapsed(),
            },
        );
    }
}

impl Ended {
    /// The client went away before an answer: status 0 in telemetry.
    fn gone() -> Self {
        Self { status: 0, reason: None, next: Next::Close, tunnel: None, endpoint: None }
    }
}

async fn refuse(mut down: Conn, worker: &Worker, error: &Error) {
    telemetry::connection_error(worker, Direction::Outbound, error);
    answer(&mut down, error, OUTBOUND).await;
    linger(&mut down).await;
}
