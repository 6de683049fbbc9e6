//! The control plane's permissions, asked of a real API server: each it needs, and many that it must
//! not have.

use anyhow::Result;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::cluster::{Cluster, GROUPS, USER};
use super::helm::NAMESPACE;
use super::permissions::Permission;

/// Verb, resource as kubectl writes it, name, namespace ("" for the whole cluster).
type Ask = (&'static str, &'static str, &'static str, &'static str);

/// What nobody must be able to do with the control plane's token.
const MUST_NOT: &[Ask] = &[
    // Secrets: two names in one namespace, nothing else.
    ("get", "secrets", "", "default"),
    ("list", "secrets", "", ""),
    ("list", "secrets", "", "heddle-system"),
    ("watch", "secrets", "", "kube-system"),
    ("get", "secrets", "another", "heddle-system"),
    ("create", "secrets", "", "shop"),
    ("delete", "secrets", "heddle-trust-root", "heddle-system"),
    ("update", "secrets", "heddle-trust-root", "heddle-system"),
    ("patch", "secrets", "heddle-trust-root", "heddle-system"),
    ("patch", "secrets", "heddle-trust-root", "shop"),
    // Pods: read, never run, entered or changed.
    ("create", "pods", "", "shop"),
    ("delete", "pods", "", "shop"),
    ("patch", "pods", "", "shop"),
    ("create", "pods/exec", "", "shop"),
    ("create", "pods/attach", "", "shop"),
    ("create", "pods/portforward", "", "shop"),
    // A WebSocket begins with a GET.
    ("get", "pods/exec", "", "shop"),
    ("get", "pods/portforward", "", "heddle-system"),
    ("get", "pods/log", "", "shop"),
    ("create", "pods/eviction", "", "shop"),
    ("patch", "pods/ephemeralcontainers", "", "shop"),
    ("patch", "pods/status", "", "shop"),
    // Tokens and identities.
    ("create", "serviceaccounts/token", "heddle-control-plane", "heddle-system"),
    ("create", "serviceaccounts/token", "default", "kube-system"),
    ("impersonate", "users", "", ""),
    ("impersonate", "serviceaccounts", "", "kube-system"),
    ("approve", "signers.certificates.k8s.io", "", ""),
    // Permissions themselves.
    ("create", "clusterrolebindings.rbac.authorization.k8s.io", "", ""),
    ("escalate", "clusterroles.rbac.authorization.k8s.io", "", ""),
    ("bind", "clusterroles.rbac.authorization.k8s.io", "", ""),
    ("patch", "roles.rbac.authorization.k8s.io", "heddle-control-plane", "heddle-system"),
    // Webhooks: its own two, and only to change them.
    ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "another", ""),
    ("create", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", ""),
    ("delete", "validatingwebhookconfigurations.admissionregistration.k8s.io", "heddle", ""),
    ("list", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", ""),
    // What operators wrote is theirs: status is ours.
    ("patch", "trafficsplits.heddle.io", "", "shop"),
    ("update", "trafficsplits.heddle.io", "", "shop"),
    ("delete", "authorizationpolicies.heddle.io", "", "shop"),
    ("create", "meshes.heddle.io", "", ""),
    ("update", "httproutes.gateway.networking.k8s.io", "", "shop"),
    ("update", "customresourcedefinitions.apiextensions.k8s.io", "trafficsplits.heddle.io", ""),
    // Everything else.
    ("create", "configmaps", "", "shop"),
    ("patch", "configmaps", "another", "shop"),
    ("list", "configmaps", "", ""),
    ("get", "configmaps", "kube-root-ca.crt", "shop"),
    ("delete", "configmaps", "heddle-trust-bundle", "shop"),
    ("patch", "services", "", "shop"),
    ("patch", "endpointslices.discovery.k8s.io", "", "shop"),
    ("patch", "namespaces", "shop", ""),
    ("patch", "deployments.apps", "heddle-control-plane", "heddle-system"),
    ("get", "nodes", "", ""),
    ("get", "nodes/proxy", "", ""),
    ("patch", "leases.coordination.k8s.io", "heddle-control-plane", "heddle-system"),
    ("update", "leases.coordination.k8s.io", "heddle-control-plane", "kube-system"),
    ("update", "leases.coordination.k8s.io", "another", "heddle-system"),
    ("create", "networkpolicies.networking.k8s.io", "", "heddle-system"),
    ("*", "*", "", ""),
];

async fn may(
    cluster: &Cluster,
    verb: &str,
    group: &str,
    resource: &str,
    name: &str,
    namespace: &str,
) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(USER.to_owned()),
            groups: Some(
                GROUPS.iter().chain(&["system:authenticated"]).map(|g| (*g).to_owned()).collect(),
            ),
            resource_attributes: Some(ResourceAttributes {
                verb: some(verb),
                group: some(group),
                resource: some(resource),
                subresource: some(subresource),
                name: some(name),
                namespace: some(namespace),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.admin.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Each line of the document is granted, and where it says heddle-system, nowhere else.
pub(crate) async fn everything_listed_is_granted(
    cluster: &Cluster,
    listed: &[Permission],
) -> Result<()> {
    let mut asked = 0;
    for [place, group, resource, names, verbs] in listed {
        let group = if group == "core" { "" } else { group };
        for verb in verbs.split(", ") {
            for name in names.split(", ") {
                let line = format!("{verb} {resource} {name} ({place})");
                asked += 1;
                if place == "everywhere" {
                    assert!(may(cluster, verb, group, resource, name, "").await?, "{line}");
                    assert!(may(cluster, verb, group, resource, name, "shop").await?, "{line}");
                } else {
                    assert!(may(cluster, verb, group, resource, name, NAMESPACE).await?, "{line}");
                    let elsewhere = may(cluster, verb, group, resource, name, "shop").await?;
                    assert!(!elsewhere, "{line}: in shop, too");
                }
            }
        }
    }
    assert!(asked > 60, "{asked}");
    Ok(())
}

/// And much else is not.
pub(crate) async fn nothing_else_is_granted(cluster: &Cluster) -> Result<()> {
    let mut granted = Vec::new();
    for (verb, resource, name, namespace) in MUST_NOT {
        let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
        if may(cluster, verb, group, kind, name, namespace).await? {
            granted.push(format!("{verb} {resource} {name} in {namespace:?}"));
        }
    }
    assert!(granted.is_empty(), "{granted:#?}");
    assert!(MUST_NOT.len() >= 30);
    Ok(())
}

/// A name holds for what is made by server-side apply, too, and for a list that asks for that name
/// alone. It does not for a plain create, which is why that is granted in one namespace only.
pub(crate) async fn names_hold(cluster: &Cluster) -> Result<()> {
    cluster.api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.control_plane.clone(), "shop");
    let map = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
    let ours = heddle_api::names::TRUST_BUNDLE_CONFIG_MAP;
    let apply = PatchParams::apply(heddle_api::names::FIELD_MANAGER);
    let other = maps.patch("another", &apply, &Patch::Apply(map("another"))).await;
    assert!(is_forbidden(&other), "{other:?}");
    let plain: ConfigMap = serde_json::from_value(map(ours))?;
    let posted = maps.create(&PostParams::default(), &plain).await;
    assert!(is_forbidden(&posted), "{posted:?}");
    maps.patch(ours, &apply, &Patch::Apply(map(ours))).await?;
    let everywhere: Api<ConfigMap> = Api::all(cluster.control_plane.clone());
    let named = ListParams::default().fields(&format!("metadata.name={ours}"));
    assert_eq!(everywhere.list(&named).await?.items.len(), 1);
    let all = everywhere.list(&ListParams::default()).await;
    assert!(is_forbidden(&all), "{all:?}");
    Ok(())
}

fn is_forbidden<T>(answer: &Result<T, kube::Error>) -> bool {
    matches!(answer, Err(kube::Error::Api(status)) if status.code == 403)
}
