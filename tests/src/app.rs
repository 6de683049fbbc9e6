//! The application that the demo, the tests and the benches put behind the mesh: an HTTP server
//! that says what it saw, two opaque TCP servers, and a ledger that survives a kill -9.
//!
//! It knows nothing of the mesh: no TLS, no retries, no graceful end unless asked for. What it
//! answers is what a stranger's application would have seen, which is why it is worth asking.

mod answer;
mod call;
mod faulty;
mod http;
mod ledger;
mod tcp;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

pub use answer::{Body, PATTERN_PERIOD, pattern};
pub use call::{CallOptions, Called, call};
pub use faulty::faulty;
pub(crate) use http::hex;
pub use ledger::{Entry, Ledger, parse_ledger};
pub use tcp::{echo, speak_first};

/// What the server is called and where it keeps its ledger.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    /// Address to listen on; `[::]` takes IPv4 too.
    #[arg(long, default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Name in every answer, usually the version: `web-v1`.
    #[arg(long, default_value = "app")]
    pub name: String,
    /// Pod in every answer and ledger line.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod: String,
    /// Append one line per request here before answering it; `-` is standard output.
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Go on serving this long after SIGTERM, in milliseconds. Without it, exit at once.
    #[arg(long, default_value_t = 0)]
    pub linger_ms: u64,
}

/// What the default handler answers, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub server: String,
    pub pod: String,
    pub id: String,
    pub method: String,
    pub path: String,
    pub body_bytes: u64,
    pub body_sha256: String,
    /// The caller's identity as the proxy in front of this server proved it.
    pub client: Option<String>,
    pub peer: SocketAddr,
    /// Every header received, in order.
    pub headers: Vec<(String, String)>,
}

/// A bound server; nothing is accepted until [`Server::run`].
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    app: Arc<http::App>,
}

impl Server {
    pub async fn bind(options: &ServeOptions) -> anyhow::Result<Self> {
        let listener = bind(options.listen).await?;
        let ledger = options.ledger.as_deref().map(Ledger::open).transpose()?;
        let app = http::App { name: options.name.clone(), pod: options.pod.clone(), ledger };
        Ok(Self { listener, app: Arc::new(app) })
    }

    pub fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves HTTP/1.1 and HTTP/2 with prior knowledge until the future is dropped.
    pub async fn run(self) -> anyhow::Result<()> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            let app = Arc::clone(&self.app);
            tokio::spawn(serve_connection(stream, peer, app));
        }
    }
}

/// Serves until SIGTERM or SIGINT, and then for as long as the options say.
pub async fn serve(options: &ServeOptions) -> anyhow::Result<()> {
    let server = Server::bind(options).await?;
    let linger = Duration::from_millis(options.linger_ms);
    tokio::select! {
        ended = server.run() => ended,
        asked = asked_to_stop(linger) => asked,
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, app: Arc<http::App>) {
    // Refused only on a socket that is gone already, which the first read reports better.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request| {
        let app = Arc::clone(&app);
        async move { app.respond(request, peer).await }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    // How a client ends its connection is the client's affair; the tests look at that side.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn asked_to_stop(linger: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::time::sleep(linger).await;
    Ok(())
}
