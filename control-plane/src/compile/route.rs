//! Routes: what HTTPRoutes and GRPCRoutes say of the callers of a Service, port by port; and how each
//! route stands with each of its parents.
//!
//! A route is compiled by itself into rules ([`plan`]); a Service decides which routes hold on which
//! of its ports ([`attach`]). Both depend on the index alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use heddle_api::proto::v1::{self, ResourceType};
use heddle_resources::ObjectKey;

use crate::catalog::{Routed, route_name};
use crate::index::{Id, routes};

use self::attach::Attachments;
use self::plan::Plan;
use super::Draft;

mod attach;
mod backend;
mod plan;
mod standing;
mod translate;

/// What is found out of routes and Services during one compilation, each once.
struct Routing<'d, 'i> {
    draft: &'d Draft<'i>,
    plans: HashMap<(ObjectKey, Option<u16>), Rc<Plan>>,
    attachments: HashMap<Id, Rc<Attachments>>,
}

/// The Routes of one Service, by name.
struct Compiled {
    service: Id,
    routes: BTreeMap<Arc<str>, (v1::Route, BTreeSet<ObjectKey>)>,
}

impl Draft<'_> {
    /// Compiles the Routes of `services`, and the standing of every route that is attached to one of
    /// them or has itself `changed`.
    pub(super) fn compile_routes(
        &mut self,
        services: &BTreeSet<Id>,
        changed: &BTreeSet<ObjectKey>,
    ) {
        let index = self.index;
        let mut keys: BTreeSet<ObjectKey> =
            changed.iter().filter(|key| key.kind.is_route()).cloned().collect();
        for service in services {
            keys.extend(index.routes_of(service).into_iter().cloned());
        }
        let mut routing = Routing::new(self);
        let compiled: Vec<_> = services.iter().map(|service| routing.compile(service)).collect();
        let standings: Vec<_> = keys.into_iter().map(|key| (routing.standing(&key), key)).collect();
        for one in compiled {
            self.put_routes(one);
        }
        for (standing, key) in standings {
            self.put_standing(&key, standing);
        }
    }

    fn put_routes(&mut self, compiled: Compiled) {
        let Compiled { service, routes } = compiled;
        let old = self.catalog.routed.get(&service).cloned().unwrap_or_default();
        for name in old.keys().filter(|name| !routes.contains_key(*name)) {
            self.remove(ResourceType::Route, name.clone());
        }
        let mut routed = Routed::new();
        for (name, (message, sources)) in routes {
            routed.insert(name.clone(), backends(&message));
            self.put_for(ResourceType::Route, name, &message, sources);
        }
        if routed == *old {
            return;
        }
        self.version();
        if routed.is_empty() {
            self.catalog.routed.remove(&service);
        } else {
            self.catalog.routed.insert(service, Arc::new(routed));
        }
    }

    /// The ports of a Service on which routes decide for every caller, each with the first of them;
    /// and whether `split` is a backend of a route that is in force anywhere.
    pub(super) fn routed_ports(
        &self,
        service: &Id,
        split: &Id,
    ) -> (BTreeMap<u16, ObjectKey>, bool) {
        let mut routing = Routing::new(self);
        let attachments = routing.attachments(service);
        let everybodys = attachments.in_force.iter().filter(|((callers, _), _)| callers.is_none());
        let ports = everybodys
            .filter_map(|((_, port), keys)| Some((*port, keys.first()?.clone())))
            .collect();
        let is_used = self.index.routes_to_split(split).any(|key| routing.is_in_force(key));
        (ports, is_used)
    }
}

/// What the Route sends requests to, each once.
fn backends(route: &v1::Route) -> Vec<(Arc<str>, u16)> {
    let all = route.rules.iter().flat_map(|rule| &rule.backends).filter(|one| !one.invalid);
    let all: BTreeSet<_> =
        all.filter_map(|one| Some((one.service.as_str(), u16::try_from(one.port).ok()?))).collect();
    all.into_iter().map(|(service, port)| (Arc::from(service), port)).collect()
}

impl<'d, 'i> Routing<'d, 'i> {
    fn new(draft: &'d Draft<'i>) -> Self {
        Self { draft, plans: HashMap::new(), attachments: HashMap::new() }
    }

    /// The rules of every route that holds, merged: the oldest route's first.
    fn compile(&mut self, service: &Id) -> Compiled {
        let attachments = self.attachments(service);
        let mut routes = BTreeMap::new();
        for ((callers, port), keys) in &attachments.in_force {
            let mut rules = Vec::new();
            let mut sources = BTreeSet::new();
            for key in keys {
                let plan = self.plan(key, Some(*port));
                rules.extend(plan.rules.iter().cloned());
                sources.insert(key.clone());
                sources.extend(plan.splits.iter().cloned());
            }
            let name = route_name(service, *port, callers.as_deref());
            routes.insert(name.into(), (v1::Route { rules }, sources));
        }
        Compiled { service: service.clone(), routes }
    }

    fn plan(&mut self, key: &ObjectKey, dialled: Option<u16>) -> Rc<Plan> {
        let (draft, slot) = (self.draft, (key.clone(), dialled));
        let plan = || Rc::new(draft.plan(key, &draft.route(key), dialled));
        self.plans.entry(slot).or_insert_with(plan).clone()
    }

    fn attachments(&mut self, service: &Id) -> Rc<Attachments> {
        if let Some(known) = self.attachments.get(service) {
            return known.clone();
        }
        let found = Rc::new(self.attach(service));
        self.attachments.insert(service.clone(), found.clone());
        found
    }

    /// True when the route holds on any port of any of its parents.
    fn is_in_force(&mut self, key: &ObjectKey) -> bool {
        let route = self.draft.route(key);
        let parents: Vec<_> = routes::parents(&route).map(|(_, _, service)| service).collect();
        parents.iter().any(|service| {
            self.attachments(service).in_force.values().any(|keys| keys.contains(key))
        })
    }
}
