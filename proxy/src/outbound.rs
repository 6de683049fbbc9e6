//! One connection from the application, top to bottom.
//!
//! ```text
//! accept → original destination → Service, pod or nobody → declared or detected protocol
//!        → Opaque: one endpoint, copy      Http1 | Http2: per request, see http1.rs and http2.rs
//! ```

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::proto::v1;
use heddle_policy::retry::{self, Attempted, Failure, Refusal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::balance::{self, Outcome, Pick};
use crate::detect::{self, ServerVerdict, Verdict};
use crate::error::Error;
use crate::http::{self, KEEP_ALIVE};
use crate::listener::Accepted;
use crate::metrics::{Detected, Direction, Ejection, Retry};
use crate::pool;
use crate::snapshot::{Backend, Destination, Endpoint, ServicePort};
use crate::stream::{Conn, Stream};
use crate::tcp;
use crate::telemetry;
use crate::tls::Alpn;
use crate::worker::Worker;

mod http1;
mod http2;
mod route;

/// An address outside the mesh may be far away.
const PASS_THROUGH_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that has begun to speak but cannot be told apart yet is waited for this long.
const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A client that may not have opaque bytes may still come up with a request, but not for ever.
const DENIED_TIMEOUT: Duration = Duration::from_secs(10);
/// A drain gives a client this long to begin.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// A connection that must be refused is read for this long, to answer in the client's protocol.
const REFUSE_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection whose destination is known.
pub(crate) struct Call {
    /// Who dialled, in the pod.
    peer: SocketAddr,
    /// What was dialled.
    original: SocketAddr,
}

/// What the proxy will make of a connection's bytes.
enum Protocol {
    Http1,
    Http2,
    /// Opaque, with a connection to the server's side if the race opened one.
    Opaque(Option<Opened>),
}

/// A connection to the server's side for opaque bytes.
struct Opened {
    to: InFlight,
    conn: Conn,
}

/// Counts one attempt at an endpoint, and ends the count on every way out, a dropped future included.
struct InFlight {
    worker: Rc<Worker>,
    endpoint: Arc<Endpoint>,
    backend: Arc<Backend>,
    /// What came of it, as far as is known.
    outcome: Outcome,
}

impl InFlight {
    fn start(worker: &Rc<Worker>, endpoint: &Arc<Endpoint>, backend: &Arc<Backend>) -> Self {
        endpoint.state.start();
        let (worker, endpoint, backend) = (worker.clone(), endpoint.clone(), backend.clone());
        Self { worker, endpoint, backend, outcome: Outcome::Neutral }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        finish(&self.worker, &self.endpoint, &self.backend, self.outcome);
    }
}

/// Serves one connection until it ends.
pub async fn serve(accepted: Accepted, worker: &Rc<Worker>) {
    let Accepted { tcp, peer, original } = accepted;
    // Also keeps a half-closed, silent connection's redirection from being forgotten after a minute.
    pool::probe_when_silent(&tcp);
    let call = Call { peer, original };
    let mut down = Conn::new(Stream::Tcp(tcp));
    let port = match worker.find_destination(original).await {
        Ok(Destination::Service(port) | Destination::Pod(port)) => port,
        Ok(Destination::Unknown) => return pass_through(down, worker, original).await,
        Err(error) => return refuse(down, worker, &error).await,
    };
    match protocol(&mut down, worker, &call, &port).await {
        Ok(Protocol::Http1) => http1::serve(down, worker, &call).await,
        Ok(Protocol::Http2) => http2::serve(down, worker, &call).await,
        Ok(Protocol::Opaque(up)) => serve_opaque(down, worker, &call, &port, up).await,
        Err(error) => refuse(down, worker, &error).await,
    }
}

/// The declared protocol, checked against what is spoken; else the outcome of a race: whoever speaks
/// first decides.
async fn protocol(
    down: &mut Conn,
    worker: &Rc<Worker>,
    call: &Call,
    port: &Arc<ServicePort>,
) -> Result<Protocol, Error> {
    let (declared, want) = match port.protocol {
        v1::Protocol::Tcp => return Ok(Protocol::Opaque(None)),
        v1::Protocol::Unspecified => return race(down, worker, call, port).await,
        v1::Protocol::Http1 => ("http", Verdict::Http1),
        v1::Protocol::Http2 => ("h2c", Verdict::Http2),
        v1::Protocol::Grpc => ("grpc", Verdict::Http2),
    };
    match first_request(down, worker).await? {
        Verdict::Http2 if want == Verdict::Http2 => Ok(Protocol::Http2),
        // What is no HTTP at all goes to the codec of what is declared: its refusals say more, and
        // RFC 9113, 3.4 wants an invalid preface answered by the end of the connection, not a reset.
        Verdict::Http1 | Verdict::Opaque if want == Verdict::Http1 => Ok(Protocol::Http1),
        Verdict::Opaque if want == Verdict::Http2 => Ok(Protocol::Http2),
        Verdict::Http1 | Verdict::Http2 | Verdict::Tls | Verdict::Opaque | Verdict::NeedMore => {
            Err(Error::ProtocolMismatch { declared })
        }
    }
}

/// Reads until the client's protocol is certain. The wait for its first byte is as long as that of a
/// kept connection for its next request.
async fn first_request(down: &mut Conn, worker: &Worker) -> Result<Verdict, Error> {
    let drained = async {
        worker.shared.drain.draining().await;
        sleep(DRAIN_GRACE).await;
    };
    let begun = async { if down.buf.is_empty() { down.fill().await.map(drop) } else { Ok(()) } };
    tokio::select! {
        biased;
        begun = timeout(KEEP_ALIVE, begun) => match begun {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::ConnectionLost(error)),
            Err(_) => return Err(Error::IdleTimeout),
        },
        () = drained => return Err(Error::Draining),
    }
    client_speaks(down).await
}

/// Reads until the client's protocol is certain.
async fn client_speaks(down: &mut Conn) -> Result<Verdict, Error> {
    let mut begun = None;
    loop {
        let verdict = detect::client_first(&down.buf);
        if verdict != Verdict::NeedMore {
            return Ok(verdict);
        }
        let fill = down.fill();
        let read = match begun {
            None => fill.await,
            Some(at) => match timeout_at(at + DETECT_TIMEOUT, fill).await {
                Ok(read) => read,
                Err(_) => return Ok(Verdict::Opaque),
            },
        };
        match read {
            Ok(0) if down.buf.is_empty() => {
                return Err(Error::ConnectionLost(std::io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(0) => return Ok(Verdict::Opaque),
            Ok(_) => begun = begun.or_else(|| Some(Instant::now())),
            Err(error) => return Err(Error::ConnectionLost(error)),
        }
    }
}

/// Detection without delay: a client that is silent for a grace of milliseconds may be waiting for
/// the server, so the server's side is opened, too.
async fn race(
    down: &mut Conn,
    worker: &Rc<Worker>,
    call: &Call,
    port: &Arc<ServicePort>,
) -> Result<Protocol, Error> {
    let grace = worker.detected.grace(call.original, worker.now());
    if !down.buf.is_empty() || !grace.is_zero() {
        match timeout(grace, down.fill()).await {
            // A client that has nothing to say may still wait for what the server says.
            Ok(Ok(0)) => return Ok(Protocol::Opaque(None)),
            Ok(Ok(_)) => return decide(down, worker, call, None).await,
            Ok(Err(error)) => return Err(Error::ConnectionLost(error)),
            Err(_) => {}
        }
    }
    let mut up = match connect_opaque(worker, call, port).await {
        Ok(up) => up,
        Err(error @ Error::AuthorizationDenied(_)) => {
            // Opaque bytes are denied; a request of a client that is merely slow may not be.
            let late = timeout(DENIED_TIMEOUT, decide(down, worker, call, None)).await;
            return match late {
                Ok(Ok(Protocol::Opaque(_))) | Err(_) => Err(error),
                Ok(decided) => decided,
            };
        }
        Err(error) => return Err(error),
    };
    tokio::select! {
        biased;
        read = down.fill() => match read {
            Ok(0) => Ok(Protocol::Opaque(Some(up))),
            Ok(_) => decide(down, worker, call, Some(up)).await,
            Err(error) => Err(Error::ConnectionLost(error)),
        },
        _ = up.conn.fill() => server_spoke(down, worker, call, up).await,
    }
}

/// Whatever the server says first, or its end, goes to the client as it is; but HTTP/2 is not opaque
/// because its server was quicker.
async fn server_spoke(
    down: &mut Conn,
    worker: &Rc<Worker>,
    call: &Call,
    up: Opened,
) -> Result<Protocol, Error> {
    match detect::server_first(&up.conn.buf) {
        ServerVerdict::Http2Settings => {
            drop(up);
            return decide(down, worker, call, None).await;
        }
        ServerVerdict::Opaque => worker.detected.remember(call.original, worker.now()),
        ServerVerdict::HttpResponse | ServerVerdict::NeedMore => {}
    }
    worker.shared.metrics.detections.inc(Detected::ServerFirst);
    Ok(Protocol::Opaque(Some(up)))
}

/// The client has spoken: what it speaks decides, and a connection that the race opened to the
/// server's side is used only for opaque bytes.
async fn decide(
    down: &mut Conn,
    worker: &Rc<Worker>,
    call: &Call,
    opened: Option<Opened>,
) -> Result<Protocol, Error> {
    worker.detected.forget(call.original);
    let verdict = first_request(down, worker).await?;
    let (seen, protocol) = match verdict {
        Verdict::Http1 => (Detected::Http1, Protocol::Http1),
        Verdict::Http2 => (Detected::Http2, Protocol::Http2),
        Verdict::Tls | Verdict::Opaque | Verdict::NeedMore => {
            worker.shared.metrics.detections.inc(Detected::Opaque);
            return Ok(Protocol::Opaque(opened));
        }
    };
    worker.shared.metrics.detections.inc(seen);
    Ok(protocol)
}

/// Draws a backend and connects to one of its endpoints, moving on while nothing has been sent.
async fn connect_opaque(
    worker: &Rc<Worker>,
    call: &Call,
    port: &ServicePort,
) -> Result<Opened, Error> {
    let backend = draw(worker, port);
    let mut tried = Vec::new();
    loop {
        let Some(endpoint) = pick(worker, call, backend, &tried) else {
            return Err(Error::NoEndpoints(backend.service.clone()));
        };
        let mut to = InFlight::start(worker, endpoint, backend);
        let connected =
            pool::connect(worker, endpoint, Alpn::Tcp, backend.policy.connect_timeout).await;
        let error = match connected {
            Ok(conn) => {
                endpoint.state.connected();
                return Ok(Opened { to, conn });
            }
            Err(error) => error,
        };
        to.outcome = outcome_of(&error);
        drop(to);
        // Nothing has been sent, so an opaque connection is as repeatable as a request.
        let retries = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let attempted = Attempted { retries, idempotent: true, replayable: true };
        let Some(failure) = error.failure() else { return Err(error) };
        if !may_retry(worker, backend, failure, attempted).await {
            return Err(error);
        }
        tried.push(endpoint.state.id);
    }
}

async fn serve_opaque(
    down: Conn,
    worker: &Rc<Worker>,
    call: &Call,
    port: &Arc<ServicePort>,
    opened: Option<Opened>,
) {
    let connected = match opened {
        Some(opened) => Ok(opened),
        None => connect_opaque(worker, call, port).await,
    };
    let Opened { to, conn } = match connected {
        Ok(connected) => connected,
        Err(error) => {
            telemetry::connection_error(worker, Direction::Outbound, &error);
            down.io.reset_on_drop();
            return;
        }
    };
    let record = telemetry::Connection::outbound(worker, port, &to.backend, &to.endpoint);
    let idle = to.backend.policy.idle_timeout;
    let transfer = tcp::forward(down, conn, idle, std::future::pending()).await;
    record.end(&transfer);
}

/// A destination nobody in the mesh owns. Nothing has been read of the connection.
async fn pass_through(down: Conn, worker: &Rc<Worker>, original: SocketAddr) {
    let allowed = worker.snapshot().mesh.as_ref().is_some_and(|mesh| mesh.passthrough);
    if !allowed {
        return refuse(down, worker, &Error::PassthroughDenied(original)).await;
    }
    let up = match pool::dial(original, PASS_THROUGH_TIMEOUT).await {
        Ok(tcp) => tcp,
        Err(error) => {
            telemetry::connection_error(worker, Direction::Outbound, &error);
            down.io.reset_on_drop();
            return;
        }
    };
    let record = telemetry::Connection::pass_through(worker, original);
    let Stream::Tcp(down) = down.io else { return };
    let transfer = tcp::splice(down, up, std::future::pending()).await;
    record.end(&transfer);
}

/// Refuses a connection: with an answer when the client turns out to speak HTTP/1, else by a reset.
async fn refuse(mut down: Conn, worker: &Rc<Worker>, error: &Error) {
    telemetry::connection_error(worker, Direction::Outbound, error);
    let verdict = timeout(REFUSE_TIMEOUT, client_speaks(&mut down)).await;
    match verdict {
        Ok(Ok(Verdict::Http1)) => http::answer_and_close(down, error, http1::OUTBOUND).await,
        Ok(Ok(Verdict::Http2)) => http2::answer_and_close(down, worker, error).await,
        _ => down.io.reset_on_drop(),
    }
}

/// What stands behind an address that was known to be somebody's when the connection came: one view
/// per request, so that a long connection follows every change.
async fn find_port(worker: &Worker, call: &Call) -> Result<Arc<ServicePort>, Error> {
    match worker.find_destination(call.original).await? {
        Destination::Service(port) | Destination::Pod(port) => Ok(port),
        // It left the mesh's knowledge while the connection was open: the next dial decides.
        Destination::Unknown => Err(Error::NoEndpoints("destination".into())),
    }
}

/// Draws the backend of one request or one opaque connection by the Service's split.
fn draw<'a>(worker: &Worker, port: &'a ServicePort) -> &'a Arc<Backend> {
    let index = port.split.as_ref().map_or(0, |split| split.draw(worker.random()));
    &port.backends[index]
}

fn pick<'a>(
    worker: &Worker,
    call: &Call,
    backend: &'a Backend,
    tried: &[u64],
) -> Option<&'a Arc<Endpoint>> {
    let client = call.peer.ip();
    balance::pick(backend, Pick { now: worker.now(), random: || worker.random(), tried, client })
}

/// Whether a failed attempt is made again: asks the policy, takes from the budget, waits the backoff.
async fn may_retry(
    worker: &Worker,
    backend: &Backend,
    failure: Failure,
    attempted: Attempted,
) -> bool {
    let retries = &worker.shared.metrics.retries;
    let nobody_left = attempted.retries as usize + 1 >= backend.ready.len();
    match backend.policy.may_retry(failure, attempted) {
        // An answer that the policy does not call a failure is none.
        retry::Verdict::No(Refusal::NotRetryable) if matches!(failure, Failure::Status(_)) => {
            return false;
        }
        retry::Verdict::No(refusal) => {
            retries.inc(refusal.into());
            return false;
        }
        // The same endpoint would not take a connection a moment later either.
        retry::Verdict::Again if nobody_left => {
            retries.inc(Retry::Exhausted);
            return false;
        }
        retry::Verdict::Again => {}
        retry::Verdict::AgainWithinBudget => {
            if !backend.state.budget.try_retry(backend.policy.retries.budget, worker.now()) {
                retries.inc(Retry::NoBudget);
                return false;
            }
            if failure != Failure::NotProcessed {
                sleep(backend.policy.backoff(attempted.retries, worker.random_unit())).await;
            }
        }
    }
    retries.inc(Retry::Made);
    true
}

fn finish(worker: &Worker, endpoint: &Endpoint, backend: &Backend, outcome: Outcome) {
    let breaker = backend.policy.circuit_breaker.as_ref();
    if endpoint.state.finish(outcome, worker.now(), breaker, &backend.ready) {
        tracing::info!(endpoint = %endpoint.address, pod = %endpoint.pod, "endpoint ejected");
        worker.shared.metrics.ejections.inc(Ejection::ConsecutiveFailures);
    }
}

/// What a failed attempt says about its endpoint.
fn outcome_of(error: &Error) -> Outcome {
    match error.failure() {
        Some(Failure::NotConnected | Failure::NotProcessed) => Outcome::Refused,
        Some(Failure::Unknown | Failure::Status(_)) => Outcome::Failure,
        None => Outcome::Neutral,
    }
}
