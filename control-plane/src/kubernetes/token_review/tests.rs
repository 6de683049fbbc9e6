//! A scripted API server: how often it is asked, and what its silence means.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::ca::bundle::Bundle;
use crate::catalog::PodIdentity;
use crate::fixture;

const PEER: &str = "10.0.0.1";

fn token(pod: &str, audience: &str) -> String {
    let payload = json!({
        "aud": [audience],
        "exp": 4_000_000_000_u64,
        "kubernetes.io": {
            "namespace": "shop",
            "pod": { "name": pod, "uid": format!("{pod}-uid") },
            "serviceaccount": { "name": "web" },
        },
    });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload.to_string()))
}

fn vouched(pod: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": ["heddle"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [format!("{pod}-uid")],
            },
        },
    })
}

/// Answers every review with `status`; counts them.
fn server(code: StatusCode, status: Value) -> (Arc<Reviewer>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
        counter.fetch_add(1, Ordering::Relaxed);
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": {},
            "status": status,
        });
        let answer =
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
        std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
    });
    (Arc::new(Reviewer::new(kube::Client::new(service, "default"))), asked)
}

fn served(pods: &[PodIdentity]) -> Option<Served> {
    let catalog = fixture::catalog(1, pods, &[]);
    let version = catalog.version();
    let bundle = Arc::new(Bundle::new(&[], version));
    Some(Served { catalog, bundle, version, at: Instant::now() })
}

fn web() -> PodIdentity {
    fixture::pod("web-1", "web", &[PEER])
}

async fn refused(reviewer: &Reviewer, token: &str, pods: &[PodIdentity]) -> Refusal {
    let served = watch::Sender::new(served(pods));
    reviewer.verify(token, PEER.parse().unwrap(), served.subscribe()).await.unwrap_err().refusal
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_has_not_told_of_is_awaited() {
    let (reviewer, asked) = server(StatusCode::CREATED, vouched("web-1"));
    let served_now = watch::Sender::new(None);
    let verifying = tokio::spawn({
        let (reviewer, served) = (reviewer.clone(), served_now.subscribe());
        async move { reviewer.verify(&token("web-1", "heddle"), PEER.parse().unwrap(), served).await }
    });
    for pods in [vec![], vec![fixture::pod("web-1", "web", &[])], vec![web()]] {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!verifying.is_finished());
        served_now.send_replace(served(&pods));
    }
    assert_eq!(*verifying.await.unwrap().unwrap(), web());
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the answer is not asked for again");
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_the_index_has_an_end() {
    let (reviewer, _) = server(StatusCode::CREATED, vouched("web-1"));
    let began = Instant::now();
    let token = token("web-1", "heddle");
    assert_eq!(refused(&reviewer, &token, &[]).await, Refusal::PodNotSeen);
    assert_eq!(began.elapsed(), INDEX_PATIENCE);
    let earlier = PodIdentity { uid: "old".into(), ..web() };
    assert_eq!(refused(&reviewer, &token, &[earlier]).await, Refusal::PodReplaced);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_good_costs_no_question() {
    let (reviewer, asked) = server(StatusCode::CREATED, vouched("web-1"));
    let elsewhere = fixture::pod("web-1", "web", &["10.0.0.9"]);
    let good = token("web-1", "heddle");
    assert_eq!(refused(&reviewer, &good, &[elsewhere]).await, Refusal::OtherAddress);
    let other = token("web-1", "vault");
    assert_eq!(refused(&reviewer, &other, &[web()]).await, Refusal::TokenAudience);
    assert_eq!(refused(&reviewer, "", &[web()]).await, Refusal::TokenMissing);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn the_api_servers_word_counts_and_not_the_tokens() {
    let (reviewer, _) = server(StatusCode::CREATED, vouched("db-0"));
    let db = fixture::pod("db-0", "web", &["10.0.0.2"]);
    let refusal = refused(&reviewer, &token("web-1", "heddle"), &[web(), db]).await;
    assert_eq!(refusal, Refusal::OtherAddress);
    let (reviewer, _) = server(StatusCode::CREATED, json!({ "authenticated": false }));
    let refusal = refused(&reviewer, &token("web-1", "heddle"), &[web()]).await;
    assert_eq!(refusal, Refusal::TokenInvalid);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_or_is_silent_refuses_nobody_for_good() {
    let token = token("web-1", "heddle");
    for code in [StatusCode::FORBIDDEN, StatusCode::INTERNAL_SERVER_ERROR] {
        let (reviewer, _) = server(code, json!({}));
        assert_eq!(refused(&reviewer, &token, &[web()]).await, Refusal::ReviewUnavailable);
    }
    let silent = tower::service_fn(|_: Request<Body>| {
        std::future::pending::<Result<Response<Body>, Infallible>>()
    });
    let reviewer = Reviewer::new(kube::Client::new(silent, "default"));
    let began = Instant::now();
    assert_eq!(refused(&reviewer, &token, &[web()]).await, Refusal::ReviewUnavailable);
    assert_eq!(began.elapsed(), REVIEW_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_address_cannot_make_us_ask_without_end() {
    let (reviewer, asked) = server(StatusCode::CREATED, json!({ "authenticated": false }));
    let mut slowed = 0;
    for _ in 0..100 {
        let refusal = refused(&reviewer, &token("web-1", "heddle"), &[web()]).await;
        slowed += usize::from(refusal == Refusal::TooManyAttempts);
    }
    assert_eq!(asked.load(Ordering::Relaxed) + slowed, 100);
    assert!(slowed >= 79, "{slowed}");
}
