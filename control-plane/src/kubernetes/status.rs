//! Writes the statuses of objects, on the leader alone: what the catalog says of each, and how many
//! proxies run it.
//!
//! What was written is remembered, so that nothing is written that says the same again; a new leader
//! reads first. Every write is one of a bounded number a second, and waits until the fleet has had
//! the time to answer; counts that merely move wait longer than a condition that turns.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use heddle_api::names::FIELD_MANAGER;
use heddle_resources::crd::status::Status;
use heddle_resources::{Kind, ObjectKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::source::resource;
use super::{Context, routes};
use crate::catalog::Catalog;
use crate::catalog::state::Carrier;
use crate::error::chain;
use crate::replica::{Gathered, Gatherer};
use crate::served::Served;

mod wanted;

use wanted::Wanted;

/// Between two looks at everything.
const PACE: Duration = Duration::from_millis(500);
/// A version is judged when its proxies have had this long to take it.
const SETTLE: Duration = Duration::from_millis(700);
/// Between two writes of an object in which only counts differ.
const COUNTS: Duration = Duration::from_secs(5);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// Writes in one look: what exceeds it waits for the next.
const WRITES_A_LOOK: usize = 10;
/// Objects read in one request.
const PAGE: u32 = 500;

/// Writes for as long as this replica leads.
pub(super) struct Writer {
    pub(super) context: Context,
    pub(super) served: watch::Receiver<Option<Served>>,
    pub(super) gathered: Gathered,
    /// Makes what hears the other replicas, anew for each leadership.
    pub(super) gatherer: Box<dyn Fn() -> Gatherer + Send + Sync>,
}

/// What one leadership remembers of an object.
#[derive(Debug, Default)]
struct Memory {
    /// What its status says, as far as known.
    written: Option<Status>,
    at: Option<Instant>,
    /// The carriers, and since when they are these.
    carriers: Vec<Carrier>,
    since: Option<Instant>,
    failed_at: Option<Instant>,
}

impl Writer {
    /// Until the drain.
    pub(super) async fn run(self) {
        let drain = self.context.drain.clone();
        loop {
            let mut leadership = self.context.leadership.clone();
            tokio::select! {
                () = leadership.gained() => {}
                () = drain.draining() => return,
            }
            let hearing = tokio::spawn((self.gatherer)().run());
            tokio::select! {
                () = self.lead() => {}
                () = leadership.lost() => {}
                () = drain.draining() => {}
            }
            hearing.abort();
        }
    }

    async fn lead(&self) {
        let mut memories = self.read_all().await;
        let mut written = routes::Written::default();
        loop {
            let served = self.served.borrow().clone();
            if let Some(served) = served {
                self.look(&served.catalog, &mut memories).await;
                routes::look(&self.context, &served.catalog, &mut written).await;
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// What the statuses say now, so that a new leader does not write all of them again.
    async fn read_all(&self) -> HashMap<ObjectKey, Memory> {
        let mut memories = HashMap::new();
        for kind in Kind::ALL.iter().copied().filter(|kind| kind.is_ours()) {
            match self.read_kind(kind).await {
                Ok(read) => memories.extend(read),
                // What is not remembered is written once more: no harm is done.
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(%kind, error, "cannot read statuses");
                }
            }
        }
        memories
    }

    async fn read_kind(&self, kind: Kind) -> Result<Vec<(ObjectKey, Memory)>, kube::Error> {
        let api: Api<DynamicObject> = Api::all_with(self.context.client.clone(), &resource(kind));
        let mut params = ListParams::default().limit(PAGE);
        let mut read = Vec::new();
        loop {
            let page = api.list(&params).await?;
            for object in page.items {
                let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                let name = object.metadata.name.as_deref().unwrap_or_default();
                let status = object.data.get("status").cloned();
                let written = status.and_then(|status| serde_json::from_value(status).ok());
                let memory = Memory { written, ..Memory::default() };
                read.push((ObjectKey::new(kind, namespace, name), memory));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(read),
            }
        }
    }

    /// Compares every object with what its status says, and writes what differs most urgently.
    async fn look(&self, catalog: &Catalog, memories: &mut HashMap<ObjectKey, Memory>) {
        let survey = self.gathered.survey();
        let now = Instant::now();
        let states = catalog.object_states();
        let known: HashSet<&ObjectKey> = states.iter().map(|state| &state.key).collect();
        memories.retain(|key, _| known.contains(key));
        let mut due = BTreeMap::new();
        for state in &states {
            let memory = memories.entry(state.key.clone()).or_default();
            if memory.since.is_none() || memory.carriers != state.carriers {
                memory.carriers.clone_from(&state.carriers);
                memory.since = Some(now);
            }
            let wanted = Wanted::of(state, catalog, &survey);
            if let Some(urgency) = memory.urgency(&wanted, now) {
                due.insert((urgency, state.key.clone()), wanted);
            }
        }
        for ((_, key), wanted) in due.into_iter().take(WRITES_A_LOOK) {
            if !self.context.leadership.is_held() {
                return;
            }
            let memory = memories.entry(key.clone()).or_default();
            let status = wanted.into_status(memory.written.as_ref());
            match self.write(&key, &status).await {
                Ok(()) => (memory.written, memory.at) = (Some(status), Some(Instant::now())),
                Err(error) => {
                    memory.failed_at = Some(Instant::now());
                    self.context.metrics.status_write_failures.inc();
                    let error = chain(&error);
                    tracing::warn!(%key, error, "cannot write a status");
                }
            }
        }
    }

    async fn write(&self, key: &ObjectKey, status: &Status) -> Result<(), kube::Error> {
        let (client, resource) = (self.context.client.clone(), resource(key.kind));
        let api: Api<DynamicObject> = match &*key.namespace {
            "" => Api::all_with(client, &resource),
            namespace => Api::namespaced_with(client, namespace, &resource),
        };
        let body = json!({
            "apiVersion": key.kind.api_version(),
            "kind": key.kind.as_str(),
            "metadata": { "name": &*key.name },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api.patch_status(&key.name, &params, &Patch::Apply(&body)).await;
        match written {
            Ok(_) => {
                self.context.metrics.status_writes.inc();
                Ok(())
            }
            // It is being deleted: the catalog will say so, too.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Memory {
    /// 0 for what should be written first; `None` for what need not, or not yet.
    fn urgency(&self, wanted: &Wanted, now: Instant) -> Option<u8> {
        let waited = |since: Option<Instant>, least| {
            since.is_none_or(|since| now.duration_since(since) >= least)
        };
        if !waited(self.since, SETTLE) || !waited(self.failed_at, RETRY) {
            return None;
        }
        let Some(written) = &self.written else { return Some(0) };
        let says = Wanted::said(written);
        if says == *wanted {
            return None;
        }
        if !says.is_like(wanted) {
            return Some(0);
        }
        waited(self.at, COUNTS).then_some(1)
    }
}

impl Wanted {
    /// What a status says already.
    fn said(status: &Status) -> Self {
        let conditions = status.conditions.iter().filter_map(|condition| {
            let r#type = wanted::TYPES.into_iter().find(|one| *one == condition.type_)?;
            Some(wanted::Condition {
                r#type,
                status: condition.status == "True",
                reason: condition.reason.clone(),
                message: condition.message.clone(),
            })
        });
        Self {
            generation: status.observed_generation,
            conditions: conditions.collect(),
            programmed: status.programmed.clone().unwrap_or_default(),
            weights: status.weights.clone(),
        }
    }

    /// The status to write. A condition keeps its time for as long as it does not turn.
    fn into_status(self, before: Option<&Status>) -> Status {
        let now = Timestamp::now();
        let conditions = self.conditions.into_iter().map(|condition| {
            let status = if condition.status { "True" } else { "False" };
            let same = before.into_iter().flat_map(|before| &before.conditions);
            let same =
                same.clone().find(|one| one.type_ == condition.r#type && one.status == status);
            Condition {
                type_: condition.r#type.to_owned(),
                status: status.to_owned(),
                reason: condition.reason,
                message: condition.message,
                observed_generation: self.generation,
                last_transition_time: same
                    .map_or(Time(now), |same| same.last_transition_time.clone()),
            }
        });
        Status {
            observed_generation: self.generation,
            conditions: conditions.collect(),
            programmed: Some(self.programmed),
            weights: self.weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(reason: &str, count: &str) -> Wanted {
        Wanted {
            generation: Some(2),
            conditions: vec![wanted::Condition {
                r#type: "Programmed",
                status: reason == "Programmed",
                reason: reason.to_owned(),
                message: format!("{count} proxies"),
            }],
            programmed: count.to_owned(),
            weights: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_turns_is_urgent_and_what_moves_can_wait() {
        let begun = Instant::now();
        let mut memory = Memory { since: Some(begun), ..Memory::default() };
        assert_eq!(memory.urgency(&wanted("Pending", "1/3"), begun), None, "not settled");
        let settled = begun + SETTLE;
        assert_eq!(memory.urgency(&wanted("Pending", "1/3"), settled), Some(0));
        memory.written = Some(wanted("Pending", "1/3").into_status(None));
        memory.at = Some(settled);
        assert_eq!(memory.urgency(&wanted("Pending", "1/3"), settled), None, "says the same");
        assert_eq!(memory.urgency(&wanted("Pending", "2/3"), settled), None, "moves");
        assert_eq!(memory.urgency(&wanted("Pending", "2/3"), settled + COUNTS), Some(1));
        assert_eq!(memory.urgency(&wanted("Programmed", "3/3"), settled), Some(0), "turns");
        memory.failed_at = Some(settled);
        assert_eq!(memory.urgency(&wanted("Programmed", "3/3"), settled), None, "just failed");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut first = wanted("Pending", "1/3").into_status(None);
        let long_ago = Time("2020-01-01T00:00:00Z".parse().unwrap());
        first.conditions[0].last_transition_time = long_ago.clone();
        let second = wanted("Pending", "2/3").into_status(Some(&first));
        assert_eq!(second.conditions[0].last_transition_time, long_ago);
        let third = wanted("Programmed", "3/3").into_status(Some(&second));
        assert_ne!(third.conditions[0].last_transition_time, long_ago);
    }
}
