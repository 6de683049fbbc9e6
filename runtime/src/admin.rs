//! The admin HTTP server: `/livez`, `/readyz`, `/metrics`, and whatever the daemon adds. It shows;
//! it changes nothing. Slow and idle clients are cut, and their number is bounded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::TextEncoder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::drain;

const CONNECTION_LIMIT: usize = 64;
/// For the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not read its answer is cut by this; one that scrapes connects again.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// Pause after a failed accept, for instance when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What stands between the process and being ready: what blocks, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    blockers: BTreeMap<&'static str, String>,
}

impl Readiness {
    /// Notes that `part` is not ready and why. True when that is news, as `send_if_modified` asks.
    pub fn block(&mut self, part: &'static str, reason: impl Into<String>) -> bool {
        let reason = reason.into();
        if self.blockers.get(part) == Some(&reason) {
            return false;
        }
        self.blockers.insert(part, reason);
        true
    }

    /// Notes that `part` is ready. True when that is news.
    pub fn clear(&mut self, part: &'static str) -> bool {
        self.blockers.remove(part).is_some()
    }

    /// True when nothing blocks.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.blockers.is_empty()
    }

    /// What blocks, and why.
    pub fn blockers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.blockers.iter().map(|(part, reason)| (*part, reason.as_str()))
    }
}

/// Who asks: an extension of every request, for pages that are not everybody's.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    peer: SocketAddr,
    local: SocketAddr,
}

impl Client {
    /// True when the client is on this host or in this pod: it comes from loopback, or from the
    /// very address it dialled.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let peer = self.peer.ip().to_canonical();
        peer.is_loopback() || peer == self.local.ip().to_canonical()
    }
}

/// What the server shows.
#[derive(Debug, Clone)]
pub struct Admin {
    pub ready: watch::Receiver<Readiness>,
    pub registry: prometheus::Registry,
    /// The daemon's own pages.
    pub extra: Router,
}

/// Serves until the drain's abort: health and metrics stay visible while the process drains.
pub async fn serve(listener: TcpListener, admin: Admin, drain: drain::Watch) {
    let router = router(admin);
    let connections = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&connections).acquire_owned() => permit,
            () = drain.aborted() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.aborted() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = serve_connection(stream, peer, router.clone(), drain.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "admin server could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(admin.ready))
        .route("/metrics", get(metrics).with_state(admin.registry))
        .merge(admin.extra)
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    drain: drain::Watch,
) {
    let Ok(local) = stream.local_addr() else { return };
    let router = router.layer(Extension(Client { peer, local }));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        ended = tokio::time::timeout(CONNECTION_LIFE, connection) => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "admin connection failed");
            }
        }
        () = drain.aborted() => {}
    }
}

async fn readyz(State(ready): State<watch::Receiver<Readiness>>) -> Response {
    let readiness = ready.borrow().clone();
    if readiness.is_ready() {
        return "ready\n".into_response();
    }
    let reasons: String =
        readiness.blockers().map(|(part, reason)| format!("{part}: {reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response()
}

async fn metrics(State(registry): State<prometheus::Registry>) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::IntCounter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn a_client_is_local_from_loopback_or_the_dialled_address() {
        for (peer, local, want) in [
            ("127.0.0.1:1", "127.0.0.1:2", true),
            ("[::ffff:127.0.0.9]:1", "[::ffff:127.0.0.1]:2", true),
            ("[::1]:1", "[::1]:2", true),
            ("10.0.0.1:1", "10.0.0.1:2", true),
            ("10.0.0.2:1", "10.0.0.1:2", false),
            ("[fd00::2]:1", "[fd00::1]:2", false),
        ] {
            let client = Client { peer: peer.parse().unwrap(), local: local.parse().unwrap() };
            assert_eq!(client.is_local(), want, "{peer} {local}");
        }
    }

    #[tokio::test]
    async fn shows_health_readiness_with_reasons_metrics_and_extra_pages() {
        let registry = prometheus::Registry::new();
        let counter = IntCounter::new("things_total", "Things.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc();
        let mut blocked = Readiness::default();
        assert!(blocked.block("snapshot", "not received yet"));
        assert!(!blocked.block("snapshot", "not received yet"));
        let (ready, receiver) = watch::channel(blocked);
        let extra = Router::new().route("/debug/x", get(async || "extra"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signal, drain) = drain::channel();
        let admin = Admin { ready: receiver, registry, extra };
        let server = tokio::spawn(serve(listener, admin, drain));

        assert!(fetch(address, "/livez").await.ends_with("ok\n"));
        let answer = fetch(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("snapshot: not received yet\n"), "{answer}");
        assert!(ready.send_if_modified(|r| r.clear("snapshot")));
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        assert!(fetch(address, "/metrics").await.contains("\nthings_total 1\n"));
        assert!(fetch(address, "/debug/x").await.ends_with("extra"));

        signal.start();
        assert!(fetch(address, "/livez").await.ends_with("ok\n"), "visible while draining");
        signal.abort();
        server.await.unwrap();
    }
}
