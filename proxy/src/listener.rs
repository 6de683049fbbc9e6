//! Accepts connections on one data thread: original destination, connection limit, drain.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::names::{METRICS_PORT, PROBE_PORT, PROXY_PORTS};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::{self, Metrics};
use crate::worker::Worker;
use crate::{inbound, outbound};

/// Connections the kernel may queue.
const BACKLOG: i32 = 1024;
/// Pause after an accept failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Traffic from the application, or to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the application.
    Outbound,
    /// To the application.
    Inbound,
}

/// A connection the kernel redirected to the proxy.
pub struct Accepted {
    /// The connection.
    pub tcp: TcpStream,
    /// Who dialled.
    pub peer: SocketAddr,
    /// What was dialled.
    pub original: SocketAddr,
}

/// Opens the listeners of one direction, one per address family: a dual-stack socket would report
/// IPv4 destinations in IPv6 clothes. `SO_REUSEPORT` gives every data thread a listener of its own.
///
/// # Errors
/// The address is taken or not available.
pub fn bind(listen: SocketAddr) -> io::Result<Vec<TcpListener>> {
    let port = listen.port();
    match listen.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            let mut listeners = vec![bind_one((Ipv4Addr::UNSPECIFIED, port).into())?];
            match bind_one(listen) {
                Ok(listener) => listeners.push(listener),
                // A kernel without IPv6 has no IPv6 traffic to take over.
                Err(error) if error.raw_os_error() == Some(97) => {}
                Err(error) => return Err(error),
            }
            Ok(listeners)
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(vec![bind_one(listen)?]),
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the process ends. Listeners stay open through a drain: closing one of several that
/// share a port resets what the kernel has queued on it.
pub async fn run(listener: TcpListener, direction: Direction, worker: Rc<Worker>) {
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // EMFILE, ENFILE, ENOBUFS and the like pass; an accept loop that ends does not.
                tracing::warn!(%error, ?direction, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shared = &worker.shared;
        let Some(slot) = shared.connections.try_begin() else {
            reset(&tcp);
            continue;
        };
        let inbound = (direction == Direction::Inbound).then(|| shared.inbound.try_begin());
        let _ = tcp.set_nodelay(true);
        let Some(original) = original_destination(&tcp) else {
            reset(&tcp);
            continue;
        };
        let accepted = Accepted { tcp, peer, original };
        let open = Open::count(&shared.metrics, direction);
        let (worker, work) = (worker.clone(), worker.shared.drain.begin_work());
        tokio::task::spawn_local(async move {
            let aborted = worker.shared.drain.clone();
            let serve = async {
                match direction {
                    Direction::Outbound => outbound::serve(accepted, &worker).await,
                    Direction::Inbound => inbound::serve(accepted, &worker).await,
                }
            };
            tokio::select! {
                () = serve => {}
                () = aborted.aborted() => {}
            }
            drop((slot, inbound, open, work));
        });
    }
}

/// An accepted connection in the metrics, until it is dropped.
struct Open(Arc<Metrics>, metrics::Direction);

impl Open {
    fn count(metrics: &Arc<Metrics>, direction: Direction) -> Self {
        let direction = match direction {
            Direction::Outbound => metrics::Direction::Outbound,
            Direction::Inbound => metrics::Direction::Inbound,
        };
        metrics.connections.of(direction).add(1);
        Self(Arc::clone(metrics), direction)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.of(self.1).add(-1);
    }
}

/// The destination before redirection. `None` for a connection that was not redirected, or was
/// dialled to one of the proxy's own ports: serving it would be a loop.
fn original_destination(tcp: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(tcp);
    let local = tcp.local_addr().ok()?;
    let original =
        if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = original.ok()?.as_socket()?;
    let open = [METRICS_PORT, PROBE_PORT].contains(&original.port());
    let own = PROXY_PORTS.contains(&original.port()) && !open;
    (!own && original != local).then_some(original)
}

fn reset(tcp: &TcpStream) {
    // Best effort: the peer sees the end of the connection in any case.
    let _ = tcp.set_zero_linger();
}
