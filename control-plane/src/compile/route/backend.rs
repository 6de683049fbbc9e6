//! The backends of a rule: Services of any namespace, and TrafficSplits in the place of their own
//! backends.
//!
//! A reference that does not resolve keeps its share, which is answered with 500: handing it to the
//! others would send them traffic that nobody meant for them.

use heddle_api::proto::v1;
use heddle_resources::Kind;
use heddle_resources::crd::TrafficSplit;
use heddle_resources::gateway::{AnyRule, BackendRef};

use crate::catalog::Reason;
use crate::index::routes::{Target, target};
use crate::index::{Id, facts};

use super::super::{Draft, object_key};
use super::plan::{Fault, Plan};
use super::translate;

/// The largest weight on the wire.
const MAX_WEIGHT: u64 = 1_000_000;

/// A backend before the weights of its rule are brought to one scale.
struct Share {
    backend: v1::RouteBackend,
    /// The weight, times `part` and divided by `whole`.
    weight: u64,
    part: u64,
    whole: u64,
}

impl Draft<'_> {
    pub(super) fn backends(
        &self,
        namespace: &str,
        rule_at: usize,
        rule: &AnyRule<'_>,
        dialled: Option<u16>,
        plan: &mut Plan,
    ) -> Vec<v1::RouteBackend> {
        let mut shares = Vec::new();
        for (at, reference) in rule.backend_refs.iter().enumerate() {
            let path = format!("spec.rules[{rule_at}].backendRefs[{at}]");
            match target(namespace, reference) {
                Target::Service(service) => {
                    let fault = self.service_fault(&service, reference.port, &path);
                    shares.push(share(reference, &service, fault.is_some()));
                    plan.unresolved.extend(fault);
                }
                Target::Split(id) => match self.index.split(&id) {
                    Some(split) => {
                        plan.splits.insert(object_key(Kind::TrafficSplit, &id));
                        let port = reference.port.or(dialled);
                        self.expand(reference, split, port, &path, &mut shares, plan);
                    }
                    None => {
                        let message = format!("there is no TrafficSplit {id}; create it");
                        let path = format!("{path}.name");
                        plan.unresolved.insert(not_found(path, message));
                        shares.push(share(reference, &id, true));
                    }
                },
                Target::Other => {
                    let (group, kind) = (reference.group(), reference.kind());
                    let message = format!(
                        "{group}/{kind} cannot be a backend: its share is answered with 500; name \
                         a Service, or a TrafficSplit of heddle.io"
                    );
                    let (reason, path) = (Reason::InvalidKind, format!("{path}.kind"));
                    plan.unresolved.insert(Fault { reason, path, message });
                    shares.push(share(reference, &reference.name, true));
                }
            }
        }
        scale(shares)
    }

    /// Why the port of the Service cannot be called. Without a port, only the Service is looked at.
    fn service_fault(&self, id: &Id, port: Option<u16>, path: &str) -> Option<Fault> {
        let Some(service) = self.index.service(id) else {
            let message =
                format!("there is no Service {id}: its share is answered with 500; create it");
            return Some(not_found(format!("{path}.name"), message));
        };
        if facts::is_external(service) {
            let message = format!(
                "Service {id} is of type ExternalName, which has no endpoints: its share is \
                 answered with 500; name a Service with endpoints"
            );
            let (reason, path) = (Reason::InvalidKind, format!("{path}.name"));
            return Some(Fault { reason, path, message });
        }
        let port = port?;
        let mut ports: Vec<_> = facts::tcp_ports(service).map(|(number, _)| number).collect();
        if ports.contains(&port) {
            return None;
        }
        ports.sort_unstable();
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let message = format!(
            "Service {id} has no port {port}: its share is answered with 500; write one of {}",
            ports.join(", ")
        );
        Some(not_found(format!("{path}.port"), message))
    }

    /// The split's backends, which share among them what is the split's.
    fn expand(
        &self,
        reference: &BackendRef,
        split: &TrafficSplit,
        port: Option<u16>,
        path: &str,
        shares: &mut Vec<Share>,
        plan: &mut Plan,
    ) {
        let whole = split.spec.backends.iter().map(|one| u64::from(one.weight)).sum::<u64>().max(1);
        for one in &split.spec.backends {
            let service = facts::beside(&split.metadata, &one.service);
            let mapped =
                |port| one.ports.iter().find(|of| of.from == port).map_or(port, |of| of.to);
            let port = port.map(mapped);
            let fault = self.service_fault(&service, port, path);
            let mut share = share(reference, &service, fault.is_some());
            plan.unresolved.extend(fault);
            share.backend.port = port.map_or(0, u32::from);
            // Only the port that was dialled can be missing, and then nobody is sent there.
            share.backend.invalid |= port.is_none();
            share.backend.has_subset = one.selector.is_some();
            let subset = self.subset(&service, one);
            share.backend.subset = subset.into_iter().map(|id| id.to_string()).collect();
            (share.part, share.whole) = (one.weight.into(), whole);
            shares.push(share);
        }
    }
}

fn not_found(path: String, message: String) -> Fault {
    Fault { reason: Reason::BackendNotFound, path, message }
}

fn share(reference: &BackendRef, service: &str, invalid: bool) -> Share {
    let backend = v1::RouteBackend {
        service: service.to_string(),
        port: reference.port.map_or(0, u32::from),
        weight: 0,
        filters: translate::filters(&reference.filters),
        subset: Vec::new(),
        has_subset: false,
        invalid,
    };
    Share { backend, weight: reference.weight().into(), part: 1, whole: 1 }
}

/// Brings the weights to whole numbers on one scale: exactly, unless that takes numbers above
/// 1,000,000; then to the nearest millionth of the largest, and to no less than one.
fn scale(shares: Vec<Share>) -> Vec<v1::RouteBackend> {
    let common =
        shares.iter().map(|share| share.whole).fold(1, |a, b| lcm(a, b).min(u64::MAX >> 44));
    let exact = |share: &Share| {
        u128::from(share.weight) * u128::from(share.part) * u128::from(common)
            / u128::from(share.whole)
    };
    let largest = shares.iter().map(exact).max().unwrap_or_default();
    let divisor = shares.iter().map(exact).fold(0, gcd).max(1);
    let most = u128::from(MAX_WEIGHT);
    let weight = |share: &Share| {
        let exact = exact(share);
        if largest / divisor <= most {
            return exact / divisor;
        }
        (exact * most / largest).max(u128::from(exact > 0))
    };
    let is_plain = shares.iter().all(|share| share.whole == 1);
    let scaled = |share: Share| {
        // What people wrote stays readable where it can.
        let weight = if is_plain { u128::from(share.weight) } else { weight(&share) };
        let weight = u32::try_from(weight.min(most)).expect("at most 1,000,000");
        v1::RouteBackend { weight, ..share.backend }
    };
    shares.into_iter().map(scaled).collect()
}

fn lcm(a: u64, b: u64) -> u64 {
    let gcd = u64::try_from(gcd(a.into(), b.into())).expect("no larger than either").max(1);
    (a / gcd).saturating_mul(b)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_splits_keep_their_shares() {
        let check = |given: &[(u64, u64, u64)], want: &[u32]| {
            let share = |(weight, part, whole): &(u64, u64, u64)| Share {
                backend: v1::RouteBackend::default(),
                weight: *weight,
                part: *part,
                whole: *whole,
            };
            let weights: Vec<_> =
                scale(given.iter().map(share).collect()).iter().map(|one| one.weight).collect();
            assert_eq!(weights, want, "{given:?}");
        };
        check(&[], &[]);
        check(&[(90, 1, 1), (10, 1, 1)], &[90, 10]);
        check(&[(0, 1, 1)], &[0]);
        // Half to a Service, half to a split 95:5.
        check(&[(1, 1, 1), (1, 95, 100), (1, 5, 100)], &[20, 19, 1]);
        check(&[(3, 1, 3), (3, 2, 3)], &[1, 2]);
        check(&[(1, 1, 3), (1, 2, 3), (1, 1, 7), (1, 6, 7)], &[7, 14, 3, 18]);
        // Too fine to be exact: the smallest share stays one.
        check(&[(1_000_000, 1_000_000, 1_000_001), (1, 1, 1_000_001)], &[1_000_000, 1]);
        check(&[(0, 1, 2), (0, 1, 2), (5, 1, 1)], &[0, 0, 1]);
    }
}
