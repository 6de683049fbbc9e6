//! EndpointSlices of the Services that select pods, as the endpoint slice controller writes them.
//! Pure: what runs comes in, objects go out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod_spec::PodSpec;
use super::protocol::PodStatus;

/// By this label a slice names its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A pod that runs, as declared and as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodView<'a> {
    pub spec: &'a PodSpec,
    pub status: &'a PodStatus,
}

/// Endpoints that have the same port numbers.
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// The slices of one Service: one per family, and one more for each other set of port numbers that
/// a named target port has in some pods.
pub(crate) fn compile_slices(service: &core::Service, pods: &[PodView<'_>]) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
        return Vec::new();
    };
    let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
    let selected: Vec<_> = pods
        .iter()
        .filter(|pod| pod.status.namespace == namespace && !pod.status.phase.is_finished())
        .filter(|pod| {
            let labels = pod.spec.manifest.metadata.labels.as_ref();
            selector.iter().all(|(k, v)| labels.and_then(|labels| labels.get(k)) == Some(v))
        })
        .collect();
    let mut slices = Vec::new();
    for family in spec.ip_families.iter().flatten() {
        let mut by_ports: BTreeMap<Vec<Option<i32>>, Group> = BTreeMap::new();
        for pod in &selected {
            let Some(address) = address_of(pod, family) else { continue };
            let ports = endpoint_ports(spec, pod.spec);
            let numbers = ports.iter().map(|port| port.port).collect();
            let group =
                by_ports.entry(numbers).or_insert_with(|| Group { ports, endpoints: Vec::new() });
            group.endpoints.push(endpoint(spec, pod, address));
        }
        for (index, group) in by_ports.into_values().enumerate() {
            slices.push(slice(service, family, index, group));
        }
    }
    slices
}

fn address_of(pod: &PodView<'_>, family: &str) -> Option<IpAddr> {
    let wanted = |address: &IpAddr| address.is_ipv4() == (family == "IPv4");
    pod.status.addresses.iter().copied().find(wanted)
}

/// A port whose name the pod does not have is left out, as in Kubernetes.
fn endpoint_ports(service: &core::ServiceSpec, pod: &PodSpec) -> Vec<EndpointPort> {
    let ports = service.ports.iter().flatten().filter_map(|port| {
        let target = port.target_port.clone().unwrap_or(IntOrString::Int(port.port));
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(i32::from(pod.resolve_port(&target)?)),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

fn endpoint(service: &core::ServiceSpec, pod: &PodView<'_>, address: IpAddr) -> Endpoint {
    let status = pod.status;
    let always = service.publish_not_ready_addresses == Some(true);
    let with_subdomain = pod.spec.manifest.spec.as_ref().is_some_and(|s| s.subdomain.is_some());
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(always || (status.ready && !status.terminating)),
            serving: Some(status.ready),
            terminating: Some(status.terminating),
        }),
        hostname: with_subdomain.then(|| pod.spec.hostname.clone()),
        node_name: Some(pod.spec.node.clone()),
        target_ref: Some(core::ObjectReference {
            kind: Some("Pod".into()),
            name: Some(status.name.clone()),
            namespace: Some(status.namespace.clone()),
            uid: Some(status.uid.clone()),
            ..core::ObjectReference::default()
        }),
        zone: pod.spec.zone.clone(),
        ..Endpoint::default()
    }
}

fn slice(service: &core::Service, family: &str, index: usize, group: Group) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let suffix = if index == 0 { String::new() } else { format!("-{index}") };
    EndpointSlice {
        address_type: family.into(),
        endpoints: group.endpoints,
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}{suffix}", family.to_ascii_lowercase())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (SERVICE_NAME.into(), name.clone()),
                ("endpointslice.kubernetes.io/managed-by".into(), "heddle-lab".into()),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                uid: format!("service-{name}"),
                name,
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        ports: Some(group.ports),
    }
}

/// The Service a slice belongs to, as (namespace, name).
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.as_deref().unwrap_or("default"), name))
}

/// Whether traffic may be sent to an endpoint. No word about it means yes.
pub(crate) fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lab::protocol::Phase;

    /// A pod with both addresses, for the tests of what is made from pods.
    pub(crate) fn pod(name: &str, number: u8, manifest: &str) -> (PodSpec, PodStatus) {
        let mut manifest: core::Pod = serde_saphyr::from_str(manifest).unwrap();
        manifest.metadata.name = Some(name.into());
        let spec = PodSpec::new(&manifest, &BTreeMap::new()).unwrap();
        let status = PodStatus {
            name: name.into(),
            namespace: spec.key.namespace.clone(),
            uid: format!("uid-{name}"),
            addresses: vec![
                format!("10.244.0.{number}").parse().unwrap(),
                format!("fd00:244::{number}").parse().unwrap(),
            ],
            netns: format!("ns-{name}"),
            meshed: spec.meshed,
            ready: true,
            phase: Phase::Running,
            terminating: false,
            containers: Vec::new(),
            pids: BTreeMap::new(),
            ready_containers: Vec::new(),
            message: None,
            created_s: 1,
            deleted_s: None,
        };
        (spec, status)
    }

    const WEB: &str = "{ metadata: { labels: { app: web } }, spec: { containers: [{ name: a, \
                       command: [x], ports: [{ name: http, containerPort: 8080 }] }] } }";
    const OTHER_PORT: &str = "{ metadata: { labels: { app: web } }, spec: { containers: [{ name: a, \
                              command: [x], ports: [{ name: http, containerPort: 9090 }] }] } }";

    fn service(extra: &str) -> core::Service {
        let text = format!(
            "{{ metadata: {{ name: web, namespace: default }}, spec: {{ selector: {{ app: web }}, \
             ipFamilies: [IPv4], ports: [{{ name: http, port: 80, targetPort: http }}]{extra} }} }}"
        );
        serde_saphyr::from_str(&text).unwrap()
    }

    fn summary(slices: &[EndpointSlice]) -> Vec<String> {
        let line = |slice: &EndpointSlice| {
            let endpoints = slice.endpoints.iter().map(|endpoint| {
                let conditions = endpoint.conditions.clone().unwrap();
                let flag = |value, flag| if value == Some(true) { flag } else { "-" };
                format!(
                    "{}{}{}{}",
                    endpoint.addresses[0],
                    flag(conditions.ready, "r"),
                    flag(conditions.serving, "s"),
                    flag(conditions.terminating, "t")
                )
            });
            let ports: Vec<_> =
                slice.ports.iter().flatten().map(|port| port.port.unwrap().to_string()).collect();
            let endpoints: Vec<_> = endpoints.collect();
            format!(
                "{} {} {}",
                slice.metadata.name.clone().unwrap(),
                ports.join(","),
                endpoints.join(" ")
            )
        };
        slices.iter().map(line).collect()
    }

    #[test]
    fn conditions_follow_the_pod() {
        let (spec, mut status) = pod("web-1", 5, WEB);
        let slices = |status: &PodStatus, extra: &str| {
            summary(&compile_slices(&service(extra), &[PodView { spec: &spec, status }]))
        };
        assert_eq!(slices(&status, ""), ["web-ipv4 8080 10.244.0.5rs-"]);
        status.terminating = true;
        assert_eq!(slices(&status, ""), ["web-ipv4 8080 10.244.0.5-st"]);
        status.ready = false;
        assert_eq!(slices(&status, ""), ["web-ipv4 8080 10.244.0.5--t"]);
        let always = ", publishNotReadyAddresses: true";
        assert_eq!(slices(&status, always), ["web-ipv4 8080 10.244.0.5r-t"]);
        status.phase = Phase::Failed;
        assert_eq!(slices(&status, ""), [""; 0]);
    }

    #[test]
    fn named_ports_are_resolved_per_pod_and_families_apart() {
        let (a, b) = (pod("a", 5, WEB), pod("b", 6, OTHER_PORT));
        let (other, _) = pod("c", 7, "{ spec: { containers: [{ name: a, command: [x] }] } }");
        let pods = [
            PodView { spec: &a.0, status: &a.1 },
            PodView { spec: &b.0, status: &b.1 },
            PodView { spec: &other, status: &a.1 },
        ];
        let mut service = service("");
        service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
        assert_eq!(
            summary(&compile_slices(&service, &pods)),
            [
                "web-ipv4 8080 10.244.0.5rs-",
                "web-ipv4-1 9090 10.244.0.6rs-",
                "web-ipv6 8080 fd00:244::5rs-",
                "web-ipv6-1 9090 fd00:244::6rs-",
            ]
        );
    }
}
