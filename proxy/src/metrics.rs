//! Every metric family of the sidecar, and the only place that knows Prometheus.
//!
//! Label values come from closed sets: enums, and names that the control plane sent or a verified
//! certificate proved. Nothing of a request ever becomes one, so memory does not grow with traffic.
//! Nothing is looked up for a request: what it counts into hangs on the connection or the snapshot.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1;
use heddle_runtime::process::Process;
use prometheus::Registry;

use crate::error::Reason;
use crate::tls::unix_seconds;

mod family;
mod labels;
mod scrape;
mod series;

pub use labels::{
    Condition, Detected, Direction, Ejection, Label, PoolProtocol, PoolState, ProbeResult,
    RenewalResult, Retry, Tls,
};
use scrape::Families;
pub use series::{OpenConnection, Outcome, RequestSeries, TcpSeries};

/// Callers told apart by name; all further ones are `other`.
const MAX_SOURCES: usize = 1000;
/// Series that the control plane is told of; the contract's own limit.
const MAX_TRAFFIC: usize = 512;
/// Series of outbound requests, and of outbound connections, told apart by what draws the backend;
/// beyond that `route` and `backend` are `other`. Rules and backends come and go for as long as
/// their Service stands.
const MAX_OUTBOUND: usize = 4096;
const OTHER: &str = "other";
const UNAUTHENTICATED_SOURCE: &str = "unauthenticated";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    requests: Table<RequestSeries>,
    tcp: Table<TcpSeries>,
    errors: [CounterBy<Reason>; 2],
    mesh_connections: [AtomicU64; 2],
    mesh_failures: [CounterBy<Reason>; 2],
    pool: [GaugeBy<PoolState>; 2],
    /// Accepted and not yet closed.
    pub connections: GaugeBy<Direction>,
    /// What became of failed attempts.
    pub retries: CounterBy<Retry>,
    /// Endpoints taken out for a while.
    pub ejections: CounterBy<Ejection>,
    /// What the first bytes of undeclared connections turned out to be.
    pub detections: CounterBy<Detected>,
    /// Checks of the application made for the kubelet.
    pub probes: CounterBy<ProbeResult>,
    /// Attempts to obtain a certificate.
    pub renewals: CounterBy<RenewalResult>,
    /// 1 for each condition that holds.
    pub ready: GaugeBy<Condition>,
    /// Destinations subscribed to.
    pub subscriptions: Gauge,
    /// Resources of the control plane that were not acceptable.
    pub rejections: Counter,
    certificate_expiry: Gauge,
    snapshot_epoch: Gauge,
    snapshot_number: Gauge,
    /// Unix seconds since when the control plane is away; 0 while it is there.
    away_since: AtomicU64,
}

/// Counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds; subtracts when negative.
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A counter for each value of a closed label.
#[derive(Debug)]
pub struct CounterBy<L>(Box<[Counter]>, std::marker::PhantomData<fn(L)>);

impl<L: Label> CounterBy<L> {
    fn new() -> Self {
        Self(L::ALL.iter().map(|_| Counter::default()).collect(), std::marker::PhantomData)
    }

    /// Counts one.
    pub fn inc(&self, label: L) {
        self.0[label.index()].inc();
    }

    /// What was counted.
    #[must_use]
    pub fn value(&self, label: L) -> u64 {
        self.0[label.index()].value()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (L, u64)> {
        L::ALL.iter().map(|label| (*label, self.value(*label)))
    }
}

/// A gauge for each value of a closed label.
#[derive(Debug)]
pub struct GaugeBy<L>(Box<[Gauge]>, std::marker::PhantomData<fn(L)>);

impl<L: Label> GaugeBy<L> {
    fn new() -> Self {
        Self(L::ALL.iter().map(|_| Gauge::default()).collect(), std::marker::PhantomData)
    }

    /// The gauge of `label`.
    #[must_use]
    pub fn of(&self, label: L) -> &Gauge {
        &self.0[label.index()]
    }

    fn iter(&self) -> impl Iterator<Item = (L, i64)> {
        L::ALL.iter().map(|label| (*label, self.of(*label).value()))
    }
}

/// Series by their open labels. Locked when a series is resolved and at a scrape, never for a
/// request.
type Table<S> = Mutex<HashMap<Key, Arc<S>>>;

/// The labels of a series that are not enums.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    direction: Direction,
    /// Caller's identity on inbound, empty on outbound.
    source: Arc<str>,
    /// `namespace/name` on outbound, empty on inbound.
    service: Arc<str>,
    /// What drew the backend: a rule's `kind/namespace/name[rule]`, a TrafficSplit's
    /// `namespace/name`, or empty.
    route: Arc<str>,
    /// `namespace/name` on outbound, empty on inbound.
    backend: Arc<str>,
}

impl Key {
    fn labels(&self) -> [(&'static str, &str); 5] {
        [
            ("direction", self.direction.name()),
            ("source", &*self.source),
            ("service", &*self.service),
            ("route", &*self.route),
            ("backend", &*self.backend),
        ]
    }

    fn side(&self) -> v1::traffic_series::Side {
        use v1::traffic_series::Side;
        match self.direction {
            Direction::Outbound => Side::Outbound(v1::OutboundSide {
                service: self.service.to_string(),
                route: self.route.to_string(),
                backend: self.backend.to_string(),
            }),
            Direction::Inbound => {
                let proved = (*self.source != *UNAUTHENTICATED_SOURCE).then_some(&self.source);
                let source = proved.map(ToString::to_string).unwrap_or_default();
                Side::Inbound(v1::InboundSide { source })
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Counters are whole after every instruction: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// Registers all families, the process's own included.
    ///
    /// # Errors
    /// `registry` holds one of them already.
    pub fn register(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let metrics = Arc::new(Self {
            requests: Table::default(),
            tcp: Table::default(),
            errors: [CounterBy::new(), CounterBy::new()],
            mesh_connections: [AtomicU64::new(0), AtomicU64::new(0)],
            mesh_failures: [CounterBy::new(), CounterBy::new()],
            pool: [GaugeBy::new(), GaugeBy::new()],
            connections: GaugeBy::new(),
            retries: CounterBy::new(),
            ejections: CounterBy::new(),
            detections: CounterBy::new(),
            probes: CounterBy::new(),
            renewals: CounterBy::new(),
            ready: GaugeBy::new(),
            subscriptions: Gauge::default(),
            rejections: Counter::default(),
            certificate_expiry: Gauge::default(),
            snapshot_epoch: Gauge::default(),
            snapshot_number: Gauge::default(),
            away_since: AtomicU64::new(unix_seconds(SystemTime::now())),
        });
        registry.register(Box::new(Families(Arc::clone(&metrics))))?;
        Process::register(registry)?;
        Ok(metrics)
    }

    /// Requests to one backend of a Service; `route` is what drew it, empty when nothing did.
    /// Resolve once per snapshot object, then [`RequestSeries::record`].
    #[must_use]
    pub fn outbound(&self, service: &str, route: &str, backend: &str) -> Arc<RequestSeries> {
        find_or_add_outbound(&self.requests, outbound_key(service, route, backend))
    }

    /// Opaque connections to one backend of a Service.
    #[must_use]
    pub fn outbound_tcp(&self, service: &str, route: &str, backend: &str) -> Arc<TcpSeries> {
        find_or_add_outbound(&self.tcp, outbound_key(service, route, backend))
    }

    /// Requests of one caller; `None` is a plaintext caller. Resolve once per connection.
    #[must_use]
    pub fn inbound(&self, source: Option<&SpiffeId>) -> Arc<RequestSeries> {
        find_or_add_source(&self.requests, source)
    }

    /// Opaque connections of one caller; `None` is a plaintext caller.
    #[must_use]
    pub fn inbound_tcp(&self, source: Option<&SpiffeId>) -> Arc<TcpSeries> {
        find_or_add_source(&self.tcp, source)
    }

    /// What the control plane is told: every series that was used, at most [`MAX_TRAFFIC`].
    #[must_use]
    pub fn traffic(&self) -> v1::Traffic {
        let mut all: BTreeMap<Key, v1::TrafficSeries> = BTreeMap::new();
        let begin = |key: &Key| v1::TrafficSeries { side: Some(key.side()), ..Default::default() };
        for (key, series) in lock(&self.requests).iter() {
            series.sum(all.entry(key.clone()).or_insert_with(|| begin(key)));
        }
        for (key, series) in lock(&self.tcp).iter() {
            series.sum(all.entry(key.clone()).or_insert_with(|| begin(key)));
        }
        let used = |series: &v1::TrafficSeries| series.requests + series.connections;
        let mut series: Vec<_> = all.into_values().filter(|series| used(series) > 0).collect();
        if series.len() > MAX_TRAFFIC {
            series.sort_by_key(|series| std::cmp::Reverse(used(series)));
            series.truncate(MAX_TRAFFIC);
        }
        v1::Traffic { series }
    }

    /// Drops the outbound series that nobody holds and whose Service `is_known` does not know any
    /// more. Called with each new snapshot, so that Services that come and go leave nothing behind.
    pub fn evict(&self, is_known: impl Fn(&str) -> bool) {
        fn evict<S>(table: &Table<S>, is_known: impl Fn(&str) -> bool) {
            lock(table).retain(|key, series| {
                key.direction == Direction::Inbound
                    || Arc::strong_count(series) > 1
                    || is_known(&key.service)
            });
        }
        evict(&self.requests, &is_known);
        evict(&self.tcp, &is_known);
    }

    /// An answer, a refusal or a reset that the proxy made itself.
    pub fn error(&self, direction: Direction, reason: Reason) {
        self.errors[direction.index()].inc(reason);
    }

    /// A mesh handshake: done, or failed because.
    pub fn mesh_connection(&self, direction: Direction, result: Result<(), Reason>) {
        match result {
            Ok(()) => {
                self.mesh_connections[direction.index()].fetch_add(1, Relaxed);
            }
            Err(reason) => self.mesh_failures[direction.index()].inc(reason),
        }
    }

    /// Connections to peers that are kept for reuse.
    #[must_use]
    pub fn pool(&self, protocol: PoolProtocol, state: PoolState) -> &Gauge {
        self.pool[protocol.index()].of(state)
    }

    /// The end of the certificate's life.
    pub fn set_certificate_expiry(&self, at: SystemTime) {
        self.certificate_expiry.set(i64::try_from(unix_seconds(at)).unwrap_or(i64::MAX));
    }

    /// The version of the snapshot in use.
    pub fn set_snapshot_version(&self, epoch: u64, number: u64) {
        self.snapshot_epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        self.snapshot_number.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// The control plane is there, or has gone: the age of the configuration counts from then.
    pub fn set_control_plane_connected(&self, connected: bool) {
        let since = if connected { 0 } else { unix_seconds(SystemTime::now()) };
        self.away_since.store(since, Relaxed);
    }

    fn config_age(&self) -> u64 {
        match self.away_since.load(Relaxed) {
            0 => 0,
            since => unix_seconds(SystemTime::now()).saturating_sub(since),
        }
    }
}

fn outbound_key(service: &str, route: &str, backend: &str) -> Key {
    Key {
        direction: Direction::Outbound,
        source: "".into(),
        service: service.into(),
        route: route.into(),
        backend: backend.into(),
    }
}

fn find_or_add_outbound<S: Default>(table: &Table<S>, mut key: Key) -> Arc<S> {
    let mut table = lock(table);
    if let Some(series) = table.get(&key) {
        return Arc::clone(series);
    }
    let is_full = |table: &HashMap<Key, Arc<S>>| {
        table.keys().filter(|key| key.direction == Direction::Outbound).count() >= MAX_OUTBOUND
    };
    if is_full(&table) {
        // What no backend of a snapshot counts into was given up with its rule, most likely.
        table.retain(|key, series| {
            key.direction == Direction::Inbound || Arc::strong_count(series) > 1
        });
        if is_full(&table) {
            key.route = OTHER.into();
            key.backend = OTHER.into();
        }
    }
    Arc::clone(table.entry(key).or_default())
}

fn find_or_add_source<S: Default>(table: &Table<S>, source: Option<&SpiffeId>) -> Arc<S> {
    let source =
        source.map_or_else(|| UNAUTHENTICATED_SOURCE.into(), |id| Arc::from(id.to_string()));
    let empty: Arc<str> = "".into();
    let mut key = Key {
        direction: Direction::Inbound,
        source,
        service: Arc::clone(&empty),
        route: Arc::clone(&empty),
        backend: empty,
    };
    let mut table = lock(table);
    if let Some(series) = table.get(&key) {
        return Arc::clone(series);
    }
    if table.keys().filter(|key| key.direction == Direction::Inbound).count() >= MAX_SOURCES {
        key.source = OTHER.into();
    }
    Arc::clone(table.entry(key).or_default())
}

#[cfg(test)]
mod tests;
