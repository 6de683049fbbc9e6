//! The cluster model: every object, and what refers to what. One writer, [`Index::apply`].
//!
//! Pure: no clock, no I/O, no tasks. What it answers depends on the objects it holds, never on the
//! order in which they came.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_resources::crd::{
    AuthorizationPolicy, Mesh, MeshTLSPolicy, Selector, TrafficPolicy, TrafficSplit,
};
use heddle_resources::reader::Located;
use heddle_resources::{Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::catalog::Issue;

pub(crate) mod facts;
pub(crate) mod routes;

/// Names an object within its kind: "<namespace>/<name>", as on the wire.
pub(crate) type Id = Arc<str>;

/// What a source tells: a set of changes that are applied and published together.
#[derive(Debug, Default)]
pub struct Batch {
    pub events: Vec<Event>,
    /// With this batch, the source has told everything there is. Nothing is published before.
    pub initial: bool,
    /// Every object the source refuses at present.
    pub refused: Vec<Issue>,
    /// How far the source has read with this batch, when it is one that numbers what it says.
    pub mark: Option<Mark>,
}

/// How far a source has read, in the numbers of whoever keeps the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Numbers are compared within one epoch.
    pub epoch: u64,
    /// The highest number of anything told.
    pub seen: u64,
    /// Everything up to this has been told.
    pub known: u64,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Event {
    Apply(Located),
    Delete(ObjectKey),
}

/// What has to be compiled again. Names resources, not objects: a deleted object is in it too.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub(crate) mesh: bool,
    pub(crate) services: BTreeSet<Id>,
    pub(crate) pods: BTreeSet<Id>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Services whose split may be another.
    pub(crate) splits: BTreeSet<Id>,
    /// Services whose policy may be another.
    pub(crate) policies: BTreeSet<Id>,
    pub(crate) authorizations: BTreeSet<Id>,
    /// Services whose Routes may be others.
    pub(crate) routes: BTreeSet<Id>,
    /// Objects of kinds that have a status, changed themselves.
    pub(crate) objects: BTreeSet<ObjectKey>,
}

impl Changed {
    /// Adds what another set of changes touched.
    pub(crate) fn merge(&mut self, other: Self) {
        self.mesh |= other.mesh;
        self.services.extend(other.services);
        self.pods.extend(other.pods);
        self.addresses.extend(other.addresses);
        self.splits.extend(other.splits);
        self.policies.extend(other.policies);
        self.authorizations.extend(other.authorizations);
        self.routes.extend(other.routes);
        self.objects.extend(other.objects);
    }
}

/// The cluster.
#[derive(Debug, Default)]
pub struct Index {
    objects: HashMap<Kind, BTreeMap<Id, Located>>,
    /// Live pods by the addresses that are theirs alone.
    pods_at: Links<IpAddr>,
    slices_at: Links<IpAddr>,
    slices_of: Links<Id>,
    services_at: Links<IpAddr>,
    splits_of: Links<Id>,
    splits_to: Links<Id>,
    policies_of: Links<Id>,
    /// Routes by the Services that are their parents.
    routes_of: Links<Id, ObjectKey>,
    /// Routes by the Services they send requests to.
    routes_to: Links<Id, ObjectKey>,
    /// Routes by the TrafficSplits they send requests to.
    routes_to_split: Links<Id, ObjectKey>,
}

impl Index {
    /// Applies a set of changes; answers what they touch.
    pub fn apply(&mut self, events: Vec<Event>) -> Changed {
        let mut changed = Changed::default();
        for event in events {
            match event {
                Event::Apply(located) => {
                    self.replace(&located.object.key(), Some(located), &mut changed)
                }
                Event::Delete(key) => self.replace(&key, None, &mut changed),
            }
        }
        self.complete(&mut changed);
        changed
    }

    fn replace(&mut self, key: &ObjectKey, new: Option<Located>, changed: &mut Changed) {
        let id = facts::id(&key.namespace, &key.name);
        let objects = self.objects.entry(key.kind).or_default();
        let old = objects.remove(&id);
        if let Some(new) = &new {
            objects.insert(id.clone(), new.clone());
        }
        let (old, new) = (old.map(|located| located.object), new.map(|located| located.object));
        if old == new {
            return;
        }
        if key.kind.is_ours() || key.kind.is_route() {
            changed.objects.insert(key.clone());
        }
        if let (Some(Object::EndpointSlice(old)), Some(Object::EndpointSlice(new))) = (&old, &new)
            && facts::same_ports(old, new)
        {
            // Readiness alone: the pods behind the other addresses see no difference.
            changed.services.extend(facts::service_of(new));
            let (before, after) = (facts::slice_ips(old), facts::slice_ips(new));
            for ip in before.symmetric_difference(&after) {
                self.mark_address(*ip, changed);
                self.slices_at.set(*ip, &id, after.contains(ip));
            }
            return;
        }
        if let Some(old) = &old {
            self.mark(&id, old, changed);
            self.link(&id, old, false);
        }
        if let Some(new) = &new {
            self.link(&id, new, true);
            self.mark(&id, new, changed);
        }
    }

    fn link(&mut self, id: &Id, object: &Object, present: bool) {
        match object {
            Object::Pod(pod) => {
                for ip in facts::owned_ips(pod) {
                    self.pods_at.set(ip, id, present);
                }
            }
            Object::EndpointSlice(slice) => {
                for ip in facts::slice_ips(slice) {
                    self.slices_at.set(ip, id, present);
                }
                if let Some(service) = facts::service_of(slice) {
                    self.slices_of.set(service, id, present);
                }
            }
            Object::Service(service) => {
                for ip in facts::cluster_ips(service) {
                    self.services_at.set(ip, id, present);
                }
            }
            Object::TrafficSplit(split) => {
                self.splits_of.set(facts::split_target(split), id, present);
                for backend in &split.spec.backends {
                    let backend = facts::beside(&split.metadata, &backend.service);
                    self.splits_to.set(backend, id, present);
                }
            }
            Object::HTTPRoute(_) | Object::GRPCRoute(_) => self.link_route(object, present),
            Object::TrafficPolicy(policy) => {
                self.policies_of.set(facts::policy_target(policy), id, present);
            }
            Object::AuthorizationPolicy(_)
            | Object::MeshTLSPolicy(_)
            | Object::Mesh(_)
            | Object::Namespace(_)
            | Object::ServiceAccount(_)
            | Object::Deployment(_) => {}
        }
    }

    /// Marks what depends on the object.
    fn mark(&self, id: &Id, object: &Object, changed: &mut Changed) {
        match object {
            Object::Pod(pod) => {
                changed.pods.insert(id.clone());
                for ip in facts::ips(pod) {
                    self.mark_address(ip, changed);
                    let slices = self.slices_at.of(&ip).filter_map(|slice| self.slice(slice));
                    changed.services.extend(slices.filter_map(facts::service_of));
                }
            }
            Object::EndpointSlice(slice) => {
                changed.services.extend(facts::service_of(slice));
                for ip in facts::slice_ips(slice) {
                    self.mark_address(ip, changed);
                }
            }
            Object::Service(service) => {
                changed.services.insert(id.clone());
                changed.addresses.extend(facts::cluster_ips(service));
                for ip in self.slices(id).flat_map(|(_, slice)| facts::slice_ips(slice)) {
                    self.mark_address(ip, changed);
                }
            }
            Object::TrafficSplit(split) => {
                changed.splits.insert(facts::split_target(split));
                self.mark_parents(self.routes_to_split.of(id), changed);
            }
            Object::HTTPRoute(_) | Object::GRPCRoute(_) => self.mark_route(object, changed),
            Object::TrafficPolicy(policy) => {
                changed.policies.insert(facts::policy_target(policy));
            }
            Object::AuthorizationPolicy(policy) => {
                changed.authorizations.insert(id.clone());
                let selector = Some(&policy.spec.target_ref.selector);
                self.mark_pods(&policy.metadata, selector, changed);
            }
            Object::MeshTLSPolicy(policy) => {
                let target = policy.spec.target_ref.as_ref();
                self.mark_pods(&policy.metadata, target.map(|target| &target.selector), changed);
            }
            Object::Mesh(_) => changed.mesh = true,
            Object::Namespace(_) | Object::ServiceAccount(_) | Object::Deployment(_) => {}
        }
    }

    fn mark_address(&self, ip: IpAddr, changed: &mut Changed) {
        changed.addresses.insert(ip);
        changed.pods.extend(self.pods_at.of(&ip).cloned());
    }

    fn mark_pods(&self, meta: &ObjectMeta, selector: Option<&Selector>, changed: &mut Changed) {
        let selected = self.in_namespace(Kind::Pod, facts::namespace(meta)).filter(|(_, pod)| {
            selector.is_none_or(|s| s.matches(pod.object.metadata().labels.as_ref()))
        });
        changed.pods.extend(selected.map(|(id, _)| id.clone()));
    }

    /// Adds what depends on what changed: splits on their backends; everything on the Mesh.
    fn complete(&self, changed: &mut Changed) {
        if changed.mesh {
            let ids = |kind| self.all(kind).map(|(id, _)| id.clone());
            changed.services.extend(ids(Kind::Service));
            changed.pods.extend(ids(Kind::Pod));
            changed.addresses.extend(self.pods_at.keys().copied());
        }
        // A split says what is wrong with its backends: that they do not exist, or are split too.
        let backends = changed.services.iter().chain(&changed.splits);
        let to: BTreeSet<_> =
            backends.flat_map(|service| self.splits_to.of(service)).cloned().collect();
        changed.splits.extend(to.iter().filter_map(|id| self.split(id)).map(facts::split_target));
        self.complete_routes(&to, changed);
        for service in &changed.services {
            if self.splits_of.of(service).next().is_some() {
                changed.splits.insert(service.clone());
            }
            if self.policies_of.of(service).next().is_some() {
                changed.policies.insert(service.clone());
            }
        }
    }

    fn all(&self, kind: Kind) -> impl Iterator<Item = (&Id, &Located)> {
        self.objects.get(&kind).into_iter().flatten()
    }

    pub(crate) fn in_namespace(
        &self,
        kind: Kind,
        namespace: &str,
    ) -> impl Iterator<Item = (&Id, &Located)> {
        // '0' is the character after '/'.
        let range = Arc::from(format!("{namespace}/"))..Arc::from(format!("{namespace}0"));
        self.objects.get(&kind).into_iter().flat_map(move |objects| objects.range(range.clone()))
    }

    pub(crate) fn find(&self, kind: Kind, id: &str) -> Option<&Located> {
        self.objects.get(&kind)?.get(id)
    }

    pub(crate) fn slices(&self, service: &Id) -> impl Iterator<Item = (&Id, &EndpointSlice)> {
        self.slices_of.of(service).filter_map(|id| Some((id, self.slice(id)?)))
    }

    /// Slices that list the address.
    pub(crate) fn slices_at(&self, ip: IpAddr) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_at.of(&ip).filter_map(|id| self.slice(id))
    }

    /// The Services that claim the address as their own, oldest first.
    pub(crate) fn services_at(&self, ip: IpAddr) -> Vec<&Id> {
        facts::oldest_first(self.services_at.of(&ip), |id| {
            &self.service(id).expect("linked").metadata
        })
    }

    /// The splits of a Service, oldest first: the first is in force.
    pub(crate) fn splits_of(&self, service: &Id) -> Vec<&Id> {
        facts::oldest_first(self.splits_of.of(service), |id| {
            &self.split(id).expect("linked").metadata
        })
    }

    /// The policies of a Service, oldest first: the first is in force.
    pub(crate) fn policies_of(&self, service: &Id) -> Vec<&Id> {
        facts::oldest_first(self.policies_of.of(service), |id| {
            &self.policy(id).expect("linked").metadata
        })
    }

    /// The live pods that claim the address, the likely owner first: an address is reused, so a pod
    /// that is going away yields to one that is not, and an older to a newer.
    pub(crate) fn pods_at(&self, ip: IpAddr) -> Vec<&Id> {
        let mut pods: Vec<_> = self.pods_at.of(&ip).collect();
        pods.sort_by_key(|id| {
            let meta = &self.pod(id).expect("linked").metadata;
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            (meta.deletion_timestamp.is_some(), std::cmp::Reverse(created), *id)
        });
        pods
    }
}

/// One typed lookup per kind that is asked for by name.
macro_rules! lookups {
    ($($name:ident: $kind:ident,)*) => {
        impl Index {
            $(pub(crate) fn $name(&self, id: &str) -> Option<&$kind> {
                let Object::$kind(object) = &self.find(Kind::$kind, id)?.object else {
                    return None;
                };
                Some(object)
            })*
        }
    };
}

lookups! {
    pod: Pod,
    service: Service,
    slice: EndpointSlice,
    split: TrafficSplit,
    policy: TrafficPolicy,
    authorization: AuthorizationPolicy,
    tls_policy: MeshTLSPolicy,
    mesh: Mesh,
}

/// From a key to the objects that speak of it.
#[derive(Debug)]
struct Links<K, V = Id>(HashMap<K, BTreeSet<V>>);

impl<K, V> Default for Links<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq, V: Ord + Clone> Links<K, V> {
    fn set(&mut self, key: K, id: &V, present: bool) {
        if present {
            self.0.entry(key).or_default().insert(id.clone());
        } else if let Some(ids) = self.0.get_mut(&key) {
            ids.remove(id);
            // A key nobody speaks of must not stay: keys are addresses, and there are many.
            if ids.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    fn of<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a V> + use<'a, K, V> {
        self.0.get(key).into_iter().flatten()
    }

    fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

#[cfg(test)]
pub(crate) mod tests;
