//! What a pod's own proxy needs: its InboundPolicy. And what authentication needs to know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heddle_api::proto::v1::{self, ResourceType};
use heddle_resources::crd::authorization_policy::{
    Action, AuthorizationPolicy, Rule, Source, Target,
};
use heddle_resources::crd::mesh::DefaultAuthorization;
use heddle_resources::crd::{MeshTLSPolicy, TlsMode};
use heddle_resources::{Kind, ObjectKey};
use k8s_openapi::api::core::v1::Pod;

use crate::catalog::{Issue, PodIdentity, Reason};
use crate::index::{Id, facts};

use super::{Draft, Unit, issue, object_key};

impl Draft<'_> {
    pub(super) fn compile_pod(&mut self, id: &Id) {
        let live = self.index.pod(id).filter(|pod| !facts::is_finished(pod));
        let identity = live.and_then(|pod| self.pod_identity(pod));
        let mut issues = Vec::new();
        if live.is_some() && identity.is_none() {
            let path = "spec.serviceAccountName";
            let message = "namespace or service account cannot be part of an identity: the pod is \
                           not called and gets no certificate; rename them";
            issues.push(issue(self.index, Kind::Pod, id, Reason::Invalid, path, message));
        }
        let policy = live.filter(|pod| identity.is_some() && facts::is_meshed(pod)).map(|pod| {
            let mut sources = self.mesh_source().collect();
            let policy = self.inbound_policy(pod, &mut sources, &mut issues);
            (policy, sources)
        });
        self.report(Unit::Pod(id.clone()), issues);
        match policy {
            Some((policy, sources)) => {
                self.put_for(ResourceType::InboundPolicy, id.clone(), &policy, sources);
            }
            None => self.remove(ResourceType::InboundPolicy, id.clone()),
        }
        match identity {
            Some(identity) => {
                if self.catalog.pods.get(id).map(AsRef::as_ref) != Some(&identity) {
                    self.version();
                    self.catalog.pods.insert(id.clone(), Arc::new(identity));
                }
            }
            None => {
                if self.catalog.pods.remove(id) {
                    self.version();
                }
            }
        }
    }

    fn pod_identity(&self, pod: &Pod) -> Option<PodIdentity> {
        Some(PodIdentity {
            namespace: facts::namespace(&pod.metadata).into(),
            name: facts::name(&pod.metadata).into(),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            service_account: facts::service_account(pod).into(),
            identity: self.identity(pod)?,
            addresses: facts::owned_ips(pod).into_iter().collect(),
            meshed: facts::is_meshed(pod),
        })
    }

    /// Adds to `sources` the objects that the policy follows.
    fn inbound_policy(
        &self,
        pod: &Pod,
        sources: &mut BTreeSet<ObjectKey>,
        issues: &mut Vec<Issue>,
    ) -> v1::InboundPolicy {
        let default = match self.mesh.authorization {
            DefaultAuthorization::AllowAuthenticated => {
                v1::DefaultAuthorization::AllowAuthenticated
            }
            DefaultAuthorization::Deny => v1::DefaultAuthorization::Deny,
        };
        let tls = self.tls(pod, sources, issues);
        v1::InboundPolicy {
            namespace: facts::namespace(&pod.metadata).to_owned(),
            pod: facts::name(&pod.metadata).to_owned(),
            service_account: facts::service_account(pod).to_owned(),
            addresses: facts::owned_ips(pod).iter().map(ToString::to_string).collect(),
            ports: self.inbound_ports(pod, &tls.ports),
            default_tls: wire_mode(tls.default).into(),
            default_authorization: default.into(),
            authorizations: self.authorizations(pod, sources),
            workload: facts::workload(pod),
        }
    }

    fn inbound_ports(&self, pod: &Pod, tls: &BTreeMap<u16, TlsMode>) -> Vec<v1::InboundPort> {
        let mut protocols = BTreeMap::new();
        for (_, port, protocol) in
            facts::owned_ips(pod).into_iter().flat_map(|ip| self.declared_ports(ip))
        {
            if protocol != v1::Protocol::Unspecified {
                protocols.entry(port).or_insert(protocol);
            }
        }
        let ports: BTreeSet<_> = protocols.keys().chain(tls.keys()).copied().collect();
        let port = |port| v1::InboundPort {
            port: u32::from(port),
            protocol: protocols.get(&port).copied().unwrap_or_default().into(),
            tls: tls.get(&port).map_or(v1::TlsMode::Unspecified, |mode| wire_mode(*mode)).into(),
        };
        ports.into_iter().map(port).collect()
    }

    /// The modes in force: what is said of a port beats what is said of the pod, that what is said
    /// of the namespace, that the Mesh. Of two that are equally near, the older.
    fn tls(&self, pod: &Pod, sources: &mut BTreeSet<ObjectKey>, issues: &mut Vec<Issue>) -> Modes {
        let index = self.index;
        let all = index.in_namespace(Kind::MeshTLSPolicy, facts::namespace(&pod.metadata));
        let mut nearest: Vec<(bool, &Id, &MeshTLSPolicy)> = Vec::new();
        let ids: Vec<_> = all.map(|(id, _)| id).collect();
        let policy = |id: &Id| index.tls_policy(id).expect("listed by its kind");
        for id in facts::oldest_first(ids.into_iter(), |id| &policy(id).metadata) {
            let policy = policy(id);
            let target = policy.spec.target_ref.as_ref();
            if target.is_none_or(|t| t.selector.matches(pod.metadata.labels.as_ref())) {
                // A selector that matches everything is a stand-in's: as near as a pod's own.
                nearest.push((target.is_none(), id, policy));
            }
        }
        nearest.sort_by_key(|(is_namespace, ..)| *is_namespace);
        let mut modes = Modes { default: self.mesh.tls, ports: BTreeMap::new() };
        let mut default: Option<(bool, TlsMode)> = None;
        for (is_namespace, id, policy) in nearest {
            sources.insert(object_key(Kind::MeshTLSPolicy, id));
            let mut lost = false;
            if let Some(mode) = policy.spec.mode {
                let (nearer, in_force) = *default.get_or_insert((is_namespace, mode));
                lost |= nearer == is_namespace && in_force != mode;
            }
            for port in &policy.spec.ports {
                lost |= *modes.ports.entry(port.port).or_insert(port.mode) != port.mode;
            }
            if lost {
                let kind = Kind::MeshTLSPolicy;
                let message = "an older policy selects some of the same pods or ports and says \
                               otherwise: it is in force; delete one of them";
                issues.push(issue(index, kind, id, Reason::Conflicted, "spec", message));
            }
        }
        modes.default = default.map_or(self.mesh.tls, |(_, mode)| mode);
        modes
    }

    /// Reports what is written with one meaning and easily read with another.
    pub(super) fn check_authorization(&mut self, id: &Id) {
        let rules = self.index.authorization(id).map(|policy| policy.spec.rules.as_slice());
        let nobody = rules.unwrap_or_default().iter().enumerate();
        let issues = nobody.filter(|(_, rule)| rule.from.is_empty()).map(|(at, _)| {
            let kind = Kind::AuthorizationPolicy;
            let path = format!("spec.rules[{at}].from");
            let message = "is empty and matches nobody; write `- anyone: true` to mean everybody";
            issue(self.index, kind, id, Reason::NoEffect, path, message)
        });
        self.report(Unit::Authorization(id.clone()), issues.collect());
    }

    fn authorizations(
        &self,
        pod: &Pod,
        sources: &mut BTreeSet<ObjectKey>,
    ) -> Vec<v1::Authorization> {
        let index = self.index;
        let all = index.in_namespace(Kind::AuthorizationPolicy, facts::namespace(&pod.metadata));
        let policy = |id: &Id| index.authorization(id).expect("listed by its kind");
        let ids: Vec<_> = all.map(|(id, _)| id).collect();
        let mut rules = Vec::new();
        for id in facts::oldest_first(ids.into_iter(), |id| &policy(id).metadata) {
            let policy = policy(id);
            if policy.spec.target_ref.selector.matches(pod.metadata.labels.as_ref()) {
                sources.insert(object_key(Kind::AuthorizationPolicy, id));
                let all = policy.spec.rules.iter().enumerate();
                rules.extend(all.map(|(at, rule)| authorization(id, policy, at, rule)));
            }
        }
        rules
    }
}

/// TLS modes in force for one pod.
struct Modes {
    default: TlsMode,
    ports: BTreeMap<u16, TlsMode>,
}

fn wire_mode(mode: TlsMode) -> v1::TlsMode {
    match mode {
        TlsMode::Strict => v1::TlsMode::Strict,
        TlsMode::Permissive => v1::TlsMode::Permissive,
    }
}

fn authorization(
    id: &Id,
    policy: &AuthorizationPolicy,
    at: usize,
    rule: &Rule,
) -> v1::Authorization {
    let namespace = facts::namespace(&policy.metadata);
    let action = match rule.action {
        Action::Allow => v1::Action::Allow,
        Action::Deny => v1::Action::Deny,
    };
    v1::Authorization {
        name: format!("{id}[{at}]"),
        action: action.into(),
        from: rule.from.iter().map(|from| source(namespace, from)).collect(),
        to: rule.to.iter().map(target).collect(),
    }
}

fn source(own_namespace: &str, source: &Source) -> v1::Source {
    if source.anyone == Some(true) {
        return v1::Source { anyone: true, ..v1::Source::default() };
    }
    v1::Source {
        anyone: false,
        namespace: source.namespace.clone().unwrap_or_else(|| own_namespace.to_owned()),
        service_account: source.service_account.clone().unwrap_or_default(),
    }
}

fn target(target: &Target) -> v1::Target {
    v1::Target {
        ports: target.ports.iter().map(|port| u32::from(*port)).collect(),
        methods: target.methods.clone(),
        paths: target.paths.iter().map(|path| path_match(path)).collect(),
    }
}

/// `/api/*` is `/api` and everything below it; `/*` is everything.
fn path_match(path: &str) -> v1::PathMatch {
    let kind = match path.strip_suffix("/*") {
        Some("") => v1::path_match::Match::Prefix("/".to_owned()),
        Some(prefix) => v1::path_match::Match::Prefix(prefix.to_owned()),
        None => v1::path_match::Match::Exact(path.to_owned()),
    };
    v1::PathMatch { r#match: Some(kind) }
}
