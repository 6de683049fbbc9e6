//! What a data thread has at hand: the process-wide parts, and its own pool, random numbers and view
//! of the snapshot.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use heddle_runtime::drain;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::config::Config;
use crate::detect_memory::DetectMemory;
use crate::discovery::Destinations;
use crate::error::Error;
use crate::metrics::{Metrics, PoolProtocol, PoolState};
use crate::pool::Pool;
use crate::pool::streams::Streams;
use crate::snapshot::{Destination, Inbound, Snapshot};
use crate::tls::Credentials;

/// How long a first use of a destination waits for the control plane's word.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often idle connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Process-wide parts. Cheap to share, written by the control side only.
pub struct Shared {
    /// As given at start.
    pub config: Arc<Config>,
    /// The latest snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The latest certificate; `None` before the first.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Asks the control plane about destinations.
    pub destinations: Destinations,
    /// Every metric family.
    pub metrics: Arc<Metrics>,
    /// Connections being served, and their limit.
    pub connections: Connections,
    /// Those of them that come from outside, to the application.
    pub inbound: Connections,
    /// Phases of the end.
    pub drain: drain::Watch,
    /// Monotonic times are counted from here.
    pub started: Instant,
}

/// Counts the connections being served in the process.
#[derive(Clone)]
pub struct Connections {
    count: Arc<Count>,
    limit: usize,
}

#[derive(Default)]
struct Count {
    open: AtomicUsize,
    none_left: Notify,
}

/// One connection being served. Ends when dropped.
pub struct Slot(Arc<Count>);

impl Connections {
    /// At most `limit` at once.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { count: Arc::default(), limit }
    }

    /// Takes a slot; `None` at the limit.
    #[must_use]
    pub fn try_begin(&self) -> Option<Slot> {
        let slot = Slot(self.count.clone());
        (self.count.open.fetch_add(1, Relaxed) < self.limit).then_some(slot)
    }

    /// Connections being served now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.count.open.load(Relaxed)
    }

    /// Resolves when no connection is being served.
    pub async fn none_left(&self) {
        loop {
            let left = self.count.none_left.notified();
            if self.open() == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Relaxed) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

/// One data thread's parts. Never leaves its thread.
pub struct Worker {
    /// Process-wide parts.
    pub shared: Arc<Shared>,
    /// Connections that wait for their next request.
    pub pool: Pool,
    /// HTTP/2 connections, shared by requests.
    pub streams: Streams,
    /// Ports on which the server was seen to speak first.
    pub detected: DetectMemory,
    snapshots: RefCell<watch::Receiver<Arc<Snapshot>>>,
    snapshot: RefCell<Arc<Snapshot>>,
    random: Cell<u64>,
}

impl Worker {
    /// The parts of a new data thread.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let mut snapshots = shared.snapshots.clone();
        let snapshot = snapshots.borrow_and_update().clone();
        Rc::new(Self {
            shared,
            pool: Pool::default(),
            streams: Streams::default(),
            detected: DetectMemory::default(),
            snapshots: RefCell::new(snapshots),
            snapshot: RefCell::new(snapshot),
            random: Cell::new(rand::random()),
        })
    }

    /// Closes what has been idle too long, for as long as the thread lives.
    pub async fn keep_house(self: Rc<Self>) {
        let gauges = &self.shared.metrics;
        let (h1, h2) = (PoolProtocol::Http1, PoolProtocol::Http2);
        let mut kept = [0; 2];
        loop {
            sleep(SWEEP_INTERVAL).await;
            self.pool.sweep();
            self.streams.sweep();
            let now = [self.pool.len(), self.streams.len()];
            for ((protocol, before), now) in [h1, h2].into_iter().zip(&mut kept).zip(now) {
                let now = i64::try_from(now).unwrap_or(i64::MAX);
                gauges.pool(protocol, PoolState::Idle).add(now - *before);
                *before = now;
            }
        }
    }

    /// The present snapshot: one consistent view, to be taken once per TCP connection and again per
    /// HTTP request.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.borrow_mut();
        if snapshots.has_changed().unwrap_or(false) {
            *self.snapshot.borrow_mut() = snapshots.borrow_and_update().clone();
        }
        self.snapshot.borrow().clone()
    }

    /// A receiver that resolves when the snapshot changes after now.
    #[must_use]
    pub fn snapshot_changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        let mut changes = self.shared.snapshots.clone();
        changes.mark_unchanged();
        changes
    }

    /// The present certificate.
    ///
    /// # Errors
    /// None has been issued yet.
    pub fn credentials(&self) -> Result<Arc<Credentials>, Error> {
        let current = self.shared.credentials.borrow().clone();
        current.ok_or(Error::NotReady("no certificate yet"))
    }

    /// Time since the process started.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// A random number, uniform over all of `u64` (wyrand; not for secrets).
    #[must_use]
    pub fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0xa076_1d64_78bd_642f);
        self.random.set(state);
        let product = u128::from(state) * u128::from(state ^ 0xe703_7ed1_a0b4_28db);
        let bytes = product.to_le_bytes();
        let half = |at: usize| {
            bytes[at..at + 8].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte))
        };
        half(0) ^ half(8)
    }

    /// A random number in 0..1.
    #[must_use]
    pub fn random_unit(&self) -> f64 {
        f64::from((self.random() >> 32) as u32) / f64::from(u32::MAX)
    }

    /// True for the pod's own addresses.
    #[must_use]
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        match &self.snapshot().inbound {
            Inbound::Active(policy) => policy.addresses.contains(&address),
            Inbound::Missing | Inbound::Unusable => false,
        }
    }

    /// What stands behind an original destination. A first use waits for the control plane's word,
    /// but not for ever: a destination nobody has spoken of is never passed through.
    ///
    /// # Errors
    /// The control plane has not answered in time.
    pub async fn find_destination(&self, address: SocketAddr) -> Result<Destination, Error> {
        let now = self.now().as_secs();
        let snapshot = self.snapshot();
        if let Some(destination) = find_known(&snapshot, address, now) {
            return Ok(destination);
        }
        self.shared.destinations.request(address);
        let mut changes = self.shared.snapshots.clone();
        let found = async {
            loop {
                let snapshot = changes.borrow_and_update().clone();
                if let Some(destination) = find_known(&snapshot, address, now) {
                    return Some(destination);
                }
                changes.changed().await.ok()?;
            }
        };
        match timeout(RESOLVE_TIMEOUT, found).await {
            Ok(Some(destination)) => Ok(destination),
            Ok(None) | Err(_) if self.shared.destinations.is_connected() => {
                Err(Error::DestinationUnknownYet(address))
            }
            Ok(None) | Err(_) => Err(Error::ControlPlaneUnreachable(address)),
        }
    }
}

fn find_known(snapshot: &Snapshot, address: SocketAddr, now: u64) -> Option<Destination> {
    if let Some(destination) = snapshot.find_destination(address, now) {
        return Some(destination.clone());
    }
    let mesh = snapshot.mesh.as_ref()?;
    mesh.is_outside(address.ip()).then_some(Destination::Unknown)
}
