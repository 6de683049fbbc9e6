//! What one proxy has been given: pure bookkeeping between what it should hold and what it does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use heddle_api::proto::v1::{Endpoints, ResourceType};
use prost::Message;

use crate::catalog::{Encoded, Key, Subscriber};
use crate::served::Served;

/// What a proxy said of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing yet.
    Pending,
    Active,
    Rejected,
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Rejected => "rejected",
        }
    }
}

/// A resource a proxy was given.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) resource: Arc<Encoded>,
    pub(crate) verdict: Verdict,
}

/// What a proxy is subscribed to and what it holds of it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) subscriptions: BTreeSet<SocketAddr>,
    pub(crate) given: HashMap<Key, Given>,
}

/// What separates a proxy from what it should hold.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// New, or with another body; what is referred to comes before what refers to it.
    pub(crate) changed: Vec<Arc<Encoded>>,
    pub(crate) removed: Vec<Key>,
}

impl Difference {
    pub(crate) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Everything a subscriber should hold, each resource once.
pub(crate) fn wanted(
    served: &Served,
    subscriber: &Subscriber<'_>,
    subscriptions: &BTreeSet<SocketAddr>,
) -> Vec<Arc<Encoded>> {
    let mut seen: HashSet<Key> = HashSet::new();
    let closures = subscriptions.iter();
    let closures =
        closures.flat_map(|address| served.catalog.closure(*address, subscriber.namespace));
    served
        .always(subscriber)
        .into_iter()
        .chain(closures)
        .filter(|resource| seen.insert(resource.key.clone()))
        .collect()
}

impl Ledger {
    /// Compares what the proxy holds with what it should.
    pub(crate) fn difference(&self, wanted: &[Arc<Encoded>]) -> Difference {
        let kept: HashSet<&Key> = wanted.iter().map(|resource| &resource.key).collect();
        let differs = |resource: &&Arc<Encoded>| {
            self.given.get(&resource.key).is_none_or(|held| held.resource.hash != resource.hash)
        };
        let mut removed: Vec<Key> =
            self.given.keys().filter(|key| !kept.contains(key)).cloned().collect();
        removed.sort();
        Difference { changed: wanted.iter().filter(differs).cloned().collect(), removed }
    }

    /// True when a ready endpoint goes away: never delayed, because every request until then may
    /// meet a closed port.
    pub(crate) fn loses_endpoint(&self, difference: &Difference) -> bool {
        let removed = difference.removed.iter().any(|key| key.kind == ResourceType::Endpoints);
        removed
            || difference.changed.iter().any(|new| {
                new.key.kind == ResourceType::Endpoints
                    && self.given.get(&new.key).is_some_and(|old| loses_ready(&old.resource, new))
            })
    }

    /// Notes that the proxy was given the difference. Returns what that replaced.
    pub(crate) fn commit(&mut self, difference: &Difference) -> Vec<Given> {
        let mut replaced = Vec::new();
        for key in &difference.removed {
            replaced.extend(self.given.remove(key));
        }
        for resource in &difference.changed {
            let given = Given { resource: resource.clone(), verdict: Verdict::Pending };
            replaced.extend(self.given.insert(resource.key.clone(), given));
        }
        replaced
    }

    /// Notes that the proxy holds these from an earlier stream: they are in use there.
    pub(crate) fn resume(&mut self, confirmed: &[Arc<Encoded>]) {
        for resource in confirmed {
            let given = Given { resource: resource.clone(), verdict: Verdict::Active };
            self.given.insert(resource.key.clone(), given);
        }
    }

    /// Notes a proxy's verdict. Returns the one before, or `None` when the report is of something
    /// that the proxy was not given, or no longer.
    pub(crate) fn judge(&mut self, key: &Key, hash: u64, verdict: Verdict) -> Option<Verdict> {
        let given = self.given.get_mut(key).filter(|given| given.resource.hash == hash)?;
        Some(std::mem::replace(&mut given.verdict, verdict))
    }
}

fn loses_ready(old: &Encoded, new: &Encoded) -> bool {
    let ready = |resource: &Encoded| -> HashSet<(String, u32, String)> {
        // What does not decode has nothing to lose; the compiler encoded both.
        let endpoints = Endpoints::decode(resource.body.clone()).unwrap_or_default().endpoints;
        let ready = endpoints.into_iter().filter(|endpoint| endpoint.ready);
        ready.map(|endpoint| (endpoint.address, endpoint.port, endpoint.identity)).collect()
    };
    !ready(old).is_subset(&ready(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_api::proto::v1::{Endpoint, Version};

    fn endpoints(name: &str, all: &[(&str, bool)]) -> Arc<Encoded> {
        let endpoint = |(address, ready): &(&str, bool)| Endpoint {
            address: (*address).to_owned(),
            port: 80,
            ready: *ready,
            ..Endpoint::default()
        };
        let message = Endpoints { endpoints: all.iter().map(endpoint).collect() };
        let key = Key::new(ResourceType::Endpoints, name);
        Arc::new(Encoded::new(key, Version { epoch: 1, number: 1 }, &message))
    }

    fn names(resources: &[Arc<Encoded>]) -> Vec<&str> {
        resources.iter().map(|resource| &*resource.key.name).collect()
    }

    #[test]
    fn sends_what_changed_and_removes_what_is_no_longer_wanted() {
        let mut ledger = Ledger::default();
        let (a, b) = (endpoints("a", &[("10.0.0.1", true)]), endpoints("b", &[]));
        let first = ledger.difference(&[a.clone(), b.clone()]);
        assert_eq!(names(&first.changed), ["a", "b"]);
        assert!(ledger.commit(&first).is_empty());
        assert!(ledger.difference(&[b.clone(), a]).is_empty());

        let a2 = endpoints("a", &[("10.0.0.2", true)]);
        let second = ledger.difference(std::slice::from_ref(&a2));
        assert_eq!(names(&second.changed), ["a"]);
        assert_eq!(second.removed, std::slice::from_ref(&b.key));
        let replaced = ledger.commit(&second);
        assert_eq!(replaced.len(), 2);
        assert!(ledger.difference(&[a2]).is_empty());
    }

    #[test]
    fn only_the_loss_of_a_ready_endpoint_is_urgent() {
        let old = [("10.0.0.1", true), ("10.0.0.2", true), ("10.0.0.3", false)];
        let check = |new: &[(&str, bool)], want: bool| {
            let mut ledger = Ledger::default();
            ledger.commit(&ledger.difference(&[endpoints("a", &old)]));
            let difference = ledger.difference(&[endpoints("a", new)]);
            assert_eq!(ledger.loses_endpoint(&difference), want, "{new:?}");
        };
        check(&[("10.0.0.1", true), ("10.0.0.3", false)], true);
        check(&[("10.0.0.1", true), ("10.0.0.2", false), ("10.0.0.3", false)], true);
        check(&[("10.0.0.1", true), ("10.0.0.2", true)], false);
        check(&[("10.0.0.1", true), ("10.0.0.2", true), ("10.0.0.3", true)], false);
        check(&[("10.0.0.1", true), ("10.0.0.4", true)], true);

        let mut ledger = Ledger::default();
        ledger.commit(&ledger.difference(&[endpoints("a", &old)]));
        assert!(ledger.loses_endpoint(&ledger.difference(&[])), "the Service is gone");
        assert!(!ledger.loses_endpoint(
            &ledger.difference(&[endpoints("a", &old), endpoints("b", &[("10.0.0.9", true)])])
        ));
    }

    #[test]
    fn verdicts_are_of_what_was_given() {
        let mut ledger = Ledger::default();
        let a = endpoints("a", &[]);
        ledger.commit(&ledger.difference(std::slice::from_ref(&a)));
        assert_eq!(ledger.judge(&a.key, a.hash, Verdict::Active), Some(Verdict::Pending));
        assert_eq!(ledger.judge(&a.key, a.hash, Verdict::Rejected), Some(Verdict::Active));
        assert_eq!(ledger.judge(&a.key, a.hash + 1, Verdict::Active), None);
        let other = Key::new(ResourceType::Split, "a");
        assert_eq!(ledger.judge(&other, a.hash, Verdict::Active), None);
    }
}
