//! The charts on a real API server: an operator's whole way with them, and what a cluster does when
//! nobody answers its webhooks.

use std::time::Duration;

use anyhow::Result;
use heddle_tests::cluster::api::ApiServer;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::helm::{self, EVERYTHING, NAMESPACE, Rendering, VARIANTS};

/// For what Kubernetes' own controllers do, on a machine that compiles meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Four that inject and one that validates.
pub(crate) const WEBHOOKS: usize = 5;

/// Who the control plane is to the API server.
pub(crate) const USER: &str = "system:serviceaccount:heddle-system:heddle-control-plane";
pub(crate) const GROUPS: [&str; 2] =
    ["system:serviceaccounts", "system:serviceaccounts:heddle-system"];

/// A cluster's API, somebody who administers it, and the control plane's own client.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) admin: Client,
    pub(crate) control_plane: Client,
}

impl Cluster {
    pub(crate) async fn start() -> Result<Self> {
        let api = ApiServer::start().await?.with_controllers().await?;
        let admin = api.client().await?;
        let control_plane = api.client_for(USER, &GROUPS).await?;
        Ok(Self { api, admin, control_plane })
    }

    pub(crate) fn helm(&self, arguments: &[&str]) -> Result<String> {
        helm::operate(self.api.kubeconfig(), arguments)
    }

    /// `helm upgrade --install` of the definitions, and waits until they can be used.
    pub(crate) async fn install_definitions(&self) -> Result<()> {
        let said = self.helm(&[
            "upgrade",
            "--install",
            "heddle-crds",
            "charts/heddle-crds",
            "--create-namespace",
        ]);
        said?;
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
        self.api.kubectl(&wait).await?.ok()?;
        Ok(())
    }

    pub(crate) fn install(&self, more: &[&str]) -> Result<String> {
        self.helm(&[&["upgrade", "--install", "heddle", "charts/heddle"], more].concat())
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.api.kubectl(arguments).await?.ok()?.out)
    }

    fn deployment(&self) -> Api<Deployment> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    async fn replicas(&self) -> Result<Option<i32>> {
        let deployment = self.deployment().get("heddle-control-plane").await?;
        Ok(deployment.spec.and_then(|spec| spec.replicas))
    }
}

/// Everything that is rendered is what the API server takes, field by field.
pub(crate) async fn renderings_are_valid(cluster: &Cluster) -> Result<()> {
    // A pod is refused without its service account, which a dry run does not make.
    cluster.kubectl(&["create", "serviceaccount", "heddle-test", "-n", NAMESPACE]).await?;
    let mut renderings = vec![("everything", render(&[], EVERYTHING)?)];
    for (name, files) in VARIANTS {
        renderings.push((name, render(files, "")?));
    }
    let given = json!({ "webhook": { "certificate": "provided", "caBundle": certificate()? } });
    renderings.push(("an authority that is given", render(&[], &given.to_string())?));
    for (name, text) in renderings {
        let objects = Rendering::parse(&text).0;
        // Of the Prometheus operator, whose definitions are not here.
        let known = objects.into_iter().filter(|object| object["kind"] != "PodMonitor");
        let list =
            json!({ "apiVersion": "v1", "kind": "List", "items": known.collect::<Vec<_>>() });
        let arguments =
            ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
        let said = cluster.api.kubectl_with(&arguments, &list.to_string()).await?;
        assert!(said.status.success(), "{name}: {}", said.excerpt());
    }
    cluster.kubectl(&["delete", "serviceaccount", "heddle-test", "-n", NAMESPACE]).await?;
    Ok(())
}

fn render(files: &[&str], values: &str) -> Result<String> {
    helm::template(files, values).map_err(anyhow::Error::msg)
}

/// Pod Security's level "restricted" is enforced, and the pods are there.
pub(crate) async fn pods_are_admitted(cluster: &Cluster) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let of_ours = ListParams::default().labels("app.kubernetes.io/component=control-plane");
    let begun = Instant::now();
    loop {
        let found = pods.list(&of_ours).await?.items;
        if found.len() == 2 {
            for pod in found {
                let spec = pod.spec.unwrap_or_default();
                assert_eq!(spec.priority_class_name.as_deref(), Some("system-cluster-critical"));
                assert_eq!(spec.service_account_name.as_deref(), Some("heddle-control-plane"));
                // The chart's own token, and no second one.
                assert_eq!(spec.volumes.map_or(0, |volumes| volumes.len()), 1);
            }
            return Ok(());
        }
        let events = ["get", "events", "-n", NAMESPACE];
        assert!(begun.elapsed() < PATIENCE, "{}", cluster.kubectl(&events).await?);
        sleep(Duration::from_millis(200)).await;
    }
}

fn certificate() -> Result<String> {
    let key = rcgen::KeyPair::generate()?;
    Ok(rcgen::CertificateParams::default().self_signed(&key)?.pem())
}

/// What the leader does, as the leader: `caBundle` into each webhook, by its name.
async fn write_authority(cluster: &Cluster, bundle: &str) -> Result<()> {
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let version = kube::core::GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let resource = ApiResource::from_gvk(&version);
        let api: Api<DynamicObject> = Api::all_with(cluster.control_plane.clone(), &resource);
        let object = api.get("heddle").await?;
        let webhooks: Vec<Value> = object.data["webhooks"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| json!({ "name": one["name"], "clientConfig": { "caBundle": bundle } }))
            .collect();
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": { "name": "heddle" },
            "webhooks": webhooks,
        });
        let params = PatchParams::apply(heddle_api::names::FIELD_MANAGER);
        api.patch("heddle", &params, &Patch::Apply(&patch)).await?;
    }
    Ok(())
}

/// Every `caBundle` there is, in base64.
pub(crate) async fn authorities(cluster: &Cluster) -> Result<Vec<String>> {
    let path = "{.items[?(@.metadata.name==\"heddle\")].webhooks[*].clientConfig.caBundle}";
    let kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations";
    let out = cluster.kubectl(&["get", kinds, "-o", &format!("jsonpath={path}")]).await?;
    Ok(out.split_whitespace().map(str::to_owned).collect())
}

/// Whatever an operator does with the release, the leader's `caBundle` stays.
pub(crate) async fn releases_leave_the_authority_alone(cluster: &Cluster) -> Result<()> {
    assert_eq!(authorities(cluster).await?, [""; 0]);
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(certificate()?);
    write_authority(cluster, &bundle).await?;
    let all = vec![bundle; WEBHOOKS];
    assert_eq!(authorities(cluster).await?, all);
    cluster.install(&["--set", "controlPlane.replicas=3,injector.timeoutSeconds=7"])?;
    assert_eq!(cluster.replicas().await?, Some(3));
    assert_eq!(authorities(cluster).await?, all, "after an upgrade");
    cluster.helm(&["rollback", "heddle", "1"])?;
    assert_eq!(cluster.replicas().await?, Some(2));
    assert_eq!(authorities(cluster).await?, all, "after a rollback");
    // As Helm 3 did it.
    cluster.install(&["--server-side=false", "--set", "controlPlane.replicas=4"])?;
    assert_eq!(cluster.replicas().await?, Some(4));
    assert_eq!(authorities(cluster).await?, all, "after an upgrade by the client");
    Ok(())
}

/// The Mesh object outlives the wish to have it made.
pub(crate) async fn settings_of_the_mesh_are_kept(cluster: &Cluster) -> Result<()> {
    let ranges = "mesh.clusterRanges={10.96.0.0/12,fd00::/108}";
    cluster.install(&["--set", "mesh.create=true,mesh.tls=Permissive", "--set", ranges])?;
    let spec = ["get", "mesh", "default", "-o", "jsonpath={.spec}"];
    let before = cluster.kubectl(&spec).await?;
    let parsed: Value = serde_json::from_str(&before)?;
    assert_eq!(parsed["tls"], "Permissive");
    assert_eq!(parsed["clusterRanges"], json!(["10.96.0.0/12", "fd00::/108"]));
    cluster.install(&[])?;
    assert_eq!(cluster.kubectl(&spec).await?, before);
    Ok(())
}

/// A namespace's label, a pod's label, whether it is on its node's network: and whether it starts
/// while no control plane answers.
const OUTAGE: [(Option<&str>, Option<&str>, bool, bool); 11] = [
    (None, None, false, true),
    (None, None, true, true),
    (None, Some("disabled"), false, true),
    (Some("disabled"), None, false, true),
    (Some("enabled"), None, false, false),
    (Some("enabled"), Some("disabled"), false, true),
    (Some("enabled"), None, true, true),
    (None, Some("enabled"), false, false),
    (None, Some("enabled"), true, true),
    (Some("disabled"), Some("enabled"), false, false),
    // Misspelt: to be told, not to be overlooked.
    (None, Some("true"), false, false),
];

/// Without a control plane only pods that want a sidecar have to wait for it.
pub(crate) async fn an_outage_stops_nobody_else(cluster: &Cluster) -> Result<()> {
    unplug(cluster).await?;
    for (at, (namespace, pod, host_network, admitted)) in OUTAGE.into_iter().enumerate() {
        let name = format!("outage-{at}");
        let labels =
            |label: Option<&str>| label.map_or(json!({}), |l| json!({ "heddle.io/inject": l }));
        let shop = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels(namespace) },
        });
        cluster.api.apply(&shop.to_string()).await?;
        let refused = try_pod(cluster, &name, &labels(pod), host_network).await?;
        let case = format!("namespace {namespace:?}, pod {pod:?}, hostNetwork {host_network}");
        match refused {
            None => assert!(admitted, "{case}: admitted"),
            Some(said) => {
                assert!(!admitted, "{case}: {said}");
                let named = "inject.heddle.io";
                assert!(said.contains("failed calling webhook") && said.contains(named), "{said}");
            }
        }
    }
    // The cluster's own, and the control plane itself, whatever somebody labels.
    for namespace in ["kube-system", NAMESPACE] {
        cluster.kubectl(&["label", "namespace", namespace, "heddle.io/inject=enabled"]).await?;
        let refused = try_pod(cluster, namespace, &json!({}), false).await?;
        assert_eq!(refused, None, "{namespace}");
    }
    // Our own objects can be applied: the webhook's word about them is advice.
    let split = "{apiVersion: heddle.io/v1alpha1, kind: TrafficSplit, metadata: {name: web, namespace: outage-0},
        spec: {service: web, backends: [{service: web-v1, weight: 1}]}}";
    cluster.api.apply(split).await?;
    Ok(())
}

/// Lets the webhooks call a port that nobody listens on: refused at once, and no packet leaves.
async fn unplug(cluster: &Cluster) -> Result<()> {
    let nowhere = json!({ "url": "https://127.0.0.1:9/", "service": null });
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let rewrite = |names: Vec<String>| -> Value {
        let webhooks: Vec<_> =
            names.iter().map(|name| json!({ "name": name, "clientConfig": nowhere })).collect();
        json!({ "webhooks": webhooks })
    };
    let names = |webhooks: Vec<String>| Patch::Strategic(rewrite(webhooks));
    let found = mutating.get("heddle").await?.webhooks.unwrap_or_default();
    let patch = names(found.into_iter().map(|one| one.name).collect());
    mutating.patch("heddle", &PatchParams::default(), &patch).await?;
    let found = validating.get("heddle").await?.webhooks.unwrap_or_default();
    let patch = names(found.into_iter().map(|one| one.name).collect());
    validating.patch("heddle", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Asks for a pod, in a dry run. What was said against it.
async fn try_pod(
    cluster: &Cluster,
    namespace: &str,
    labels: &Value,
    host_network: bool,
) -> Result<Option<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), namespace);
    let begun = Instant::now();
    let security = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "try", "labels": labels },
        "spec": {
            "hostNetwork": host_network,
            "containers": [{ "name": "app", "image": "app", "securityContext": security }],
        },
    });
    let pod: Pod = serde_json::from_value(pod)?;
    let params = PostParams { dry_run: true, ..Default::default() };
    loop {
        // The webhooks declare no side effects, so they are asked in a dry run, too.
        match pods.create(&params, &pod).await {
            Ok(_) => return Ok(None),
            // A namespace gets its service account a moment later.
            Err(kube::Error::Api(said))
                if said.message.contains("serviceaccount") && begun.elapsed() < PATIENCE =>
            {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Ok(Some(error.to_string())),
        }
    }
}

/// Nothing is left that asks a control plane which is gone; what is not the release's stays.
pub(crate) async fn uninstalling_holds_nothing_up(cluster: &Cluster) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(cluster.control_plane.clone(), NAMESPACE);
    let root = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "heddle-trust-root" },
    });
    let root: Secret = serde_json::from_value(root)?;
    secrets.create(&PostParams::default(), &root).await?;
    cluster.helm(&["uninstall", "heddle"])?;
    for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        assert_eq!(cluster.kubectl(&["get", kind, "-o", "name"]).await?, "");
    }
    let named = ["get", "clusterroles,clusterrolebindings", "-o", "name"];
    assert!(!cluster.kubectl(&named).await?.contains("heddle"));
    let kept = cluster.kubectl(&["get", "secret", "heddle-trust-root", "-n", NAMESPACE]).await?;
    assert!(kept.contains("heddle-trust-root"));
    cluster.kubectl(&["get", "mesh", "default"]).await?;
    let refused = try_pod(cluster, "outage-4", &json!({}), false).await?;
    assert_eq!(refused, None, "in a namespace that is still labelled");
    cluster.helm(&["uninstall", "heddle-crds"])?;
    let split = ["get", "trafficsplit", "web", "-n", "outage-0", "-o", "name"];
    assert!(cluster.kubectl(&split).await?.contains("web"), "objects outlive the release");
    Ok(())
}
