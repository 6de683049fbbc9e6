//! Index → the resources of `heddle.v1`, encoded once.
//!
//! Pure. Only what differs from the catalog before gets a new version; the bytes of everything else
//! are shared with it. Nothing here depends on who subscribes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{self, ResourceType, Version};
use heddle_resources::crd::mesh::{MeshSpec, Passthrough};
use heddle_resources::{Kind, ObjectKey};
use k8s_openapi::api::core::v1::Pod;
use prost::Message;

use crate::catalog::state::Known;
use crate::catalog::{Catalog, Encoded, Issue, Key, Reason};
use crate::index::{Changed, Id, Index, facts};

mod address;
mod endpoints;
mod inbound;
mod policy;
mod route;
mod service;
mod split;

/// Holds the catalog last published, and compiles the next from it.
pub struct Compiler {
    catalog: Catalog,
    /// What is wrong, by what was compiled when it was noticed.
    issues: BTreeMap<Unit, Vec<Issue>>,
    /// Fixed by the first Mesh that is compiled: every identity hangs on it.
    trust_domain: Option<String>,
}

/// What is compiled as one piece, and owns the issues noticed on the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Source,
    Mesh,
    Service(Id),
    Split(Id),
    Policy(Id),
    Authorization(Id),
    Route(ObjectKey),
    Pod(Id),
    Address(IpAddr),
}

/// A catalog in the making.
struct Draft<'a> {
    index: &'a Index,
    mesh: MeshSpec,
    catalog: Catalog,
    issues: &'a mut BTreeMap<Unit, Vec<Issue>>,
    next: &'a mut dyn FnMut() -> Version,
    /// Set by the first difference: a catalog without one is not published.
    version: Option<Version>,
    issues_changed: bool,
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Compiler {
    #[must_use]
    pub fn new() -> Self {
        Self {
            catalog: Catalog::empty(Version { epoch: 0, number: 0 }),
            issues: BTreeMap::new(),
            trust_domain: None,
        }
    }

    /// Compiles what changed. `next` answers the version of the catalog, and is asked only if it
    /// differs from the one before; `None` when it does not.
    pub fn compile(
        &mut self,
        index: &Index,
        changed: &Changed,
        refused: Vec<Issue>,
        next: &mut dyn FnMut() -> Version,
    ) -> Option<Catalog> {
        let (mesh, mesh_issues) = self.mesh(index);
        let first = self.catalog.version.epoch == 0;
        let mut draft = Draft {
            index,
            mesh,
            catalog: self.catalog.clone(),
            issues: &mut self.issues,
            next,
            version: None,
            issues_changed: false,
        };
        draft.report(Unit::Source, refused);
        draft.report(Unit::Mesh, mesh_issues);
        if changed.mesh || first {
            draft.compile_mesh();
        }
        for id in &changed.services {
            draft.compile_service(id);
        }
        draft.compile_routes(&changed.routes, &changed.objects);
        for id in &changed.splits {
            draft.compile_split(id);
        }
        for id in &changed.policies {
            draft.compile_policy(id);
        }
        for id in &changed.authorizations {
            draft.check_authorization(id);
        }
        for id in &changed.pods {
            draft.compile_pod(id);
        }
        for ip in &changed.addresses {
            draft.compile_address(*ip);
        }
        for key in changed.objects.iter().filter(|key| key.kind.is_ours()) {
            draft.know(key);
        }
        self.catalog = draft.finish()?;
        Some(self.catalog.clone())
    }

    /// The Mesh in force.
    fn mesh(&mut self, index: &Index) -> (MeshSpec, Vec<Issue>) {
        let Some(mesh) = index.mesh("default") else {
            // The default is a decision too: a Mesh that appears later cannot change the domain.
            let mut spec = MeshSpec::default();
            spec.trust_domain
                .clone_from(self.trust_domain.get_or_insert(spec.trust_domain.clone()));
            return (spec, Vec::new());
        };
        let mut spec = mesh.spec.clone();
        let fixed = self.trust_domain.get_or_insert_with(|| spec.trust_domain.clone());
        if *fixed == spec.trust_domain {
            return (spec, Vec::new());
        }
        let message = format!(
            "is immutable, and `{fixed}` is in force; write that, or restart every control plane \
             and proxy with new certificates"
        );
        spec.trust_domain.clone_from(fixed);
        let (kind, path) = (Kind::Mesh, "spec.trustDomain");
        (spec, vec![issue(index, kind, "default", Reason::Invalid, path, message)])
    }
}

impl Draft<'_> {
    fn version(&mut self) -> Version {
        *self.version.get_or_insert_with(&mut *self.next)
    }

    /// Keeps the resource as it is unless its body differs.
    fn put(&mut self, kind: ResourceType, name: impl Into<Arc<str>>, message: &impl Message) {
        self.put_for(kind, name, message, BTreeSet::new());
    }

    /// As [`Self::put`]; what the resource says is the say of `sources`.
    fn put_for(
        &mut self,
        kind: ResourceType,
        name: impl Into<Arc<str>>,
        message: &impl Message,
        sources: BTreeSet<ObjectKey>,
    ) {
        let key = Key::new(kind, name);
        let mut encoded = Encoded::new(key.clone(), Version::default(), message);
        encoded.sources = sources.into_iter().collect();
        let old = self.catalog.resources.get(&key).filter(|old| old.body == encoded.body);
        if old.is_some_and(|old| old.sources == encoded.sources) {
            return;
        }
        // The same body by another's say: news to whoever writes statuses, none to a proxy.
        let unchanged = old.map(|old| old.version);
        let version = self.version();
        encoded.version = unchanged.unwrap_or(version);
        self.catalog.resources.insert(key, Arc::new(encoded));
    }

    fn remove(&mut self, kind: ResourceType, name: impl Into<Arc<str>>) {
        if self.catalog.resources.remove(&Key::new(kind, name)) {
            self.version();
        }
    }

    /// Replaces what was said of the unit before.
    fn report(&mut self, unit: Unit, issues: Vec<Issue>) {
        let old = self.issues.get(&unit).map(Vec::as_slice).unwrap_or_default();
        if old == issues.as_slice() {
            return;
        }
        self.issues_changed = true;
        if issues.is_empty() {
            self.issues.remove(&unit);
        } else {
            self.issues.insert(unit, issues);
        }
    }

    fn compile_mesh(&mut self) {
        let passthrough = match self.mesh.outbound_passthrough {
            Passthrough::Allow => v1::Passthrough::Allow,
            Passthrough::Deny => v1::Passthrough::Deny,
        };
        let mesh = v1::Mesh {
            trust_domain: self.mesh.trust_domain.clone(),
            outbound_passthrough: passthrough.into(),
            cluster_ranges: self.mesh.cluster_ranges.clone(),
        };
        self.put_for(ResourceType::Mesh, "default", &mesh, self.mesh_source().collect());
    }

    /// The Mesh, unless it is the one that is in force for want of one.
    fn mesh_source(&self) -> impl Iterator<Item = ObjectKey> + use<> {
        let found = self.index.mesh("default").is_some();
        found.then(|| ObjectKey::new(Kind::Mesh, "", "default")).into_iter()
    }

    /// Notes that there is, or no longer is, an object with a status.
    fn know(&mut self, key: &ObjectKey) {
        let found = self.index.find(key.kind, &facts::id(&key.namespace, &key.name));
        let known = found.map(|found| Known { generation: found.object.metadata().generation });
        if self.catalog.objects.get(key) == known.as_ref() {
            return;
        }
        self.version();
        match known {
            Some(known) => self.catalog.objects.insert(key.clone(), known),
            None => {
                self.catalog.objects.remove(key);
            }
        }
    }

    /// What the pod's certificate says; `None` for names no certificate can hold.
    fn identity(&self, pod: &Pod) -> Option<SpiffeId> {
        let namespace = facts::namespace(&pod.metadata);
        SpiffeId::new(&self.mesh.trust_domain, namespace, facts::service_account(pod)).ok()
    }

    /// The live pod an address belongs to.
    fn owner(&self, ip: IpAddr) -> Option<(&Id, &Pod)> {
        let id = *self.index.pods_at(ip).first()?;
        Some((id, self.index.pod(id)?))
    }

    /// The catalog, if it differs from the one before.
    fn finish(mut self) -> Option<Catalog> {
        if self.issues_changed {
            self.version();
            let all: BTreeSet<_> = self.issues.values().flatten().cloned().collect();
            self.catalog.issues = all.into_iter().collect();
        }
        self.catalog.version = self.version?;
        Some(self.catalog)
    }
}

/// An issue with the object `id` of `kind`.
fn issue(
    index: &Index,
    kind: Kind,
    id: &str,
    reason: Reason,
    path: impl Into<String>,
    message: impl Into<String>,
) -> Issue {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    Issue {
        kind: kind.to_string(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        location: index.find(kind, id).map_or(String::new(), |found| found.location.to_string()),
        path: path.into(),
        reason,
        message: message.into(),
        generation: None,
    }
}

/// The key of the object `id` of a kind that lives in a namespace.
fn object_key(kind: Kind, id: &str) -> ObjectKey {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    ObjectKey::new(kind, namespace, name)
}

/// For each object that is not in force because an older one is.
fn losers<'a>(index: &Index, kind: Kind, ids: &[&'a Id], of: &str) -> (Option<&'a Id>, Vec<Issue>) {
    let Some((winner, losers)) = ids.split_first() else { return (None, Vec::new()) };
    let message = format!("{of} has an older one, {winner}, which is in force; delete one of them");
    let issues =
        losers.iter().map(|id| issue(index, kind, id, Reason::Conflicted, "", message.as_str()));
    (Some(winner), issues.collect())
}

#[cfg(test)]
mod tests;
