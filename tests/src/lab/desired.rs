//! What the manifests ask for: pods to run (Deployments expanded), Services with their addresses,
//! EndpointSlices written by hand.

use std::collections::{BTreeMap, BTreeSet};

use heddle_resources::Object;
use heddle_resources::reader::Located;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::cluster_ip::ClusterIps;
use super::layout::{PodKey, short_hash};
use super::manifests;
use super::pod_spec::PodSpec;

/// The label by which Kubernetes tells a Deployment's generations apart.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Everything that should be.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    pub pods: BTreeMap<PodKey, PodSpec>,
    /// Deployment of each pod that has one, as (namespace, name).
    pub deployments: BTreeMap<PodKey, (String, String)>,
    /// Pods that are declared and cannot be run as declared: what runs under their names stays.
    pub refused: BTreeSet<PodKey>,
    pub services: Vec<core::Service>,
    pub slices: Vec<EndpointSlice>,
    pub trust_domain: String,
    pub problems: Vec<String>,
}

impl Desired {
    pub(crate) fn new(
        objects: &[Located],
        problems: Vec<String>,
        cluster_ips: &mut ClusterIps,
    ) -> Self {
        let mut desired =
            Self { problems, trust_domain: manifests::trust_domain(objects), ..Self::default() };
        let namespaces = namespace_labels(objects);
        let mut services = Vec::new();
        for located in objects {
            let location = &located.location;
            match &located.object {
                Object::Pod(pod) => desired.add_pod(pod, None, &namespaces, location),
                Object::Deployment(deployment) => {
                    desired.add_deployment(deployment, &namespaces, location);
                }
                Object::Service(service) => services.push((&**service, &**location)),
                Object::EndpointSlice(slice) => desired.slices.push((**slice).clone()),
                Object::Namespace(_)
                | Object::ServiceAccount(_)
                | Object::HTTPRoute(_)
                | Object::GRPCRoute(_)
                | Object::TrafficSplit(_)
                | Object::TrafficPolicy(_)
                | Object::AuthorizationPolicy(_)
                | Object::MeshTLSPolicy(_)
                | Object::Mesh(_) => {}
            }
        }
        desired.services = cluster_ips.assign(&services, &mut desired.problems);
        desired
    }

    fn add_pod(
        &mut self,
        pod: &core::Pod,
        deployment: Option<&(String, String)>,
        namespaces: &BTreeMap<String, BTreeMap<String, String>>,
        location: &str,
    ) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let key = PodKey::new(namespace, name);
        if let Some(deployment) = deployment {
            self.deployments.insert(key.clone(), deployment.clone());
        }
        let none = BTreeMap::new();
        match PodSpec::new(pod, namespaces.get(namespace).unwrap_or(&none)) {
            Ok(spec) => {
                self.pods.insert(key, spec);
            }
            Err(refusals) => {
                let kind = if deployment.is_some() { "Deployment's Pod" } else { "Pod" };
                self.problems.extend(
                    refusals.iter().map(|refusal| format!("{location}: {kind} {key}: {refusal}")),
                );
                self.refused.insert(key);
            }
        }
    }

    fn add_deployment(
        &mut self,
        deployment: &Deployment,
        namespaces: &BTreeMap<String, BTreeMap<String, String>>,
        location: &str,
    ) {
        let Some(spec) = &deployment.spec else { return };
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let namespace = deployment.metadata.namespace.clone().unwrap_or_else(|| "default".into());
        let template = serde_json::to_vec(&spec.template).expect("a parsed template serializes");
        let hash = short_hash(&template);
        let owner = (namespace.clone(), name.clone());
        for index in 0..spec.replicas.unwrap_or(1) {
            let pod = replica(spec, &namespace, &name, &hash, index);
            self.add_pod(&pod, Some(&owner), namespaces, location);
        }
    }
}

/// One pod of a Deployment. Its owner is named as in a cluster, where a ReplicaSet stands between.
fn replica(
    spec: &k8s_openapi::api::apps::v1::DeploymentSpec,
    namespace: &str,
    name: &str,
    hash: &str,
    index: i32,
) -> core::Pod {
    let template = spec.template.metadata.clone().unwrap_or_default();
    let mut labels = template.labels.unwrap_or_default();
    labels.insert(TEMPLATE_HASH.into(), hash.into());
    core::Pod {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}-{index}")),
            namespace: Some(namespace.into()),
            labels: Some(labels),
            annotations: template.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".into(),
                kind: "ReplicaSet".into(),
                name: format!("{name}-{hash}"),
                uid: format!("replicaset-{namespace}-{name}-{hash}"),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: spec.template.spec.clone(),
        status: None,
    }
}

fn namespace_labels(objects: &[Located]) -> BTreeMap<String, BTreeMap<String, String>> {
    let labels = objects.iter().filter_map(|located| {
        let Object::Namespace(namespace) = &located.object else { return None };
        let metadata = namespace.metadata.clone();
        Some((metadata.name.unwrap_or_default(), metadata.labels.unwrap_or_default()))
    });
    labels.collect()
}
