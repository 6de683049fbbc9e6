//! Performs for the kubelet the checks that the pod declares, on the application and by the pod's
//! own address.
//!
//! Nothing but declared checks, and only for who knows the table's key: the port is open to everybody
//! who reaches the pod. Needs neither certificate nor control plane. A check is made as the kubelet
//! would make it, and its outcome is passed on so that the kubelet decides as it would have.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use heddle_api::probes::{Check, Declared, KEY_HEADER, Key, Table};
use heddle_runtime::drain;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::metrics::{Metrics, ProbeResult};

mod grpc;
mod http_get;
mod redirect;
#[cfg(test)]
mod tests;

/// Connections at one time: twice what a pod may declare.
const MAX_CONNECTIONS: usize = 512;
/// Of one address, so that a stranger cannot take the kubelet's place.
const MAX_PER_ADDRESS: usize = 64;
/// The kubelet sends its request with the connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
const HEAD_SIZE: usize = 16 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Of a reason, as it is passed on and logged.
const MAX_REASON: usize = 300;

/// Why a check did not succeed.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    /// What the kubelet is told: the application's own status, or 503.
    status: StatusCode,
    /// True when the application has answered, if not as it should.
    answered: bool,
    reason: String,
}

impl Failure {
    /// There was no answer that could be judged.
    fn none(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, answered: false, reason: reason.into() }
    }
}

/// Serves until the drain's abort: an application is probed, and has its preStop, while it drains.
pub async fn run(
    listener: TcpListener,
    table: Arc<Table>,
    metrics: Arc<Metrics>,
    drain: drain::Watch,
) {
    let prober = Arc::new(Prober::new(table, metrics));
    let places = Arc::new(Places::default());
    let accept = async {
        loop {
            let all = Arc::clone(&places.all).acquire_owned().await;
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    let Some(place) = places.take(peer.ip().to_canonical(), all.ok()) else {
                        continue;
                    };
                    let (prober, drain) = (Arc::clone(&prober), drain.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = prober.serve(tcp) => {}
                            () = drain.aborted() => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the probe server could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = drain.aborted() => {}
    }
}

struct Prober {
    table: Arc<Table>,
    metrics: Arc<Metrics>,
    http: http_get::Client,
    /// What each check last said, so that changes are logged and nothing else.
    last: Mutex<HashMap<Key, bool>>,
}

/// A hook whose answer is that there is none: the connection ends without a word, which is what the
/// kubelet takes for a failure.
#[derive(Debug, thiserror::Error)]
#[error("the hook failed")]
struct HookFailed;

impl Prober {
    fn new(table: Arc<Table>, metrics: Arc<Metrics>) -> Self {
        Self { table, metrics, http: http_get::Client::new(), last: Mutex::default() }
    }

    async fn serve(self: Arc<Self>, tcp: TcpStream) {
        // The address the kubelet knows the pod by.
        let Ok(local) = tcp.local_addr() else { return };
        let address = local.ip().to_canonical();
        let service = service_fn(move |request| {
            let prober = Arc::clone(&self);
            async move { prober.answer(&request, address).await }
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_SIZE)
            .serve_connection(TokioIo::new(tcp), service);
        // How it ended is the check's to tell.
        let _ = connection.await;
    }

    async fn answer(
        &self,
        request: &Request<Incoming>,
        address: IpAddr,
    ) -> Result<Response<Body>, HookFailed> {
        let key = match self.authorize(request) {
            Ok(key) => key,
            Err((status, reason)) => {
                self.metrics.probes.inc(ProbeResult::Refused);
                return Ok(text(status, reason));
            }
        };
        let declared = self.table.find(&key).expect("authorize has found it");
        let user_agent = request.headers().get(USER_AGENT).cloned();
        let outcome = self.perform(declared, address, user_agent).await;
        self.note(&key, &outcome);
        match outcome {
            Ok(()) => Ok(text(StatusCode::OK, "ok")),
            // Of a hook the kubelet only asks that there be an answer.
            Err(failure) if key.moment.is_hook() && failure.answered => {
                Ok(text(StatusCode::OK, &failure.reason))
            }
            Err(_) if key.moment.is_hook() => Err(HookFailed),
            Err(failure) => Ok(text(failure.status, &failure.reason)),
        }
    }

    fn authorize<B>(&self, request: &Request<B>) -> Result<Key, (StatusCode, &'static str)> {
        let key = Key::from_path(request.uri().path());
        let declared = key.filter(|key| self.table.find(key).is_some());
        let key = declared.ok_or((StatusCode::NOT_FOUND, "the pod declares no such check"))?;
        if request.method() != Method::GET {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "use GET"));
        }
        let offered = request.headers().get(KEY_HEADER).map_or(&[][..], HeaderValue::as_bytes);
        if !self.table.page_key().opens(offered) {
            return Err((
                StatusCode::FORBIDDEN,
                "only for the kubelet, which has the key from the pod's spec",
            ));
        }
        Ok(key)
    }

    async fn perform(
        &self,
        declared: &Declared,
        address: IpAddr,
        user_agent: Option<HeaderValue>,
    ) -> Result<(), Failure> {
        let limit = Duration::from_millis(declared.timeout_ms.into());
        let check = async {
            match &declared.check {
                Check::Http(get) => self.http.check(get, address, user_agent).await,
                Check::Tcp { port } => connect((address, *port).into()).await.map(drop),
                Check::Grpc { port, service } => {
                    grpc::check((address, *port).into(), service, user_agent).await
                }
            }
        };
        let late = || Failure::none(format!("no answer within {} ms", declared.timeout_ms));
        timeout(limit, check).await.unwrap_or_else(|_| Err(late()))
    }

    fn note(&self, key: &Key, outcome: &Result<(), Failure>) {
        let result = if outcome.is_ok() { ProbeResult::Ok } else { ProbeResult::Failed };
        self.metrics.probes.inc(result);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded: a check that is not declared does not get here.
        let before = last.insert(key.clone(), outcome.is_ok());
        drop(last);
        match outcome {
            Err(failure) if before != Some(false) => {
                let reason = bounded(&failure.reason);
                tracing::warn!(check = %key, reason, "the application fails its check");
            }
            Ok(()) if before == Some(false) => {
                tracing::info!(check = %key, "the application passes its check again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

async fn connect(to: SocketAddr) -> Result<TcpStream, Failure> {
    let connected = TcpStream::connect(to).await;
    connected.map_err(|error| Failure::none(format!("cannot connect to {to}: {error}")))
}

fn text(status: StatusCode, reason: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{}\n", bounded(reason))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// What an application chose is short and on one line wherever it is shown.
fn bounded(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

/// Who holds how many connections.
struct Places {
    all: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Default for Places {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_CONNECTIONS)), by_address: Mutex::default() }
    }
}

/// A connection's place, until it is dropped.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
    _all: Option<OwnedSemaphorePermit>,
}

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr, all: Option<OwnedSemaphorePermit>) -> Option<Place> {
        let mut taken = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(self), address, _all: all })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}
