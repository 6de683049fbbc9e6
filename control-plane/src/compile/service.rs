//! Service and Endpoints resources of one Service.

use std::collections::BTreeSet;

use heddle_api::proto::v1::{self, ResourceType};
use heddle_resources::Kind;
use k8s_openapi::api::core::v1::Service;

use crate::catalog::Reason;
use crate::index::{Id, facts};

use super::{Draft, Unit, issue};

/// Kubernetes' own default for ClientIP affinity.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

impl Draft<'_> {
    pub(super) fn compile_service(&mut self, id: &Id) {
        let index = self.index;
        let service = index.service(id);
        let in_force = service.filter(|service| !facts::is_external(service));
        let ports = in_force.into_iter().flat_map(facts::tcp_ports).map(|(port, _)| port);
        self.withdraw_endpoints(id, &ports.collect());
        let mut issues = Vec::new();
        if service.is_some() && in_force.is_none() {
            let message = "ExternalName is not supported: callers resolve the name themselves and \
                           are passed through; give the Service ports and EndpointSlices instead";
            issues.push(issue(
                index,
                Kind::Service,
                id,
                Reason::UnsupportedValue,
                "spec.type",
                message,
            ));
        }
        let Some(service) = in_force else {
            self.report(Unit::Service(id.clone()), issues);
            return self.remove(ResourceType::Service, id.clone());
        };
        self.put(ResourceType::Service, id.clone(), &message(service));
        for (number, port) in facts::tcp_ports(service) {
            let endpoints = self.endpoints(id, service, number, port, &mut issues);
            self.put(ResourceType::Endpoints, format!("{id}:{number}"), &endpoints);
        }
        issues.dedup();
        self.report(Unit::Service(id.clone()), issues);
    }

    /// Removes the Endpoints of ports that the Service has no longer.
    fn withdraw_endpoints(&mut self, id: &Id, keep: &BTreeSet<u16>) {
        let Some(old) = self.catalog.find(ResourceType::Service, id) else { return };
        let old = <v1::Service as prost::Message>::decode(old.body.clone())
            .expect("the catalog holds what was encoded");
        for port in old.ports.iter().filter_map(|port| u16::try_from(port.port).ok()) {
            if !keep.contains(&port) {
                self.remove(ResourceType::Endpoints, format!("{id}:{port}"));
            }
        }
    }
}

fn message(service: &Service) -> v1::Service {
    let mut ports: Vec<_> = facts::tcp_ports(service)
        .map(|(number, port)| v1::Port {
            port: u32::from(number),
            name: port.name.clone().unwrap_or_default(),
            protocol: facts::protocol(port).into(),
        })
        .collect();
    ports.sort_by_key(|port| port.port);
    let spec = service.spec.as_ref();
    v1::Service {
        namespace: facts::namespace(&service.metadata).to_owned(),
        name: facts::name(&service.metadata).to_owned(),
        ports,
        affinity_seconds: affinity_seconds(service),
        local_only: spec.and_then(|spec| spec.internal_traffic_policy.as_deref()) == Some("Local"),
    }
}

fn affinity_seconds(service: &Service) -> u32 {
    let Some(spec) = &service.spec else { return 0 };
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    u32::try_from(seconds).unwrap_or(0)
}
