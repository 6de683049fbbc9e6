//! What is said of the objects people write: issues, and the conditions they add up to. Pure data.
//!
//! For whoever writes statuses:
//!
//! - [`Catalog::object_states`] answers for every object of our own kinds its `Accepted` and
//!   `ResolvedRefs`, and the resources that carry it: [`Carrier`] is what `Fleet::standing` is asked
//!   for. A proxy runs the object when it runs every carrier that it was given; an object without
//!   carriers is in force nowhere.
//! - [`Catalog::route_statuses`] answers for every HTTPRoute and GRPCRoute, per parent that is a
//!   Service, the conditions of its RouteParentStatus. Parents of other kinds are other controllers'.
//! - A condition's `message` is whole and bounded; `reason` is CamelCase and from a closed list.
//! - `generation` is what `observedGeneration` has to say.
//!
//! Neither depends on anything but the catalog: equal catalogs, equal answers, in the same order.

use std::collections::{BTreeMap, HashMap};

use heddle_resources::{Kind, ObjectKey};
use serde::Serialize;

use super::{Catalog, Key};

/// Bytes of a condition's message; what is left out is counted.
const MESSAGE_LIMIT: usize = 2_048;

/// An object that is refused, or only partly in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Issue {
    pub kind: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
    /// Where the object was read, `file:line`, when the source knows.
    pub location: String,
    /// Field within the object.
    pub path: String,
    pub reason: Reason,
    /// What is wrong and what to write instead.
    pub message: String,
    /// `metadata.generation` of what was refused, when that is not the version in force.
    pub generation: Option<i64>,
}

/// Why an object is not, or not fully, in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// A value outside its range, or a contradiction within the object.
    Invalid,
    /// Meaningful, but not something we enforce.
    UnsupportedValue,
    /// Another object that says something else comes first.
    Conflicted,
    /// What the object speaks of does not exist.
    TargetNotFound,
    /// The Service exists, and has not the port, or is of a kind that cannot be a parent.
    NoMatchingParent,
    /// A backend, or its port, does not exist.
    BackendNotFound,
    /// A reference to something that is not a kind of backend.
    InvalidKind,
    /// Allowed, and easily read as more than it does.
    NoEffect,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::Conflicted => "Conflicted",
            Self::TargetNotFound => "TargetNotFound",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::BackendNotFound => "BackendNotFound",
            Self::InvalidKind => "InvalidKind",
            Self::NoEffect => "NoEffect",
        }
    }

    /// The condition that is False for this reason; `None` for a mere remark.
    #[must_use]
    pub fn denies(self) -> Option<ConditionType> {
        match self {
            Self::Invalid
            | Self::UnsupportedValue
            | Self::Conflicted
            | Self::TargetNotFound
            | Self::NoMatchingParent => Some(ConditionType::Accepted),
            Self::BackendNotFound | Self::InvalidKind => Some(ConditionType::ResolvedRefs),
            Self::NoEffect => None,
        }
    }
}

/// The conditions that follow from objects alone. `Programmed` is the fleet's to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum ConditionType {
    Accepted,
    ResolvedRefs,
    /// Routes only, and only when True: some rules are not in force.
    PartiallyInvalid,
}

impl ConditionType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::PartiallyInvalid => "PartiallyInvalid",
        }
    }
}

/// A condition, less what only its writer knows: when it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    pub r#type: ConditionType,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    /// `r#type` in view of everything wrong with the object: True when nothing denies it. Remarks go
    /// with `Accepted`.
    #[must_use]
    pub fn of(r#type: ConditionType, issues: &[&Issue]) -> Self {
        let denying: Vec<_> =
            issues.iter().filter(|issue| issue.reason.denies() == Some(r#type)).copied().collect();
        let remarks = issues
            .iter()
            .filter(|issue| r#type == ConditionType::Accepted && issue.reason.denies().is_none());
        let (status, reason) = match denying.first() {
            Some(first) => (false, first.reason.as_str()),
            None => (true, r#type.as_str()),
        };
        let message = message(denying.iter().copied().chain(remarks.copied()));
        Self { r#type, status, reason, message }
    }
}

impl Condition {
    /// Rules of a route are left out, as the message says.
    pub(crate) fn partially_invalid(mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
        let reason = Reason::UnsupportedValue.as_str();
        Self { r#type: ConditionType::PartiallyInvalid, status: true, reason, message }
    }
}

/// `path: message`, one after the other, as many as fit.
fn message<'a>(issues: impl Iterator<Item = &'a Issue>) -> String {
    let mut text = String::new();
    let mut left_out = 0_usize;
    for issue in issues {
        let one = match issue.path.as_str() {
            "" => issue.message.clone(),
            path => format!("{path}: {}", issue.message),
        };
        let separator = if text.is_empty() { "" } else { "; " };
        if left_out > 0 || (!text.is_empty() && text.len() + one.len() > MESSAGE_LIMIT) {
            left_out += 1;
            continue;
        }
        text.push_str(separator);
        text.push_str(&one[..one.floor_char_boundary(MESSAGE_LIMIT)]);
    }
    if left_out > 0 {
        text.push_str(&format!("; and {left_out} more"));
    }
    text
}

/// A resource as it is served now, for which the fleet knows who runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    pub key: Key,
    pub hash: u64,
}

/// How an object of our own kinds stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectState {
    pub key: ObjectKey,
    /// `None` where objects have none, as in files.
    pub generation: Option<i64>,
    /// Accepted, then ResolvedRefs.
    pub conditions: Vec<Condition>,
    /// The resources that hold what the object says. Ascending.
    pub carriers: Vec<Carrier>,
}

/// How an HTTPRoute or GRPCRoute stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteStatus {
    pub key: ObjectKey,
    pub generation: Option<i64>,
    /// One for each parentRef that names a Service, in the route's order.
    pub parents: Vec<ParentStatus>,
    /// The Routes that hold its rules. Ascending.
    pub carriers: Vec<Carrier>,
}

/// How a route stands with one of its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentStatus {
    /// As the route has it, for RouteParentStatus says it back.
    pub parent: Parent,
    /// Accepted, ResolvedRefs, and PartiallyInvalid when it is True.
    pub conditions: Vec<Condition>,
}

/// A parentRef that names a Service: group "", kind Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    pub section_name: Option<String>,
}

/// What the catalog keeps of an object with a status.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Known {
    pub(crate) generation: Option<i64>,
}

impl Catalog {
    /// How every object of our own kinds stands, by key. Objects that are refused and of which no
    /// good version is known are among them.
    #[must_use]
    pub fn object_states(&self) -> Vec<ObjectState> {
        let mut carriers = self.carriers();
        let mut states: BTreeMap<ObjectKey, Option<i64>> = BTreeMap::new();
        for (key, known) in self.objects.iter() {
            states.insert(key.clone(), known.generation);
        }
        let mut issues: HashMap<ObjectKey, Vec<&Issue>> = HashMap::new();
        for issue in self.issues.iter() {
            let Some(kind) = Kind::parse(&issue.kind).filter(|kind| kind.is_ours()) else {
                continue;
            };
            let key = ObjectKey::new(kind, &issue.namespace, &issue.name);
            let generation = states.entry(key.clone()).or_default();
            *generation = issue.generation.or(*generation);
            issues.entry(key).or_default().push(issue);
        }
        let state = |(key, generation): (ObjectKey, Option<i64>)| {
            let issues = issues.remove(&key).unwrap_or_default();
            let conditions = [ConditionType::Accepted, ConditionType::ResolvedRefs]
                .map(|r#type| Condition::of(r#type, &issues))
                .to_vec();
            let carriers = carriers.remove(&key).unwrap_or_default();
            ObjectState { key, generation, conditions, carriers }
        };
        states.into_iter().map(state).collect()
    }

    /// How every HTTPRoute and GRPCRoute stands that has a Service for a parent, by key.
    #[must_use]
    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut carriers = self.carriers();
        let mut statuses: Vec<RouteStatus> =
            self.routes.values().map(|route| RouteStatus::clone(route)).collect();
        statuses.sort_by(|a, b| a.key.cmp(&b.key));
        for status in &mut statuses {
            status.carriers = carriers.remove(&status.key).unwrap_or_default();
        }
        statuses
    }

    /// The resources that say what each object says.
    fn carriers(&self) -> HashMap<ObjectKey, Vec<Carrier>> {
        let mut carriers: HashMap<ObjectKey, Vec<Carrier>> = HashMap::new();
        for resource in self.iter() {
            for source in &resource.sources {
                let carrier = Carrier { key: resource.key.clone(), hash: resource.hash };
                carriers.entry(source.clone()).or_default().push(carrier);
            }
        }
        for all in carriers.values_mut() {
            all.sort_by(|a, b| a.key.cmp(&b.key));
        }
        carriers
    }
}
