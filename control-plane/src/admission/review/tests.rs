//! Questions and answers, against an API server that knows one namespace.

use axum::body::{Body, to_bytes};
use axum::http::{Request as HttpRequest, Response, StatusCode};
use heddle_resources::inject::Settings as OfPods;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::ca::bundle::Bundle;
use crate::fixture;
use crate::metrics::Metrics;
use crate::served::Served;

/// Answers for the namespace `shop`, which is labelled, and for nothing else.
fn client() -> kube::Client {
    let service = tower::service_fn(|request: HttpRequest<kube::client::Body>| async move {
        let (status, body) = match request.uri().path() {
            "/api/v1/namespaces/shop" => (
                StatusCode::OK,
                json!({
                    "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": { "name": "shop", "labels": { "heddle.io/inject": "enabled" } },
                }),
            ),
            _ => (
                StatusCode::NOT_FOUND,
                json!({
                    "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound",
                    "message": "not found", "code": 404,
                }),
            ),
        };
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = status;
        Ok::<_, std::convert::Infallible>(response)
    });
    kube::Client::new(service, "default")
}

fn served() -> Served {
    let catalog = fixture::catalog(1, &[], &[]);
    let version = catalog.version();
    let bundle = Arc::new(Bundle::new(&[], version));
    Served { catalog, bundle, version, at: tokio::time::Instant::now() }
}

fn reviewer(is_ready: bool) -> Reviewer {
    let served = is_ready.then(served);
    Reviewer {
        cluster: Cluster::new(client()),
        settings: Settings { of_pods: OfPods::new("0.1.0", ""), served: watch::channel(served).1 },
        metrics: Metrics::register(&prometheus::Registry::new()).unwrap().admission,
        refusals: broadcast::channel(4).0,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "every caller makes it on the spot")]
fn question(kind: &str, object: Value) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": { "group": if kind == "Pod" { "" } else { "heddle.io" }, "version": "v1", "kind": kind },
            "namespace": "shop",
            "operation": "CREATE",
            "oldObject": null,
            "object": object,
        },
    })
}

#[expect(clippy::needless_pass_by_value, reason = "every caller makes it on the spot")]
fn pod(spec: Value) -> Value {
    let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "o", "controller": true });
    let metadata = json!({ "generateName": "web-1-", "ownerReferences": [owner] });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

async fn ask(reviewer: &Reviewer, webhook: Webhook, question: &Value) -> (&'static str, Value) {
    match reviewer.review(webhook, question.to_string().as_bytes()).await {
        Answer::Reviewed { outcome, body } => {
            let body = to_bytes(Body::from(body), usize::MAX).await.unwrap();
            let review: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(review["response"]["uid"], "u-1");
            (outcome, review["response"].clone())
        }
        other @ (Answer::Malformed(_) | Answer::Unable(_)) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pod_of_a_labelled_namespace_is_patched_with_a_key_of_its_own() {
    let reviewer = reviewer(true);
    let web = json!({ "name": "web", "livenessProbe": { "tcpSocket": { "port": 80 } } });
    let pod = pod(json!({ "containers": [web] }));
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let (outcome, response) =
            ask(&reviewer, Webhook::Inject, &question("Pod", pod.clone())).await;
        assert_eq!((outcome, &response["allowed"]), ("injected", &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
        let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        let mut after = pod.clone();
        json_patch::patch(&mut after, &patch).unwrap();
        let env = after["spec"]["initContainers"][1]["env"].as_array().unwrap();
        let value =
            |name: &str| env.iter().find(|one| one["name"] == name).unwrap()["value"].clone();
        assert_eq!(value("HEDDLE_TRUST_DOMAIN"), fixture::TRUST_DOMAIN);
        let header = &after["spec"]["containers"][0]["livenessProbe"]["httpGet"]["httpHeaders"][0];
        keys.insert(header["value"].as_str().unwrap().to_owned());
    }
    assert_eq!(keys.len(), 3);
}

#[tokio::test]
async fn a_refused_pod_is_told_to_the_api_server_and_to_who_listens() {
    let reviewer = reviewer(true);
    let mut told = reviewer.refusals.subscribe();
    let refused =
        pod(json!({ "containers": [{ "name": "web" }], "securityContext": { "runAsUser": 2715 } }));
    let mut question = question("Pod", refused);
    question["request"]["dryRun"] = json!(true);
    let (outcome, _) = ask(&reviewer, Webhook::Inject, &question).await;
    assert_eq!(outcome, "refused");
    assert!(told.try_recv().is_err(), "a dry run has no effect");
    question["request"]["dryRun"] = json!(false);
    let (_, response) = ask(&reviewer, Webhook::Inject, &question).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(422)));
    let refusal = told.try_recv().unwrap();
    assert_eq!(response["status"]["message"], refusal.message);
    assert_eq!((refusal.namespace.as_str(), refusal.name.as_str()), ("shop", "web-1-"));
    assert_eq!(refusal.owner.as_ref().map(|owner| owner.kind.as_str()), Some("ReplicaSet"));
}

#[tokio::test]
async fn who_does_not_know_gives_no_answer() {
    let pod = pod(json!({ "containers": [{ "name": "web" }] }));
    let mut elsewhere = question("Pod", pod.clone());
    elsewhere["request"]["namespace"] = json!("other");
    for (reviewer, question, wants) in [
        (reviewer(false), question("Pod", pod), "the Mesh is not known yet"),
        (reviewer(true), elsewhere, "namespace other cannot be read"),
    ] {
        let answer = reviewer.review(Webhook::Inject, question.to_string().as_bytes()).await;
        let Answer::Unable(message) = answer else { panic!("{answer:?}") };
        assert!(message.contains(wants), "{message}");
    }
}

#[tokio::test]
async fn what_is_no_question_is_malformed() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut old = question("Pod", json!({}));
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    for body in ["", "{}", "null", &deep, &old.to_string()] {
        let answer = reviewer(true).review(Webhook::Inject, body.as_bytes()).await;
        assert!(matches!(answer, Answer::Malformed(_)), "{answer:?}");
    }
}

#[tokio::test]
async fn our_own_kinds_are_judged_as_when_they_are_read() {
    let reviewer = reviewer(true);
    let split = |weight: i64| {
        json!({
            "apiVersion": "heddle.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "service": "web", "backends": [{ "service": "web-v1", "weight": weight }] },
        })
    };
    let (outcome, response) =
        ask(&reviewer, Webhook::Validate, &question("TrafficSplit", split(0))).await;
    assert_eq!((outcome, &response["allowed"]), ("refused", &json!(false)));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.backends"), "{message}");

    let (outcome, response) =
        ask(&reviewer, Webhook::Validate, &question("TrafficSplit", split(1))).await;
    assert_eq!((outcome, &response["allowed"]), ("accepted", &json!(true)));
}
