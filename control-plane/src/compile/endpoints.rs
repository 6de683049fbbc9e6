//! The endpoints of one port of a Service: from its EndpointSlices, with the identity of the live
//! pod that owns each address.
//!
//! A slice says which addresses there are and whether they are ready. Who answers there it is never
//! asked: that is the pod's to say, and an endpoint whose pod is gone is not listed at all, because
//! without the pod it would be taken for a plaintext peer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use heddle_api::proto::v1;
use heddle_resources::Kind;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::catalog::{Issue, Reason};
use crate::index::{Id, facts};

use super::{Draft, issue};

/// Who answers at an address a slice lists.
enum Peer<'a> {
    Pod(Id, &'a Pod),
    /// No pod: a program outside the cluster, called in plaintext.
    Outsider,
}

impl Draft<'_> {
    pub(super) fn endpoints(
        &self,
        id: &Id,
        service: &Service,
        number: u16,
        port: &ServicePort,
        issues: &mut Vec<Issue>,
    ) -> v1::Endpoints {
        let publish_unready = service
            .spec
            .as_ref()
            .and_then(|spec| spec.publish_not_ready_addresses)
            .unwrap_or(false);
        // Slices may overlap while a controller moves endpoints from one to the other.
        let mut found = BTreeMap::<(IpAddr, u32), v1::Endpoint>::new();
        for (slice_id, slice) in self.index.slices(id) {
            if slice.address_type == "FQDN" {
                let message = "host names are not supported; list IP addresses";
                issues.push(issue(
                    self.index,
                    Kind::EndpointSlice,
                    slice_id,
                    Reason::UnsupportedValue,
                    "addressType",
                    message,
                ));
                continue;
            }
            for endpoint in &slice.endpoints {
                let ips = endpoint.addresses.iter().filter_map(|ip| facts::canonical(ip));
                for ip in ips {
                    let Some(peer) = self.peer(endpoint, ip) else { continue };
                    let Some(target) = target_port(slice, port, number, &peer) else { continue };
                    let ready = publish_unready || is_ready(endpoint);
                    let one = self.endpoint(endpoint, ip, target, ready, &peer);
                    let known = found.entry((ip, one.port)).or_insert(one);
                    known.ready |= ready;
                }
            }
        }
        v1::Endpoints { endpoints: found.into_values().collect() }
    }

    /// `None` when the slice speaks of a pod that does not own the address.
    fn peer(&self, endpoint: &Endpoint, ip: IpAddr) -> Option<Peer<'_>> {
        let owner = self.owner(ip);
        // What nobody can prove to be must not be taken for a plaintext peer.
        if owner.is_some_and(|(_, pod)| facts::is_meshed(pod) && self.identity(pod).is_none()) {
            return None;
        }
        let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
        let Some(target) = target else {
            return Some(owner.map_or(Peer::Outsider, |(id, pod)| Peer::Pod(id.clone(), pod)));
        };
        let namespace = target.namespace.as_deref().unwrap_or("default");
        let named = facts::id(namespace, target.name.as_deref().unwrap_or_default());
        let pod = match owner {
            Some((id, pod)) => (*id == named).then_some(pod)?,
            // Nobody owns an address of the host network.
            None => self
                .index
                .pod(&named)
                .filter(|pod| facts::is_host_network(pod) && facts::ips(pod).contains(&ip))?,
        };
        Some(Peer::Pod(named, pod))
    }

    fn endpoint(
        &self,
        endpoint: &Endpoint,
        ip: IpAddr,
        port: u16,
        ready: bool,
        peer: &Peer<'_>,
    ) -> v1::Endpoint {
        let mut one = match peer {
            Peer::Pod(id, pod) => self.pod_endpoint(id, pod, ip),
            Peer::Outsider => v1::Endpoint { address: ip.to_string(), ..v1::Endpoint::default() },
        };
        if let Peer::Pod(_, pod) = peer
            && facts::skipped_ports(pod).iter().any(|range| range.contains(&port))
        {
            one.identity.clear();
        }
        one.port = u32::from(port);
        one.ready = ready;
        one.zone = endpoint.zone.clone().unwrap_or_default();
        if let Some(node) = &endpoint.node_name {
            one.node.clone_from(node);
        }
        one
    }

    /// A pod's endpoint less its port, with the identity of its proxy if it has one.
    pub(super) fn pod_endpoint(&self, id: &Id, pod: &Pod, ip: IpAddr) -> v1::Endpoint {
        let identity = facts::is_meshed(pod).then(|| self.identity(pod)).flatten();
        v1::Endpoint {
            address: ip.to_string(),
            port: 0,
            identity: identity.map(|identity| identity.to_string()).unwrap_or_default(),
            ready: facts::is_ready(pod),
            zone: String::new(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            pod: id.to_string(),
            workload: facts::workload(pod),
        }
    }
}

/// Unknown counts as ready; going away does not.
fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.and_then(|c| c.ready).unwrap_or(true)
        && !conditions.and_then(|c| c.terminating).unwrap_or(false)
}

/// The endpoint's port for a Service's port. A slice may leave the number open ("all ports"); the
/// Service's own target then counts, and a named one is looked up in the pod.
fn target_port(
    slice: &EndpointSlice,
    port: &ServicePort,
    number: u16,
    peer: &Peer<'_>,
) -> Option<u16> {
    if let Some(number) = facts::slice_port(slice, port)?.port {
        return u16::try_from(number).ok();
    }
    match (&port.target_port, peer) {
        (Some(IntOrString::Int(number)), _) => u16::try_from(*number).ok(),
        (Some(IntOrString::String(name)), Peer::Pod(_, pod)) => facts::named_port(pod, name),
        (Some(IntOrString::String(_)), Peer::Outsider) => None,
        (None, _) => Some(number),
    }
}
