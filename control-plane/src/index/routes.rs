//! Routes in the index: what they are attached to and refer to, and what a change of either touches.

use std::collections::BTreeSet;

use heddle_resources::crd::group_version;
use heddle_resources::gateway::{AnyRoute, BackendRef, ParentRef};
use heddle_resources::{Object, ObjectKey};

use super::{Changed, Id, Index, facts};

/// What a backendRef names.
pub(crate) enum Target {
    Service(Id),
    Split(Id),
    /// Nothing that can be a backend.
    Other,
}

/// The Services that are the route's parents, each with the place of its parentRef.
pub(crate) fn parents<'a>(
    route: &AnyRoute<'a>,
) -> impl Iterator<Item = (usize, &'a ParentRef, Id)> + use<'a> {
    let own = facts::namespace(route.metadata);
    let all = route.parent_refs.iter().enumerate().filter(|(_, parent)| parent.is_service());
    all.map(move |(at, parent)| {
        let namespace = parent.namespace.as_deref().unwrap_or(own);
        (at, parent, facts::id(namespace, &parent.name))
    })
}

/// What the reference, in a route of `namespace`, names.
pub(crate) fn target(namespace: &str, backend: &BackendRef) -> Target {
    let id = facts::id(backend.namespace.as_deref().unwrap_or(namespace), &backend.name);
    match (backend.group(), backend.kind()) {
        ("", "Service") => Target::Service(id),
        (group, "TrafficSplit") if group == group_version().0 => Target::Split(id),
        _ => Target::Other,
    }
}

/// What any rule of the route sends requests to.
fn targets<'a>(route: &AnyRoute<'a>) -> impl Iterator<Item = Target> + use<'a> {
    let namespace = facts::namespace(route.metadata);
    let rules: Vec<_> = route.rules.iter().map(|rule| rule.backend_refs).collect();
    rules.into_iter().flatten().map(move |backend| target(namespace, backend))
}

impl Index {
    pub(super) fn link_route(&mut self, object: &Object, present: bool) {
        let Some(route) = object.as_route() else { return };
        let key = object.key();
        for (_, _, service) in parents(&route) {
            self.routes_of.set(service, &key, present);
        }
        for target in targets(&route) {
            match target {
                Target::Service(service) => self.routes_to.set(service, &key, present),
                Target::Split(split) => self.routes_to_split.set(split, &key, present),
                Target::Other => {}
            }
        }
    }

    pub(super) fn mark_route(&self, object: &Object, changed: &mut Changed) {
        let Some(route) = object.as_route() else { return };
        changed.routes.extend(parents(&route).map(|(_, _, service)| service));
        self.mark_named_splits(&route, changed);
    }

    /// Marks the Services that the routes are attached to.
    pub(super) fn mark_parents<'a>(
        &self,
        routes: impl Iterator<Item = &'a ObjectKey>,
        changed: &mut Changed,
    ) {
        for route in routes.filter_map(|key| self.route(key)) {
            changed.routes.extend(parents(&route).map(|(_, _, service)| service));
        }
    }

    /// Adds the Services whose Routes depend on what changed, among it `splits`; and the splits that
    /// those Routes take the place of, or make use of.
    pub(super) fn complete_routes(&self, splits: &BTreeSet<Id>, changed: &mut Changed) {
        for split in splits {
            self.mark_parents(self.routes_to_split.of(split), changed);
        }
        let services: Vec<_> = changed.services.iter().cloned().collect();
        for service in &services {
            if self.routes_of.of(service).next().is_some() {
                changed.routes.insert(service.clone());
            }
            self.mark_parents(self.routes_to.of(service), changed);
        }
        for service in changed.routes.clone() {
            if self.splits_of.of(&service).next().is_some() {
                changed.splits.insert(service.clone());
            }
            for route in self.routes_of.of(&service).filter_map(|key| self.route(key)) {
                self.mark_named_splits(&route, changed);
            }
        }
    }

    fn mark_named_splits(&self, route: &AnyRoute<'_>, changed: &mut Changed) {
        for target in targets(route) {
            if let Target::Split(id) = target
                && let Some(split) = self.split(&id)
            {
                changed.splits.insert(facts::split_target(split));
            }
        }
    }

    pub(crate) fn route(&self, key: &ObjectKey) -> Option<AnyRoute<'_>> {
        self.find(key.kind, &facts::id(&key.namespace, &key.name))?.object.as_route()
    }

    /// The routes that name the Service as their parent, oldest first, then by namespace and name.
    pub(crate) fn routes_of(&self, service: &Id) -> Vec<&ObjectKey> {
        let mut keys: Vec<_> = self.routes_of.of(service).collect();
        keys.sort_by_cached_key(|key| {
            let route = self.route(key).expect("linked");
            let created = route.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created.is_none(), created, key.namespace.clone(), key.name.clone(), key.kind)
        });
        keys
    }

    /// The routes that send requests to the split.
    pub(crate) fn routes_to_split(&self, split: &Id) -> impl Iterator<Item = &ObjectKey> {
        self.routes_to_split.of(split)
    }
}
