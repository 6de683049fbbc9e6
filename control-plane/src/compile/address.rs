//! Who answers at an address: a Service's own, or a pod's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use heddle_api::proto::v1::{self, Version};
use heddle_resources::Kind;
use k8s_openapi::api::core::v1::Pod;

use crate::catalog::{Encoded, Issue, Owner, PodAddress, Reason, ServiceAddress, encode_address};
use crate::index::{Id, facts};

use super::{Draft, Unit, issue};

impl Draft<'_> {
    pub(super) fn compile_address(&mut self, ip: IpAddr) {
        let mut issues = Vec::new();
        let owner = self.address_owner(ip, &mut issues);
        self.report(Unit::Address(ip), issues);
        match owner {
            None => {
                if self.catalog.addresses.remove(&ip) {
                    self.version();
                }
            }
            Some(owner) if self.catalog.addresses.get(&ip) == Some(&owner) => {}
            Some(mut owner) => {
                let version = self.version();
                owner.set_version(version);
                self.catalog.addresses.insert(ip, owner);
            }
        }
    }

    /// Facts that did not change keep the version they have.
    fn address_owner(&self, ip: IpAddr, issues: &mut Vec<Issue>) -> Option<Owner> {
        if let Some((winner, losers)) = self.index.services_at(ip).split_first() {
            let message = format!("{ip} is {winner}'s, which is older; give each its own address");
            issues.extend(losers.iter().map(|id| {
                let (reason, path) = (Reason::Conflicted, "spec.clusterIP");
                issue(self.index, Kind::Service, id, reason, path, message.as_str())
            }));
            return Some(Owner::Service(Arc::new(self.service_address(ip, winner))));
        }
        let pods = self.index.pods_at(ip);
        let (id, pod) = self.owner(ip)?;
        let is_leaving = |id: &Id| {
            self.index.pod(id).is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
        };
        for other in pods.iter().skip(1).filter(|other| !is_leaving(other)) {
            let message = format!("{ip} is taken for {id}'s, which claims it too");
            let (reason, path) = (Reason::Conflicted, "status.podIPs");
            issues.push(issue(self.index, Kind::Pod, other, reason, path, message));
        }
        if facts::is_meshed(pod) && self.identity(pod).is_none() {
            return None;
        }
        Some(Owner::Pod(Arc::new(self.pod_address(ip, id, pod))))
    }

    fn service_address(&self, ip: IpAddr, id: &Id) -> ServiceAddress {
        let service = self.index.service(id).expect("linked by its address");
        let mut ports: Vec<_> = facts::tcp_ports(service)
            .map(|(port, _)| (port, self.address_resource(ip, id, port)))
            .collect();
        ports.sort_by_key(|(port, _)| *port);
        ServiceAddress { service: id.clone(), ports }
    }

    /// The resource as it was, when its body is the same.
    fn address_resource(&self, ip: IpAddr, id: &Id, port: u16) -> Arc<Encoded> {
        let of = v1::ServicePort { service: id.to_string(), port: port.into() };
        let kind = v1::address::Kind::Service(of);
        let new = encode_address(SocketAddr::new(ip, port), Version::default(), kind);
        let Some(Owner::Service(old)) = self.catalog.addresses.get(&ip) else {
            return Arc::new(new);
        };
        let old = old.ports.iter().find(|(of, old)| *of == port && old.body == new.body);
        old.map_or_else(|| Arc::new(new), |(_, old)| old.clone())
    }

    fn pod_address(&self, ip: IpAddr, id: &Id, pod: &Pod) -> PodAddress {
        let version = match self.catalog.addresses.get(&ip) {
            Some(Owner::Pod(old)) => old.version,
            Some(Owner::Service(_)) | None => Version::default(),
        };
        PodAddress {
            version,
            endpoint: self.pod_endpoint(id, pod, ip),
            skipped: facts::skipped_ports(pod),
            headless: self.headless_ports(ip),
        }
    }

    /// For each port of the address that a headless Service lists: the oldest such Service.
    fn headless_ports(&self, ip: IpAddr) -> Vec<(u16, v1::Protocol, Id)> {
        let mut found = BTreeMap::new();
        for (id, port, protocol) in self.declared_ports(ip) {
            if self.index.service(&id).is_some_and(facts::is_headless) {
                found.entry(port).or_insert((protocol, id));
            }
        }
        found.into_iter().map(|(port, (protocol, id))| (port, protocol, id)).collect()
    }

    /// Every port of the address that a Service lists, the oldest Service first.
    pub(super) fn declared_ports(&self, ip: IpAddr) -> Vec<(Id, u16, v1::Protocol)> {
        let services: std::collections::BTreeSet<_> = self
            .index
            .slices_at(ip)
            .filter_map(facts::service_of)
            .filter(|id| self.index.service(id).is_some())
            .collect();
        let services = facts::oldest_first(services.iter(), |id| {
            &self.index.service(id).expect("filtered above").metadata
        });
        let mut all = Vec::new();
        for id in services {
            let service = self.index.service(id).expect("filtered above");
            let slices = self.index.slices(id).filter(|(_, s)| facts::slice_ips(s).contains(&ip));
            for (_, slice) in slices {
                for (_, port) in facts::tcp_ports(service) {
                    let target = facts::slice_port(slice, port).and_then(|port| port.port);
                    if let Some(target) = target.and_then(|target| u16::try_from(target).ok()) {
                        all.push((id.clone(), target, facts::protocol(port)));
                    }
                }
            }
        }
        all
    }
}

impl Owner {
    /// Stamps what was compiled just now.
    fn set_version(&mut self, version: Version) {
        match self {
            Self::Pod(owner) => Arc::make_mut(owner).version = version,
            Self::Service(owner) => {
                for (_, resource) in &mut Arc::make_mut(owner).ports {
                    if resource.version == Version::default() {
                        Arc::make_mut(resource).version = version;
                    }
                }
            }
        }
    }
}
