//! Accepts connections and shakes hands. Survives every failure of `accept`, bounds connections in
//! all and per address, and lets a connection be cut from outside.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use heddle_runtime::backoff::Backoff;
use heddle_runtime::drain;
use nix::sys::resource::{Resource, getrlimit};
use rand::RngExt;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

/// All connections together; beyond, clients wait in the kernel's queue.
const CONNECTION_LIMIT: u64 = 8_000;
/// Files that connections leave for everything else: sources, state, health and metrics.
const RESERVED_FILES: u64 = 128;
/// Connections of one address: a proxy needs one stream and now and then a certificate.
const ADDRESS_LIMIT: u32 = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_millis(500);

/// An accepted connection after its handshake.
pub(crate) struct Connection {
    tls: TlsStream<TcpStream>,
    caller: Caller,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _slot: Slot,
}

/// Whose connection a request came on; an extension of every request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) peer: IpAddr,
    /// Verified against the bundle; the leaf first.
    pub(crate) certificates: Option<Arc<[CertificateDer<'static>]>>,
    /// Ends the connection at once, whatever its peer does.
    pub(crate) cut: CancellationToken,
}

/// Accepts until the drain begins.
pub(crate) struct Acceptor {
    pub(crate) listener: TcpListener,
    pub(crate) config: watch::Receiver<Option<Arc<ServerConfig>>>,
    pub(crate) connections: mpsc::Sender<io::Result<Connection>>,
    pub(crate) metrics: Metrics,
    pub(crate) drain: drain::Watch,
}

impl Acceptor {
    pub(crate) async fn run(mut self) {
        // Before the first certificate there is nothing to say; clients wait in the kernel's queue.
        let ready = self.config.wait_for(Option::is_some);
        tokio::select! {
            ready = ready => if ready.is_err() { return },
            () = self.drain.draining() => return,
        }
        let slots = Slots::new(connection_limit());
        let mut backoff = Backoff::new(ACCEPT_PAUSE, ACCEPT_PAUSE_MAX);
        loop {
            let accepted = tokio::select! {
                accepted = slots.accept(&self.listener) => accepted,
                () = self.drain.draining() => return,
            };
            match accepted {
                Ok(Accepted::Connection(stream, slot)) => {
                    backoff.reset();
                    self.shake_hands(stream, slot);
                }
                Ok(Accepted::TooMany) => self.refused("too_many_from_address"),
                Err(error) => {
                    self.refused("accept_failed");
                    tracing::debug!(%error, "cannot accept a connection");
                    let pause = backoff.next(rand::rng().random());
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn shake_hands(&self, stream: TcpStream, slot: Slot) {
        let Some(config) = self.config.borrow().clone() else { return };
        let (connections, metrics) = (self.connections.clone(), self.metrics.clone());
        tokio::spawn(async move {
            let refused = |reason| metrics.connections_refused.with_label_values(&[reason]).inc();
            // A small message waits for nothing; a failure here shows at the next read.
            let _ = stream.set_nodelay(true);
            let accepted = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
                // The server has ended when this fails, and the connection with it.
                Ok(Ok(tls)) => drop(connections.send(Ok(Connection::new(tls, slot))).await),
                Ok(Err(error)) => {
                    refused("tls_failed");
                    tracing::debug!(%error, peer = %slot.peer, "TLS handshake failed");
                }
                Err(_) => refused("tls_timeout"),
            }
        });
    }

    fn refused(&self, reason: &str) {
        self.metrics.connections_refused.with_label_values(&[reason]).inc();
    }
}

/// Counts connections, in all and by address.
#[derive(Clone)]
struct Slots {
    all: Arc<Semaphore>,
    by_address: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// One connection's place; given back when dropped.
struct Slot {
    peer: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, u32>>>,
    _permit: OwnedSemaphorePermit,
}

enum Accepted {
    Connection(TcpStream, Slot),
    TooMany,
}

/// What the process may open, less what the rest of it needs.
fn connection_limit() -> usize {
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
    let limit = files.saturating_sub(RESERVED_FILES).clamp(16, CONNECTION_LIMIT);
    usize::try_from(limit).unwrap_or(16)
}

impl Slots {
    fn new(limit: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(limit)), by_address: Arc::default() }
    }

    async fn accept(&self, listener: &TcpListener) -> io::Result<Accepted> {
        let permit = self.all.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = listener.accept().await?;
        let slot = self.take(peer, permit);
        Ok(slot.map_or(Accepted::TooMany, |slot| Accepted::Connection(stream, slot)))
    }

    fn take(&self, peer: SocketAddr, permit: OwnedSemaphorePermit) -> Option<Slot> {
        let peer = peer.ip().to_canonical();
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(peer).or_default();
        if *count >= ADDRESS_LIMIT {
            return None;
        }
        *count += 1;
        drop(by_address);
        Some(Slot { peer, by_address: self.by_address.clone(), _permit: permit })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.peer);
            }
        }
    }
}

impl Connection {
    fn new(tls: TlsStream<TcpStream>, slot: Slot) -> Self {
        let cut = CancellationToken::new();
        let certificates = tls.get_ref().1.peer_certificates().map(Arc::from);
        let caller = Caller { peer: slot.peer, certificates, cut: cut.clone() };
        Self { tls, caller, cut: Box::pin(cut.cancelled_owned()), _slot: slot }
    }

    fn check_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slots_are_counted_by_address_and_given_back() {
        let slots = Slots::new(1_000);
        let take = async |peer: &str| {
            let permit = slots.all.clone().acquire_owned().await.unwrap();
            slots.take(peer.parse().unwrap(), permit)
        };
        let mut held = Vec::new();
        for _ in 0..ADDRESS_LIMIT {
            held.push(take("[::ffff:10.0.0.1]:1").await.unwrap());
        }
        assert!(take("10.0.0.1:2").await.is_none(), "the same address, mapped or not");
        let other = take("10.0.0.2:1").await.unwrap();
        assert_eq!(other.peer.to_string(), "10.0.0.2");
        held.pop();
        assert!(take("10.0.0.1:3").await.is_some());
        drop((held, other));
        assert!(slots.by_address.lock().unwrap().is_empty());
        assert_eq!(slots.all.available_permits(), 1_000);
    }
}
