//! The trust root of a cluster: follows its Secret, makes one when there is none, and lets a new
//! issuer sign only when those who must believe it have been told of its roots. What is decided is
//! decided in `ca::rotation`; this is the only place that reads and writes the two Secrets.
//!
//! Every replica follows both Secrets and switches by itself; only the leader writes. A Secret that
//! cannot be used changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use heddle_api::names::{TRUST_ANCHORS_SECRET, TRUST_ROOT_SECRET};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::lease::Leadership;
use super::token_review::Reviewer;
use super::{Context, bundle_map};
use crate::app::Trust;
use crate::authn::Verifier;
use crate::ca::bundle::Bundle;
use crate::ca::rotation::{self, Decision, Progress, Record};
use crate::ca::{Authority, secret};
use crate::conditions::{Condition, Conditions};
use crate::discovery::fleet::Fleet;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::version::Versions;

mod expiry;
mod write;

/// While something is awaited.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
/// Dates are compared with the clock this often.
const IDLE_INTERVAL: Duration = Duration::from_secs(30);
const WRITE_PAUSE: Duration = Duration::from_secs(5);
/// Orders to renew after a switch: well below what the replicas sign in a second.
const ORDER_INTERVAL: Duration = Duration::from_millis(50);

/// A Secret's content, key by key.
type Data = BTreeMap<String, Vec<u8>>;

/// Starts following the trust root, and keeping the ConfigMaps with the bundle.
pub(super) fn start(context: &Context, leaf_lifetime: Duration, fleet: Fleet) -> Trust {
    let (authority, signs) = watch::channel(None);
    let (bundle, told) = watch::channel(None);
    let (written, maps) = watch::channel(None);
    let Context { client, metrics, conditions, leadership, drain, .. } = context;
    let keeper = Keeper {
        secrets: Api::namespaced(client.clone(), &context.settings.namespace),
        namespace: context.settings.namespace.clone(),
        leaf_lifetime,
        leadership: leadership.clone(),
        maps,
        fleet,
        metrics: metrics.clone(),
        conditions: conditions.clone(),
        versions: context.versions.clone(),
        authority,
        bundle,
    };
    let maps = bundle_map::Keeper {
        client: client.clone(),
        bundle: told.clone(),
        leadership: leadership.clone(),
        written,
        metrics: metrics.clone(),
        conditions: conditions.clone(),
    };
    let (stop, stop_maps) = (drain.clone(), drain.clone());
    tokio::spawn(async move { keeper.run(stop.aborted()).await });
    tokio::spawn(async move { maps.run(stop_maps.aborted()).await });
    context.gates.follow("trust-root", signs.clone(), |authority| {
        authority.is_none().then(|| format!("the Secret {TRUST_ROOT_SECRET} gives no issuer yet"))
    });
    let verifier = Verifier::Review(Arc::new(Reviewer::new(client.clone())));
    Trust { authority: signs, bundle: told, verifier }
}

/// Keeps authority and trust bundle current.
pub struct Keeper {
    /// Of the control plane's own namespace.
    pub secrets: Api<Secret>,
    pub namespace: String,
    pub leaf_lifetime: Duration,
    pub leadership: Leadership,
    /// Hash of the bundle that the ConfigMap of every namespace holds. Known to the leader.
    pub maps: watch::Receiver<Option<u64>>,
    pub fleet: Fleet,
    pub metrics: Metrics,
    pub conditions: Conditions,
    pub versions: Versions,
    pub authority: watch::Sender<Option<Arc<Authority>>>,
    pub bundle: watch::Sender<Option<Arc<Bundle>>>,
}

/// What has been seen.
#[derive(Default)]
struct Seen {
    root: Root,
    record: Option<Record>,
    /// The record stands in its Secret, and not only here.
    is_recorded: bool,
    /// The higher resourceVersion of the two.
    version: u64,
    /// The last content that could be used, to restore it.
    good: Option<Data>,
    /// Who is to sign next.
    candidate: Option<Arc<Authority>>,
    /// When the bundle in force was published.
    told_at: Option<Instant>,
    /// No write before this, after a failure.
    write_after: Option<Instant>,
}

impl Seen {
    fn saw(&mut self, secret: &Secret) {
        let version = secret.resource_version().and_then(|version| version.parse().ok());
        self.version = self.version.max(version.unwrap_or(0));
    }
}

#[derive(Default)]
enum Root {
    #[default]
    Unread,
    Absent(Instant),
    Present,
}

impl Keeper {
    /// Follows the Secrets until `stop` resolves.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut roots = follow(self.secrets.clone(), TRUST_ROOT_SECRET).boxed();
        let mut records = follow(self.secrets.clone(), TRUST_ANCHORS_SECRET).boxed();
        let mut stop = std::pin::pin!(stop);
        let mut leadership = self.leadership.clone();
        let mut seen = Seen::default();
        loop {
            // Boxed: a request holds much, and is rare.
            let pause = Box::pin(self.step(&mut seen)).await;
            tokio::select! {
                Some(event) = roots.next() => match event {
                    Ok(root) => self.read_root(root, &mut seen),
                    Err(error) => self.note_watch(&error),
                },
                Some(event) = records.next() => match event {
                    Ok(record) => self.read_record(record, &mut seen),
                    Err(error) => self.note_watch(&error),
                },
                () = leadership.gained(), if !leadership.is_held() => {}
                Ok(()) = self.maps.changed() => {}
                () = tokio::time::sleep(pause) => {}
                () = &mut stop => return,
            }
        }
    }

    fn note_watch(&self, error: &watcher::Error) {
        self.metrics.source_errors.with_label_values(&["trust_root"]).inc();
        tracing::warn!(error = chain(error), "cannot follow the trust root; what it said holds");
    }

    fn read_root(&self, root: Option<Secret>, seen: &mut Seen) {
        let Some(root) = root else {
            seen.root = Root::Absent(Instant::now());
            let what =
                if self.is_signing() { "is gone; the last one is in force" } else { "is absent" };
            self.warn(MISSING, format!("the Secret {what}. The leader writes it"));
            return;
        };
        seen.root = Root::Present;
        self.conditions.clear(MISSING);
        seen.saw(&root);
        let data = content(root);
        let given = match secret::read(&data, self.leaf_lifetime, SystemTime::now()) {
            Ok(given) => given,
            Err(error) => {
                self.metrics.source_errors.with_label_values(&["trust_root"]).inc();
                let held = if self.is_signing() {
                    "the last good one is in force"
                } else {
                    "nothing is signed"
                };
                return self.warn(UNUSABLE, format!("{}; {held}", chain(&error)));
            }
        };
        if given.expired > 0 {
            let message = format!(
                "{} roots in ca.crt have expired and are left out; remove them",
                given.expired
            );
            self.warn(EXPIRED_ROOTS, message);
        } else {
            self.conditions.clear(EXPIRED_ROOTS);
        }
        let next = Arc::new(given.authority);
        let current = self.authority.borrow().clone();
        let record = seen.record.clone().unwrap_or_default();
        if let Err(too_many) =
            rotation::roots(Some(&next), current.as_deref(), &record, SystemTime::now())
        {
            self.metrics.source_errors.with_label_values(&["trust_root"]).inc();
            return self.warn(UNUSABLE, format!("ca.crt names too many roots: {too_many}"));
        }
        self.conditions.clear(UNUSABLE);
        seen.good = Some(data);
        let is_same = |known: &Option<Arc<Authority>>| {
            known.as_ref().is_some_and(|known| {
                known.fingerprint() == next.fingerprint() && known.roots() == next.roots()
            })
        };
        if is_same(&current) {
            // What was written last counts: a candidate that was taken back is none.
            seen.candidate = None;
            self.conditions.clear(ROTATING);
        } else if !is_same(&seen.candidate) {
            seen.candidate = Some(next);
        }
    }

    fn read_record(&self, record: Option<Secret>, seen: &mut Seen) {
        if let Some(record) = &record {
            seen.saw(record);
        }
        let read = record.map(|record| Record::read(&content(record)));
        seen.is_recorded = matches!(read, Some(Ok(_)));
        match read {
            Some(Ok(record)) => {
                self.conditions.clear(RECORD_UNUSABLE);
                seen.record = Some(record);
                return;
            }
            Some(Err(problem)) => {
                self.metrics.source_errors.with_label_values(&["trust_root"]).inc();
                let message = format!("{problem}. The leader writes it anew from what is in force");
                let about = self.about(TRUST_ANCHORS_SECRET, true, message);
                self.conditions.set(RECORD_UNUSABLE, about);
            }
            None => {}
        }
        // What is told of stays so: roots are only lost when every process is, too.
        let told = self.bundle.borrow().as_ref().map(|bundle| bundle.roots.to_vec());
        seen.record = Some(Record::default().with(&told.unwrap_or_default()));
    }

    /// Brings everything as far as it can be now. Returns when to look again at the latest.
    async fn step(&mut self, seen: &mut Seen) -> Duration {
        let Some(record) = seen.record.clone() else { return IDLE_INTERVAL };
        self.tell(seen, &record);
        self.advance(seen, &record);
        if let Some(current) = &*self.authority.borrow() {
            expiry::note(self, current);
        }
        let is_idle = seen.candidate.is_none() && matches!(seen.root, Root::Present);
        if !self.leadership.is_held() {
            return if is_idle { IDLE_INTERVAL } else { BUSY_INTERVAL };
        }
        if seen.write_after.is_none_or(|at| at <= Instant::now()) {
            let written = match seen.root {
                Root::Unread => Ok(()),
                Root::Absent(since) => self.write_root(seen, since).await,
                Root::Present => self.write_record(seen, &record).await,
            };
            match written {
                Ok(()) => self.conditions.clear(UNWRITABLE),
                Err(problem) => {
                    seen.write_after = Some(Instant::now() + WRITE_PAUSE);
                    self.warn(UNWRITABLE, problem);
                }
            }
        }
        if is_idle && seen.write_after.is_none() { IDLE_INTERVAL } else { BUSY_INTERVAL }
    }

    /// Publishes the roots that everybody should know.
    fn tell(&self, seen: &mut Seen, record: &Record) {
        let current = self.authority.borrow().clone();
        let wanted = seen.candidate.as_deref();
        if wanted.is_none() && current.is_none() {
            return;
        }
        let roots = match rotation::roots(wanted, current.as_deref(), record, SystemTime::now()) {
            Ok(roots) => roots,
            // Only a record that was written by somebody else gets here: what is told stays.
            Err(too_many) => return self.warn(UNUSABLE, too_many.to_string()),
        };
        let is_told =
            |told: &Option<Arc<Bundle>>| told.as_ref().is_some_and(|told| *told.roots == *roots);
        if is_told(&self.bundle.borrow()) {
            return;
        }
        if let Versions::Marked(marks) = &self.versions {
            marks.saw(seen.version);
        }
        self.bundle.send_replace(Some(Arc::new(Bundle::new(&roots, self.versions.next()))));
        seen.told_at = Some(Instant::now());
        tracing::info!(roots = roots.len(), "trust bundle changed");
    }

    /// Lets the candidate sign when it may.
    fn advance(&self, seen: &mut Seen, record: &Record) {
        let Some(candidate) = seen.candidate.clone() else { return };
        let is_first = !self.is_signing();
        let decision = if is_first && (record.is_empty() || record.holds(&candidate)) {
            // Nobody was promised another issuer, or everybody knows this one.
            Decision::Switch
        } else {
            rotation::decide(self.progress(seen, record, &candidate))
        };
        match decision {
            Decision::Wait => {
                let message = "what it says waits until proxies have been told of its roots";
                let about = self.about(TRUST_ROOT_SECRET, false, message.to_owned());
                return self.conditions.set(ROTATING, about);
            }
            Decision::Switch => self.conditions.clear(FORCED),
            Decision::Force { behind } => self.warn(
                FORCED,
                format!(
                    "the new issuer signs although {behind} proxies of this replica do not use its \
                     roots yet, or ConfigMaps could not be written: they refuse peers until they do"
                ),
            ),
        }
        seen.candidate = None;
        self.conditions.clear(ROTATING);
        let message = format!("issuer {} is in force", short(&candidate));
        self.conditions.set(IN_FORCE, self.about(TRUST_ROOT_SECRET, false, message));
        let is_other = self
            .authority
            .borrow()
            .as_ref()
            .is_some_and(|before| before.fingerprint() != candidate.fingerprint());
        self.authority.send_replace(Some(candidate));
        if is_other {
            tokio::spawn(order_renewals(self.fleet.clone()));
        }
    }

    fn progress(&self, seen: &Seen, record: &Record, candidate: &Authority) -> Progress {
        let bundle = self.bundle.borrow().clone();
        let active = bundle.map_or(0, |bundle| {
            self.fleet.standing(&bundle.encoded.key, bundle.encoded.hash).active
        });
        Progress {
            recorded: record.holds(candidate),
            connected: u64::try_from(self.fleet.members().len()).unwrap_or(u64::MAX),
            active,
            told_for: seen.told_at.map_or(Duration::ZERO, |at| at.elapsed()),
        }
    }

    fn is_signing(&self) -> bool {
        self.authority.borrow().is_some()
    }

    fn warn(&self, reason: &'static str, message: String) {
        self.conditions.set(reason, self.about(TRUST_ROOT_SECRET, true, message));
    }

    fn about(&self, name: &str, is_warning: bool, message: String) -> Condition {
        let namespace = self.namespace.clone();
        Condition { kind: "Secret", namespace, name: name.to_owned(), is_warning, message }
    }
}

const MISSING: &str = "TrustRootMissing";
const UNUSABLE: &str = "TrustRootUnusable";
const UNWRITABLE: &str = "TrustRootUnwritable";
const RECORD_UNUSABLE: &str = "TrustRecordUnusable";
const EXPIRED_ROOTS: &str = "TrustRootsExpired";
const ROTATING: &str = "IssuerWaiting";
const FORCED: &str = "IssuerForced";
const IN_FORCE: &str = "IssuerInForce";

/// One Secret by its name: `None` when there is none.
fn follow(
    secrets: Api<Secret>,
    name: &str,
) -> impl Stream<Item = Result<Option<Secret>, watcher::Error>> + Send + use<> {
    watcher::watch_object(secrets, name).default_backoff()
}

fn content(secret: Secret) -> Data {
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()
}

fn short(authority: &Authority) -> &str {
    &authority.fingerprint()[..16]
}

/// One after another: all at once they would wait for each other's signatures, and time out.
async fn order_renewals(fleet: Fleet) {
    for member in fleet.members() {
        // One that has gone meanwhile renews when it comes back, if it has to.
        let _ = fleet.renew(Some(&member.pod));
        tokio::time::sleep(ORDER_INTERVAL).await;
    }
}
