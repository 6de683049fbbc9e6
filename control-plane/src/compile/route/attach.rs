//! Which routes hold on which port of a Service, for whom, and why others do not.
//!
//! A route of the Service's own namespace is for every caller; one of another namespace is for the
//! callers in that namespace, in the place of the former (GEP-1294). On one port a GRPCRoute beats
//! HTTPRoutes.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_api::proto::v1::Protocol;
use heddle_policy::route::{MAX_MATCHES, MAX_RULES};
use heddle_resources::gateway::ParentRef;
use heddle_resources::{Kind, ObjectKey};
use k8s_openapi::api::core::v1::Service;

use crate::catalog::Reason;
use crate::index::{Id, facts, routes};

use super::Routing;

/// Whose calls: everybody's, or those from one namespace.
pub(super) type Callers = Option<Arc<str>>;

#[derive(Debug, Default)]
pub(super) struct Attachments {
    /// The routes that hold, in the order in which their rules count. Never an empty list.
    pub(super) in_force: BTreeMap<(Callers, u16), Vec<ObjectKey>>,
    /// By route and the place of the parentRef in it.
    pub(super) verdicts: BTreeMap<(ObjectKey, usize), Verdict>,
}

/// How a route stands with one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It holds on these ports; `remark` says why not on others.
    Accepted { ports: Vec<u16>, remark: Option<String> },
    /// It holds nowhere. The path is below the parentRef, or the whole path when it begins with
    /// `spec`.
    Refused { reason: Reason, path: String, message: String },
}

/// One parentRef that found ports.
struct Claim {
    key: ObjectKey,
    at: usize,
    callers: Callers,
    /// Why it does not hold, for the ports on which it does not.
    ports: BTreeMap<u16, Option<Loss>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// A GRPCRoute is there.
    Grpc,
    /// Older routes have as many rules or matches as a port can have.
    Full,
}

impl Routing<'_, '_> {
    pub(super) fn attach(&mut self, service: &Id) -> Attachments {
        let draft = self.draft;
        let mut found = Attachments::default();
        let mut claims = Vec::new();
        for key in draft.index.routes_of(service) {
            let route = draft.route(key);
            let refused = self.plan(key, None).refused.clone();
            for (at, parent, of) in routes::parents(&route) {
                if of != *service {
                    continue;
                }
                let ports = match &refused {
                    Some(refused) => Err(refused.clone()),
                    None => parent_ports(draft.index.service(service), service, parent),
                };
                match ports {
                    Err(refused) => {
                        found.verdicts.insert((key.clone(), at), refused);
                    }
                    Ok(ports) => claims.push(Claim {
                        key: key.clone(),
                        at,
                        callers: callers(key, service),
                        ports: ports.into_iter().map(|port| (port, None)).collect(),
                    }),
                }
            }
        }
        grpc_wins(&mut claims);
        self.fill(&mut claims, &mut found);
        for claim in claims {
            let verdict = claim.verdict();
            found.verdicts.insert((claim.key, claim.at), verdict);
        }
        found
    }

    /// Takes routes in, oldest first, as long as a port has room.
    fn fill(&mut self, claims: &mut [Claim], found: &mut Attachments) {
        let mut sizes: BTreeMap<(Callers, u16), (usize, usize)> = BTreeMap::new();
        for claim in claims {
            for (port, loss) in &mut claim.ports {
                if loss.is_some() {
                    continue;
                }
                let slot = (claim.callers.clone(), *port);
                let keys = found.in_force.entry(slot.clone()).or_default();
                if keys.contains(&claim.key) {
                    continue;
                }
                let plan = self.plan(&claim.key, None);
                let (rules, matches) = sizes.entry(slot.clone()).or_default();
                let (more_rules, more_matches) =
                    (*rules + plan.rules.len(), *matches + plan.matches());
                if more_rules > MAX_RULES || more_matches > MAX_MATCHES {
                    *loss = Some(Loss::Full);
                    if keys.is_empty() {
                        found.in_force.remove(&slot);
                    }
                    continue;
                }
                (*rules, *matches) = (more_rules, more_matches);
                keys.push(claim.key.clone());
            }
        }
    }
}

/// A route of another namespace speaks for the callers there.
fn callers(route: &ObjectKey, service: &Id) -> Callers {
    let own = service.split_once('/').map_or("", |(namespace, _)| namespace);
    (*route.namespace != *own).then(|| route.namespace.clone())
}

/// The ports that the parentRef means.
fn parent_ports(
    service: Option<&Service>,
    id: &Id,
    parent: &ParentRef,
) -> Result<Vec<u16>, Verdict> {
    let refuse = |path: &str, message: String| {
        let (reason, path) = (Reason::NoMatchingParent, path.to_owned());
        Err(Verdict::Refused { reason, path, message })
    };
    let Some(service) = service else {
        return refuse("name", format!("there is no Service {id}; create it, or name another"));
    };
    if facts::is_headless(service) {
        let message = "is headless: callers dial its pods, and calls of pods are not routed; name \
                       a Service with a cluster IP";
        return refuse("name", format!("Service {id} {message}"));
    }
    if facts::is_external(service) {
        let message = "is of type ExternalName, which has no address to be called at; name a \
                       Service with a cluster IP";
        return refuse("name", format!("Service {id} {message}"));
    }
    let all: Vec<_> = facts::tcp_ports(service).collect();
    let (mut named, mut path) = (all.clone(), "port");
    if let Some(port) = parent.port {
        named.retain(|(number, _)| *number == port);
    }
    if let Some(section) = parent.section_name.as_deref().filter(|name| !name.is_empty()) {
        path = if named.is_empty() { "port" } else { "sectionName" };
        named.retain(|(_, port)| port.name.as_deref() == Some(section));
    }
    if named.is_empty() {
        let numbers = all.iter().map(|(number, port)| match &port.name {
            Some(name) => format!("{number} ({name})"),
            None => number.to_string(),
        });
        let numbers: Vec<_> = numbers.collect();
        let message = format!("Service {id} has no such port; write one of {}", numbers.join(", "));
        return refuse(path, message);
    }
    let http: Vec<_> = named
        .iter()
        .filter(|(_, port)| facts::protocol(port) != Protocol::Tcp)
        .map(|(number, _)| *number)
        .collect();
    if http.is_empty() {
        let message = "is declared to carry something else than HTTP, by its appProtocol or its \
                       name; declare `appProtocol: http` (or kubernetes.io/h2c)";
        return refuse(path, format!("port {} of Service {id} {message}", named[0].0));
    }
    Ok(http)
}

/// Where a GRPCRoute claims a port, HTTPRoutes lose it.
fn grpc_wins(claims: &mut [Claim]) {
    let mut grpc: Vec<(Callers, u16)> = Vec::new();
    for claim in claims.iter().filter(|claim| claim.key.kind == Kind::GRPCRoute) {
        grpc.extend(claim.ports.keys().map(|port| (claim.callers.clone(), *port)));
    }
    for claim in claims.iter_mut().filter(|claim| claim.key.kind == Kind::HTTPRoute) {
        for (port, loss) in &mut claim.ports {
            if grpc.iter().any(|(callers, taken)| *callers == claim.callers && taken == port) {
                *loss = Some(Loss::Grpc);
            }
        }
    }
}

impl Claim {
    fn verdict(&self) -> Verdict {
        let held: Vec<u16> = self.held().collect();
        let mut reasons = Vec::new();
        for (loss, why) in [
            (
                Loss::Grpc,
                "a GRPCRoute is attached, and wins over HTTPRoutes; give it a port of its own",
            ),
            (
                Loss::Full,
                "older routes have as many rules as a port can have; merge or delete some",
            ),
        ] {
            let lost = self.ports.iter().filter(|(_, one)| **one == Some(loss));
            let lost: Vec<_> = lost.map(|(port, _)| port.to_string()).collect();
            if !lost.is_empty() {
                reasons.push(format!("on port {}: {why}", lost.join(", ")));
            }
        }
        let remark = (!reasons.is_empty()).then(|| format!("not in force {}", reasons.join("; ")));
        match remark {
            Some(message) if held.is_empty() => {
                Verdict::Refused { reason: Reason::Conflicted, path: String::new(), message }
            }
            remark => Verdict::Accepted { ports: held, remark },
        }
    }

    fn held(&self) -> impl Iterator<Item = u16> {
        self.ports.iter().filter(|(_, loss)| loss.is_none()).map(|(port, _)| *port)
    }
}
