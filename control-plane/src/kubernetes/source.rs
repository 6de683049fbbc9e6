//! Reads the cluster: one follower a kind, one task that makes batches of what they tell.
//!
//! Nothing is published before every kind was read whole. What controllers fill in is told at once;
//! what people write waits for the end of its burst, as in a directory of files.

use std::time::Duration;

use heddle_resources::Kind;
use kube::Api;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::Context;
use super::collection::Collection;
use super::epoch::{self, Epoch, Heard};
use super::follow::{Follower, News, Told};
use super::read;
use crate::index::Batch;

/// A burst of changes is over when nothing happened for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … and is not waited for longer than this.
const BURST_LIMIT: Duration = Duration::from_millis(250);
/// News that wait to be collected; beyond, followers wait, and the API server with them.
const NEWS_QUEUE: usize = 256;
/// Changes told at once while everything is read for the first time.
const BATCH_LIMIT: usize = 2_000;
const GATEWAY_API: &str = "gateway.networking.k8s.io/";

/// True for kinds that something is made of. Ours must be installed before anything is served: what
/// is missing may be a restriction.
fn is_read(kind: Kind) -> bool {
    match kind {
        Kind::Namespace | Kind::ServiceAccount | Kind::Deployment => false,
        Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::HTTPRoute
        | Kind::GRPCRoute
        | Kind::TrafficSplit
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy
        | Kind::MeshTLSPolicy
        | Kind::Mesh => true,
    }
}

/// Somebody else's kinds may be installed, or not, or later.
fn is_optional(kind: Kind) -> bool {
    kind.api_version().starts_with(GATEWAY_API)
}

/// The kinds that are read, and which of them may be missing.
fn kinds() -> impl Iterator<Item = (Kind, bool)> {
    let read = Kind::ALL.iter().copied().filter(|kind| is_read(*kind));
    read.map(|kind| (kind, is_optional(kind)))
}

/// Reads until the receiver is gone or the drain aborts.
pub(super) async fn run(context: Context, batches: mpsc::Sender<Batch>) {
    let heard = Heard::default();
    let epochs = watch::Sender::new(Epoch::default());
    let (no_epoch, problem) = watch::channel(Some("not read yet".to_owned()));
    context.gates.follow("epoch", problem, Clone::clone);
    let keeper = epoch::Keeper {
        config_maps: Api::namespaced(context.client.clone(), &context.settings.namespace),
        leadership: context.leadership.clone(),
        heard: heard.clone(),
        epoch: epochs.clone(),
        problem: no_epoch,
        failures: context.metrics.source_errors.with_label_values(&["epoch"]),
        rewinds: context.metrics.watches.rewinds.clone(),
    };
    tokio::spawn(keeper.run(context.drain.clone()));

    let (out, news) = mpsc::channel(NEWS_QUEUE);
    let numbers = watch::Sender::new(0);
    for (kind, _) in kinds() {
        follow(kind, &context, &out, numbers.subscribe());
    }
    drop(out);
    let collection = Collection::new(kinds());
    let (missing, unread) = watch::channel(collection.problem());
    context.gates.follow("watches", unread, Clone::clone);
    let reader = Reader {
        collection,
        heard,
        batches,
        missing,
        due: None,
        limit: None,
        epochs: epochs.subscribe(),
        numbers,
    };
    tokio::select! {
        () = reader.run(news) => {}
        () = context.drain.aborted() => {}
    }
}

fn follow(kind: Kind, context: &Context, out: &mpsc::Sender<Told>, epoch: watch::Receiver<u64>) {
    let client = context.client.clone();
    let failures = context.metrics.watches.errors.with_label_values(&[kind.as_str()]);
    let lists = context.metrics.watches.lists.with_label_values(&[kind.as_str()]);
    let out = out.clone();
    macro_rules! spawn {
        ($api:expr, $read:expr) => {{
            let (api, read) = ($api, $read);
            let (is_optional, pages) = (is_optional(kind), false);
            let follower =
                Follower { client, api, kind, read, out, failures, lists, is_optional, pages };
            tokio::spawn(follower.run(epoch));
        }};
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are read by their names")]
    match kind {
        Kind::Pod => spawn!(Api::all(client.clone()), |_, pod| read::pod(pod)),
        Kind::Service => spawn!(Api::all(client.clone()), |_, service| read::service(service)),
        Kind::EndpointSlice => {
            spawn!(Api::all(client.clone()), |_, slice| read::endpoint_slice(slice))
        }
        _ => spawn!(Api::<DynamicObject>::all_with(client.clone(), &resource(kind)), read::custom),
    }
}

/// What the API server calls the kind.
pub(super) fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    let named = GroupVersionKind::gvk(group, version, kind.as_str());
    ApiResource::from_gvk(&named)
}

struct Reader {
    collection: Collection,
    heard: Heard,
    batches: mpsc::Sender<Batch>,
    /// Why not everything was read yet.
    missing: watch::Sender<Option<String>>,
    /// When the burst that is waited for is over, if nothing more comes; and in any case.
    due: Option<Instant>,
    limit: Option<Instant>,
    epochs: watch::Receiver<Epoch>,
    /// The epoch that followers list under.
    numbers: watch::Sender<u64>,
}

impl Reader {
    async fn run(mut self, mut news: mpsc::Receiver<Told>) {
        loop {
            let due = self.due;
            let is_over = tokio::select! {
                biased;
                () = self.batches.closed() => return,
                changed = self.epochs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.begin();
                    false
                }
                told = news.recv() => {
                    let Some(told) = told else { return };
                    self.take(told);
                    // Whatever waits already belongs to the same moment.
                    while self.collection.len() < BATCH_LIMIT
                        && let Ok(told) = news.try_recv()
                    {
                        self.take(told);
                    }
                    false
                }
                () = wait_until(due) => true,
            };
            let everything = is_over || self.collection.len() >= BATCH_LIMIT;
            if (everything || self.collection.is_urgent())
                && let Some(batch) = self.collection.batch(everything)
                && self.batches.send(batch).await.is_err()
            {
                return;
            }
            self.await_burst();
            let problem = self.collection.problem();
            self.missing.send_if_modified(|missing| {
                let changed = *missing != problem;
                *missing = problem;
                changed
            });
        }
    }

    fn begin(&mut self) {
        let epoch = *self.epochs.borrow_and_update();
        self.collection.begin(epoch.number, epoch.revision);
        self.numbers.send_replace(epoch.number);
    }

    fn take(&mut self, told: Told) {
        let epoch = told.epoch;
        let is_change = !matches!(told.news, News::Progress { .. });
        self.collection.take(told);
        self.heard.note(epoch, self.collection.highest(epoch));
        if is_change {
            self.due = Some(Instant::now() + QUIET);
        }
    }

    /// What is left waits until nothing has come for a while, but never for long.
    fn await_burst(&mut self) {
        if !self.collection.is_pending() {
            (self.due, self.limit) = (None, None);
            return;
        }
        let now = Instant::now();
        let limit = *self.limit.get_or_insert(now + BURST_LIMIT);
        self.due = Some(self.due.unwrap_or(now + QUIET).min(limit));
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_asked_for_by_the_names_the_api_server_knows() {
        let paths: Vec<_> = kinds()
            .map(|(kind, _)| {
                let resource = resource(kind);
                format!("{}/{}/{}", resource.group, resource.version, resource.plural)
            })
            .collect();
        for wanted in [
            "/v1/pods",
            "/v1/services",
            "discovery.k8s.io/v1/endpointslices",
            "heddle.io/v1alpha1/trafficsplits",
            "heddle.io/v1alpha1/trafficpolicies",
            "heddle.io/v1alpha1/authorizationpolicies",
            "heddle.io/v1alpha1/meshtlspolicies",
            "heddle.io/v1alpha1/meshes",
        ] {
            assert!(paths.iter().any(|path| path == wanted), "{wanted} is not in {paths:?}");
        }
        assert!(!paths.iter().any(|path| path.contains("deployments")), "nothing is made of it");
    }
}
