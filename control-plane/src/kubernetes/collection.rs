//! What the watches of all kinds say together → batches. Pure: no clock, no tasks.
//!
//! Knows which objects were told of each kind, so that a list tells also what has gone; keeps the
//! last good version of an object that is refused, or what denies in its place; and knows when
//! everything there is has been told, and up to which number.

use std::collections::{BTreeMap, HashMap, HashSet};

use heddle_resources::{Kind, ObjectKey};

use super::follow::{News, Told};
use super::read::Reading;
use crate::catalog::Issue;
use crate::index::{Batch, Event, Mark};

/// All kinds.
pub(super) struct Collection {
    kinds: BTreeMap<Kind, State>,
    refused: BTreeMap<ObjectKey, Vec<Issue>>,
    refused_changed: bool,
    /// What controllers fill in, among it the loss of an endpoint: told without delay.
    urgent: Vec<Event>,
    /// What people write, which comes in bursts.
    calm: Vec<Event>,
    /// The epoch under which everything was last told, and the revision it began at.
    epoch: u64,
    begins: HashMap<u64, u64>,
    told: Option<Mark>,
    is_complete: bool,
}

/// One kind.
#[derive(Default)]
struct State {
    /// May be missing from the cluster.
    is_optional: bool,
    objects: HashMap<ObjectKey, Standing>,
    /// During a list: what it has said so far.
    listed: Option<HashSet<ObjectKey>>,
    /// Under which epoch it was last told whole.
    epoch: u64,
    /// Of the epoch being read: the highest number of any object, and of anything heard.
    reading: u64,
    seen: u64,
    progress: u64,
    problem: Option<String>,
}

/// What the index holds of an object.
struct Standing {
    uid: String,
    /// False for what stands in for it.
    is_good: bool,
}

impl Collection {
    pub(super) fn new(kinds: impl IntoIterator<Item = (Kind, bool)>) -> Self {
        let state = |is_optional| State { is_optional, ..State::default() };
        Self {
            kinds: kinds.into_iter().map(|(kind, optional)| (kind, state(optional))).collect(),
            refused: BTreeMap::new(),
            refused_changed: false,
            urgent: Vec::new(),
            calm: Vec::new(),
            epoch: 0,
            begins: HashMap::new(),
            told: None,
            is_complete: false,
        }
    }

    /// An epoch begins: lists made under it are complete at least up to `revision`.
    pub(super) fn begin(&mut self, epoch: u64, revision: u64) {
        self.begins.retain(|old, _| *old >= self.epoch);
        self.begins.insert(epoch, revision);
    }

    /// Takes in what was told.
    pub(super) fn take(&mut self, told: Told) {
        let Told { kind, epoch, news } = told;
        let Some(state) = self.kinds.get_mut(&kind) else { return };
        if epoch < state.reading {
            return;
        }
        if epoch > state.reading {
            (state.reading, state.seen, state.progress) = (epoch, 0, 0);
            state.listed = None;
        }
        match news {
            News::Begin => state.listed = Some(HashSet::new()),
            News::Apply { key, uid, number, reading } => {
                state.heard(number);
                if let Some(listed) = &mut state.listed {
                    listed.insert(key.clone());
                }
                self.apply(&key, uid, *reading);
            }
            News::Delete { key, number } => {
                state.heard(number);
                if let Some(listed) = &mut state.listed {
                    listed.remove(&key);
                }
                self.delete(&key);
            }
            News::Complete { revision } => {
                state.complete(revision);
                let listed = state.listed.take().unwrap_or_default();
                let gone: Vec<_> =
                    state.objects.keys().filter(|key| !listed.contains(key)).cloned().collect();
                if !gone.is_empty() {
                    // Nobody numbered their end; the list's own number is above it.
                    state.seen = state.seen.max(revision);
                }
                gone.iter().for_each(|key| self.delete(key));
            }
            News::Progress { revision } => state.progress = state.progress.max(revision),
            News::Absent if state.is_optional => {
                // What was told of it before holds: an absence is no word of anybody's.
                state.complete(0);
                state.listed = None;
            }
            News::Absent => {
                let crds = "is not installed; install the chart heddle-crds";
                state.problem = Some(crds.to_owned());
            }
            News::Failed(problem) => state.problem = Some(problem),
        }
    }

    fn apply(&mut self, key: &ObjectKey, uid: String, reading: Reading) {
        let state = self.kinds.get_mut(&key.kind).expect("asked for above");
        let (located, is_good) = match reading {
            Reading::Good(located) => {
                self.refused_changed |= self.refused.remove(key).is_some();
                (located, true)
            }
            Reading::Refused { issues, stand_in } => {
                self.refused_changed |= self.refused.get(key) != Some(&issues);
                self.refused.insert(key.clone(), issues);
                let known = state.objects.get(key);
                // The last good version of this very object, not of an earlier one of its name.
                if known.is_some_and(|known| known.is_good && known.uid == uid) {
                    return;
                }
                let Some(stand_in) = stand_in else { return self.forget(key) };
                (stand_in, false)
            }
        };
        state.objects.insert(key.clone(), Standing { uid, is_good });
        self.push(key.kind, Event::Apply(located));
    }

    fn delete(&mut self, key: &ObjectKey) {
        self.refused_changed |= self.refused.remove(key).is_some();
        self.forget(key);
    }

    fn forget(&mut self, key: &ObjectKey) {
        let state = self.kinds.get_mut(&key.kind).expect("asked for above");
        if state.objects.remove(key).is_some() {
            self.push(key.kind, Event::Delete(key.clone()));
        }
    }

    fn push(&mut self, kind: Kind, event: Event) {
        match is_urgent(kind) {
            true => self.urgent.push(event),
            false => self.calm.push(event),
        }
    }

    /// True when something waits that must not.
    pub(super) fn is_urgent(&self) -> bool {
        !self.urgent.is_empty() || (!self.is_complete && self.is_whole())
    }

    /// True when something waits at all.
    pub(super) fn is_pending(&self) -> bool {
        !self.calm.is_empty()
            || self.refused_changed
            || self.is_urgent()
            || self.mark() != self.told
    }

    /// How many changes wait.
    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.calm.len()
    }

    /// What is to be told now: everything, or only what must not wait. `None`: nothing.
    pub(super) fn batch(&mut self, everything: bool) -> Option<Batch> {
        let is_whole = self.is_whole();
        let initial = is_whole && !self.is_complete;
        let everything = everything || initial;
        if is_whole {
            self.epoch = self.reading();
        }
        self.is_complete |= is_whole;
        let mut events = std::mem::take(&mut self.urgent);
        if everything {
            events.append(&mut self.calm);
        }
        let mark = self.mark();
        let is_news = !events.is_empty() || initial || (everything && self.refused_changed);
        if !is_news && (mark == self.told || !everything) {
            return None;
        }
        if everything {
            self.refused_changed = false;
        }
        self.told = mark;
        let refused = self.refused.values().flatten().cloned().collect();
        Some(Batch { events, initial, refused, mark })
    }

    /// Why not everything has been told yet, as far as that is known.
    pub(super) fn problem(&self) -> Option<String> {
        if self.is_complete {
            return None;
        }
        let missing = self.kinds.iter().filter(|(_, state)| state.epoch == 0);
        let missing = missing.map(|(kind, state)| {
            let problem = state.problem.as_deref().unwrap_or("not read yet");
            format!("{kind}: {problem}")
        });
        Some(missing.collect::<Vec<_>>().join("; "))
    }

    /// The highest revision heard of in `epoch`.
    pub(super) fn highest(&self, epoch: u64) -> u64 {
        let states = self.kinds.values().filter(|state| state.reading == epoch);
        states.map(|state| state.seen.max(state.progress)).max().unwrap_or(0)
    }

    /// The newest epoch that any kind is read under.
    fn reading(&self) -> u64 {
        self.kinds.values().map(|state| state.reading).max().unwrap_or(0)
    }

    /// True when every kind was told whole under one epoch.
    fn is_whole(&self) -> bool {
        let epoch = self.reading();
        epoch > 0 && self.kinds.values().all(|state| state.epoch == epoch)
    }

    /// Numbers of an epoch count once everything was read under it.
    fn mark(&self) -> Option<Mark> {
        let states = || self.kinds.values().filter(|state| state.reading == self.epoch);
        let seen = states().map(|state| state.seen).max().filter(|_| self.epoch > 0);
        let Some(seen) = seen else { return self.told };
        let began = self.begins.get(&self.epoch).copied().unwrap_or(0);
        let progress = match states().count() == self.kinds.len() {
            true => states().filter(|s| s.progress > 0).map(|s| s.progress).min().unwrap_or(0),
            false => 0,
        };
        Some(Mark { epoch: self.epoch, seen, known: seen.max(began).max(progress) })
    }
}

impl State {
    fn heard(&mut self, number: u64) {
        self.seen = self.seen.max(number);
        if self.listed.is_none() {
            self.progress = self.progress.max(number);
        }
    }

    fn complete(&mut self, revision: u64) {
        self.epoch = self.reading;
        self.progress = self.progress.max(revision);
        self.problem = None;
    }
}

fn is_urgent(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::EndpointSlice)
}

#[cfg(test)]
mod tests;
