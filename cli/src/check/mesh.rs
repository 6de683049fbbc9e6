//! Heddle in the cluster: the control plane, its webhooks, the pods it should have injected, the
//! proxies, and the objects people wrote.

use std::collections::BTreeMap;

use heddle_api::names::{
    API_VERSION, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT, INJECT_LABEL,
    PROXY_CONTAINER,
};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::Value;

use super::{Findings, Verdict};
use crate::cluster::Cluster;
use crate::proxies;
use crate::version::OWN;

/// Names in a message; the rest is counted.
const NAMED: usize = 5;
/// Of the two webhook configurations.
const WEBHOOKS: &str = "heddle";
/// Of our kinds, for objects that say how they stand.
const KINDS: [&str; 5] =
    ["TrafficSplit", "TrafficPolicy", "AuthorizationPolicy", "MeshTLSPolicy", "Mesh"];

pub(super) async fn control_plane(cluster: &Cluster, findings: &mut Findings) {
    let deployments: Api<Deployment> =
        Api::namespaced(cluster.client.clone(), CONTROL_PLANE_NAMESPACE);
    let check = "the control plane is rolled out";
    match deployments.get_opt(CONTROL_PLANE_SERVICE_ACCOUNT).await {
        Ok(Some(deployment)) => {
            let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            let status = deployment.status.unwrap_or_default();
            let ready = status.ready_replicas.unwrap_or(0);
            let updated = status.updated_replicas.unwrap_or(0);
            let problem = (ready < wanted || updated < wanted).then(|| {
                format!(
                    "{ready} of {wanted} replicas are ready, {updated} up to date; see\n\
                     kubectl -n {CONTROL_PLANE_NAMESPACE} describe deploy/{CONTROL_PLANE_SERVICE_ACCOUNT}"
                )
            });
            findings.judge("control plane", check, problem);
        }
        Ok(None) => {
            let problem = format!(
                "there is none in {CONTROL_PLANE_NAMESPACE}; install it: helm install heddle \
                 charts/heddle -n {CONTROL_PLANE_NAMESPACE} --create-namespace"
            );
            findings.judge("control plane", check, Some(problem));
        }
        Err(error) => findings.unknown("control plane", check, &error),
    }
}

pub(super) async fn webhooks(cluster: &Cluster, findings: &mut Findings) {
    let check = "the injector is registered, with a certificate to check it by";
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    match api.get_opt(WEBHOOKS).await {
        Ok(found) => {
            let found = found.map(|found| found.webhooks.unwrap_or_default());
            let configs = found
                .map(|hooks| hooks.into_iter().map(|hook| hook.client_config).collect::<Vec<_>>());
            findings.judge("admission", check, problem_of(configs));
        }
        Err(error) => findings.unknown("admission", check, &error),
    }
    let check = "the validator is registered, with a certificate to check it by";
    let api: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    match api.get_opt(WEBHOOKS).await {
        Ok(found) => {
            let found = found.map(|found| found.webhooks.unwrap_or_default());
            let configs = found
                .map(|hooks| hooks.into_iter().map(|hook| hook.client_config).collect::<Vec<_>>());
            findings.judge("admission", check, problem_of(configs));
        }
        Err(error) => findings.unknown("admission", check, &error),
    }
}

fn problem_of(configs: Option<Vec<WebhookClientConfig>>) -> Option<String> {
    let Some(configs) = configs else {
        return Some("it is not there; helm upgrade heddle charts/heddle puts it back".to_owned());
    };
    let has_none = |config: &WebhookClientConfig| {
        config.ca_bundle.as_ref().is_none_or(|bundle| bundle.0.is_empty())
    };
    configs.iter().any(has_none).then(|| {
        "a caBundle is missing; the leader of the control plane writes it: wait, or see its log"
            .to_owned()
    })
}

/// Pods that should have a sidecar, and have none.
pub(super) async fn pods(cluster: &Cluster, findings: &mut Findings) {
    let check = "every pod of an injected namespace has its sidecar";
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let labelled = ListParams::default().labels(&format!("{INJECT_LABEL}=enabled"));
    let labelled = match namespaces.list(&labelled).await {
        Ok(labelled) => labelled,
        Err(error) => return findings.unknown("data plane", check, &error),
    };
    if labelled.items.is_empty() {
        let message = format!(
            "no namespace is labelled; kubectl label namespace NAME {INJECT_LABEL}=enabled"
        );
        return findings.add("data plane", check, Verdict::Warning, message);
    }
    let mut missing = Vec::new();
    for namespace in labelled.items {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace.name_any());
        match pods.list(&ListParams::default()).await {
            Ok(pods) => {
                missing.extend(pods.items.iter().filter(|pod| lacks_sidecar(pod)).map(name))
            }
            Err(error) => return findings.unknown("data plane", check, &error),
        }
    }
    if missing.is_empty() {
        return findings.judge("data plane", check, None);
    }
    let message = format!(
        "{} without: {}; they were there before the label, or share the node's network.\n\
         Restart them: kubectl rollout restart deployment -n NAMESPACE",
        missing.len(),
        some(&missing)
    );
    findings.add("data plane", check, Verdict::Warning, message);
}

fn lacks_sidecar(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_over = matches!(phase, Some("Succeeded" | "Failed"));
    let opted_out = pod.labels().get(INJECT_LABEL).is_some_and(|value| value == "disabled");
    let init = spec.init_containers.iter().flatten();
    let has_sidecar =
        init.chain(&spec.containers).any(|container| container.name == PROXY_CONTAINER);
    !is_over && !opted_out && !has_sidecar && pod.metadata.deletion_timestamp.is_none()
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(super) async fn proxies(cluster: &Cluster, findings: &mut Findings) {
    let check = "every proxy runs what it was given";
    let all = match proxies::proxies(cluster).await {
        Ok(all) => all,
        Err(error) => {
            let message = format!("{error:#}");
            return findings.add("data plane", check, Verdict::Unknown, message);
        }
    };
    let rejecting: Vec<_> = all.iter().filter(|proxy| !proxy.rejected.is_empty()).collect();
    let named: Vec<_> =
        rejecting.iter().map(|proxy| format!("{}: {}", proxy.pod, proxy.rejected[0])).collect();
    let problem =
        (!named.is_empty()).then(|| format!("{} reject something: {}", named.len(), some(&named)));
    findings.judge("data plane", check, problem);
    let pending: Vec<_> =
        all.iter().filter(|proxy| proxy.pending > 0).map(|proxy| proxy.pod.clone()).collect();
    if !pending.is_empty() {
        let message = format!("{} have something pending: {}", pending.len(), some(&pending));
        findings.add("data plane", "every proxy is up to date", Verdict::Warning, message);
    }
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for proxy in all.iter().filter(|proxy| proxy.version != OWN) {
        *versions.entry(&proxy.version).or_default() += 1;
    }
    if !versions.is_empty() {
        let counts: Vec<_> = versions.iter().map(|(v, count)| format!("{count} of {v}")).collect();
        let message = format!(
            "this program is {OWN}; others: {}. Restart their workloads to bring them up to date",
            counts.join(", ")
        );
        findings.add("data plane", "proxies are of this version", Verdict::Warning, message);
    }
}

/// Objects of ours that say of themselves that they are not, or not fully, in force.
pub(super) async fn objects(cluster: &Cluster, findings: &mut Findings) {
    let (group, version) = API_VERSION.split_once('/').unwrap_or(("", API_VERSION));
    for kind in KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let check = format!("every {kind} is accepted");
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                let refused: Vec<_> = list.items.iter().filter_map(refusal).collect();
                let problem = (!refused.is_empty()).then(|| some(&refused));
                findings.judge("objects", check, problem);
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => findings.unknown("objects", check, &error),
        }
    }
}

/// Why the object is not accepted, or refers to what does not exist.
fn refusal(object: &DynamicObject) -> Option<String> {
    let conditions = object.data.get("status")?.get("conditions")?.as_array()?;
    let text = |condition: &Value, field: &str| {
        condition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let bad = conditions.iter().find(|condition| {
        matches!(text(condition, "type").as_str(), "Accepted" | "ResolvedRefs")
            && text(condition, "status") == "False"
    })?;
    let name = match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    };
    Some(format!("{name}: {}: {}", text(bad, "reason"), text(bad, "message")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_lacks_its_sidecar_unless_it_has_one_or_is_over_or_says_no() {
        let spec = serde_json::json!({ "containers": [{ "name": "a" }] });
        let with = serde_json::json!({
            "containers": [{ "name": "a" }], "initContainers": [{ "name": PROXY_CONTAINER }]
        });
        for (value, lacks) in [
            (serde_json::json!({ "spec": spec }), true),
            (serde_json::json!({ "spec": with }), false),
            (serde_json::json!({ "spec": spec, "status": { "phase": "Succeeded" } }), false),
            (
                serde_json::json!({
                    "metadata": { "labels": { INJECT_LABEL: "disabled" } }, "spec": spec
                }),
                false,
            ),
        ] {
            assert_eq!(lacks_sidecar(&pod(value.clone())), lacks, "{value}");
        }
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let names: Vec<_> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(some(&names), "0, 1, 2, 3, 4 and 2 more");
        assert_eq!(some(&names[..2]), "0, 1");
    }

    #[test]
    fn a_webhook_without_a_bundle_is_a_problem() {
        assert!(problem_of(None).is_some());
        assert!(problem_of(Some(vec![WebhookClientConfig::default()])).is_some());
        let bundle = Some(k8s_openapi::ByteString(b"pem".to_vec()));
        let good = WebhookClientConfig { ca_bundle: bundle, ..WebhookClientConfig::default() };
        assert!(problem_of(Some(vec![good])).is_none());
    }
}
