//! What the status of an object of ours should say. Pure: from the object's state and what the
//! proxies say of its carriers; writes nothing, and knows no clock.

use std::collections::BTreeMap;

use heddle_api::proto::v1::{self, ResourceType};
use heddle_resources::crd::status::{ACCEPTED, PROGRAMMED, RESOLVED_REFS};
use prost::Message as _;

use crate::catalog::Catalog;
use crate::catalog::state::{Carrier, ConditionType, ObjectState};
use crate::discovery::fleet::Rejecting;
use crate::metrics::rejection_label;
use crate::replica::Survey;

/// Rejecting proxies named in a message.
const NAMED: usize = 3;

/// The conditions written, in this order.
pub(super) const TYPES: [&str; 3] = [ACCEPTED, RESOLVED_REFS, PROGRAMMED];

/// A status, less when its conditions changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) generation: Option<i64>,
    /// By type, in the order they are written.
    pub(super) conditions: Vec<Condition>,
    pub(super) programmed: String,
    pub(super) weights: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) r#type: &'static str,
    pub(super) status: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What all proxies say of an object's carriers together.
#[derive(Debug, Default)]
struct Tally {
    /// Proxies that need the object, whatever version of it they hold.
    known: u64,
    /// Of these, with this version in force.
    active: u64,
    rejected: u64,
    rejecting: Vec<Rejecting>,
}

impl Wanted {
    pub(super) fn of(state: &ObjectState, catalog: &Catalog, survey: &Survey) -> Self {
        let tally = Tally::of(&state.carriers, survey);
        let programmed = format!("{}/{}", tally.active, tally.known);
        let accepted = state
            .conditions
            .iter()
            .all(|condition| condition.status || condition.r#type != ConditionType::Accepted);
        let mut conditions: Vec<_> = state
            .conditions
            .iter()
            .map(|condition| Condition {
                r#type: condition.r#type.as_str(),
                status: condition.status,
                reason: condition.reason.to_owned(),
                message: condition.message.clone(),
            })
            .collect();
        conditions.push(tally.programmed(accepted));
        let weights = weights(&state.carriers, catalog);
        Self { generation: state.generation, conditions, programmed, weights }
    }

    /// Equal but for numbers that move with the fleet: these may wait.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.generation == other.generation
            && self.weights == other.weights
            && self.conditions.len() == other.conditions.len()
            && self
                .conditions
                .iter()
                .zip(&other.conditions)
                .all(|(a, b)| (a.r#type, a.status, &a.reason) == (b.r#type, b.status, &b.reason))
    }
}

impl Tally {
    /// Carriers of one type add up: each proxy is given one of them. Of several types, a proxy runs
    /// the object when it runs its carriers of every type, so the worst counts.
    fn of(carriers: &[Carrier], survey: &Survey) -> Self {
        let mut by_type: BTreeMap<i32, Self> = BTreeMap::new();
        for Carrier { key, hash } in carriers {
            let tally = by_type.entry(key.kind as i32).or_default();
            let (known, standing) = survey.of(key, *hash);
            tally.known += known;
            let Some(standing) = standing else { continue };
            tally.active += standing.active;
            tally.rejected += standing.rejected;
            let room = NAMED.saturating_sub(tally.rejecting.len());
            tally.rejecting.extend(standing.rejecting.iter().take(room).cloned());
        }
        let missing = by_type.values().map(|tally| tally.known - tally.active.min(tally.known));
        let missing = missing.max().unwrap_or_default();
        let known = by_type.values().map(|tally| tally.known).max().unwrap_or_default();
        let worst = by_type.into_values().max_by_key(|tally| tally.rejected).unwrap_or_default();
        Self { known, active: known - missing, ..worst }
    }

    fn programmed(&self, accepted: bool) -> Condition {
        let Self { known, active, rejected, .. } = self;
        let (status, reason, message) = if !accepted {
            let last = match known {
                0 => "no version of it is in force".to_owned(),
                _ => format!("{active} of {known} proxies run the last accepted version"),
            };
            (false, "NotAccepted", format!("see the condition Accepted; {last}"))
        } else if *rejected > 0 {
            let message = format!("{rejected} of {known} proxies reject it: {}", self.names());
            (false, "Rejected", message)
        } else if *known == 0 {
            let message = "no connected proxy needs it at present".to_owned();
            (false, "NoSubscribers", message)
        } else if active < known {
            (false, "Pending", format!("{active} of {known} proxies run it"))
        } else {
            (true, "Programmed", format!("{active} of {known} proxies run it"))
        };
        Condition { r#type: PROGRAMMED, status, reason: reason.to_owned(), message }
    }

    fn names(&self) -> String {
        let one = |rejecting: &Rejecting| {
            let Rejecting { pod, reason, path, message } = rejecting;
            let reason = rejection_label(*reason);
            match path.as_str() {
                "" => format!("{pod} ({reason}: {message})"),
                path => format!("{pod} ({reason}: {path}: {message})"),
            }
        };
        let named: Vec<_> = self.rejecting.iter().map(one).collect();
        named.join("; ")
    }
}

/// Of a TrafficSplit that is in force.
fn weights(carriers: &[Carrier], catalog: &Catalog) -> Option<String> {
    let split = carriers.iter().find(|carrier| carrier.key.kind == ResourceType::Split)?;
    let resource = catalog.find(ResourceType::Split, &split.key.name)?;
    let split = v1::Split::decode(resource.body.clone()).ok()?;
    let weights: Vec<_> = split.backends.iter().map(|backend| backend.weight.to_string()).collect();
    Some(weights.join("/"))
}

#[cfg(test)]
mod tests {
    use heddle_api::proto::v1::RejectionReason;
    use heddle_resources::{Kind, ObjectKey};

    use super::*;
    use crate::catalog::{Key, state};
    use crate::discovery::fleet::Standing;

    fn carrier(kind: ResourceType, name: &str, hash: u64) -> Carrier {
        Carrier { key: Key::new(kind, name), hash }
    }

    fn standing(given: u64, active: u64, rejected: u64) -> Standing {
        let rejecting = (0..rejected).map(|n| Rejecting {
            pod: format!("shop/web-{n}").into(),
            reason: RejectionReason::InvalidValue,
            path: "backends".to_owned(),
            message: "too many".to_owned(),
        });
        let rejecting = rejecting.collect();
        Standing { given, active, rejected, rejecting, ..Standing::default() }
    }

    fn wanted(carriers: Vec<Carrier>, accepted: bool, said: &[(Carrier, Standing)]) -> Wanted {
        let state = ObjectState {
            key: ObjectKey::new(Kind::TrafficSplit, "shop", "web"),
            generation: Some(3),
            conditions: vec![state::Condition {
                r#type: ConditionType::Accepted,
                status: accepted,
                reason: if accepted { "Accepted" } else { "Invalid" },
                message: String::new(),
            }],
            carriers,
        };
        let said = said
            .iter()
            .map(|(carrier, standing)| ((carrier.key.clone(), carrier.hash), standing.clone()));
        let catalog = Catalog::empty(v1::Version { epoch: 1, number: 1 });
        Wanted::of(&state, &catalog, &said.collect())
    }

    #[test]
    fn programmed_says_how_many_run_it_and_why_not() {
        let split = || carrier(ResourceType::Split, "shop/web", 7);
        let older = carrier(ResourceType::Split, "shop/web", 6);
        let check = |said: &[(Carrier, Standing)],
                     accepted,
                     reason: &str,
                     count: &str,
                     part: &str| {
            let wanted = wanted(vec![split()], accepted, said);
            let programmed = wanted.conditions.last().unwrap();
            assert_eq!((programmed.reason.as_str(), wanted.programmed.as_str()), (reason, count));
            assert_eq!(programmed.status, reason == "Programmed");
            assert!(programmed.message.contains(part), "{}", programmed.message);
        };
        check(&[], true, "NoSubscribers", "0/0", "no connected proxy");
        check(&[(split(), standing(3, 3, 0))], true, "Programmed", "3/3", "3 of 3");
        check(&[(split(), standing(3, 2, 0))], true, "Pending", "2/3", "2 of 3");
        let behind = [(split(), standing(1, 1, 0)), (older, standing(4, 4, 0))];
        check(&behind, true, "Pending", "1/5", "1 of 5");
        let rejected = [(split(), standing(9, 4, 5))];
        check(&rejected, true, "Rejected", "4/9", "shop/web-2 (invalid_value: backends: too many)");
        check(&[(split(), standing(3, 3, 0))], false, "NotAccepted", "3/3", "last accepted");
        check(&[], false, "NotAccepted", "0/0", "no version");
    }

    #[test]
    fn carriers_of_one_type_add_up_and_of_several_the_worst_counts() {
        let mesh = carrier(ResourceType::Mesh, "default", 1);
        let pods = ["shop/a", "shop/b"].map(|pod| carrier(ResourceType::InboundPolicy, pod, 1));
        let said = [
            (mesh.clone(), standing(2, 2, 0)),
            (pods[0].clone(), standing(1, 1, 0)),
            (pods[1].clone(), standing(1, 0, 0)),
        ];
        let wanted = wanted([vec![mesh], pods.to_vec()].concat(), true, &said);
        assert_eq!(wanted.programmed, "1/2");
    }
}
