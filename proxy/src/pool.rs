//! Connections to endpoints: made with the identity the endpoint must prove, and kept for the next
//! request.
//!
//! Keyed by endpoint and protocol, where an endpoint is an (address, identity) pair: no request ever
//! rides a connection that was made for another identity. One pool per data thread, so that taking a
//! connection is a map lookup without a lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::error::{Error, Reason};
use crate::exchange::Upstream;
use crate::hop;
use crate::inbound;
use crate::metrics::Direction;
use crate::snapshot::Endpoint;
use crate::stream::{Conn, Stream};
use crate::tls::{self, Alpn};
use crate::worker::Worker;

pub mod streams;

/// An idle connection is not used after this long. Below the inbound side's own limit, so that the
/// side that could still send a request is the one that closes.
const IDLE: Duration = Duration::from_secs(60);
/// Idle connections kept per endpoint and thread.
const PER_ENDPOINT: usize = 128;
/// Idle connections kept per thread.
const PER_THREAD: usize = 2048;
/// Unacknowledged data older than this means a dead peer. Not for opaque bytes: the kernel counts a
/// peer that lives and does not read as dead, too, and a paused reader is no fault there.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent peer is asked after this long whether it lives, and again after each interval.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 4;

/// Idle HTTP/1 connections of one data thread.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Idle>,
}

#[derive(Default)]
struct Idle {
    by_endpoint: HashMap<u64, Vec<(Instant, Upstream)>, foldhash::fast::RandomState>,
    count: usize,
}

impl Pool {
    /// Takes the connection that was used last, if one is alive.
    pub fn take(&self, endpoint: &Endpoint) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let (since, mut upstream) =
                idle.by_endpoint.get_mut(&endpoint.state.id).and_then(Vec::pop)?;
            idle.count -= 1;
            if since.elapsed() < IDLE && upstream.conn.is_quiet() {
                upstream.reused = true;
                return Some(upstream);
            }
        }
    }

    /// Keeps a connection for the next request, or closes it when enough are kept.
    pub fn put(&self, endpoint: &Endpoint, upstream: Upstream) {
        let mut idle = self.idle.borrow_mut();
        if idle.count >= PER_THREAD {
            return;
        }
        let kept = idle.by_endpoint.entry(endpoint.state.id).or_default();
        if kept.len() < PER_ENDPOINT {
            kept.push((Instant::now(), upstream));
            idle.count += 1;
        }
    }

    /// Closes connections that have been idle too long or were ended by their peer.
    pub fn sweep(&self) {
        let mut idle = self.idle.borrow_mut();
        let mut count = 0;
        idle.by_endpoint.retain(|_, kept| {
            kept.retain_mut(|(since, upstream)| since.elapsed() < IDLE && upstream.conn.is_quiet());
            count += kept.len();
            !kept.is_empty()
        });
        idle.count = count;
    }

    /// Idle connections kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.idle.borrow().count
    }

    /// True when none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Makes a connection to `endpoint`: over mesh TLS to the expected identity, in plaintext only to an
/// endpoint that the control plane says has no proxy, in-process to the pod itself. When it returns,
/// the inbound side has said that it will take the application's bytes.
///
/// # Errors
/// Every error means that no byte of the application has left.
pub async fn connect(
    worker: &Rc<Worker>,
    endpoint: &Endpoint,
    alpn: Alpn,
    connect_timeout: Duration,
) -> Result<Conn, Error> {
    let Some(expected) = &endpoint.identity else {
        // Dialled over its own address, the pod's application would be reached without the inbound
        // path; without a proxy there is no inbound path.
        let tcp = dial(endpoint.address, connect_timeout).await?;
        bound_acknowledgement(&tcp, alpn);
        return Ok(Conn::new(Stream::Tcp(tcp)));
    };
    if worker.is_own_address(endpoint.address.ip()) {
        return accepted(inbound::serve_own(worker, endpoint.address, alpn)?).await;
    }
    let credentials = worker.credentials()?;
    let tcp = dial(endpoint.address, connect_timeout).await?;
    bound_acknowledgement(&tcp, alpn);
    let connected = async {
        let tls = tls::connect(tcp, &credentials, alpn, expected).await?;
        accepted(Stream::MeshClient(Box::new(tls))).await
    };
    let connected = connected.await;
    worker.shared.metrics.mesh_connection(Direction::Outbound, handshake(&connected));
    connected
}

/// Waits for the inbound side to say that it will take bytes.
async fn accepted(stream: Stream) -> Result<Conn, Error> {
    let mut conn = Conn::new(stream);
    timeout(tls::HANDSHAKE_TIMEOUT, hop::receive_preface(&mut conn.io))
        .await
        .map_err(|_| Error::HandshakeTimeout)??;
    Ok(conn)
}

/// What became of the handshake alone. In TLS 1.3 a client hears that its certificate is refused when
/// its own part is done, where the preface should be.
fn handshake(connected: &Result<Conn, Error>) -> Result<(), Reason> {
    let Err(error) = connected else { return Ok(()) };
    let reason = error.reason();
    let failed = matches!(
        reason,
        Reason::HandshakeFailed
            | Reason::HandshakeTimeout
            | Reason::PeerCertificateRefused
            | Reason::PeerIdentityMismatch
            | Reason::MeshProtocolRefused
    );
    if failed { Err(reason) } else { Ok(()) }
}

/// Opens a TCP connection.
///
/// # Errors
/// Refused, unreachable, or not in time.
pub async fn dial(address: SocketAddr, connect_timeout: Duration) -> Result<TcpStream, Error> {
    let tcp = timeout(connect_timeout, TcpStream::connect(address))
        .await
        .map_err(|_| Error::ConnectTimeout(address))?
        .map_err(|error| Error::ConnectFailed(address, error))?;
    // Only makes a good connection better: failing to set it is no reason to drop it.
    let _ = tcp.set_nodelay(true);
    probe_when_silent(&tcp);
    Ok(tcp)
}

/// A peer whose machine has gone says nothing for ever: have the kernel ask.
pub fn probe_when_silent(tcp: &TcpStream) {
    let probes = socket2::TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_INTERVAL)
        .with_retries(PROBES);
    // Best effort: without it the connection lives as long as its timeouts allow.
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&probes);
}

fn bound_acknowledgement(tcp: &TcpStream, alpn: Alpn) {
    if alpn != Alpn::Tcp {
        // Best effort: without it a dead peer is noticed by the kernel's own, longer patience.
        let _ = socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(USER_TIMEOUT));
    }
}
