//! Our definitions in a real API server: every bound and every rule in them is hit by a bad object
//! whose message says what is wrong, every good object is taken, and a directory of files refuses
//! what the API server refuses.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use heddle_resources::reader;
use heddle_tests::cluster::api::ApiServer;
use serde_json::{Value, json};

#[path = "api_crds/bad.rs"]
mod bad;
#[path = "api_crds/bounds.rs"]
mod bounds;
#[path = "api_crds/good.rs"]
mod good;
#[path = "api_crds/mutations.rs"]
mod mutations;
#[path = "api_crds/server.rs"]
mod server;

use server::Server;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

fn parse(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// The committed definitions.
fn definitions() -> Vec<Value> {
    let mut paths: Vec<_> = fs::read_dir(root().join("crds"))
        .expect("crds/ can be read")
        .map(|entry| entry.expect("an entry can be read").path())
        .collect();
    paths.sort();
    paths.iter().map(|path| parse(&fs::read_to_string(path).expect("a definition"))).collect()
}

#[tokio::test]
async fn every_bound_and_every_rule_is_hit_by_a_bad_object() {
    let server = Server::start(&definitions()).await;
    let wanted = bounds::of(&definitions());
    assert!(wanted.len() > 100, "{}", wanted.len());
    let mut hit = BTreeSet::new();
    let mut failures = Vec::new();
    let rows = bad::rows();
    assert!(rows.len() >= 120, "{} bad objects", rows.len());
    for row in &rows {
        let refusal = match row.before() {
            Some(before) => server.refusal_of_change(&before, &row.object()).await,
            None if row.is_status() => server.refusal_of_status(&row.object()).await,
            None => server.refusal(&row.object()).await,
        };
        let Some(refusal) = refusal else {
            failures.push(format!("taken: {row:?}"));
            continue;
        };
        if !refusal.messages.iter().any(|message| message.contains(row.piece)) {
            failures.push(format!("{row:?}\n  said {:#?}", refusal.messages));
        }
        // A change and a status are the API server's alone to judge.
        let text = row.object().to_string();
        let by_files = row.before().is_some() || row.is_status() || refuses(&text);
        if !by_files {
            failures.push(format!("the API server alone refuses {row:?}"));
        }
        hit.extend(bounds::hit(&row.kind(), &refusal, &wanted));
    }
    let missed: Vec<_> = wanted.difference(&hit).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(missed.is_empty(), "no bad object hits\n{missed:#?}");
}

/// Whether the reader of files refuses a text.
fn refuses(text: &str) -> bool {
    !reader::read("a.yaml", text).errors.is_empty()
}

/// Both judge everything that can be made of good objects by putting another value in one place.
#[tokio::test]
async fn files_and_the_api_server_refuse_the_same() {
    let server = Server::start(&definitions()).await;
    let mut tried = 0;
    let mut taken = 0;
    let mut differences = Vec::new();
    for yaml in good::EVERY_FIELD {
        let object = parse(yaml);
        assert_eq!(server.refusal(&object).await, None, "{yaml}");
        for changed in mutations::of(&object) {
            let refusal = server.refusal(&changed).await;
            let read = reader::read("a.yaml", &changed.to_string());
            tried += 1;
            taken += usize::from(refusal.is_none());
            // What is null the API server drops before it looks. Files are stricter: nobody writes
            // a field in order to say nothing.
            let is_null = read.errors.iter().any(|error| error.value == "null");
            if refusal.is_some() == read.errors.is_empty() && !is_null {
                let said = refusal.map(|refusal| refusal.messages);
                differences.push(format!(
                    "{}\n  API server: {said:?}\n  files: {:?}",
                    changed["spec"], read.errors
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{}\n{}", differences.len(), differences.join("\n"));
    assert!(
        tried > 1_500 && taken > 50,
        "{taken} of {tried} taken: too few, or none can be refused"
    );
}

#[tokio::test]
async fn every_example_of_the_documents_is_taken() {
    let api = ApiServer::start().await.expect("an API server");
    let server = Server::with(api, &definitions()).await;
    let mut examples = 0;
    for (place, object) in good::documented() {
        server.make_namespace(&object).await;
        let refusal = server.refusal(&object).await;
        assert_eq!(refusal, None, "{place}");
        examples += 1;
    }
    assert!(examples >= 10, "{examples} examples");
}

#[tokio::test]
async fn kubectl_shows_whether_it_works_and_explains_every_field() {
    let api = ApiServer::start().await.expect("an API server");
    let server = Server::with(api, &definitions()).await;
    for yaml in good::EVERY_FIELD {
        server.create(&parse(yaml)).await;
    }
    server
        .write_status(
            &parse(good::EVERY_FIELD[0]),
            json!({
                "observedGeneration": 1,
                "programmed": "118/120",
                "weights": "95/5",
                "conditions": [
                    condition("Accepted", "True", "Accepted"),
                    condition("Programmed", "False", "Pending"),
                ],
            }),
        )
        .await;
    let table = server.kubectl(&["get", "ts", "-n", "default"]).await;
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "SERVICE", "WEIGHTS", "ACCEPTED", "PROGRAMMED", "AGE"]);
    assert_eq!(lines[1][..5], ["web", "web", "95/5", "True", "118/120"]);
    let wide = server.kubectl(&["get", "ts", "-n", "default", "-o", "wide"]).await;
    assert!(wide.contains("REASON") && wide.contains("Pending"), "{wide}");
    let condition = "--for=condition=Accepted";
    server.kubectl(&["wait", "ts/web", "-n", "default", condition, "--timeout=5s"]).await;

    let all = server.kubectl(&["get", "heddle", "-A"]).await;
    for name in ["trafficsplit", "trafficpolicy", "authorizationpolicy", "meshtlspolicy", "mesh"] {
        assert!(all.contains(&format!("{name}.heddle.io/")), "{name} in\n{all}");
    }
    for short in ["tp", "authz", "mtls", "mesh"] {
        let named = server.kubectl(&["get", short, "-A", "-o", "name"]).await;
        assert_eq!(named.lines().count(), 1, "{short}: {named}");
    }
    let told = server.kubectl(&["explain", "ts.spec.backends.weight"]).await;
    assert!(told.contains("minimum: 0") || told.contains("Share, relative to"), "{told}");
    let silent = server.fields_without_description().await;
    assert!(silent.is_empty(), "{silent:#?}");
}

fn condition(name: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": name, "status": status, "reason": reason, "message": "",
        "lastTransitionTime": "2026-11-21T10:00:00Z", "observedGeneration": 1,
    })
}

/// Two people who apply different parts of one object do not undo each other's.
#[tokio::test]
async fn server_side_apply_merges_by_entry() {
    let server = Server::start(&definitions()).await;
    let policy = |ports: Value| {
        json!({
            "apiVersion": "heddle.io/v1alpha1", "kind": "MeshTLSPolicy",
            "metadata": { "name": "web", "namespace": "default" }, "spec": { "ports": ports },
        })
    };
    let one = policy(json!([{ "port": 80, "mode": "Strict" }]));
    let two = policy(json!([{ "port": 81, "mode": "Permissive" }]));
    server.apply_as("one", &one).await;
    let both = server.apply_as("two", &two).await;
    assert_eq!(both["spec"]["ports"].as_array().map(Vec::len), Some(2), "{both}");
    let less = server.apply_as("two", &policy(json!([]))).await;
    assert_eq!(less["spec"]["ports"], one["spec"]["ports"]);
}
