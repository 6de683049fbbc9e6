//! HTTP/2 through both proxies.

use ::http::uri::{Parts, PathAndQuery};
use ::http::{HeaderMap, Method, Request, Response, Uri, Version};
use bytes::Bytes;
use h2::{client, server};

use super::*;
use crate::http2::prepare;

async fn open(mesh: &Mesh) -> client::SendRequest<Bytes> {
    let (sender, connection) = client::handshake(mesh.dial().await).await.unwrap();
    spawn_local(async move { connection.await.ok() });
    sender.ready().await.unwrap()
}

type Stream = (Request<h2::RecvStream>, server::SendResponse<Bytes>);

/// The application's streams, over whatever connections they come.
fn serve(app: TcpListener) -> tokio::sync::mpsc::Receiver<Stream> {
    let (send, streams) = tokio::sync::mpsc::channel(8);
    spawn_local(async move {
        while let Ok((tcp, _)) = app.accept().await {
            let send = send.clone();
            spawn_local(async move {
                let mut connection = server::handshake(tcp).await.unwrap();
                while let Some(Ok(stream)) = connection.accept().await {
                    send.send(stream).await.unwrap();
                }
            });
        }
    });
    streams
}

async fn next(streams: &mut tokio::sync::mpsc::Receiver<Stream>) -> Stream {
    timeout(PATIENCE, streams.recv()).await.expect("a stream in time").unwrap()
}

fn put() -> Request<()> {
    Request::put("http://w/f").body(()).unwrap()
}

#[test]
fn a_host_stands_for_an_authority_and_trailers_are_cleaned() {
    run(async {
        let (app, address) = listen().await;
        let mut streams = serve(app);
        let mesh = Mesh::new(address, v1::Protocol::Http2).await;
        let mut request = Request::post("/x").header("host", "w").body(()).unwrap();
        // What makes h2 leave the authority out.
        *request.version_mut() = Version::HTTP_11;
        let (response, mut body) = open(&mesh).await.send_request(request, false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        trailers.insert("heddle-client-id", "forged".parse().unwrap());
        body.send_trailers(trailers.clone()).unwrap();

        let (mut request, mut respond) = next(&mut streams).await;
        assert_eq!(
            (request.uri().path(), &request.headers()["host"]),
            ("/x", &"w".parse().unwrap())
        );
        let got = request.body_mut().trailers().await.unwrap().unwrap();
        assert!(got.contains_key("x-sum") && got.len() == 1, "{got:?}");
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_trailers(trailers).unwrap();
        let mut response = timeout(PATIENCE, response).await.unwrap().unwrap();
        let got = response.body_mut().trailers().await.unwrap().unwrap();
        assert!(got.contains_key("x-sum") && got.len() == 1, "{got:?}");
    });
}

#[test]
fn an_attempt_that_is_given_up_is_not_taken_for_a_whole_request() {
    run(async {
        let (app, address) = listen().await;
        let mut streams = serve(app);
        let mut mesh = Mesh::new(address, v1::Protocol::Http2).await;
        let retries = v1::Retries {
            attempts: 1,
            on_status: vec![503],
            budget_percent: 100,
            budget_min_per_second: 10,
            ..v1::Retries::default()
        };
        let policy = v1::Policy {
            source: "shop/web".into(),
            retries: Some(retries),
            ..v1::Policy::default()
        };
        mesh.outbound.put(v1::ResourceType::Policy, "shop/web", &policy);
        let (response, mut body) = open(&mesh).await.send_request(put(), false).unwrap();
        body.send_data("half ".into(), false).unwrap();

        let (mut first, mut respond) = next(&mut streams).await;
        assert_eq!(first.body_mut().data().await.unwrap().unwrap(), "half ");
        let busy = Response::builder().status(503).body(()).unwrap();
        respond.send_response(busy, true).unwrap();
        let (mut second, mut respond) = next(&mut streams).await;
        let cut = timeout(PATIENCE, first.body_mut().data()).await.expect("its end");
        assert!(cut.is_some_and(|end| end.is_err()), "half a request must not look whole");

        body.send_data("and half".into(), true).unwrap();
        let mut got = Vec::new();
        while let Some(data) = timeout(PATIENCE, second.body_mut().data()).await.unwrap() {
            got.extend_from_slice(&data.unwrap());
        }
        assert_eq!(got, b"half and half");
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
    });
}

#[test]
fn only_a_path_is_judged_and_forwarded() {
    for (target, method, good) in [
        ("/x?y", Method::GET, true),
        ("*", Method::OPTIONS, true),
        ("*", Method::GET, false),
        ("?y", Method::GET, false),
    ] {
        let mut parts = Parts::default();
        parts.path_and_query = Some(PathAndQuery::from_static(target));
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(parts).unwrap();
        *request.method_mut() = method;
        assert_eq!(prepare(&mut request).is_ok(), good, "{target}");
    }
}

#[test]
fn callers_that_wait_for_one_connection_share_its_failure() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        // Accepts, and says nothing.
        let (_silent, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Http2).await;
        mesh.endpoints(&[address]);
        let worker = &mesh.outbound.worker;
        let found = worker.find_destination(dialled()).await.unwrap();
        let Destination::Service(port) = found else { panic!("a Service") };
        let endpoint = &port.backends[0].ready[0];
        let begun = Instant::now();
        let take = || worker.streams.take(worker, endpoint, Duration::from_secs(1));
        let (a, b, c) = tokio::join!(take(), take(), take());
        assert!(a.is_err() && b.is_err() && c.is_err());
        assert!(begun.elapsed() < 2 * crate::tls::HANDSHAKE_TIMEOUT, "{:?}", begun.elapsed());
    });
}

/// A policy with these timeouts, for the Service that is called.
fn limit(mesh: &mut Mesh, timeouts: v1::Timeouts) {
    let policy =
        v1::Policy { source: "shop/web".into(), timeouts: Some(timeouts), ..v1::Policy::default() };
    mesh.outbound.put(v1::ResourceType::Policy, "shop/web", &policy);
}

/// The rest of a response whose first bytes are here, and its trailers.
async fn rest(response: Response<h2::RecvStream>) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut body = response.into_body();
    let mut got = Vec::new();
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("in time") {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        got.extend_from_slice(&data);
    }
    let trailers = timeout(PATIENCE, body.trailers()).await.expect("in time")?;
    Ok((got, trailers.unwrap_or_default()))
}

#[test]
fn a_response_that_takes_too_long_is_cut_and_a_grpc_caller_told() {
    run(async {
        let (app, address) = listen().await;
        let mut streams = serve(app);
        let mut mesh = Mesh::new(address, v1::Protocol::Http2).await;
        let request_ms = v1::Timeouts { request_ms: 200, ..v1::Timeouts::default() };
        let idle_ms = v1::Timeouts { idle_ms: 200, ..v1::Timeouts::default() };
        let mut sender = open(&mesh).await;
        for (timeouts, kind, name) in [
            (request_ms, "text/plain", "request-timeout"),
            (request_ms, "application/grpc", "request-timeout"),
            (idle_ms, "text/plain", "idle-timeout"),
            (idle_ms, "application/grpc", "idle-timeout"),
        ] {
            limit(&mut mesh, timeouts);
            let request = Request::post("http://w/").header("content-type", kind).body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            let (_request, mut respond) = next(&mut streams).await;
            let head = Response::builder().header("content-type", kind).body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            body.send_data("part".into(), false).unwrap();
            let response = timeout(PATIENCE, response).await.unwrap().unwrap();
            let end = rest(response).await;
            if kind == "text/plain" {
                assert!(end.is_err_and(|error| error.is_reset()), "{name}: a cut that is seen");
            } else {
                let (got, trailers) = end.expect("trailers");
                assert_eq!(
                    (got, &trailers["grpc-status"]),
                    (b"part".to_vec(), &"4".parse().unwrap())
                );
                assert_eq!(trailers["heddle-error"], name);
            }
            // The application's side is given up, too.
            let reset = std::future::poll_fn(|cx| body.poll_reset(cx));
            timeout(PATIENCE, reset).await.expect("a reset in time").unwrap();
        }
    });
}

#[test]
fn a_request_that_moves_is_not_idle() {
    run(async {
        let (app, address) = listen().await;
        let mut streams = serve(app);
        let mut mesh = Mesh::new(address, v1::Protocol::Http2).await;
        limit(&mut mesh, v1::Timeouts { idle_ms: 300, ..v1::Timeouts::default() });
        let (response, mut body) = open(&mesh).await.send_request(put(), false).unwrap();
        let (mut request, mut respond) = next(&mut streams).await;
        // Longer than the limit in all, the response silent all the while.
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            body.send_data("more".into(), false).unwrap();
            let data = timeout(PATIENCE, request.body_mut().data()).await.unwrap();
            assert_eq!(data.unwrap().unwrap(), "more");
        }
        body.send_data(Bytes::new(), true).unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);

        // Silence from both sides ends it.
        let mut sender = open(&mesh).await;
        let (response, _) = sender.send_request(put(), true).unwrap();
        let _held = next(&mut streams).await;
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["heddle-error"], "idle-timeout");
    });
}
