//! The Split of a Service, from the oldest TrafficSplit that names it.

use std::collections::BTreeSet;
use std::sync::Arc;

use heddle_api::proto::v1::{self, ResourceType};
use heddle_resources::Kind;
use heddle_resources::crd::traffic_split::{Backend, TrafficSplit};

use crate::catalog::{BackendRef, Issue, Reason};
use crate::index::{Id, facts};

use super::{Draft, Unit, issue, losers, object_key};

impl Draft<'_> {
    /// Compiles the split of the Service `service`.
    pub(super) fn compile_split(&mut self, service: &Id) {
        let index = self.index;
        let of = format!("Service {service}");
        let (winner, mut issues) =
            losers(index, Kind::TrafficSplit, &index.splits_of(service), &of);
        let split = winner.and_then(|id| Some((id, index.split(id)?)));
        let Some((id, split)) = split else {
            self.report(Unit::Split(service.clone()), issues);
            if self.catalog.splits.remove(service) {
                self.version();
            }
            return self.remove(ResourceType::Split, service.clone());
        };
        if index.service(service).is_none() {
            let path = "spec.service";
            let message = format!("there is no {of}: nobody's calls are split; create it");
            issues.push(issue(
                index,
                Kind::TrafficSplit,
                id,
                Reason::TargetNotFound,
                path,
                message,
            ));
        }
        for (at, backend) in split.spec.backends.iter().enumerate() {
            self.check_backend(id, split, at, backend, &mut issues);
        }
        issues.extend(self.check_routes(service, id));
        self.report(Unit::Split(service.clone()), issues);

        let backends = split.spec.backends.iter().map(|one| self.backend(split, one)).collect();
        let message = v1::Split { backends, source: id.to_string() };
        let sources = [object_key(Kind::TrafficSplit, id)].into();
        self.put_for(ResourceType::Split, service.clone(), &message, sources);
        let refs: Arc<[BackendRef]> =
            split.spec.backends.iter().map(|one| backend_ref(split, one)).collect();
        if self.catalog.splits.get(service) != Some(&refs) {
            self.version();
            self.catalog.splits.insert(service.clone(), refs);
        }
    }

    /// Where routes decide, the split does not, unless it is a backend of one.
    fn check_routes(&self, service: &Id, id: &Id) -> Option<Issue> {
        let index = self.index;
        let (routed, is_used) = self.routed_ports(service, id);
        let first = routed.values().next().filter(|_| !is_used)?.clone();
        let ports = index.service(service).into_iter().flat_map(facts::tcp_ports);
        let left = ports.filter(|(port, _)| !routed.contains_key(port)).count();
        let routed: Vec<_> = routed.keys().map(ToString::to_string).collect();
        let (reason, of) = match left {
            0 => (Reason::Conflicted, String::new()),
            _ => (Reason::NoEffect, format!(" on port {}", routed.join(", "))),
        };
        let message = format!(
            "has no effect{of}: {first} decides there; make the split one of its backendRefs \
             (group heddle.io, kind TrafficSplit), or delete one of the two"
        );
        Some(issue(index, Kind::TrafficSplit, id, reason, "spec.service", message))
    }

    /// A backend that does not exist keeps its share, which answers 503: handing it to the others
    /// would send them traffic nobody meant for them.
    fn check_backend(
        &self,
        id: &Id,
        split: &TrafficSplit,
        at: usize,
        backend: &Backend,
        issues: &mut Vec<Issue>,
    ) {
        let index = self.index;
        let mut report = |reason: Reason, field: &str, message: String| {
            let path = format!("spec.backends[{at}].{field}");
            issues.push(issue(index, Kind::TrafficSplit, id, reason, path, message));
        };
        let name = facts::beside(&split.metadata, &backend.service);
        let Some(service) = index.service(&name) else {
            let message = "there is no such Service in this namespace: its share is answered with \
                           503; create it, or name another";
            let message = format!("{:?}: {message}", backend.service);
            return report(Reason::BackendNotFound, "service", message);
        };
        if name != facts::split_target(split) && !index.splits_of(&name).is_empty() {
            let message = format!(
                "{:?} is itself split, and splits do not nest: its own endpoints are used",
                backend.service
            );
            report(Reason::NoEffect, "service", message);
        }
        let theirs: BTreeSet<u16> = facts::tcp_ports(service).map(|(port, _)| port).collect();
        let ours = index.service(&facts::split_target(split));
        for (port, _) in ours.into_iter().flat_map(facts::tcp_ports) {
            let mapping = backend.ports.iter().find(|mapping| mapping.from == port);
            let target = mapping.map_or(port, |mapping| mapping.to);
            if !theirs.contains(&target) {
                let message = format!(
                    "Service {name} has no port {target}: its share of calls to port {port} is \
                     answered with 503; write {{ from: {port}, to: PORT }}"
                );
                report(Reason::BackendNotFound, "ports", message);
            }
        }
    }

    fn backend(&self, split: &TrafficSplit, backend: &Backend) -> v1::Backend {
        let service = facts::beside(&split.metadata, &backend.service);
        v1::Backend {
            weight: backend.weight,
            has_subset: backend.selector.is_some(),
            subset: self.subset(&service, backend).into_iter().map(|id| id.to_string()).collect(),
            ports: backend
                .ports
                .iter()
                .map(|port| v1::PortMapping { from: port.from.into(), to: port.to.into() })
                .collect(),
            service: service.to_string(),
        }
    }

    /// The pods of the Service's endpoints that carry the backend's labels.
    pub(super) fn subset(&self, service: &Id, backend: &Backend) -> BTreeSet<Id> {
        let Some(selector) = &backend.selector else { return BTreeSet::new() };
        let ips = self.index.slices(service).flat_map(|(_, slice)| facts::slice_ips(slice));
        let pods = ips.filter_map(|ip| self.owner(ip));
        pods.filter(|(_, pod)| selector.matches(pod.metadata.labels.as_ref()))
            .map(|(id, _)| id.clone())
            .collect()
    }
}

fn backend_ref(split: &TrafficSplit, backend: &Backend) -> BackendRef {
    BackendRef {
        service: facts::beside(&split.metadata, &backend.service),
        ports: backend.ports.iter().map(|mapping| (mapping.from, mapping.to)).collect(),
    }
}
