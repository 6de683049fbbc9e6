//! HTTP/1 from the application: per request match → draw → send → record once. Refuses to pick an
//! endpoint and to decide on retries: its attempts do.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use heddle_policy::retry::is_idempotent;
use heddle_policy::route;
use tokio::time::{Instant, timeout, timeout_at};

use super::route::{Asked, Course, Http1, Redirection, Step, course as find};
use super::{Call, find_port};
use crate::error::{Error, Reason};
use crate::exchange::{Outgoing, Upstream};
use crate::http::{Answer, KEEP_ALIVE, answer, head_or_answer, linger};
use crate::http1::{
    RedirectResponse, RequestEdits, RequestHead, RequestTarget, Version, write_redirect,
    write_request_head,
};
use crate::metrics::Direction;
use crate::snapshot::{Backend, Endpoint, ServicePort};
use crate::stream::{Conn, send};
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
        let started = Instant::now();
        let bytes = down.buf.split_to(n);
        let facts = Facts::new(&head, &bytes);
        let port = match find_port(worker, call).await {
            Ok(port) => port,
            Err(error) => return refuse(down, worker, &error, facts).await,
        };
        let course = find_course(worker, &port, call, &head, &bytes);
        wire.clear();
        write_head(&head, &bytes, call, &course, &mut wire);
        let mut request = match Outgoing::new(&head, std::mem::take(&mut wire), &mut down) {
            Ok(request) => request,
            Err(refusal) => {
                return refuse(down, worker, &Error::MalformedRequest(refusal), facts).await;
            }
        };
        let answered = Cell::new(None);
        let asked = Request { worker, call, port: &port, facts, started, answered };
        match asked.run(down, &mut request, (&head, &bytes), course).await {
            (Next::Request, Some(conn)) => down = conn,
            (Next::Linger, Some(mut conn)) => return linger(&mut conn).await,
            _ => return,
        }
        wire = request.into_buffer();
    }
}

/// What becomes of the request, by the routes of the port or by its split.
fn find_course<'p>(
    worker: &Worker,
    port: &'p ServicePort,
    call: &Call,
    head: &RequestHead,
    bytes: &[u8],
) -> Course<'p> {
    let Some(routes) = &port.routes else { return Course::unrouted(worker, port) };
    let fields = Http1 { head, bytes };
    let request = route::Request {
        method: head.method(bytes),
        path: head.path(bytes),
        query: head.query(bytes),
        fields: &fields,
    };
    let asked = Asked { request, authority: head.authority(bytes), original: call.original };
    find(worker, port, routes, &asked)
}

fn write_head(
    head: &RequestHead,
    bytes: &[u8],
    call: &Call,
    course: &Course<'_>,
    wire: &mut BytesMut,
) {
    let changes = course.backend.changes.as_deref();
    // What CONNECT names is its target.
    let host = changes.and_then(|changes| changes.host.as_deref()).filter(|_| !head.is_connect());
    let target = match &course.step {
        Step::Send(Some(path)) => RequestTarget::Path(path),
        Step::Send(None) if host.is_some() => RequestTarget::Origin,
        // What is answered here is written, too: it says where the body is.
        Step::Send(None) | Step::Redirect(_) | Step::Refuse(_) => RequestTarget::AsSent,
    };
    let edits = RequestEdits {
        target,
        host,
        host_if_missing: call.original,
        close: false,
        edits: changes.map_or(&[], |changes| &changes.request),
        add: &[],
    };
    write_request_head(head, bytes, &edits, wire);
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

impl Facts {
    fn new(head: &RequestHead, bytes: &[u8]) -> Self {
        Self {
            idempotent: is_idempotent(head.method(bytes)) || head.has_idempotency_key(),
            head_only: head.is_head(),
            version: head.version(),
            keep_alive: head.keep_alive(),
            upgrade: head.wants_upgrade() || head.is_connect(),
        }
    }
}

struct Request<'a> {
    worker: &'a Rc<Worker>,
    call: &'a Call,
    port: &'a ServicePort,
    facts: Facts,
    started: Instant,
    /// Status of the final response whose head has been written for the client.
    answered: Cell<Option<u16>>,
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
        head: (&RequestHead, &[u8]),
        course: Course<'_>,
    ) -> (Next, Option<Conn>) {
        let backend = course.backend;
        let outcome = match course.step {
            Step::Send(_) => self.send(&mut down, request, backend).await,
            Step::Redirect(to) => Ok(self.redirect(&mut down, request, &to).await),
            Step::Refuse(error) => Err(error),
        };
        let ended = match (outcome, self.answered.get()) {
            (Ok(ended), _) => ended,
            // The time ran out in the middle of the response: the client must see that it is cut.
            (Err(error), Some(status)) => {
                down.io.reset_on_drop();
                Ended { status, reason: Some(error.reason()), ..Ended::gone() }
            }
            (Err(error), None) => self.fail(&mut down, request, &error).await,
        };
        self.record(backend, head, &ended);
        match ended.tunnel {
            Some(tunnel) => {
                self.tunnel(down, tunnel, backend).await;
                (Next::Close, None)
            }
            None => (ended.next, Some(down)),
        }
    }

    /// Brings the request to the backend within the time it may take.
    async fn send(
        &self,
        down: &mut Conn,
        request: &mut Outgoing,
        backend: &Arc<Backend>,
    ) -> Result<Ended, Error> {
        let deadline = backend.policy.request_timeout.map(|limit| self.started + limit);
        let attempts = self.attempts(down, request, backend);
        match deadline {
            None => attempts.await,
            Some(by) => timeout_at(by, attempts).await.unwrap_or(Err(Error::RequestTimeout)),
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
        let head_only = self.facts.head_only;
        answer(down, error, Answer { head_only, close, ..OUTBOUND }).await;
        Ended::local(error.reason().facts().status, Some(error.reason()), close)
    }

    /// The rule sends the caller elsewhere.
    async fn redirect(&self, down: &mut Conn, request: &Outgoing, to: &Redirection<'_>) -> Ended {
        let close = self.ends_connection() || !request.is_complete();
        let Redirection { status, rule, edits, .. } = *to;
        let mut out = BytesMut::new();
        let response = RedirectResponse { status, location: &to.location, rule, edits, close };
        write_redirect(&response, &mut out);
        // A client that is gone has no use for the answer.
        let _ = send(&mut down.io, &out).await;
        Ended::local(status, None, close)
    }

    /// After 101, or 2xx to CONNECT: opaque bytes until both sides have closed.
    async fn tunnel(
        &self,
        down: Conn,
        (up, endpoint): (Upstream, Arc<Endpoint>),
        backend: &Backend,
    ) {
        let record = telemetry::Connection::outbound(self.worker, self.port, backend, &endpoint);
        let idle = backend.policy.idle_timeout;
        let transfer = tcp::forward(down, up.conn, idle, std::future::pending()).await;
        record.end(&transfer);
    }

    fn record(&self, backend: &Backend, (head, bytes): (&RequestHead, &[u8]), ended: &Ended) {
        telemetry::outbound_request(
            self.worker,
            self.port,
            backend,
            &RequestRecord {
                method: head.method(bytes),
                path: head.path(bytes),
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

    /// The answer was made here.
    fn local(status: u16, reason: Option<Reason>, close: bool) -> Self {
        let next = if close { Next::Linger } else { Next::Request };
        Self { status, reason, next, tunnel: None, endpoint: None }
    }
}

async fn refuse(mut down: Conn, worker: &Worker, error: &Error, facts: Facts) {
    telemetry::connection_error(worker, Direction::Outbound, error);
    answer(&mut down, error, Answer { head_only: facts.head_only, ..OUTBOUND }).await;
    linger(&mut down).await;
}
