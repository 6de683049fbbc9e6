//! One route by itself: its rules as proxies follow them, and what is wrong with it.
//!
//! A rule that cannot be done as it is written is left out, and the route is partly invalid; when
//! nothing is left, or the fault is not in a rule, the route is refused. A rule is judged by the very
//! code that judges it in a proxy.

use std::collections::BTreeSet;

use heddle_api::proto::v1;
use heddle_resources::ObjectKey;
use heddle_resources::gateway::{AnyRoute, AnyRule, Degree, Matches, Problem, problems};

use crate::catalog::Reason;

use super::super::Draft;
use super::attach::Verdict;
use super::translate;

/// Something that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fault {
    pub(super) reason: Reason,
    pub(super) path: String,
    pub(super) message: String,
}

/// What a route comes to.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In the route's order, less those that are left out.
    pub(super) rules: Vec<v1::RouteRule>,
    /// Why none of it is in force.
    pub(super) refused: Option<Verdict>,
    /// Rules that are left out, each with its first fault.
    pub(super) dropped: Vec<(usize, Fault)>,
    /// References that do not resolve: their share is answered with 500.
    pub(super) unresolved: BTreeSet<Fault>,
    pub(super) remarks: Vec<Fault>,
    /// The TrafficSplits whose backends are among the rules'.
    pub(super) splits: BTreeSet<ObjectKey>,
}

impl Plan {
    /// How many ways there are to come to its rules: a rule without matches is one.
    pub(super) fn matches(&self) -> usize {
        self.rules.iter().map(|rule| rule.matches.len().max(1)).sum()
    }
}

impl Draft<'_> {
    pub(super) fn route(&self, key: &ObjectKey) -> AnyRoute<'_> {
        self.index.route(key).expect("linked by its parents")
    }

    /// `dialled` is the port whose callers follow the rules; it matters to backends alone.
    pub(super) fn plan(&self, key: &ObjectKey, route: &AnyRoute<'_>, dialled: Option<u16>) -> Plan {
        let mut plan = Plan::default();
        let problems = problems(route);
        plan.remarks.extend(problems.iter().filter(|one| one.degree == Degree::Remark).map(fault));
        let serious = || problems.iter().filter(|one| one.degree != Degree::Remark);
        if let Some(problem) = serious().find(|problem| problem.rule.is_none()) {
            plan.refused = Some(fault(problem).into());
            return plan;
        }
        for (at, rule) in route.rules.iter().enumerate() {
            if let Some(problem) = serious().find(|problem| problem.rule == Some(at)) {
                plan.dropped.push((at, fault(problem)));
                continue;
            }
            let compiled = self.rule(key, at, rule, dialled, &mut plan);
            match heddle_policy::route::check(compiled.clone()) {
                Ok(()) => plan.rules.push(compiled),
                Err(invalid) => {
                    let path = translate::path_in_object(rule, &invalid.path);
                    let path = format!("spec.rules[{at}].{path}");
                    let (reason, message) = (Reason::UnsupportedValue, invalid.message);
                    plan.dropped.push((at, Fault { reason, path, message }));
                }
            }
        }
        if plan.rules.is_empty()
            && let Some((_, first)) = plan.dropped.first()
        {
            plan.refused = Some(first.clone().into());
        }
        plan
    }

    fn rule(
        &self,
        key: &ObjectKey,
        at: usize,
        rule: &AnyRule<'_>,
        dialled: Option<u16>,
        plan: &mut Plan,
    ) -> v1::RouteRule {
        let timeouts = rule.timeouts.unwrap_or_default();
        v1::RouteRule {
            source: format!("{}/{}/{}", key.kind, key.namespace, key.name),
            name: rule.name.map_or_else(|| at.to_string(), str::to_owned),
            matches: match rule.matches {
                Matches::Http(matches) => translate::http_matches(matches),
                Matches::Grpc(matches) => matches.iter().map(translate::grpc_match).collect(),
            },
            filters: translate::filters(rule.filters),
            backends: self.backends(&key.namespace, at, rule, dialled, plan),
            request_timeout_ms: timeouts.request.map(|one| one.as_millis()),
            backend_timeout_ms: timeouts.backend_request.map(|one| one.as_millis()),
        }
    }
}

fn fault(problem: &Problem) -> Fault {
    let reason = match problem.degree {
        Degree::Invalid => Reason::Invalid,
        Degree::Unsupported => Reason::UnsupportedValue,
        Degree::Remark => Reason::NoEffect,
    };
    Fault { reason, path: problem.path.to_string(), message: problem.message.clone() }
}

impl From<Fault> for Verdict {
    fn from(Fault { reason, path, message }: Fault) -> Self {
        Self::Refused { reason, path, message }
    }
}
