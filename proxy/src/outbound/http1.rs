//! HTTP/1 from the application: per request match → draw → pick → send → retry → record once.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use heddle_api::names::header;
use heddle_policy::retry::{Attempted, Failure, Verdict, is_idempotent};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Call, InFlight, draw, may_retry, outcome_of, pick};
use crate::balance::Outcome;
use crate::error::{Error, Reason};
use crate::exchange::{Complete, End, Judgement, Outgoing, Patience, Upstream, exchange};
use crate::http::{Answer, KEEP_ALIVE, answer, head_or_answer, linger};
use crate::http1::{
    NewField, RequestEdits, RequestHead, RequestTarget, ResponseEdits, ResponseHead, Version,
    write_request_head, write_response_head,
};
use crate::metrics::Direction;
use crate::pool;
use crate::snapshot::{Backend, Destination, Endpoint, ServicePort};
use crate::stream::Conn;
use crate::tcp;
use crate::telemetry::{self, RequestRecord};
use crate::tls::Alpn;
use crate::worker::Worker;

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

    /// Sends the request, to another endpoint as long as the policy allows. The backend stays: the
    /// draw of the split is made once.
    async fn attempts(
        &self,
        down: &mut Conn,
        request: &mut Outgoing,
        backend: &Arc<Backend>,
    ) -> Result<Ended, Error> {
        let mut tried = Vec::new();
        backend.state.budget.request(self.worker.now());
        loop {
            let Some(endpoint) = pick(self.worker, self.call, backend, &tried) else {
                return Err(Error::NoEndpoints(backend.service.clone()));
            };
            let mut guard = InFlight::start(self.worker, endpoint, backend);
            let retries = u32::try_from(tried.len()).unwrap_or(u32::MAX);
            let attempt = self.attempt(down, request, backend, endpoint, retries).await;
            let (error, failure) = match attempt {
                Ok((ended, outcome)) => {
                    guard.outcome = outcome;
                    return Ok(ended);
                }
                Err(Attempt::Status(status)) => {
                    guard.outcome = Outcome::Failure;
                    (Error::NotDelivered, Failure::Status(status))
                }
                Err(Attempt::Error(error)) => {
                    guard.outcome = outcome_of(&error);
                    let Some(failure) = error.failure() else { return Err(error) };
                    (error, failure)
                }
            };
            drop(guard);
            let attempted = Attempted {
                retries,
                idempotent: self.facts.idempotent,
                replayable: request.replayable,
            };
            if !may_retry(self.worker, backend, failure, attempted).await {
                // The last attempt's failure is what a person can act on.
                return Err(error);
            }
            tried.push(endpoint.state.id);
        }
    }

    /// One attempt at one endpoint.
    async fn attempt(
        &self,
        down: &mut Conn,
        request: &mut Outgoing,
        backend: &Backend,
        endpoint: &Arc<Endpoint>,
        retries: u32,
    ) -> Result<(Ended, Outcome), Attempt> {
        let begun = Instant::now();
        let policy = &backend.policy;
        let patience = Patience {
            head_by: policy.per_try_timeout.map(|limit| begun + limit),
            // The built-in hour is for opaque connections; a request waits as long as its client.
            idle: policy.source.as_ref().and(policy.idle_timeout),
        };
        let up = self.upstream(backend, endpoint, patience.head_by).await;
        let mut up = up.map_err(Attempt::Error)?;
        let reused = up.reused;
        let mesh = endpoint.identity.is_some();
        let mut abandoned = None;
        let mut reported = None;
        // The last attempt's answer goes to the client, whatever it is.
        let may_repeat = |failure| {
            let attempted =
                Attempted { retries, idempotent: self.facts.idempotent, replayable: true };
            !matches!(policy.may_retry(failure, attempted), Verdict::No(_))
        };
        let judge = |head: &ResponseHead, buf: &[u8], out: &mut BytesMut| {
            if mesh && head.field(buf, header::NOT_DELIVERED).next().is_some() {
                abandoned = Some(Failure::NotProcessed);
                return Judgement::Abandon;
            }
            if !head.is_interim() && may_repeat(Failure::Status(head.status())) {
                abandoned = Some(Failure::Status(head.status()));
                return Judgement::Abandon;
            }
            reported = mesh
                .then(|| head.field(buf, header::ERROR).next().and_then(Reason::parse))
                .flatten();
            Judgement::Forward(self.write_response(head, buf, mesh, out))
        };
        let end = exchange(down, &mut up, request, patience, judge).await;
        match end {
            End::Complete(complete) => Ok(self.completed(complete, reported, begun, up, endpoint)),
            End::Switched { status } => {
                let ended = Ended {
                    status,
                    reason: None,
                    next: Next::Close,
                    tunnel: Some((up, endpoint.clone())),
                    endpoint: Some(endpoint.clone()),
                };
                Ok((ended, Outcome::Success(begun.elapsed())))
            }
            End::Abandoned => Err(match abandoned {
                Some(Failure::Status(status)) => Attempt::Status(status),
                _ => Attempt::Error(Error::NotDelivered),
            }),
            // A kept connection may have been closed by a plain server just as it was used again;
            // no byte of an answer came, and what is idempotent may be repeated (RFC 9112, 9.3.1).
            End::Failed(Error::ConnectionLost(_)) if reused && !mesh && self.facts.idempotent => {
                Err(Attempt::Error(Error::NotDelivered))
            }
            End::Failed(error) => Err(Attempt::Error(error)),
            End::Refused(refusal) => Err(Attempt::Error(Error::MalformedRequest(refusal))),
            End::ClientGone => Ok((Ended::gone(), Outcome::Neutral)),
            End::Broken { status, error } => {
                down.io.reset_on_drop();
                let reason = Some(error.reason());
                let ended = Ended {
                    status,
                    reason,
                    next: Next::Close,
                    tunnel: None,
                    endpoint: Some(endpoint.clone()),
                };
                Ok((ended, Outcome::Failure))
            }
        }
    }

    fn completed(
        &self,
        complete: Complete,
        reported: Option<Reason>,
        begun: Instant,
        up: Upstream,
        endpoint: &Arc<Endpoint>,
    ) -> (Ended, Outcome) {
        let keep = complete.client_reusable && self.facts.keep_alive;
        if complete.upstream_reusable {
            self.worker.pool.put(endpoint, up);
        }
        let outcome = if complete.status >= 500 {
            Outcome::Failure
        } else {
            Outcome::Success(complete.head_at - begun)
        };
        let next = if keep { Next::Request } else { Next::Linger };
        (
            Ended {
                status: complete.status,
                reason: reported,
                next,
                tunnel: None,
                endpoint: Some(endpoint.clone()),
            },
            outcome,
        )
    }

    /// A connection for the request. To a plain server, what is not idempotent goes on a fresh one:
    /// a server that closes an idle connection as a request arrives leaves nobody the wiser.
    async fn upstream(
        &self,
        backend: &Backend,
        endpoint: &Arc<Endpoint>,
        by: Option<Instant>,
    ) -> Result<Upstream, Error> {
        if !self.facts.upgrade
            && (endpoint.identity.is_some() || self.facts.idempotent)
            && let Some(up) = self.worker.pool.take(endpoint)
        {
            return Ok(up);
        }
        let limit = backend.policy.connect_timeout;
        let connect = pool::connect(self.worker, endpoint, Alpn::Http1, limit);
        let conn = match by {
            None => connect.await?,
            // Nothing has been sent: this is not yet the attempt's own timeout.
            Some(by) => timeout_at(by, connect)
                .await
                .unwrap_or(Err(Error::ConnectTimeout(endpoint.address)))?,
        };
        Ok(Upstream::new(conn, endpoint.identity.is_some()))
    }

    /// No other request may follow. Asked when the answer's head is written: a drain may have begun
    /// since the request's.
    fn ends_connection(&self) -> bool {
        !self.facts.keep_alive || self.worker.shared.drain.is_draining()
    }

    fn write_response(
        &self,
        head: &ResponseHead,
        buf: &[u8],
        mesh: bool,
        out: &mut BytesMut,
    ) -> crate::http1::Delivery {
        self.answered.set(self.answered.get() || !head.is_interim());
        // What the inbound proxy says of itself is passed on; what an application says is not.
        let mut said = [const { None }; 2];
        if mesh {
            for (slot, name) in said.iter_mut().zip([header::ERROR, header::ERROR_PROXY]) {
                *slot = head.field(buf, name).next().and_then(|value| NewField::new(name, value));
            }
        }
        let said = said.iter().flatten().copied().collect::<Vec<_>>();
        let edits = ResponseEdits {
            client: self.facts.version,
            close: self.ends_connection(),
            rechunk: true,
            remove: &[],
            add: &said,
        };
        write_response_head(head, buf, &edits, out)
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

/// A failed attempt.
enum Attempt {
    Error(Error),
    Status(u16),
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
