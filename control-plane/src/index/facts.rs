//! What single objects say, in the words the mesh uses. Pure functions of one object.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use heddle_api::names::{INIT_CONTAINER, METRICS_PORT, PROBE_PORT, PROXY_CONTAINER};
use heddle_api::proto::v1::Protocol;
use heddle_resources::crd::{TrafficPolicy, TrafficSplit};
use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Id;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HASH_LABEL: &str = "pod-template-hash";
/// Option of the container that writes the rules: inbound ports it leaves alone.
const SKIP_OPTION: &str = "--skip-inbound-ports";
const SKIP_VARIABLE: &str = "HEDDLE_SKIP_INBOUND_PORTS";

/// "<namespace>/<name>"; of a cluster-scoped object its name alone.
pub(crate) fn id(namespace: &str, name: &str) -> Id {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}").into() }
}

pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or("default")
}

pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The id of something in the same namespace.
pub(crate) fn beside(meta: &ObjectMeta, name: &str) -> Id {
    id(namespace(meta), name)
}

/// Oldest first, then by name. What has no age is taken for the youngest.
pub(crate) fn oldest_first<'a, 'b>(
    ids: impl Iterator<Item = &'a Id>,
    meta: impl Fn(&Id) -> &'b ObjectMeta,
) -> Vec<&'a Id> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_by_cached_key(|id| {
        let created = meta(id).creation_timestamp.as_ref().map(|time| time.0);
        (created.is_none(), created, (*id).clone())
    });
    ids
}

/// Every address of a pod that has not finished, canonical.
pub(crate) fn ips(pod: &Pod) -> BTreeSet<IpAddr> {
    let Some(status) = pod.status.as_ref().filter(|_| !is_finished(pod)) else {
        return BTreeSet::new();
    };
    let ips = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    ips.chain(&status.pod_ip).filter_map(|ip| canonical(ip)).collect()
}

/// The addresses that are the pod's alone: those of the host network are shared.
pub(crate) fn owned_ips(pod: &Pod) -> BTreeSet<IpAddr> {
    if is_host_network(pod) { BTreeSet::new() } else { ips(pod) }
}

pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// A pod that will never run again; its address may be another's by now.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.clone().any(|one| one.type_ == "Ready" && one.status == "True")
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// True when the pod's spec has a proxy. The spec is immutable, and readiness has no say: a meshed
/// pod is never called in plaintext.
pub(crate) fn is_meshed(pod: &Pod) -> bool {
    !is_host_network(pod) && containers(pod).any(|container| container.name == PROXY_CONTAINER)
}

/// Ports of a meshed pod whose connections are not redirected: the proxy's own pages, and what the
/// rules were told to leave alone.
pub(crate) fn skipped_ports(pod: &Pod) -> Arc<[RangeInclusive<u16>]> {
    let init = containers(pod).filter(|container| container.name == INIT_CONTAINER);
    let told = init.filter_map(skip_list).flat_map(|list| list.split(','));
    let own = [PROBE_PORT, METRICS_PORT].map(|port| port..=port);
    own.into_iter().chain(told.filter_map(port_range)).collect()
}

/// What the container is told to skip: by option, else by environment, as the container itself reads
/// it.
fn skip_list(container: &Container) -> Option<&str> {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let mut words = words.map(String::as_str);
    while let Some(word) = words.next() {
        match word.strip_prefix(SKIP_OPTION) {
            Some("") => return words.next(),
            Some(rest) if rest.starts_with('=') => return Some(&rest[1..]),
            Some(_) | None => {}
        }
    }
    let variable = container.env.iter().flatten().find(|variable| variable.name == SKIP_VARIABLE);
    variable?.value.as_deref()
}

/// `80` or `8000-8005`. What is neither skips nothing: the container refuses to run with it.
fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

pub(crate) fn service_account(pod: &Pod) -> &str {
    let named = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    named.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// The workload a pod belongs to, for telemetry: the Deployment behind its ReplicaSet, the CronJob
/// behind its Job, else its controller, else the pod itself.
pub(crate) fn workload(pod: &Pod) -> String {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners.find(|owner| owner.controller == Some(true)) else {
        return name(&pod.metadata).to_owned();
    };
    let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL));
    let without_hash = match hash {
        Some(hash) => owner.name.strip_suffix(hash.as_str()).and_then(|n| n.strip_suffix('-')),
        None => owner.name.rsplit_once('-').map(|(name, _)| name),
    };
    match owner.kind.as_str() {
        "ReplicaSet" => without_hash.unwrap_or(&owner.name).to_owned(),
        "Job" => without_schedule(&owner.name).to_owned(),
        _ => owner.name.clone(),
    }
}

/// The CronJob behind a Job, which is named after it and the minute it was due; else the Job.
fn without_schedule(job: &str) -> &str {
    match job.rsplit_once('-') {
        Some((name, minute))
            if (8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        _ => job,
    }
}

/// The container port of that name.
pub(crate) fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let ports = containers(pod).flat_map(|container| container.ports.iter().flatten());
    let mut named = ports.filter(|port| port.name.as_deref() == Some(name));
    named.find_map(|port| u16::try_from(port.container_port).ok())
}

/// The addresses of a Service itself; none when it is headless or external.
pub(crate) fn cluster_ips(service: &Service) -> BTreeSet<IpAddr> {
    let Some(spec) = service.spec.as_ref().filter(|_| !is_external(service)) else {
        return BTreeSet::new();
    };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|ip| canonical(ip)).collect()
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

pub(crate) fn is_external(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// A Service's TCP ports; we do not touch the others.
pub(crate) fn tcp_ports(service: &Service) -> impl Iterator<Item = (u16, &ServicePort)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .filter(|port| is_tcp(port.protocol.as_deref()))
        .filter_map(|port| Some((u16::try_from(port.port).ok()?, port)))
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

/// What a port declares to speak: `appProtocol`, then the port's name up to its first dash.
pub(crate) fn protocol(port: &ServicePort) -> Protocol {
    if let Some(declared) = &port.app_protocol {
        return match declared.to_ascii_lowercase().as_str() {
            "kubernetes.io/h2c" => Protocol::Http2,
            "kubernetes.io/ws" => Protocol::Http1,
            "kubernetes.io/wss" => Protocol::Tcp,
            other => protocol_named(other),
        };
    }
    let name = port.name.as_deref().unwrap_or_default();
    protocol_named(name.split('-').next().unwrap_or_default())
}

fn protocol_named(name: &str) -> Protocol {
    match name {
        "http" => Protocol::Http1,
        "http2" | "h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        // TLS of the application's own, and protocols in which the server may speak first.
        "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
        _ => Protocol::Unspecified,
    }
}

/// The Service a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<Id> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(beside(&slice.metadata, service))
}

/// The addresses of a slice; none when it lists host names.
pub(crate) fn slice_ips(slice: &EndpointSlice) -> BTreeSet<IpAddr> {
    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(|address| canonical(address)).collect()
}

/// The slice's port for a Service's port: they share their name.
pub(crate) fn slice_port<'a>(
    slice: &'a EndpointSlice,
    port: &ServicePort,
) -> Option<&'a EndpointPort> {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let mut ports = slice.ports.iter().flatten();
    ports.find(|one| is_tcp(one.protocol.as_deref()) && name(&one.name) == name(&port.name))
}

/// True when two states of a slice differ in nothing but their endpoints.
pub(crate) fn same_ports(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.ports == new.ports && service_of(old) == service_of(new)
}

/// The Service a split divides.
pub(crate) fn split_target(split: &TrafficSplit) -> Id {
    beside(&split.metadata, &split.spec.service)
}

/// The Service a policy speaks of.
pub(crate) fn policy_target(policy: &TrafficPolicy) -> Id {
    beside(&policy.metadata, &policy.spec.target_ref.name)
}

/// An address in the one form everything compares: IPv4 is never written as IPv6.
pub(crate) fn canonical(address: &str) -> Option<IpAddr> {
    address.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}
