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
