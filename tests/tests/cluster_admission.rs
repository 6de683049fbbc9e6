//! Admission as a real API server sees it: pods come out meshed, refused or told, objects of ours are
//! judged with advice, and the certificate is kept and told by the leader.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use heddle_control_plane::admission::SECRET;
use heddle_control_plane::app::{App, Handle};
use heddle_control_plane::config::CommandLine;
use heddle_tests::cluster::api::ApiServer;
use heddle_tests::real::Ran;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.io/inject: enabled, pod-security.kubernetes.io/warn: restricted}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: strict, labels: {heddle.io/inject: enabled, pod-security.kubernetes.io/enforce: baseline}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: plain}}
";

/// An API server whose webhooks are asked of a control plane in this process.
struct Rig {
    api: ApiServer,
    control_plane: Handle,
    configurations: Api<MutatingWebhookConfiguration>,
    secrets: Api<Secret>,
}

impl Rig {
    async fn start() -> Result<Self> {
        let api = ApiServer::start().await?.with_controllers().await?;
        let definitions = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
        let definitions = definitions.to_str().context("the checkout has a name in UTF-8")?;
        api.kubectl(&["apply", "--server-side", "-f", definitions]).await?.ok()?;
        api.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]).await?.ok()?;
        api.apply(NAMESPACES).await?;
        api.apply(
            "{apiVersion: heddle.io/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {}}",
        )
        .await?;
        let command = CommandLine::try_parse_from([
            "heddle-control-plane",
            "--source=kubernetes",
            "--pod=heddle-control-plane-0",
            &format!("--kubeconfig={}", api.kubeconfig().display()),
            "--listen=127.0.0.1:0",
            "--admin=127.0.0.1:0",
            "--webhook-listen=127.0.0.1:0",
        ])?;
        let control_plane = Box::pin(App::start(command.serve.check()?, None)).await?;
        let client = api.client().await?;
        let rig = Self {
            configurations: Api::all(client.clone()),
            secrets: Api::namespaced(client, "heddle-system"),
            api,
            control_plane,
        };
        let address = rig.control_plane.addresses.admission.context("webhooks are served")?;
        rig.api.apply(&configurations(address.port())).await?;
        rig.ready().await?;
        Ok(rig)
    }

    /// Until a pod that must be refused is refused by us, and not for want of an answer.
    async fn ready(&self) -> Result<()> {
        let begun = Instant::now();
        let bad = pod("shop", "bad", &json!({ "securityContext": { "runAsUser": 2715 } }));
        loop {
            let ran = self.create(&bad).await?;
            if ran.err.contains("2715 is the proxy's uid") {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{}{}", ran.out, ran.err);
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn create(&self, object: &Value) -> Result<Ran> {
        let arguments = ["create", "-f", "-", "-o", "json"];
        self.api.kubectl_with(&arguments, &object.to_string()).await
    }

    async fn bundle(&self) -> Result<Vec<u8>> {
        let configuration = self.configurations.get("heddle").await?;
        let webhook = configuration.webhooks.unwrap_or_default().remove(0);
        Ok(webhook.client_config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default())
    }
}

/// As the chart's, but by URL: no Service leads out of this cluster.
fn configurations(port: u16) -> String {
    let webhook = |name: &str, path: &str, rule: Value| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": { "url": format!("https://localhost:{port}{path}") },
            "rules": [rule],
            "sideEffects": "None",
            "timeoutSeconds": 5,
            "failurePolicy": "Fail",
        })
    };
    let rule = |group: &str, version: &str, resource: &str| {
        json!({ "apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"],
                "resources": [resource] })
    };
    let mut inject = webhook("inject.heddle.io", "/inject", rule("", "v1", "pods"));
    inject["rules"][0]["operations"] = json!(["CREATE"]);
    inject["reinvocationPolicy"] = json!("IfNeeded");
    inject["namespaceSelector"] = json!({ "matchLabels": { "heddle.io/inject": "enabled" } });
    let validate = webhook("validate.heddle.io", "/validate", rule("heddle.io", "v1alpha1", "*"));
    let kind = |kind: &str, webhook: Value| {
        json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                "metadata": { "name": "heddle" }, "webhooks": [webhook] })
    };
    format!(
        "{}\n---\n{}\n",
        kind("MutatingWebhookConfiguration", inject),
        kind("ValidatingWebhookConfiguration", validate)
    )
}

fn pod(namespace: &str, name: &str, spec: &Value) -> Value {
    let mut whole = json!({ "containers": [{
        "name": "web", "image": "web",
        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 } },
        "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" } },
    }]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name }, "spec": whole })
}

fn split(name: &str, backend: &str) -> Value {
    json!({ "apiVersion": "heddle.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "service": "web", "backends": [{ "service": backend, "weight": 1 }] } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_asks_and_believes_the_answers() -> Result<()> {
    let rig = Rig::start().await?;
    pods_are_meshed(&rig).await?;
    pods_are_refused_or_told(&rig).await?;
    pod_security_is_as_documented(&rig).await?;
    objects_of_ours_are_judged(&rig).await?;
    the_certificate_is_kept(&rig).await?;
    rig.control_plane.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

async fn pods_are_meshed(rig: &Rig) -> Result<()> {
    let ran = rig.create(&pod("shop", "web", &json!({}))).await?.ok()?;
    let made: Value = serde_json::from_str(&ran.out)?;
    let inits = &made["spec"]["initContainers"];
    ensure!(inits[0]["name"] == "heddle-init" && inits[1]["name"] == "heddle-proxy", "{inits}");
    ensure!(inits[1]["restartPolicy"] == "Always", "{inits}");
    let probe = &made["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    ensure!(probe["port"] == 15107 && probe["path"] == "/probe/web/readiness", "{probe}");
    ensure!(made["metadata"]["annotations"]["heddle.io/inject-status"] == "injected", "{made}");
    // What has been through the API server, with all its defaults, is left as it is.
    let mut again = made.clone();
    again["metadata"] = json!({ "namespace": "shop", "name": "copy", "annotations": made["metadata"]["annotations"] });
    again["status"] = Value::Null;
    let ran = rig.create(&again).await?.ok()?;
    let copied: Value = serde_json::from_str(&ran.out)?;
    let ours = |pod: &Value| without_account(&pod["spec"]["initContainers"]);
    ensure!(ours(&copied) == ours(&made), "{copied}");
    // Others are not asked about.
    let ran = rig.create(&pod("plain", "web", &json!({}))).await?.ok()?;
    let plain: Value = serde_json::from_str(&ran.out)?;
    ensure!(plain["spec"]["initContainers"].is_null(), "{plain}");
    Ok(())
}

/// Containers without what Kubernetes itself mounts into each.
fn without_account(containers: &Value) -> Value {
    let mut containers = containers.clone();
    for container in containers.as_array_mut().into_iter().flatten() {
        if let Some(mounts) = container["volumeMounts"].as_array_mut() {
            mounts.retain(|mount| {
                mount["mountPath"] != "/var/run/secrets/kubernetes.io/serviceaccount"
            });
        }
    }
    containers
}

async fn pods_are_refused_or_told(rig: &Rig) -> Result<()> {
    let host = rig.create(&pod("shop", "host", &json!({ "hostNetwork": true }))).await?.ok()?;
    ensure!(host.err.contains("Warning: the pod uses the node's network"), "{}", host.err);
    ensure!(host.out.contains("skipped: the pod uses the node's network"), "{}", host.out);
    let mut misspelt = pod("shop", "misspelt", &json!({}));
    misspelt["metadata"]["annotations"] = json!({ "heddle.io/proxy-cpu-requests": "1" });
    let ran = rig.create(&misspelt).await?;
    ensure!(!ran.status.success(), "{}", ran.out);
    ensure!(
        ran.err.contains("no such annotation; write one of heddle.io/proxy-cpu-request"),
        "{}",
        ran.err
    );
    Ok(())
}

/// As docs/injection.md says: the sidecar meets `restricted`, the init container not even `baseline`.
async fn pod_security_is_as_documented(rig: &Rig) -> Result<()> {
    let ran = rig.create(&pod("shop", "warned", &json!({}))).await?.ok()?;
    ensure!(ran.err.contains("would violate PodSecurity"), "{}", ran.err);
    ensure!(ran.err.contains("heddle-init") && ran.err.contains("NET_ADMIN"), "{}", ran.err);
    ensure!(!ran.err.contains("heddle-proxy"), "{}", ran.err);
    let ran = rig.create(&pod("strict", "web", &json!({}))).await?;
    ensure!(!ran.status.success() && ran.err.contains("heddle-init"), "{}", ran.err);
    Ok(())
}

async fn objects_of_ours_are_judged(rig: &Rig) -> Result<()> {
    let ran = rig.create(&split("one", "web-v1")).await?.ok()?;
    for missing in ["web", "web-v1"] {
        let advice = format!("Warning: there is no Service shop/{missing}: create it");
        ensure!(ran.err.contains(&advice), "{}", ran.err);
    }
    let ran = rig.create(&split("two", "web-v2")).await?.ok()?;
    ensure!(
        ran.err.contains("Warning: TrafficSplit one splits Service web already"),
        "{}",
        ran.err
    );
    Ok(())
}

/// Deleted, and replaced by an upgrade: the leader brings both back, and calls go on.
async fn the_certificate_is_kept(rig: &Rig) -> Result<()> {
    let told = rig.bundle().await?;
    ensure!(!told.is_empty(), "nobody told the API server");
    rig.secrets.delete(SECRET, &DeleteParams::default()).await?;
    let address = rig.control_plane.addresses.admission.context("webhooks are served")?;
    rig.api.kubectl_with(&["replace", "-f", "-"], &configurations(address.port())).await?.ok()?;
    let begun = Instant::now();
    loop {
        let bundle = rig.bundle().await?;
        if !bundle.is_empty() && bundle != told && rig.secrets.get_opt(SECRET).await?.is_some() {
            break;
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "not brought back: {}",
            String::from_utf8_lossy(&bundle)
        );
        sleep(Duration::from_millis(200)).await;
    }
    rig.ready().await
}
