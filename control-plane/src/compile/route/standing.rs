//! How a route stands: the conditions for each of its parents, and the issues that say the same to
//! those who read no status.

use std::collections::BTreeSet;
use std::sync::Arc;

use heddle_resources::ObjectKey;

use crate::catalog::state::{Condition, ConditionType, Parent, ParentStatus, RouteStatus};
use crate::catalog::{Issue, Reason};
use crate::index::{facts, routes};

use super::super::{Draft, Unit, issue};
use super::Routing;
use super::attach::Verdict;
use super::plan::{Fault, Plan};

/// `None` of a route that is gone, or has no parent of ours.
pub(super) struct Standing {
    status: Option<RouteStatus>,
    issues: Vec<Issue>,
}

impl Routing<'_, '_> {
    pub(super) fn standing(&mut self, key: &ObjectKey) -> Standing {
        let mut standing = Standing { status: None, issues: Vec::new() };
        let Some(route) = self.draft.index.route(key) else { return standing };
        let mut verdicts = Vec::new();
        for (at, parent, service) in routes::parents(&route) {
            let verdict = self.attachments(&service).verdicts[&(key.clone(), at)].clone();
            verdicts.push((at, parent, verdict));
        }
        if verdicts.is_empty() {
            return standing;
        }
        let plan = self.plan(key, None);
        let mut unresolved: BTreeSet<Fault> = BTreeSet::new();
        for (_, _, verdict) in &verdicts {
            let ports =
                if let Verdict::Accepted { ports, .. } = verdict { ports.as_slice() } else { &[] };
            for port in ports {
                unresolved.extend(self.plan(key, Some(*port)).unresolved.iter().cloned());
            }
        }
        if unresolved.is_empty() {
            unresolved.clone_from(&plan.unresolved);
        }
        let id = facts::id(&key.namespace, &key.name);
        let said = |fault: &Fault| {
            let Fault { reason, path, message } = fault;
            issue(self.draft.index, key.kind, &id, *reason, path.as_str(), message.as_str())
        };
        let general: Vec<Issue> = unresolved.iter().chain(&plan.remarks).map(said).collect();
        let mut issues: BTreeSet<Issue> = general.iter().cloned().collect();
        issues.extend(plan.dropped.iter().map(|(_, fault)| said(fault)));
        let mut parents = Vec::new();
        for (at, parent, verdict) in verdicts {
            let own = verdict.fault(at).as_ref().map(said);
            issues.extend(own.clone());
            let all: Vec<&Issue> = own.iter().chain(&general).collect();
            let accepted = Condition::of(ConditionType::Accepted, &all);
            let partially = partially_invalid(&plan).filter(|_| accepted.status);
            let resolved = Condition::of(ConditionType::ResolvedRefs, &all);
            parents.push(ParentStatus {
                parent: Parent {
                    name: parent.name.clone(),
                    namespace: parent.namespace.clone(),
                    port: parent.port,
                    section_name: parent.section_name.clone(),
                },
                conditions: [accepted, resolved].into_iter().chain(partially).collect(),
            });
        }
        let generation = route.metadata.generation;
        let (key, carriers) = (key.clone(), Vec::new());
        standing.status = Some(RouteStatus { key, generation, parents, carriers });
        standing.issues = issues.into_iter().collect();
        standing
    }
}

impl Verdict {
    /// What there is to say of the parentRef at this place.
    fn fault(&self, at: usize) -> Option<Fault> {
        let parent = format!("spec.parentRefs[{at}]");
        match self {
            Self::Accepted { remark, .. } => remark.as_ref().map(|message| Fault {
                reason: Reason::NoEffect,
                path: parent,
                message: message.clone(),
            }),
            Self::Refused { reason, path, message } => {
                let path = match path.as_str() {
                    "" => parent,
                    path if path.starts_with("spec.") => path.to_owned(),
                    field => format!("{parent}.{field}"),
                };
                Some(Fault { reason: *reason, path, message: message.clone() })
            }
        }
    }
}

/// The words that the Gateway API wants where rules are left out.
fn partially_invalid(plan: &Plan) -> Option<Condition> {
    if plan.dropped.is_empty() {
        return None;
    }
    let rules: Vec<_> = plan.dropped.iter().map(|(at, _)| at.to_string()).collect();
    let faults = plan.dropped.iter().map(|(_, fault)| format!("{}: {}", fault.path, fault.message));
    let faults: Vec<_> = faults.collect();
    let message = format!("Dropped Rule {}: {}", rules.join(", "), faults.join("; "));
    Some(Condition::partially_invalid(message))
}

impl Draft<'_> {
    pub(super) fn put_standing(&mut self, key: &ObjectKey, standing: Standing) {
        self.report(Unit::Route(key.clone()), standing.issues);
        let old = self.catalog.routes.get(key).map(AsRef::as_ref);
        if old == standing.status.as_ref() {
            return;
        }
        self.version();
        match standing.status {
            Some(status) => self.catalog.routes.insert(key.clone(), Arc::new(status)),
            None => {
                self.catalog.routes.remove(key);
            }
        }
    }
}
