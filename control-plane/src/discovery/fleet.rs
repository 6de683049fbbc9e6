//! Every subscriber there is, and what they report of each resource. Memory grows with resources and
//! with subscriptions, never with their product: of rejecting proxies only some are named.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{self, RejectionReason, Version};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ledger::{Given, Ledger, Verdict};
use crate::catalog::Key;
use crate::traffic::Samples;

/// Rejecting proxies named per resource and version.
const NAMED_LIMIT: usize = 16;

/// The subscribers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    inner: Arc<Mutex<Inner>>,
    /// Raised whenever a standing changes.
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By "<namespace>/<pod>": a pod has one proxy, hence one stream.
    members: BTreeMap<Arc<str>, Arc<Member>>,
    standings: HashMap<(Key, u64), Standing>,
}

/// One proxy's stream, as others see it.
#[derive(Debug)]
pub struct Member {
    /// "<namespace>/<pod>".
    pub(crate) pod: Arc<str>,
    pub(crate) identity: SpiffeId,
    pub(crate) peer: IpAddr,
    pub(crate) proxy_version: String,
    pub(crate) level: u32,
    pub(crate) since: SystemTime,
    pub(crate) ledger: Mutex<Ledger>,
    /// What was sent last.
    pub(crate) version: Mutex<Version>,
    /// What it counted lately.
    pub(crate) traffic: Mutex<Samples>,
    /// Raised by one for every order to renew.
    pub(crate) renewals: watch::Sender<u64>,
    /// A newer stream of the same pod has come.
    pub(crate) superseded: CancellationToken,
}

/// How a resource stands with the proxies that were given this very body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    pub given: u64,
    pub active: u64,
    pub rejected: u64,
    /// Some of those that rejected it.
    pub rejecting: Vec<Rejecting>,
    /// The first rejection has been told: one proxy that wavers fills no log.
    pub(crate) announced: bool,
}

/// A proxy that rejected a resource, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejecting {
    pub pod: Arc<str>,
    pub reason: RejectionReason,
    pub path: String,
    pub message: String,
}

impl Fleet {
    /// Takes in a stream; an older one of the same pod is told to end.
    pub(crate) fn join(&self, member: Arc<Member>) {
        let older = self.lock().members.insert(member.pod.clone(), member);
        if let Some(older) = older {
            older.superseded.cancel();
        }
    }

    /// The stream has ended: forgets it and its part in every standing.
    pub(crate) fn leave(&self, member: &Arc<Member>) {
        let given: Vec<Given> =
            member.lock_ledger().given.drain().map(|(_, given)| given).collect();
        let mut inner = self.lock();
        inner.forget(&given, &member.pod);
        if inner.members.get(&member.pod).is_some_and(|current| Arc::ptr_eq(current, member)) {
            inner.members.remove(&member.pod);
        }
        drop(inner);
        self.note_change();
    }

    /// Notes what a proxy was given instead of what.
    pub(crate) fn gave<'a>(
        &self,
        given: impl Iterator<Item = (&'a Key, u64)>,
        replaced: &[Given],
        pod: &Arc<str>,
    ) {
        let mut inner = self.lock();
        inner.forget(replaced, pod);
        for (key, hash) in given {
            inner.standings.entry((key.clone(), hash)).or_default().given += 1;
        }
        drop(inner);
        self.note_change();
    }

    /// Notes a verdict: active, or a rejection. True when it is the first rejection of this body.
    pub(crate) fn judged(
        &self,
        key: &Key,
        hash: u64,
        before: Verdict,
        pod: &Arc<str>,
        rejection: Option<Rejecting>,
    ) -> bool {
        self.note_change();
        let mut inner = self.lock();
        let Some(standing) = inner.standings.get_mut(&(key.clone(), hash)) else { return false };
        standing.count(before, -1);
        standing.rejecting.retain(|other| other.pod != *pod);
        let Some(rejection) = rejection else {
            standing.count(Verdict::Active, 1);
            return false;
        };
        standing.count(Verdict::Rejected, 1);
        if standing.rejecting.len() < NAMED_LIMIT {
            standing.rejecting.push(rejection);
        }
        !std::mem::replace(&mut standing.announced, true)
    }

    /// Orders proxies to renew their certificates: one, or all. Returns how many were reached.
    #[must_use]
    pub fn renew(&self, pod: Option<&str>) -> usize {
        let inner = self.lock();
        let chosen = inner.members.values().filter(|member| pod.is_none_or(|p| p == &*member.pod));
        chosen.map(|member| member.renewals.send_modify(|orders| *orders += 1)).count()
    }

    /// The streams, in the order of their pods' names.
    #[must_use]
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.lock().members.values().cloned().collect()
    }

    /// How a resource's body stands with the proxies.
    #[must_use]
    pub fn standing(&self, key: &Key, hash: u64) -> Standing {
        self.lock().standings.get(&(key.clone(), hash)).cloned().unwrap_or_default()
    }

    /// Every standing there is.
    #[must_use]
    pub fn standings(&self) -> HashMap<(Key, u64), Standing> {
        self.lock().standings.clone()
    }

    /// Tells when a standing has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Every body that some proxy rejects.
    #[must_use]
    pub fn rejections(&self) -> Vec<(Key, Standing)> {
        let inner = self.lock();
        let rejected = inner.standings.iter().filter(|(_, standing)| standing.rejected > 0);
        let mut all: Vec<_> =
            rejected.map(|((key, _), standing)| (key.clone(), standing.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn note_change(&self) {
        self.revision.send_modify(|revision| *revision = revision.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    pub(crate) fn lock_ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_traffic(&self) -> MutexGuard<'_, Samples> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sent_version(&self) -> Version {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_version(&self, version: Version) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }
}

impl Inner {
    fn forget(&mut self, given: &[Given], pod: &Arc<str>) {
        for Given { resource, verdict } in given {
            let slot = (resource.key.clone(), resource.hash);
            let Some(standing) = self.standings.get_mut(&slot) else { continue };
            standing.given = standing.given.saturating_sub(1);
            standing.count(*verdict, -1);
            standing.rejecting.retain(|rejecting| rejecting.pod != *pod);
            if standing.given == 0 {
                self.standings.remove(&slot);
            }
        }
    }
}

impl Standing {
    /// Adds what another replica counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.given += other.given;
        self.active += other.active;
        self.rejected += other.rejected;
        let room = NAMED_LIMIT.saturating_sub(self.rejecting.len());
        self.rejecting.extend(other.rejecting.iter().take(room).cloned());
    }

    /// What was told by another replica; `None` for what it has forgotten.
    pub(crate) fn parse(told: v1::Standing) -> Option<Self> {
        let rejecting = told.rejecting.into_iter().take(NAMED_LIMIT).map(|one| Rejecting {
            reason: one.reason(),
            pod: one.pod.into(),
            path: one.path,
            message: one.message,
        });
        let rejecting = rejecting.collect();
        let v1::Standing { given, active, rejected, .. } = told;
        (given > 0).then_some(Self { given, active, rejected, rejecting, announced: true })
    }

    /// For another replica.
    pub(crate) fn tell(&self, key: &Key, hash: u64) -> v1::Standing {
        let rejecting = self.rejecting.iter().map(|one| v1::RejectingProxy {
            pod: one.pod.to_string(),
            reason: one.reason.into(),
            path: one.path.clone(),
            message: one.message.clone(),
        });
        v1::Standing {
            r#type: key.kind.into(),
            name: key.name.to_string(),
            hash,
            given: self.given,
            active: self.active,
            rejected: self.rejected,
            rejecting: rejecting.collect(),
        }
    }

    fn count(&mut self, verdict: Verdict, step: i64) {
        let counter = match verdict {
            Verdict::Pending => return,
            Verdict::Active => &mut self.active,
            Verdict::Rejected => &mut self.rejected,
        };
        *counter = counter.saturating_add_signed(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Encoded;
    use heddle_api::proto::v1::{ResourceType, Split};

    fn resource() -> Arc<Encoded> {
        let key = Key::new(ResourceType::Split, "shop/web");
        Arc::new(Encoded::new(key, Version { epoch: 1, number: 1 }, &Split::default()))
    }

    fn rejecting(pod: &str) -> Option<Rejecting> {
        let (path, message) = (String::new(), String::new());
        Some(Rejecting { pod: pod.into(), reason: RejectionReason::Malformed, path, message })
    }

    #[test]
    fn counts_follow_verdicts_and_names_are_capped() {
        let fleet = Fleet::default();
        let one = resource();
        let (key, hash) = (&one.key, one.hash);
        for n in 0..40 {
            let pod: Arc<str> = format!("shop/{n}").into();
            fleet.gave([(key, hash)].into_iter(), &[], &pod);
            let first = fleet.judged(key, hash, Verdict::Pending, &pod, rejecting(&pod));
            assert_eq!(first, n == 0);
        }
        let standing = fleet.standing(key, hash);
        assert_eq!((standing.given, standing.active, standing.rejected), (40, 0, 40));
        assert_eq!(standing.rejecting.len(), NAMED_LIMIT);
        assert_eq!(fleet.rejections().len(), 1);

        let given = [Given { resource: one.clone(), verdict: Verdict::Rejected }];
        for n in 0..40 {
            fleet.gave(std::iter::empty(), &given, &format!("shop/{n}").into());
        }
        assert!(fleet.lock().standings.is_empty(), "nothing is kept of what nobody holds");
    }

    #[test]
    fn repeated_and_changed_verdicts_are_counted_once() {
        let fleet = Fleet::default();
        let one = resource();
        let (key, hash) = (&one.key, one.hash);
        let pod: Arc<str> = "shop/a".into();
        fleet.gave([(key, hash)].into_iter(), &[], &pod);
        fleet.judged(key, hash, Verdict::Pending, &pod, rejecting("shop/a"));
        fleet.judged(key, hash, Verdict::Rejected, &pod, rejecting("shop/a"));
        assert_eq!(fleet.standing(key, hash).rejecting.len(), 1);
        fleet.judged(key, hash, Verdict::Rejected, &pod, None);
        assert!(fleet.standing(key, hash).rejecting.is_empty());
        let standing = fleet.standing(key, hash);
        assert_eq!((standing.given, standing.active, standing.rejected), (1, 1, 0));
    }
}
