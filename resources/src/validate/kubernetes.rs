//! The Kubernetes kinds, as far as we use them. An API server checks all of it; a directory of
//! files has nobody else to.

use std::net::IpAddr;

use heddle_api::identity::is_label;
use heddle_api::names::{PROXY_CONTAINER, PROXY_UID};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::path::Path;

use super::{Check, quote};

/// Without it a slice belongs to nobody.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn service(check: &mut Check, service: &Service) {
    let path = Path::root().field("spec");
    let Some(spec) = &service.spec else {
        return check.refuse(&path, "", "is required; write at least `ports`");
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    if let Some(kind) = &spec.type_
        && !matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName")
    {
        let message = "write ClusterIP, NodePort, LoadBalancer or ExternalName";
        check.refuse(&path.field("type"), quote(kind), message);
    }
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    for (path, ip) in std::iter::once((path.field("clusterIP"), spec.cluster_ip.as_ref()))
        .chain((0..).map(|i| path.field("clusterIPs").index(i)).zip(ips.iter().map(Some)))
    {
        let ip = ip.map_or("", String::as_str);
        let message = "write an IP address, or None for a headless Service";
        let is_valid = matches!(ip, "" | "None") || ip.parse::<IpAddr>().is_ok();
        check.refuse_unless(is_valid, &path, quote(ip), message);
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if ports.is_empty() && !external && !headless {
        check.refuse(&path.field("ports"), "", "is required; list at least one port");
    }
    for index in 0..ports.len() {
        service_port(check, &path.field("ports").index(index), ports, index);
    }
    choice(
        check,
        &path.field("internalTrafficPolicy"),
        spec.internal_traffic_policy.as_deref(),
        &["Cluster", "Local"],
    );
    choice(
        check,
        &path.field("sessionAffinity"),
        spec.session_affinity.as_deref(),
        &["None", "ClientIP"],
    );
    let config = spec.session_affinity_config.as_ref();
    if let Some(seconds) = config.and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds)
    {
        let path = path.field("sessionAffinityConfig").field("clientIP").field("timeoutSeconds");
        check.range(&path, seconds, &(1..=86_400));
    }
}

fn service_port(check: &mut Check, path: &Path, ports: &[ServicePort], index: usize) {
    let port = &ports[index];
    let protocol = |port: &ServicePort| port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    check.port(&path.field("port"), port.port);
    choice(check, &path.field("protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
    match &port.target_port {
        Some(IntOrString::Int(number)) => check.port(&path.field("targetPort"), *number),
        Some(IntOrString::String(name)) => {
            let message = "write a port number, or a container port's name of at most 15 of a-z, \
                           0-9 and `-`";
            let holds = name.len() <= 15 && is_label(name);
            check.refuse_unless(holds, &path.field("targetPort"), quote(name), message);
        }
        None => {}
    }
    match port.name.as_deref() {
        Some(name) => {
            check.label(&path.field("name"), name);
            if ports[..index].iter().any(|other| other.name == port.name) {
                check.refuse(&path.field("name"), quote(name), "is another port's; write another");
            }
        }
        None if ports.len() > 1 => {
            check.refuse(&path.field("name"), "", "is required when there are several ports");
        }
        None => {}
    }
    let same = |other: &ServicePort| other.port == port.port && protocol(other) == protocol(port);
    if ports[..index].iter().any(same) {
        check.refuse(&path.field("port"), port.port, "is listed twice; keep one");
    }
}

pub(super) fn pod(check: &mut Check, pod: &Pod) {
    let path = Path::root().field("spec");
    match &pod.spec {
        Some(spec) => pod_spec(check, &path, spec),
        None => check.refuse(&path, "", "is required; write at least `containers`"),
    }
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    for (index, ip) in ips.enumerate() {
        let path = Path::root().field("status").field("podIPs").index(index).field("ip");
        let is_valid = ip.ip.parse::<IpAddr>().is_ok();
        check.refuse_unless(is_valid, &path, quote(&ip.ip), "write an IP address");
    }
}

fn pod_spec(check: &mut Check, path: &Path, spec: &PodSpec) {
    if spec.containers.is_empty() {
        check.refuse(&path.field("containers"), "", "is required; list at least one container");
    }
    if let Some(account) = &spec.service_account_name {
        check.subdomain(&path.field("serviceAccountName"), account);
    }
    let message = format!(
        "is the proxy's uid, whose traffic is not redirected; write another than {PROXY_UID}"
    );
    let uid = |uid: Option<i64>| uid == Some(i64::from(PROXY_UID));
    if uid(spec.security_context.as_ref().and_then(|context| context.run_as_user)) {
        let path = path.field("securityContext").field("runAsUser");
        check.refuse(&path, PROXY_UID, message.as_str());
    }
    let lists =
        [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())];
    for (name, containers) in lists {
        for (index, container) in containers.into_iter().flatten().enumerate() {
            let path = path.field(name).index(index);
            let runs_as = container.security_context.as_ref().and_then(|c| c.run_as_user);
            if container.name != PROXY_CONTAINER && uid(runs_as) {
                let path = path.field("securityContext").field("runAsUser");
                check.refuse(&path, PROXY_UID, message.as_str());
            }
            container_ports(check, &path, container);
        }
    }
}

fn container_ports(check: &mut Check, path: &Path, container: &Container) {
    check.label(&path.field("name"), &container.name);
    for (index, port) in container.ports.iter().flatten().enumerate() {
        check.port(&path.field("ports").index(index).field("containerPort"), port.container_port);
    }
}

pub(super) fn endpoint_slice(check: &mut Check, slice: &EndpointSlice) {
    let root = Path::root();
    let kinds = ["IPv4", "IPv6", "FQDN"];
    choice(check, &root.field("addressType"), Some(&slice.address_type), &kinds);
    let labels = slice.metadata.labels.as_ref();
    if !labels.is_some_and(|labels| labels.contains_key(SERVICE_LABEL)) {
        let path = root.field("metadata").field("labels").field(SERVICE_LABEL);
        check.refuse(&path, "", "is required; name the Service that the endpoints belong to");
    }
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            check.port(&root.field("ports").index(index).field("port"), number);
        }
    }
    let is_valid = |address: &str| match slice.address_type.as_str() {
        "IPv4" => address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()),
        "IPv6" => address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()),
        _ => true,
    };
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let path = root.field("endpoints").index(index).field("addresses");
        check.length(&path, endpoint.addresses.len(), 1, 100);
        for (index, address) in endpoint.addresses.iter().enumerate() {
            let message = format!("write an {} address, or change addressType", slice.address_type);
            check.refuse_unless(is_valid(address), &path.index(index), quote(address), &message);
        }
    }
}

fn choice(check: &mut Check, path: &Path, value: Option<&str>, choices: &[&str]) {
    if let Some(value) = value
        && !choices.contains(&value)
    {
        check.refuse(path, quote(value), format!("write one of {}", choices.join(", ")));
    }
}
