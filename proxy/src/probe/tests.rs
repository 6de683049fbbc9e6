//! The probe server over real sockets, against applications that answer, hang, refuse and redirect.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Redirect};
use axum::routing::get;
use heddle_api::probes::{HttpGet, Moment, PageKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tower::service_fn as tower_fn;

use super::*;
use crate::probe::grpc::{HealthCheckRequest, HealthCheckResponse};

const KEY: &str = "0123456789abcdef";

/// A prober with some checks, and everything it needs, until it is dropped.
struct Rig {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
}

impl Rig {
    async fn new(checks: &[(Moment, u32, Check)]) -> Self {
        let mut table = Table::new(PageKey::parse(KEY).unwrap());
        for (moment, timeout_ms, check) in checks {
            let declared = Declared { timeout_ms: *timeout_ms, check: check.clone() };
            table.insert(Key::new("web", *moment), declared);
        }
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signal, drain) = drain::channel();
        let mut tasks = JoinSet::new();
        let counted = Arc::clone(&metrics);
        tasks.spawn(async move {
            // The drain lasts as long as somebody could start it.
            let _signal = signal;
            run(listener, Arc::new(table), counted, drain).await;
        });
        Self { address, metrics, tasks }
    }

    async fn ask(&self, head: &str) -> String {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // A reset is an answer that has none.
        let _ = tcp.read_to_string(&mut answer).await;
        answer
    }

    /// Status and reason; nothing when the connection ended without an answer.
    async fn probe(&self, moment: Moment) -> Option<(u16, String)> {
        let answer = self.ask(&head(&format!("/probe/web/{}", moment.as_str()), KEY)).await;
        let status = answer.get(9..12)?.parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        Some((status, body.trim().to_owned()))
    }
}

fn head(path: &str, key: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nuser-agent: kube-probe/1\r\n{KEY_HEADER}: {key}\r\n\r\n"
    )
}

fn http(port: u16, path: &str) -> Check {
    Check::Http(HttpGet { port, path: path.into(), tls: false, headers: Vec::new() })
}

async fn application(tasks: &mut JoinSet<()>, router: Router) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let connection = http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    port
}

/// A port at which nobody listens.
async fn nobody() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn shop() -> Router {
    Router::new()
        .route("/ok", get(async || "ok"))
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route("/gone", get(async || StatusCode::GONE))
        .route("/hangs", get(std::future::pending::<&'static str>))
        .route("/here", get(async || Redirect::temporary("/ok")))
        .route("/away", get(async || Redirect::temporary("https://login.example/")))
        .route("/loop", get(async || Redirect::temporary("/loop")))
        .route("/to-broken", get(async || Redirect::to("broken")))
        .route("/large", get(async || Body::from(vec![b'x'; 1 << 20])))
        .route(
            "/headers",
            get(async |headers: HeaderMap| {
                let is = |name: &str, want: &str| headers.get(name).is_some_and(|v| v == want);
                let all = is("host", "web.example")
                    && is("x-probe", "yes")
                    && is("user-agent", "kube-probe/1")
                    && is("accept", "*/*")
                    && !headers.contains_key(KEY_HEADER);
                if all { StatusCode::OK } else { StatusCode::BAD_REQUEST }
            }),
        )
}

#[tokio::test]
async fn http_checks_pass_and_fail_as_the_kubelet_would_judge() {
    let mut tasks = JoinSet::new();
    let port = application(&mut tasks, shop()).await;
    for (path, status, reason) in [
        ("/ok", 200, "ok"),
        ("/broken", 500, "the application answers 500"),
        ("/gone", 410, "the application answers 410"),
        ("/nowhere", 404, "the application answers 404"),
        ("/hangs", 503, "no answer within 300 ms"),
        ("/here", 200, "ok"),
        ("/away", 200, "ok"),
        ("/loop", 503, "is still redirected after 10 requests"),
        ("/to-broken", 500, "the application answers 500"),
        ("/large", 200, "ok"),
    ] {
        let rig = Rig::new(&[(Moment::Liveness, 300, http(port, path))]).await;
        assert_eq!(rig.probe(Moment::Liveness).await, Some((status, reason.into())), "{path}");
    }
    let headers = [("Host", "web.example"), ("X-Probe", "yes")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let check = HttpGet { port, path: "/headers".into(), tls: false, headers: headers.into() };
    let rig = Rig::new(&[(Moment::Readiness, 1000, Check::Http(check))]).await;
    assert_eq!(rig.probe(Moment::Readiness).await, Some((200, "ok".into())));
}

#[tokio::test]
async fn a_dead_application_fails_every_kind_of_check() {
    let port = nobody().await;
    let rig = Rig::new(&[
        (Moment::Liveness, 1000, http(port, "/")),
        (Moment::Readiness, 1000, Check::Tcp { port }),
        (Moment::Startup, 1000, Check::Grpc { port, service: String::new() }),
    ])
    .await;
    for moment in [Moment::Liveness, Moment::Readiness, Moment::Startup] {
        let (status, reason) = rig.probe(moment).await.unwrap();
        assert_eq!(status, 503, "{reason}");
        assert!(reason.starts_with(&format!("cannot connect to 127.0.0.1:{port}")), "{reason}");
    }
}

#[tokio::test]
async fn a_tcp_check_asks_no_more_than_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let rig = Rig::new(&[(Moment::Liveness, 1000, Check::Tcp { port })]).await;
    assert_eq!(rig.probe(Moment::Liveness).await, Some((200, "ok".into())));
}

#[tokio::test]
async fn https_checks_take_any_certificate_and_either_version_of_tls() {
    let signed = rcgen::generate_simple_self_signed(vec!["web".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    for (version, alpn) in [
        (&rustls::version::TLS12, &b"http/1.1"[..]),
        (&rustls::version::TLS13, b"h2"),
        (&rustls::version::TLS13, b""),
    ] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key.clone_key())
            .unwrap();
        config.alpn_protocols.extend((!alpn.is_empty()).then(|| alpn.to_vec()));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TokioIo::new(acceptor.accept(tcp).await.unwrap());
            let service = service_fn(async |_: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(Body::from("ok")))
            });
            let served = if tls.inner().get_ref().1.alpn_protocol() == Some(b"h2") {
                let executor = hyper_util::rt::TokioExecutor::new();
                let http2 = hyper::server::conn::http2::Builder::new(executor);
                http2.serve_connection(tls, service).await
            } else {
                http1::Builder::new().serve_connection(tls, service).await
            };
            drop(served);
        });
        let get = HttpGet { port, path: "/".into(), tls: true, headers: Vec::new() };
        let rig = Rig::new(&[(Moment::Liveness, 2000, Check::Http(get))]).await;
        let answer = rig.probe(Moment::Liveness).await;
        assert_eq!(answer, Some((200, "ok".into())), "{version:?} {alpn:?}");
    }
}

#[tokio::test]
async fn grpc_checks_pass_for_serving_alone() {
    let mut tasks = JoinSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(tower_fn(health));
            let executor = hyper_util::rt::TokioExecutor::new();
            let connection = hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(TokioIo::new(tcp), service);
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    for (service, status, reason) in [
        ("", 200, "ok"),
        ("cart", 503, "service \"cart\" is NOT_SERVING"),
        ("nobody", 503, "the application's health service knows no service \"nobody\""),
        ("none", 503, "the application has no grpc.health.v1.Health service"),
    ] {
        let check = Check::Grpc { port, service: service.into() };
        let rig = Rig::new(&[(Moment::Readiness, 2000, check)]).await;
        assert_eq!(rig.probe(Moment::Readiness).await, Some((status, reason.into())), "{service}");
    }
}

/// A health service that knows the empty name and a cart.
async fn health(request: Request<Incoming>) -> Result<Response<tonic::body::Body>, Infallible> {
    struct Check;
    impl tonic::server::UnaryService<HealthCheckRequest> for Check {
        type Response = HealthCheckResponse;
        type Future = std::future::Ready<Result<tonic::Response<Self::Response>, tonic::Status>>;

        fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
            std::future::ready(match request.into_inner().service.as_str() {
                "" => Ok(tonic::Response::new(HealthCheckResponse { status: 1 })),
                "cart" => Ok(tonic::Response::new(HealthCheckResponse { status: 2 })),
                "none" => Err(tonic::Status::unimplemented("no such method")),
                _ => Err(tonic::Status::not_found("unknown service")),
            })
        }
    }
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    let agent = request.headers().get(USER_AGENT).unwrap().to_str().unwrap();
    assert!(agent.starts_with("kube-probe/1"), "{agent}");
    let codec = tonic_prost::ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
    Ok(tonic::server::Grpc::new(codec).unary(Check, request).await)
}

#[tokio::test]
async fn a_hook_succeeds_by_any_answer_and_fails_by_none() {
    let mut tasks = JoinSet::new();
    let port = application(&mut tasks, shop()).await;
    let rig = Rig::new(&[
        (Moment::PreStop, 1000, http(port, "/broken")),
        (Moment::PostStart, 1000, http(nobody().await, "/")),
    ])
    .await;
    let answer = rig.probe(Moment::PreStop).await;
    assert_eq!(answer, Some((200, "the application answers 500".into())));
    assert_eq!(rig.probe(Moment::PostStart).await, None);
}

#[tokio::test]
async fn only_declared_checks_for_who_has_the_key() {
    let mut tasks = JoinSet::new();
    let hits = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = Arc::clone(&hits);
    let count = get(async move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        "ok".into_response()
    });
    let port = application(&mut tasks, Router::new().route("/", count)).await;
    let rig = Rig::new(&[(Moment::Liveness, 1000, http(port, "/"))]).await;
    let page = "/probe/web/liveness";
    for (head, status) in [
        (head(page, "0123456789abcdeX"), "403"),
        (head(page, ""), "403"),
        (format!("GET {page} HTTP/1.1\r\nhost: x\r\n\r\n"), "403"),
        (head(page, KEY).replace("GET", "POST"), "405"),
        (head("/probe/web/readiness", KEY), "404"),
        (head("/probe/api/liveness", KEY), "404"),
        (head("/", KEY), "404"),
        (head("/metrics", KEY), "404"),
    ] {
        let answer = rig.ask(&head).await;
        assert_eq!(answer.get(9..12), Some(status), "{head}{answer}");
    }
    assert_eq!(hits.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(rig.probe(Moment::Liveness).await, Some((200, "ok".into())));
    let counts: Vec<_> = rig.metrics.probes.iter().map(|(result, n)| (result.name(), n)).collect();
    assert_eq!(counts, [("ok", 1), ("failed", 0), ("refused", 8)]);
}

#[tokio::test]
async fn a_stranger_that_says_nothing_holds_no_place_for_long() {
    let rig = Rig::new(&[(Moment::Liveness, 1000, Check::Tcp { port: nobody().await })]).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_PER_ADDRESS {
        silent.push(TcpStream::connect(rig.address).await.unwrap());
    }
    // Places come free as heads fail to come; until then its own address is turned away.
    let deadline = tokio::time::Instant::now() + HEAD_TIMEOUT * 5;
    while rig.probe(Moment::Liveness).await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "no place came free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(silent);
    assert_eq!(rig.tasks.len(), 1);
}
