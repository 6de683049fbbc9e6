//! Objects as the API server sends them → what the index keeps. Pure.
//!
//! Kubernetes' own kinds are typed and trusted: the API server has validated them. Of them only what
//! the index and the compiler look at is kept, which is a fraction. All other kinds are read one by
//! one by the same reader as a file's, so that an object of a newer CRD is refused by name and stops
//! nothing else.

use heddle_api::names::INIT_CONTAINER;
use heddle_resources::reader::{self, Located};
use heddle_resources::{Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;

use crate::catalog::{Issue, Reason};

/// What became of an object.
#[derive(Debug)]
pub(super) enum Reading {
    Good(Located),
    Refused {
        issues: Vec<Issue>,
        /// Denies in its place, when no good version of it is known.
        stand_in: Option<Located>,
    },
}

pub(super) fn pod(pod: Pod) -> Reading {
    let metadata = ObjectMeta {
        owner_references: pod.metadata.owner_references.clone(),
        ..identity(pod.metadata)
    };
    good(Pod { metadata, spec: pod.spec.map(pod_spec), status: pod.status.map(pod_status) })
}

fn pod_spec(spec: PodSpec) -> PodSpec {
    PodSpec {
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec
            .init_containers
            .map(|containers| containers.into_iter().map(container).collect()),
        host_network: spec.host_network,
        node_name: spec.node_name,
        service_account_name: spec.service_account_name,
        ..PodSpec::default()
    }
}

fn container(container: Container) -> Container {
    let kept = Container { name: container.name, ports: container.ports, ..Container::default() };
    if kept.name != INIT_CONTAINER {
        return kept;
    }
    // Says which ports the proxy does not see.
    Container { command: container.command, args: container.args, env: container.env, ..kept }
}

fn pod_status(status: PodStatus) -> PodStatus {
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| condition.type_ == "Ready");
    for condition in &mut conditions {
        // Written at every probe, and nobody's business here.
        condition.last_probe_time = None;
        condition.last_transition_time = None;
        condition.message = None;
        condition.reason = None;
    }
    PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        conditions: Some(conditions),
        ..PodStatus::default()
    }
}

pub(super) fn service(service: Service) -> Reading {
    let Service { metadata, spec, .. } = service;
    good(Service { metadata: identity(metadata), spec, status: None })
}

pub(super) fn endpoint_slice(slice: EndpointSlice) -> Reading {
    good(EndpointSlice { metadata: identity(slice.metadata), ..slice })
}

/// Any other kind.
pub(super) fn custom(kind: Kind, object: DynamicObject) -> Reading {
    let DynamicObject { metadata, data, .. } = object;
    let metadata = ObjectMeta { generation: metadata.generation, ..identity(metadata) };
    let (key, generation) = (key(kind, &metadata), metadata.generation);
    let mut value = data;
    if let Some(fields) = value.as_object_mut() {
        // Its writers', and ours among them: what we write must not wake us.
        fields.remove("status");
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        fields.insert("kind".to_owned(), kind.as_str().into());
        let metadata = serde_json::to_value(&metadata);
        fields.insert("metadata".to_owned(), metadata.expect("metadata always serializes"));
    }
    let mut reading = reader::read_value(value);
    match reading.objects.pop() {
        Some(located) if reading.errors.is_empty() => Reading::Good(located),
        _ => Reading::Refused {
            issues: reading.errors.iter().map(|error| issue(&key, generation, error)).collect(),
            stand_in: reading.stand_ins.pop(),
        },
    }
}

/// Names the object in the index.
pub(super) fn key(kind: Kind, metadata: &ObjectMeta) -> ObjectKey {
    let namespace = if kind.is_namespaced() { metadata.namespace.as_deref() } else { None };
    ObjectKey::new(kind, namespace.unwrap_or(""), metadata.name.as_deref().unwrap_or_default())
}

/// Who an object is, how old, and what it is labelled with. Its resourceVersion is left out: two
/// states that differ in nothing else are the same.
fn identity(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        labels: metadata.labels,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

fn good(object: impl Into<Object>) -> Reading {
    Reading::Good(Located { object: object.into(), location: "".into() })
}

fn issue(key: &ObjectKey, generation: Option<i64>, error: &reader::Error) -> Issue {
    Issue {
        kind: key.kind.to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        location: String::new(),
        path: error.path.clone(),
        reason: Reason::Invalid,
        generation,
        message: match error.value.as_str() {
            "" => error.message.clone(),
            value => format!("{value}: {}", error.message),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::index::facts;

    fn dynamic(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_keeps_all_that_anybody_looks_at() {
        let whole: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "web-7c5d-x", "namespace": "shop", "uid": "u", "resourceVersion": "9",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "app": "web", "pod-template-hash": "7c5d" },
                "annotations": { "long": "text" },
                "managedFields": [{ "manager": "kubelet" }],
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "name": "web-7c5d", "uid": "o", "controller": true }],
            },
            "spec": {
                "serviceAccountName": "web", "nodeName": "node-1",
                "initContainers": [
                    { "name": "heddle-init", "args": ["--skip-inbound-ports=9000-9005"] },
                    { "name": "heddle-proxy", "restartPolicy": "Always" },
                ],
                "containers": [{ "name": "app", "image": "app",
                    "env": [{ "name": "SECRET", "value": "x" }],
                    "ports": [{ "name": "http", "containerPort": 8080 }] }],
                "volumes": [{ "name": "v" }],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }],
                "conditions": [
                    { "type": "PodScheduled", "status": "True" },
                    { "type": "Ready", "status": "True", "lastProbeTime": null,
                      "lastTransitionTime": "2026-01-01T00:00:00Z" },
                ],
                "containerStatuses": [{ "name": "app", "image": "app", "imageID": "i",
                    "ready": true, "restartCount": 0 }],
            },
        }))
        .unwrap();
        let Reading::Good(Located { object: Object::Pod(kept), .. }) = pod(whole.clone()) else {
            panic!("not read");
        };
        assert_eq!(facts::owned_ips(&kept), facts::owned_ips(&whole));
        assert_eq!(facts::is_ready(&kept), facts::is_ready(&whole));
        assert_eq!(facts::is_meshed(&kept), facts::is_meshed(&whole));
        assert_eq!(facts::is_finished(&kept), facts::is_finished(&whole));
        assert_eq!(facts::skipped_ports(&kept), facts::skipped_ports(&whole));
        assert_eq!(facts::service_account(&kept), facts::service_account(&whole));
        assert_eq!(facts::workload(&kept), facts::workload(&whole));
        assert_eq!(facts::named_port(&kept, "http"), facts::named_port(&whole, "http"));
        assert_eq!(kept.metadata.labels, whole.metadata.labels);
        assert_eq!(kept.metadata.creation_timestamp, whole.metadata.creation_timestamp);
        let size = |pod: &Pod| serde_json::to_string(pod).unwrap().len();
        assert!(!serde_json::to_string(&*kept).unwrap().contains("SECRET"));
        assert!(size(&kept) < size(&whole) * 2 / 3, "{} of {}", size(&kept), size(&whole));
    }

    #[test]
    fn a_state_that_differs_in_bookkeeping_alone_is_the_same() {
        let policy = |version: &str, status: Value| {
            custom(
                Kind::TrafficSplit,
                dynamic(json!({
                    "apiVersion": "heddle.io/v1alpha1", "kind": "TrafficSplit",
                    "metadata": { "name": "a", "namespace": "shop", "resourceVersion": version,
                        "managedFields": [{ "manager": version }] },
                    "spec": { "service": "web", "backends": [{ "service": "v1", "weight": 1 }] },
                    "status": status,
                })),
            )
        };
        let (one, two) = (policy("1", json!({})), policy("2", json!({ "anything": [1] })));
        let (Reading::Good(one), Reading::Good(two)) = (one, two) else { panic!("refused") };
        assert_eq!(one, two);
    }

    #[test]
    fn a_refused_policy_denies_and_says_why() {
        let reading = custom(
            Kind::AuthorizationPolicy,
            dynamic(json!({
                "apiVersion": "heddle.io/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "a", "namespace": "shop", "uid": "u" },
                "spec": { "targetRef": { "kind": "Pods", "selector": { "app": "web" } },
                    "mode": "Sometimes", "rules": [] },
            })),
        );
        let Reading::Refused { issues, stand_in: Some(stand_in) } = reading else {
            panic!("{reading:?}");
        };
        assert_eq!((&*issues[0].name, &*issues[0].path), ("a", "spec.mode"), "{issues:?}");
        let Object::AuthorizationPolicy(policy) = stand_in.object else { panic!() };
        assert_eq!(policy.metadata.uid.as_deref(), Some("u"));
        assert!(policy.spec.target_ref.selector.0.contains_key("app"));
    }
}
