//! The ConfigMap with the trust bundle in every namespace whose pods may have a proxy: a proxy that
//! starts reads its roots there. Kept by the leader, by server-side apply, and written again when
//! somebody deletes or changes it.
//!
//! It is left in place when the label goes, and kept current there: running pods still mount it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use heddle_api::names::{FIELD_MANAGER, INJECT_LABEL, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::lease::Leadership;
use crate::ca::bundle::Bundle;
use crate::conditions::{Condition, Conditions};
use crate::error::chain;
use crate::metrics::Metrics;

/// Between two writes: a change of roots reaches a thousand namespaces within 20 s, and is no load.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A namespace that could not be written is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Namespaces that a condition names.
const NAMED: usize = 5;
const UNWRITTEN: &str = "TrustBundleUnwritten";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Keeps the ConfigMaps current while this replica leads.
pub struct Keeper {
    pub client: kube::Client,
    pub bundle: watch::Receiver<Option<Arc<Bundle>>>,
    pub leadership: Leadership,
    /// Hash of the bundle that every ConfigMap holds; `None` while one does not.
    pub written: watch::Sender<Option<u64>>,
    pub metrics: Metrics,
    pub conditions: Conditions,
}

/// What is known of the cluster; nothing is decided before each part has been read whole.
#[derive(Debug, Default)]
struct Seen {
    labelled: Names,
    /// Namespaces with a pod that asks for a proxy by itself, since this replica leads.
    with_pods: Names,
    /// By namespace.
    maps: BTreeMap<String, Map>,
    maps_read: bool,
    /// Not tried again before this, and why.
    failed: BTreeMap<String, (Instant, String)>,
}

#[derive(Debug, Default)]
struct Names {
    all: BTreeSet<String>,
    is_read: bool,
}

/// A ConfigMap, less its text: there may be thousands.
#[derive(Debug, PartialEq, Eq)]
struct Map {
    is_ours: bool,
    digest: Option<Digest>,
}

/// SHA-256: who may write a ConfigMap must not be able to make another look like ours.
type Digest = [u8; 32];

impl Keeper {
    /// Works whenever this replica leads, until `stop` resolves.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let mut leadership = self.leadership.clone();
            tokio::select! {
                () = leadership.gained() => {}
                () = &mut stop => return,
            }
            tokio::select! {
                () = self.lead() => {}
                () = leadership.lost() => {}
                () = &mut stop => return,
            }
            // What others write from here on is not known.
            self.written.send_replace(None);
            self.conditions.clear(UNWRITTEN);
        }
    }

    async fn lead(&mut self) {
        let asks = format!("{INJECT_LABEL}=enabled");
        let labelled = watcher::Config::default().labels(&asks);
        let named = format!("metadata.name={TRUST_BUNDLE_CONFIG_MAP}");
        let named = watcher::Config::default().fields(&named);
        let client = &self.client;
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let pods = Api::<PartialObjectMeta<Pod>>::all(client.clone());
        let maps = Api::<ConfigMap>::all(client.clone());
        let mut namespaces = follow(namespaces, labelled.clone()).boxed();
        let mut pods = follow(pods, labelled).boxed();
        let mut maps = follow(maps, named).boxed();
        let mut seen = Seen::default();
        let mut ticks = tokio::time::interval(WRITE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let bundle = self.bundle.borrow_and_update().clone();
            let due = bundle.as_deref().and_then(|bundle| self.find_due(bundle, &seen));
            let retry = seen.failed.values().map(|(at, _)| *at).min();
            tokio::select! {
                // News first: what is written should be the latest.
                biased;
                Some(event) = namespaces.next() => self.note(event, |e| seen.labelled.apply(e, namespace_name)),
                Some(event) = maps.next() => self.note(event, |e| seen.apply_map(e)),
                Some(event) = pods.next() => self.note(event, |e| seen.with_pods.apply_lasting(e)),
                Ok(()) = self.bundle.changed() => {}
                _ = ticks.tick(), if due.is_some() => {
                    if let (Some(bundle), Some(namespace), true) =
                        (&bundle, due, self.leadership.is_held())
                    {
                        // Boxed: a request holds much, and there is one at a time.
                        Box::pin(self.write(bundle, namespace, &mut seen)).await;
                    }
                }
                () = sleep_until(retry), if due.is_none() && retry.is_some() => {
                    seen.failed.retain(|_, (at, _)| *at > Instant::now());
                }
            }
        }
    }

    fn note<E>(&self, event: Result<E, watcher::Error>, apply: impl FnOnce(E)) {
        match event {
            Ok(event) => apply(event),
            Err(error) => {
                self.metrics.source_errors.with_label_values(&["trust_bundle"]).inc();
                tracing::warn!(
                    error = chain(&error),
                    "cannot follow where the trust bundle is needed"
                );
            }
        }
    }

    /// A namespace whose ConfigMap must be written. Tells when there is none.
    fn find_due(&self, bundle: &Bundle, seen: &Seen) -> Option<String> {
        if !seen.is_read() {
            return None;
        }
        let due = seen.due(&digest(&bundle.pem()));
        let next = due.iter().find(|namespace| !seen.failed.contains_key(**namespace));
        let written = due.is_empty().then_some(bundle.encoded.hash);
        self.written.send_if_modified(|before| std::mem::replace(before, written) != written);
        if seen.failed.is_empty() {
            self.conditions.clear(UNWRITTEN);
        }
        next.map(|namespace| (*namespace).to_owned())
    }

    async fn write(&self, bundle: &Bundle, namespace: String, seen: &mut Seen) {
        let pem = bundle.pem();
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": TRUST_BUNDLE_CONFIG_MAP,
                "labels": {
                    "app.kubernetes.io/name": "heddle",
                    "app.kubernetes.io/component": "trust-bundle",
                    MANAGED_BY: FIELD_MANAGER,
                },
            },
            "data": { TRUST_BUNDLE_KEY: pem },
        });
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &namespace);
        // What is in it is ours to say: whoever else manages the field loses it.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&map);
        let applied = maps.patch(TRUST_BUNDLE_CONFIG_MAP, &params, &patch);
        let outcome = match tokio::time::timeout(WRITE_TIMEOUT, applied).await {
            Ok(Ok(_)) => Ok(()),
            // The namespace is going, or gone: nothing starts there.
            Ok(Err(kube::Error::Api(status))) if is_going(&status) => {
                seen.labelled.all.remove(&namespace);
                seen.with_pods.all.remove(&namespace);
                seen.maps.remove(&namespace);
                return;
            }
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {} s", WRITE_TIMEOUT.as_secs())),
        };
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        self.metrics.trust_bundle_writes.with_label_values(&[result]).inc();
        match outcome {
            Ok(()) => {
                seen.failed.remove(&namespace);
                let digest = Some(digest(&pem));
                seen.maps.insert(namespace, Map { is_ours: true, digest });
            }
            Err(problem) => {
                seen.failed.insert(namespace, (Instant::now() + RETRY_AFTER, problem));
                self.conditions.set(UNWRITTEN, unwritten(&seen.failed));
            }
        }
    }
}

impl Seen {
    fn is_read(&self) -> bool {
        self.labelled.is_read && self.with_pods.is_read && self.maps_read
    }

    /// Namespaces whose ConfigMap is missing or says something else.
    fn due(&self, wanted: &Digest) -> BTreeSet<&str> {
        let differs = |map: &Map| map.digest.as_ref() != Some(wanted);
        let asking = self.labelled.all.iter().chain(&self.with_pods.all);
        let missing = asking.filter(|namespace| self.maps.get(*namespace).is_none_or(differs));
        // Where nobody asks any more, ours are kept current, and not made again.
        let stale = self.maps.iter().filter(|(_, map)| map.is_ours && differs(map));
        missing.chain(stale.map(|(namespace, _)| namespace)).map(String::as_str).collect()
    }

    fn apply_map(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => {
                self.maps.clear();
                self.maps_read = false;
            }
            Event::InitApply(map) | Event::Apply(map) => {
                let is_ours = map.labels().get(MANAGED_BY).is_some_and(|by| by == FIELD_MANAGER);
                let pem = map.data.as_ref().and_then(|data| data.get(TRUST_BUNDLE_KEY));
                let digest = pem.map(|pem| digest(pem));
                self.maps.insert(map.namespace().unwrap_or_default(), Map { is_ours, digest });
            }
            Event::InitDone => self.maps_read = true,
            Event::Delete(map) => {
                self.maps.remove(&map.namespace().unwrap_or_default());
            }
        }
    }
}

impl Names {
    fn apply<K: Resource>(&mut self, event: Event<K>, name: fn(&K) -> String) {
        match event {
            Event::Init => *self = Self::default(),
            Event::InitApply(object) | Event::Apply(object) => {
                // Nothing can be made where everything is being deleted.
                if object.meta().deletion_timestamp.is_some() {
                    self.all.remove(&name(&object));
                } else {
                    self.all.insert(name(&object));
                }
            }
            Event::InitDone => self.is_read = true,
            Event::Delete(object) => {
                self.all.remove(&name(&object));
            }
        }
    }

    /// The namespaces of pods that come and go: one that had such a pod keeps its ConfigMap.
    fn apply_lasting(&mut self, event: Event<PartialObjectMeta<Pod>>) {
        match event {
            Event::InitApply(pod) | Event::Apply(pod) => {
                self.all.insert(pod.namespace().unwrap_or_default());
            }
            Event::InitDone => self.is_read = true,
            Event::Init | Event::Delete(_) => {}
        }
    }
}

fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).default_backoff()
}

fn namespace_name(namespace: &PartialObjectMeta<Namespace>) -> String {
    namespace.name_any()
}

fn is_going(status: &kube::core::Status) -> bool {
    let is_terminating = status.details.as_ref().is_some_and(|details| {
        details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
    });
    status.code == 404 || (status.code == 403 && is_terminating)
}

fn unwritten(failed: &BTreeMap<String, (Instant, String)>) -> Condition {
    let named: Vec<_> = failed.keys().take(NAMED).map(String::as_str).collect();
    let more = failed.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let problem = failed.values().next().map_or("", |(_, problem)| problem);
    Condition {
        kind: "ConfigMap",
        namespace: failed.keys().next().cloned().unwrap_or_default(),
        name: TRUST_BUNDLE_CONFIG_MAP.to_owned(),
        is_warning: true,
        message: format!(
            "cannot be written in {}{more}; proxies that start there may not trust the mesh: {problem}",
            named.join(", ")
        ),
    }
}

fn digest(pem: &str) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pem.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(namespace: &str, pem: &str, by: &str) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {
                "name": TRUST_BUNDLE_CONFIG_MAP,
                "namespace": namespace,
                "labels": { MANAGED_BY: by },
            },
            "data": { TRUST_BUNDLE_KEY: pem },
        }))
        .unwrap()
    }

    fn namespace(name: &str, is_going: bool) -> PartialObjectMeta<Namespace> {
        let mut metadata = json!({ "name": name });
        if is_going {
            metadata["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        }
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn pod(namespace: &str) -> PartialObjectMeta<Pod> {
        let metadata = json!({ "name": "a", "namespace": namespace });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn labelled(seen: &mut Seen, event: Event<PartialObjectMeta<Namespace>>) {
        seen.labelled.apply(event, namespace_name);
    }

    #[test]
    fn each_namespace_that_asks_and_each_map_of_ours_is_kept() {
        let mut seen = Seen::default();
        labelled(&mut seen, Event::Init);
        for name in ["missing", "stale", "current", "going"] {
            labelled(&mut seen, Event::InitApply(namespace(name, name == "going")));
        }
        seen.with_pods.apply_lasting(Event::InitApply(pod("pods")));
        for (at, pem, by) in [
            ("stale", "old", FIELD_MANAGER),
            ("current", "new", FIELD_MANAGER),
            ("unlabelled", "old", FIELD_MANAGER),
            ("foreign", "old", "somebody"),
        ] {
            seen.apply_map(Event::InitApply(map(at, pem, by)));
        }
        assert!(!seen.is_read(), "nothing is decided on half a list");
        labelled(&mut seen, Event::InitDone);
        seen.with_pods.apply_lasting(Event::InitDone);
        seen.apply_map(Event::InitDone);
        assert!(seen.is_read());
        let due = |seen: &Seen| {
            seen.due(&digest("new")).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(due(&seen), ["missing", "pods", "stale", "unlabelled"]);

        for name in ["missing", "pods", "stale", "unlabelled"] {
            seen.apply_map(Event::Apply(map(name, "new", FIELD_MANAGER)));
        }
        assert!(due(&seen).is_empty());
        // Deleted by hand: made again where it is asked for, and only there.
        seen.apply_map(Event::Delete(map("missing", "new", FIELD_MANAGER)));
        seen.apply_map(Event::Delete(map("unlabelled", "new", FIELD_MANAGER)));
        // Changed by hand.
        seen.apply_map(Event::Apply(map("stale", "evil", FIELD_MANAGER)));
        assert_eq!(due(&seen), ["missing", "stale"]);
        // The label goes: what is there stays, and is kept current.
        labelled(&mut seen, Event::Delete(namespace("stale", false)));
        labelled(&mut seen, Event::Delete(namespace("missing", false)));
        assert_eq!(due(&seen), ["stale"]);
    }

    #[test]
    fn a_failure_names_some_namespaces_and_counts_the_rest() {
        let failed = (0..8).map(|n| (format!("ns-{n}"), (Instant::now(), "forbidden".to_owned())));
        let message = unwritten(&failed.collect()).message;
        assert!(
            message.starts_with("cannot be written in ns-0, ns-1, ns-2, ns-3, ns-4 and 3 more;")
        );
        assert!(message.ends_with("forbidden"));
    }
}
