//! One connection to the application, top to bottom.
//!
//! ```text
//! accept → mesh TLS, or plaintext → identity → authorize → preface
//!        → Opaque: dial the application, copy      Http1 | Http2: per request, see http1.rs and http2.rs
//! ```

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1;
use heddle_policy::authorize::{Caller, Decision, Denial, InboundPolicy, TlsMode};
use rustls::server::{Accepted as ClientHello, Acceptor};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::StartHandshake;

use crate::detect::{self, ServerVerdict, Verdict};
use crate::error::{Error, Reason};
use crate::hop::{self, Status};
use crate::http;
use crate::listener::Accepted;
use crate::metrics::Direction;
use crate::pool;
use crate::snapshot::Inbound;
use crate::stream::{Conn, Stream};
use crate::tcp;
use crate::telemetry;
use crate::tls::{self, Alpn, HANDSHAKE_TIMEOUT};
use crate::worker::Worker;

mod http1;
mod http2;

/// The application listens on this machine: either it answers at once or it does not listen.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// A caller that has begun to speak but cannot be told apart yet is waited for this long.
const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A caller that may not have opaque bytes may still come up with a request, but not for ever.
const DENIED_TIMEOUT: Duration = Duration::from_secs(10);
/// Buffer of a call of the pod to itself.
const OWN_BUFFER: usize = 64 * 1024;

/// A connection whose caller is known.
pub(crate) struct Call {
    /// Who dialled.
    peer: SocketAddr,
    /// What was dialled: the application's own address and port.
    local: SocketAddr,
    /// What the caller's certificate proved; `None` is plaintext.
    source: Option<SpiffeId>,
}

impl Call {
    fn caller(&self) -> Caller<'_> {
        Caller { peer: self.source.as_ref(), port: self.local.port() }
    }
}

/// Serves one connection until it ends.
pub async fn serve(accepted: Accepted, worker: &Rc<Worker>) {
    let Accepted { tcp, peer, original } = accepted;
    pool::probe_when_silent(&tcp);
    let mut conn = Conn::new(Stream::Tcp(tcp));
    let permissive = inbound_policy(worker)
        .is_ok_and(|policy| policy.tls_mode(original.port()) == TlsMode::Permissive);
    let grace =
        if permissive { worker.detected.grace(original, worker.now()) } else { HANDSHAKE_TIMEOUT };
    match sniff(&mut conn, grace).await {
        Sniffed::Mesh(hello) => match handshake(conn, *hello, worker).await {
            Ok((conn, source, alpn)) => {
                let call = Call { peer, local: original, source: Some(source) };
                serve_mesh(conn, worker, &call, alpn).await;
            }
            Err(error) => {
                worker.shared.metrics.mesh_connection(Direction::Inbound, Err(error.reason()));
                telemetry::connection_error(worker, Direction::Inbound, &error);
            }
        },
        Sniffed::Ended if !permissive => {}
        // A caller that has nothing to say may still wait for what the application says.
        Sniffed::Plain | Sniffed::Ended => {
            let call = Call { peer, local: original, source: None };
            serve_plain(conn, worker, &call).await;
        }
        Sniffed::Gone => {}
    }
}

/// A call of the pod to itself: the inbound path without the network between. Both identities are
/// the proxy's own.
///
/// # Errors
/// There is no certificate yet, so the pod has no identity.
pub fn serve_own(worker: &Rc<Worker>, local: SocketAddr, alpn: Alpn) -> Result<Stream, Error> {
    let source = worker.credentials()?.id().clone();
    let (near, far) = tokio::io::duplex(OWN_BUFFER);
    let (worker, work) = (worker.clone(), worker.shared.drain.begin_work());
    tokio::task::spawn_local(async move {
        let call = Call { peer: local, local, source: Some(source) };
        serve_mesh(Conn::new(Stream::Local(far)), &worker, &call, alpn).await;
        drop(work);
    });
    Ok(Stream::Local(near))
}

/// What a connection begins with.
enum Sniffed {
    /// A ClientHello that offers a protocol of the mesh.
    Mesh(Box<ClientHello>),
    /// Anything else, TLS of somebody else included; or nothing for as long as was waited.
    Plain,
    /// The caller has closed its side without a word.
    Ended,
    Gone,
}

/// Reads the first bytes into our own buffer, so that what is not mesh TLS can be replayed.
async fn sniff(conn: &mut Conn, grace: Duration) -> Sniffed {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    // From the first byte on: a caller that sends one now and then is no caller.
    let mut begun = None;
    loop {
        let limit = match detect::client_first(&conn.buf) {
            Verdict::NeedMore => DETECT_TIMEOUT,
            Verdict::Tls => HANDSHAKE_TIMEOUT,
            Verdict::Http1 | Verdict::Http2 | Verdict::Opaque => return Sniffed::Plain,
        };
        while fed < conn.buf.len() {
            match acceptor.read_tls(&mut &conn.buf[fed..]) {
                Ok(n) if n > 0 => fed += n,
                Ok(_) | Err(_) => return Sniffed::Plain,
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) if offers_mesh(&accepted) => {
                    return Sniffed::Mesh(Box::new(accepted));
                }
                Ok(Some(_)) | Err(_) => return Sniffed::Plain,
            }
        }
        if !conn.buf.is_empty() && begun.is_none() {
            begun = Some(Instant::now());
        }
        let by = begun.map_or_else(|| Instant::now() + grace, |at| at + limit);
        match timeout_at(by, conn.fill()).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Ok(_)) if !conn.buf.is_empty() => return Sniffed::Plain,
            Ok(Ok(_)) => return Sniffed::Ended,
            Ok(Err(_)) => return Sniffed::Gone,
            Err(_) => return Sniffed::Plain,
        }
    }
}

fn offers_mesh(hello: &ClientHello) -> bool {
    let hello = hello.client_hello();
    let mut offered = hello.alpn().into_iter().flatten();
    offered.any(|name| Alpn::parse(name).is_some())
}

/// Finishes the handshake: the caller's identity comes from here and from nowhere else.
async fn handshake(
    conn: Conn,
    hello: ClientHello,
    worker: &Worker,
) -> Result<(Conn, SpiffeId, Alpn), Error> {
    let Stream::Tcp(tcp) = conn.io else {
        return Err(Error::Internal("mesh TLS is accepted on sockets only"));
    };
    let credentials = worker.credentials()?;
    let start = StartHandshake::from_parts(hello, tcp);
    let tls = timeout(HANDSHAKE_TIMEOUT, start.into_stream(credentials.server_config()?))
        .await
        .map_err(|_| Error::HandshakeTimeout)?
        .map_err(tls::handshake_error)?;
    let (_, connection) = tls.get_ref();
    let alpn = connection.alpn_protocol().and_then(Alpn::parse);
    let alpn = alpn.ok_or(Error::MeshProtocolRefused { offered: "ALPN" })?;
    let peer = credentials.peer_identity(connection.peer_certificates())?;
    let group = connection.negotiated_key_exchange_group().map(|group| group.name());
    tls::log_peer(Direction::Inbound, &peer, group);
    worker.shared.metrics.mesh_connection(Direction::Inbound, Ok(()));
    Ok((Conn::new(Stream::MeshServer(Box::new(tls))), peer.id, alpn))
}

/// The policy in force. Absence refuses everything.
fn inbound_policy(worker: &Worker) -> Result<Arc<InboundPolicy>, Error> {
    match &worker.snapshot().inbound {
        Inbound::Active(policy) => Ok(policy.clone()),
        Inbound::Missing => Err(Error::NotReady("no policy yet")),
        Inbound::Unusable => {
            Err(Error::AuthorizationDenied("a policy that is not understood".into()))
        }
    }
}

/// A caller with an identity: everything it is told about its reception is in the preface.
async fn serve_mesh(mut conn: Conn, worker: &Rc<Worker>, call: &Call, alpn: Alpn) {
    let received = receive(worker, call)
        .and_then(|policy| check_claim(alpn, policy.protocol(call.local.port())));
    let (status, error) = match received {
        Ok(()) if worker.shared.drain.is_draining() => (Status::Unavailable, Some(Error::Draining)),
        Ok(()) => (Status::Ready, None),
        Err(error) => (refusal_status(&error), Some(error)),
    };
    if let Some(error) = error {
        telemetry::connection_error(worker, Direction::Inbound, &error);
        let _ = hop::send_preface(&mut conn.io, status).await;
        return http::linger(&mut conn).await;
    }
    // An opaque connection hears only after the application has been dialled.
    if alpn != Alpn::Tcp && hop::send_preface(&mut conn.io, Status::Ready).await.is_err() {
        return;
    }
    match alpn {
        Alpn::Tcp => serve_opaque(conn, worker, call).await,
        Alpn::Http1 => http1::serve(conn, worker, call).await,
        Alpn::Http2 => http2::serve(conn, worker, call).await,
    }
}

/// Opaque bytes do not go to a port that is declared to speak HTTP: a lenient server would find
/// requests in them, with a `heddle-client-id` that nobody has taken out.
fn check_claim(alpn: Alpn, declared: v1::Protocol) -> Result<(), Error> {
    let declared = match declared {
        _ if alpn != Alpn::Tcp => return Ok(()),
        v1::Protocol::Unspecified | v1::Protocol::Tcp => return Ok(()),
        v1::Protocol::Http1 => "http",
        v1::Protocol::Http2 => "h2c",
        v1::Protocol::Grpc => "grpc",
    };
    Err(Error::ProtocolMismatch { declared })
}

/// A caller without an identity, on a Permissive port; refused on a Strict one.
async fn serve_plain(mut conn: Conn, worker: &Rc<Worker>, call: &Call) {
    let policy = match receive(worker, call) {
        Ok(policy) => policy,
        Err(error) => return refuse_plain(conn, worker, &error).await,
    };
    let verdict = match policy.protocol(call.local.port()) {
        v1::Protocol::Tcp => Verdict::Opaque,
        v1::Protocol::Http1 => Verdict::Http1,
        v1::Protocol::Http2 | v1::Protocol::Grpc => Verdict::Http2,
        v1::Protocol::Unspecified => match caller_speaks(&mut conn).await {
            Some(Verdict::NeedMore) => return race(conn, worker, call, &policy).await,
            Some(verdict) => verdict,
            None => return,
        },
    };
    serve_spoken(conn, worker, call, verdict).await;
}

async fn serve_spoken(conn: Conn, worker: &Rc<Worker>, call: &Call, verdict: Verdict) {
    match verdict {
        Verdict::Http1 => http1::serve(conn, worker, call).await,
        Verdict::Http2 => http2::serve(conn, worker, call).await,
        Verdict::Opaque | Verdict::Tls | Verdict::NeedMore => {
            serve_opaque(conn, worker, call).await;
        }
    }
}

/// A silent caller may be waiting for the server, so the application is dialled, too; whoever speaks
/// first decides.
async fn race(mut conn: Conn, worker: &Rc<Worker>, call: &Call, policy: &InboundPolicy) {
    if let Err(error) = check(policy.authorize_opaque(call.caller())) {
        // Opaque bytes are denied; a request of a caller that is merely slow may not be.
        return match timeout(DENIED_TIMEOUT, conn.fill()).await {
            Ok(Ok(n)) if n > 0 => late(conn, worker, call).await,
            _ => refuse_plain(conn, worker, &error).await,
        };
    }
    let mut up = match pool::dial(call.local, DIAL_TIMEOUT).await {
        Ok(tcp) => Conn::new(Stream::Tcp(tcp)),
        Err(error) => return refuse_plain(conn, worker, &error).await,
    };
    tokio::select! {
        biased;
        read = conn.fill() => match read {
            Ok(0) => forward(conn, up, worker, call).await,
            Err(_) => {}
            Ok(_) => {
                drop(up);
                late(conn, worker, call).await;
            }
        },
        _ = up.fill() => match detect::server_first(&up.buf) {
            // HTTP/2 is not opaque because its server was quicker.
            ServerVerdict::Http2Settings => {
                drop(up);
                if speaks_at_last(&mut conn).await {
                    late(conn, worker, call).await;
                }
            }
            // Whatever the server says first, or its end, goes to the caller as it is.
            verdict @ (ServerVerdict::Opaque
            | ServerVerdict::HttpResponse
            | ServerVerdict::NeedMore) => {
                if verdict == ServerVerdict::Opaque {
                    worker.detected.remember(call.local, worker.now());
                }
                forward(conn, up, worker, call).await;
            }
        },
    }
}

/// Waits for a caller that must speak first. False when it does not.
async fn speaks_at_last(conn: &mut Conn) -> bool {
    timeout(http::KEEP_ALIVE, conn.fill()).await.is_ok_and(|read| read.is_ok_and(|n| n > 0))
}

/// A caller that was silent has begun to speak.
async fn late(mut conn: Conn, worker: &Rc<Worker>, call: &Call) {
    if let Some(verdict) = caller_speaks(&mut conn).await {
        serve_spoken(conn, worker, call, verdict).await;
    }
}

/// Judges what the sniffing has read so far, waiting only for a caller that is in the middle of it.
async fn caller_speaks(conn: &mut Conn) -> Option<Verdict> {
    let by = Instant::now() + DETECT_TIMEOUT;
    loop {
        let verdict = detect::client_first(&conn.buf);
        if verdict != Verdict::NeedMore || conn.buf.is_empty() {
            return Some(verdict);
        }
        match timeout_at(by, conn.fill()).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Err(_)) => return None,
            Ok(Ok(_)) | Err(_) => return Some(Verdict::Opaque),
        }
    }
}

/// What holds for every connection: there is a policy, the address is the pod's own, and plaintext
/// comes in where it may.
fn receive(worker: &Worker, call: &Call) -> Result<Arc<InboundPolicy>, Error> {
    let policy = inbound_policy(worker)?;
    if !policy.addresses.contains(&call.local.ip()) {
        return Err(Error::LoopRefused(call.local));
    }
    check(policy.authorize_connection(call.caller()))?;
    Ok(policy)
}

/// Opaque bytes: judged once, and again whenever the policy changes under them.
async fn serve_opaque(mut conn: Conn, worker: &Rc<Worker>, call: &Call) {
    let dialled = match receive(worker, call)
        .and_then(|policy| check(policy.authorize_opaque(call.caller())))
    {
        Ok(()) => pool::dial(call.local, DIAL_TIMEOUT).await,
        Err(error) => Err(error),
    };
    let status = dialled.as_ref().map_or_else(refusal_status, |_| Status::Ready);
    let mesh = call.source.is_some();
    if mesh && hop::send_preface(&mut conn.io, status).await.is_err() {
        return;
    }
    let up = match dialled {
        Ok(tcp) => Conn::new(Stream::Tcp(tcp)),
        Err(error) => {
            telemetry::connection_error(worker, Direction::Inbound, &error);
            if mesh {
                http::linger(&mut conn).await;
            } else {
                conn.io.reset_on_drop();
            }
            return;
        }
    };
    forward(conn, up, worker, call).await;
}

async fn forward(conn: Conn, up: Conn, worker: &Rc<Worker>, call: &Call) {
    let record = telemetry::Connection::inbound(worker, call.source.as_ref(), call.local);
    let withdrawn = withdrawn(worker, |policy| policy.authorize_opaque(call.caller()));
    let transfer = tcp::forward(conn, up, None, withdrawn).await;
    record.end(&transfer);
}

/// Resolves when the policy stops allowing what it allowed: a connection outlives its policy, its
/// right does not.
async fn withdrawn(worker: &Worker, authorize: impl Fn(&InboundPolicy) -> Decision) {
    let mut changes = worker.snapshot_changes();
    loop {
        // What is in force now first: it may have changed while the application was dialled.
        let inbound = changes.borrow_and_update().inbound.clone();
        let allowed = match inbound {
            Inbound::Active(policy) => authorize(&policy).is_allowed(),
            Inbound::Missing | Inbound::Unusable => false,
        };
        if !allowed {
            return;
        }
        if changes.changed().await.is_err() {
            break;
        }
    }
    // The control side has ended: the drain decides.
    std::future::pending().await
}

/// Refuses a plaintext connection: with an answer to HTTP/1, else by a reset.
async fn refuse_plain(mut conn: Conn, worker: &Rc<Worker>, error: &Error) {
    telemetry::connection_error(worker, Direction::Inbound, error);
    if caller_speaks(&mut conn).await == Some(Verdict::Http1) {
        http::answer_and_close(conn, error, http1::INBOUND).await;
    } else {
        conn.io.reset_on_drop();
    }
}

/// A decision as a result.
fn check(decision: Decision) -> Result<(), Error> {
    let denial = match decision {
        Decision::Allow(_) => return Ok(()),
        Decision::Deny(denial) => denial,
    };
    Err(match denial {
        Denial::Plaintext => Error::PlaintextRefused,
        Denial::AmbiguousPath => Error::AmbiguousPath,
        Denial::Rule(rule) => Error::AuthorizationDenied(rule),
        Denial::NoRuleMatched => {
            Error::AuthorizationDenied("policies that allow others on this port".into())
        }
        Denial::Default => Error::AuthorizationDenied("the mesh's default".into()),
    })
}

/// What outbound is told.
fn refusal_status(error: &Error) -> Status {
    let reason = error.reason();
    if matches!(
        reason,
        Reason::AuthorizationDenied
            | Reason::PlaintextRefused
            | Reason::LoopRefused
            | Reason::ProtocolMismatch
    ) {
        Status::Denied
    } else if matches!(reason, Reason::ConnectFailed | Reason::ConnectTimeout) {
        Status::Unreachable
    } else {
        Status::Unavailable
    }
}

#[cfg(test)]
mod tests;
