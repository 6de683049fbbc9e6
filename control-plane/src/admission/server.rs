//! HTTPS for the API server: one question a connection. Anybody who reaches the port can connect, so
//! everything has a limit: connections, handshakes, heads, bodies, questions at one time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use heddle_runtime::drain;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::review::{Answer, Reviewer, Webhook};

const MAX_CONNECTIONS: usize = 256;
/// Questions that are in memory at one time.
const MAX_REVIEWS: usize = 16;
/// Twice what etcd stores of an object: a question may hold the old one beside the new.
const MAX_BODY: usize = 4 << 20;
const MAX_HEAD: usize = 16 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// The API server does not wait longer than this by the chart's default.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Tls = watch::Receiver<Option<Arc<rustls::ServerConfig>>>;

/// Serves until the drain's abort: the API server may ask while it does not yet know that this
/// replica is going.
pub(super) async fn run(
    listener: TcpListener,
    tls: Tls,
    reviewer: Arc<Reviewer>,
    drain: drain::Watch,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let reviews = Arc::new(Semaphore::new(MAX_REVIEWS));
    let accept = async {
        loop {
            let permit = Arc::clone(&connections).acquire_owned().await;
            match listener.accept().await {
                Ok((tcp, _)) => {
                    // Whoever has no certificate yet is not ready, and is not asked.
                    let Some(config) = tls.borrow().clone() else { continue };
                    let server = Connection {
                        acceptor: TlsAcceptor::from(config),
                        reviewer: Arc::clone(&reviewer),
                        reviews: Arc::clone(&reviews),
                    };
                    let drain = drain.clone();
                    tokio::spawn(async move {
                        let work = drain.begin_work();
                        tokio::select! {
                            () = server.serve(tcp) => {}
                            () = drain.aborted() => {}
                        }
                        drop((permit, work));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admission server could not accept a connection");
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

struct Connection {
    acceptor: TlsAcceptor,
    reviewer: Arc<Reviewer>,
    reviews: Arc<Semaphore>,
}

impl Connection {
    async fn serve(self, tcp: TcpStream) {
        let Self { acceptor, reviewer, reviews } = self;
        let failed = &reviewer.metrics.connections_failed;
        let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                failed.with_label_values(&["handshake"]).inc();
                return tracing::debug!(%error, "no TLS with a client of the admission server");
            }
            Err(_) => return failed.with_label_values(&["handshake_timeout"]).inc(),
        };
        let asked = Arc::clone(&reviewer);
        let service = service_fn(move |request| {
            let (reviewer, reviews) = (Arc::clone(&asked), Arc::clone(&reviews));
            async move {
                let begun = Instant::now();
                let response = Box::pin(answer(request, &reviewer, &reviews)).await;
                reviewer.metrics.duration.observe(begun.elapsed().as_secs_f64());
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        match timeout(HEAD_TIMEOUT + REVIEW_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                failed.with_label_values(&["http"]).inc();
                tracing::debug!(%error, "a connection to the admission server failed");
            }
            Err(_) => failed.with_label_values(&["timeout"]).inc(),
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    reviewer: &Reviewer,
    reviews: &Semaphore,
) -> Response<Body> {
    let webhook = match request.uri().path() {
        "/inject" => Webhook::Inject,
        "/validate" => Webhook::Validate,
        _ => return text(StatusCode::NOT_FOUND, "write /inject or /validate"),
    };
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview");
    }
    let review = async {
        // The permit comes first: a body that is not read takes no memory.
        let _permit = reviews.acquire().await;
        match to_bytes(Body::new(request.into_body()), MAX_BODY).await {
            Ok(body) => reviewer.review(webhook, &body).await,
            Err(_) => Answer::Malformed(format!("the body is cut off or above {MAX_BODY} bytes")),
        }
    };
    let answer = timeout(REVIEW_TIMEOUT, review).await.unwrap_or(Answer::Unable(
        "no answer in time; the API server or this replica is overloaded".to_owned(),
    ));
    reviewer.metrics.reviews.with_label_values(&[webhook.name(), answer.outcome()]).inc();
    match answer {
        Answer::Reviewed { body, .. } => {
            let mut response = Response::new(Body::from(body));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }
        Answer::Malformed(message) => text(StatusCode::BAD_REQUEST, &message),
        // The webhook's failurePolicy decides.
        Answer::Unable(message) => {
            tracing::warn!(webhook = webhook.name(), message, "cannot answer an admission review");
            text(StatusCode::SERVICE_UNAVAILABLE, &message)
        }
    }
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}
