//! An API server that knows our kinds, and what it says against an object.

use std::time::Duration;

use heddle_tests::cluster::api::ApiServer;
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};

/// What the API server says against an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Each with the field in front of it.
    pub(crate) messages: Vec<String>,
    /// Field and message of each cause.
    pub(crate) causes: Vec<(String, String)>,
}

pub(crate) struct Server {
    api: ApiServer,
    client: Client,
}

const STRICT: &str = "fieldValidation=Strict&fieldManager=tests";

impl Server {
    pub(crate) async fn start(definitions: &[Value]) -> Self {
        Self::with(ApiServer::start().await.expect("an API server"), definitions).await
    }

    /// With our definitions established.
    pub(crate) async fn with(api: ApiServer, definitions: &[Value]) -> Self {
        let client = api.client().await.expect("a client");
        let this = Self { api, client };
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for definition in definitions {
            this.send(Method::POST, &format!("{path}?{STRICT}"), definition)
                .await
                .expect("a definition");
        }
        this.kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"])
            .await;
        // Established is what the definition says; the path is served a moment later.
        for definition in definitions {
            let object = json!({
                "apiVersion": "heddle.io/v1alpha1", "kind": definition["spec"]["names"]["kind"],
                "metadata": { "name": "default", "namespace": "default" },
            });
            let mut left = 200;
            while this.send(Method::GET, &collection(&object), &Value::Null).await.is_err() {
                left -= 1;
                assert!(left > 0, "{} is not served", definition["metadata"]["name"]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        this
    }

    /// What is said against creating the object; nothing is created.
    pub(crate) async fn refusal(&self, object: &Value) -> Option<Refusal> {
        let path = format!("{}?dryRun=All&{STRICT}", collection(object));
        self.send(Method::POST, &path, object).await.err()
    }

    /// What is said against making `after` of `before`. Nothing stays.
    pub(crate) async fn refusal_of_change(&self, before: &Value, after: &Value) -> Option<Refusal> {
        let created = self.create(before).await;
        let mut after = after.clone();
        after["metadata"]["resourceVersion"] = created["metadata"]["resourceVersion"].clone();
        let path = format!("{}?{STRICT}", item(before));
        let refusal = self.send(Method::PUT, &path, &after).await.err();
        self.send(Method::DELETE, &item(before), &Value::Null).await.expect("it is there");
        refusal
    }

    /// What is said against writing the object's status. The rest of it is good; nothing stays.
    pub(crate) async fn refusal_of_status(&self, object: &Value) -> Option<Refusal> {
        let mut created = self.create(&without_status(object)).await;
        created["status"] = object["status"].clone();
        let path = format!("{}/status?{STRICT}", item(object));
        let refusal = self.send(Method::PUT, &path, &created).await.err();
        self.send(Method::DELETE, &item(object), &Value::Null).await.expect("it is there");
        refusal
    }

    pub(crate) async fn create(&self, object: &Value) -> Value {
        let path = format!("{}?{STRICT}", collection(object));
        self.send(Method::POST, &path, object).await.expect("a good object")
    }

    pub(crate) async fn write_status(&self, object: &Value, status: Value) {
        let path = format!("{}/status?{STRICT}", item(object));
        let mut there =
            self.send(Method::GET, &item(object), &Value::Null).await.expect("it is there");
        there["status"] = status;
        self.send(Method::PUT, &path, &there).await.expect("a good status");
    }

    pub(crate) async fn apply_as(&self, manager: &str, object: &Value) -> Value {
        let path = format!("{}?fieldManager={manager}&fieldValidation=Strict", item(object));
        self.send(Method::PATCH, &path, object).await.expect("nothing is in conflict")
    }

    /// Makes the namespace that an example takes for granted.
    pub(crate) async fn make_namespace(&self, object: &Value) {
        let Some(name) = object["metadata"]["namespace"].as_str() else { return };
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        // There already: another example's.
        let _ = self.send(Method::POST, "/api/v1/namespaces", &namespace).await;
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        let ran = self.api.kubectl(arguments).await.expect("kubectl runs");
        ran.ok().unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error:#}")).out
    }

    /// By what `kubectl explain` reads: the API server's own description of our kinds.
    pub(crate) async fn fields_without_description(&self) -> Vec<String> {
        let path = "/openapi/v3/apis/heddle.io/v1alpha1";
        let mut left = 200;
        let document = loop {
            match self.send(Method::GET, path, &Value::Null).await {
                Ok(document) if kinds(&document).len() == 5 => break document,
                _ if left == 0 => panic!("our kinds are not described"),
                _ => left -= 1,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let mut silent = Vec::new();
        for (name, schema) in kinds(&document) {
            silent_fields(name, schema, &mut silent);
        }
        silent
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, Refusal> {
        let is_patch = method == Method::PATCH;
        let kind = if is_patch { "application/apply-patch+yaml" } else { "application/json" };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(body).expect("a path and a body");
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => {
                let causes = status.details.map_or_else(Vec::new, |details| details.causes);
                let causes: Vec<_> =
                    causes.into_iter().map(|cause| (cause.field, cause.message)).collect();
                let mut messages: Vec<_> =
                    causes.iter().map(|(field, message)| format!("{field}: {message}")).collect();
                messages.push(status.message);
                Err(Refusal { messages, causes })
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

fn kinds(document: &Value) -> Vec<(&str, &Value)> {
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    schemas
        .filter(|(name, _)| name.starts_with("io.heddle.") && !name.ends_with("List"))
        .map(|(name, schema)| (name.rsplit('.').next().unwrap_or_default(), schema))
        .collect()
}

fn silent_fields(path: &str, schema: &Value, silent: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if field["description"].as_str().unwrap_or_default().is_empty() {
            silent.push(path.clone());
        }
        silent_fields(&path, field, silent);
        silent_fields(&path, &field["items"], silent);
    }
}

pub(crate) fn without_status(object: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().expect("an object").remove("status");
    object
}

/// Where objects of this one's kind are.
fn collection(object: &Value) -> String {
    let plural = match object["kind"].as_str().unwrap_or_default() {
        "Mesh" => return "/apis/heddle.io/v1alpha1/meshes".to_owned(),
        "TrafficSplit" => "trafficsplits",
        "TrafficPolicy" => "trafficpolicies",
        "AuthorizationPolicy" => "authorizationpolicies",
        "MeshTLSPolicy" => "meshtlspolicies",
        other => panic!("{other:?} is no kind of ours"),
    };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    format!("/apis/heddle.io/v1alpha1/namespaces/{namespace}/{plural}")
}

fn item(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("a name");
    format!("{}/{name}", collection(object))
}
