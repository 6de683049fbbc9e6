//! The attempts of one HTTP/1 request: pick → connect → send → judge the answer, as often as the
//! policy allows. Refuses to choose a backend and to record: its caller does.

use std::sync::Arc;

use bytes::BytesMut;
use heddle_api::names::header;
use heddle_policy::retry::{Attempted, Failure, Verdict};
use tokio::time::{Instant, timeout_at};

use super::super::{InFlight, may_retry, outcome_of, pick};
use super::{Ended, Next, Request};
use crate::balance::Outcome;
use crate::error::{Error, Reason};
use crate::exchange::{End, Judgement, Outgoing, Patience, Upstream, exchange};
use crate::http1::{NewField, ResponseEdits, ResponseHead, write_response_head};
use crate::pool;
use crate::snapshot::{Backend, Endpoint};
use crate::stream::Conn;
use crate::tls::Alpn;

impl Request<'_> {
    /// Sends the request, to another endpoint as long as the policy allows. The backend stays: the
    /// draw of the split is made once.
    pub(super) async fn attempts(
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
            head_by: policy.head_timeout().map(|limit| begun + limit),
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
            Judgement::Forward(self.write_response(head, buf, (mesh, backend), out))
        };
        let exchange = exchange(down, &mut up, request, patience, judge);
        let end = match policy.attempt_timeout {
            None => exchange.await,
            Some(limit) => timeout_at(begun + limit, exchange)
                .await
                .unwrap_or(End::Failed(Error::PerTryTimeout)),
        };
        let tried = Try { begun, up, reused, endpoint, abandoned, reported };
        self.conclude(down, end, tried)
    }

    /// What the end of an exchange means for the request and for its endpoint.
    fn conclude(&self, down: &Conn, end: End, tried: Try<'_>) -> Result<(Ended, Outcome), Attempt> {
        let Try { begun, up, reused, endpoint, abandoned, reported } = tried;
        let end = match (end, self.answered.get()) {
            // Late in the middle of the response.
            (End::Failed(error), Some(status)) => End::Broken { status, error },
            (end, _) => end,
        };
        let endpoint = Some(endpoint.clone());
        let (ended, outcome) = match end {
            End::Complete(complete) => {
                let keep = complete.client_reusable && self.facts.keep_alive;
                if let Some(endpoint) = &endpoint
                    && complete.upstream_reusable
                {
                    self.worker.pool.put(endpoint, up);
                }
                let outcome = if complete.status >= 500 {
                    Outcome::Failure
                } else {
                    Outcome::Success(complete.head_at - begun)
                };
                let next = if keep { Next::Request } else { Next::Linger };
                let (status, reason) = (complete.status, reported);
                (Ended { status, reason, next, tunnel: None, endpoint }, outcome)
            }
            End::Switched { status } => {
                let tunnel = endpoint.clone().map(|endpoint| (up, endpoint));
                let ended = Ended { status, reason: None, next: Next::Close, tunnel, endpoint };
                (ended, Outcome::Success(begun.elapsed()))
            }
            End::Abandoned => {
                return Err(match abandoned {
                    Some(Failure::Status(status)) => Attempt::Status(status),
                    _ => Attempt::Error(Error::NotDelivered),
                });
            }
            // A kept connection may have been closed by a plain server just as it was used again;
            // no byte of an answer came, and what is idempotent may be repeated (RFC 9112, 9.3.1).
            End::Failed(Error::ConnectionLost(_))
                if reused && !up.mesh && self.facts.idempotent =>
            {
                return Err(Attempt::Error(Error::NotDelivered));
            }
            End::Failed(error) => return Err(Attempt::Error(error)),
            End::Refused(refusal) => return Err(Attempt::Error(Error::MalformedRequest(refusal))),
            End::ClientGone => (Ended::gone(), Outcome::Neutral),
            End::Broken { status, error } => {
                down.io.reset_on_drop();
                let reason = Some(error.reason());
                let ended = Ended { status, reason, next: Next::Close, tunnel: None, endpoint };
                (ended, Outcome::Failure)
            }
        };
        Ok((ended, outcome))
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

    fn write_response(
        &self,
        head: &ResponseHead,
        buf: &[u8],
        (mesh, backend): (bool, &Backend),
        out: &mut BytesMut,
    ) -> crate::http1::Delivery {
        if !head.is_interim() {
            self.answered.set(Some(head.status()));
        }
        // What the inbound proxy says of itself is passed on; what an application says is not.
        let mut said = [const { None }; 2];
        if mesh {
            for (slot, name) in said.iter_mut().zip([header::ERROR, header::ERROR_PROXY]) {
                *slot = head.field(buf, name).next().and_then(|value| NewField::new(name, value));
            }
        }
        let said = said.iter().flatten().copied().collect::<Vec<_>>();
        // Filters speak of the answer, not of what comes before it.
        let changes = backend.changes.as_deref().filter(|_| !head.is_interim());
        let edits = ResponseEdits {
            client: self.facts.version,
            close: self.ends_connection(),
            rechunk: true,
            edits: changes.map_or(&[], |changes| &changes.response),
            add: &said,
        };
        write_response_head(head, buf, &edits, out)
    }
}

/// A failed attempt.
enum Attempt {
    Error(Error),
    Status(u16),
}

/// An attempt of which the exchange is over.
struct Try<'e> {
    begun: Instant,
    up: Upstream,
    /// The connection had carried another request before.
    reused: bool,
    endpoint: &'e Arc<Endpoint>,
    /// Why the answer was not forwarded.
    abandoned: Option<Failure>,
    /// What the inbound proxy said of itself.
    reported: Option<Reason>,
}
