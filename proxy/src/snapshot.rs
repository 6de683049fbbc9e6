//! What the control plane said: the store of last good resources, and the immutable snapshot the
//! data path acts on.
//!
//! The store has one writer, the discovery client. A resource that is not acceptable is rejected by
//! name and the old one kept, except for an inbound policy: a bad one denies what it selects.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1;
use heddle_policy::authorize::InboundPolicy;
use heddle_policy::retry::TrafficPolicy;
use heddle_policy::route::{Changes, RouteTable};
use heddle_policy::split::Split;
use ipnet::IpNet;

use crate::balance::EndpointState;
use crate::metrics::{RequestSeries, TcpSeries};

mod build;
mod store;

pub use store::Store;

/// One consistent view, swapped whole. Taken once per TCP connection and again per HTTP request.
#[derive(Debug)]
pub struct Snapshot {
    /// The highest version of the index it was taken from; `None` before the first update.
    pub version: Option<v1::Version>,
    /// True once a complete answer to `Hello` was applied.
    pub complete: bool,
    /// Mesh-wide settings; `None` before they arrive.
    pub mesh: Option<Arc<Mesh>>,
    /// What is enforced on traffic to the application.
    pub inbound: Inbound,
    destinations: HashMap<SocketAddr, Arc<Entry>, foldhash::fast::RandomState>,
}

/// Mesh-wide settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The authority that vouches for identities.
    pub trust_domain: Box<str>,
    /// Whether a destination nobody in the mesh owns may be called.
    pub passthrough: bool,
    /// The cluster's own addresses; empty when unknown.
    pub cluster_ranges: Box<[IpNet]>,
}

impl Mesh {
    /// True when `address` is known to lie outside the cluster, so that nobody needs to be asked.
    #[must_use]
    pub fn is_outside(&self, address: IpAddr) -> bool {
        !self.cluster_ranges.is_empty()
            && !self.cluster_ranges.iter().any(|range| range.contains(&address))
    }
}

/// The pod's own policy. There is no `Default`: until one has arrived everything is refused.
#[derive(Debug, Clone)]
pub enum Inbound {
    /// None has arrived: inbound is refused.
    Missing,
    /// One arrived that cannot be understood: inbound is denied until a good one comes.
    Unusable,
    /// In force.
    Active(Arc<InboundPolicy>),
}

/// A destination the proxy is subscribed to.
#[derive(Debug)]
pub struct Entry {
    /// Seconds since the process started; shared by all snapshots. Read by idle eviction.
    pub last_used: Arc<AtomicU64>,
    /// What stands behind the address.
    pub destination: Destination,
}

/// What stands behind an original destination.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A Service's port.
    Service(Arc<ServicePort>),
    /// A pod's own address: never re-routed, and ignoring readiness.
    Pod(Arc<ServicePort>),
    /// Nobody the control plane knows.
    Unknown,
}

/// One port of a Service as its callers see it, with everything a request needs already looked up.
#[derive(Debug)]
pub struct ServicePort {
    /// `namespace/name`; for a pod's own address without a headless Service, the pod.
    pub service: Arc<str>,
    /// The port that was dialled.
    pub port: u16,
    /// Declared protocol; `Unspecified` when it is to be detected.
    pub protocol: v1::Protocol,
    /// The Service's split. Its backends stand at the same indexes in `backends`.
    pub split: Option<Arc<Split>>,
    /// Where a request may go; exactly one when there is no split.
    pub backends: Box<[Arc<Backend>]>,
    /// What requests follow in place of the split, which is `None` then: opaque connections go to
    /// the Service itself.
    pub routes: Option<Routes>,
}

/// The routes of a Service's port, with everything a request needs already looked up.
#[derive(Debug)]
pub struct Routes {
    /// The decision.
    pub table: Arc<RouteTable>,
    /// What stands behind each rule of `table`, at the same indexes.
    pub rules: Box<[RuleBackends]>,
    /// What requests are recorded as that follow no rule.
    pub unmatched: Arc<Backend>,
}

/// What stands behind one rule.
#[derive(Debug)]
pub struct RuleBackends {
    /// Where its requests may go, at the indexes of the rule's backends.
    pub drawn: Box<[Arc<Backend>]>,
    /// What requests are recorded as that the rule answers itself.
    pub answers: Arc<Backend>,
}

/// One backend: a Service's port, or a subset of its endpoints, as one split or rule sees it.
#[derive(Debug)]
pub struct Backend {
    /// `namespace/name`; empty when it stands for an answer of the proxy itself.
    pub service: Arc<str>,
    /// Its port, after the split's mapping.
    pub port: u16,
    /// Endpoints that may be picked: ready, and on this node when the Service asks for that.
    pub ready: Arc<[Arc<Endpoint>]>,
    /// Timeouts, retries and balancing.
    pub policy: Arc<TrafficPolicy>,
    /// What draws it: a rule's or a split's name, for telemetry; empty when nothing does.
    pub route: Arc<str>,
    /// What the rule's filters make of requests and responses; `None` leaves them as they are.
    pub changes: Option<Arc<Changes>>,
    /// Session affinity by client address.
    pub affinity: bool,
    /// State that outlives the snapshot.
    pub state: Arc<BackendState>,
    /// What its requests count into, resolved at first use.
    pub series: OnceLock<Arc<RequestSeries>>,
    /// What its opaque connections count into, resolved at first use.
    pub tcp_series: OnceLock<Arc<TcpSeries>>,
}

/// State of a backend that outlives snapshots and is shared by all threads.
#[derive(Debug, Default)]
pub struct BackendState {
    turn: AtomicUsize,
    /// Requests and retries, for the retry budget.
    pub budget: crate::http::retry::BudgetState,
}

impl BackendState {
    /// The next turn of round robin.
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Relaxed)
    }
}

/// One address and port of one workload.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// What the peer must prove; `None` is a plaintext peer.
    pub identity: Option<SpiffeId>,
    /// `namespace/pod`, empty when no pod owns the address.
    pub pod: Arc<str>,
    /// Name of the owning workload, for telemetry.
    pub workload: Arc<str>,
    /// How it fares.
    pub state: Arc<EndpointState>,
}

impl Snapshot {
    /// What a proxy has before it heard anything: nothing is served.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            version: None,
            complete: false,
            mesh: None,
            inbound: Inbound::Missing,
            destinations: HashMap::default(),
        }
    }

    /// What stands behind `address`; `None` when the control plane has not said yet. `now_secs` is
    /// seconds since the process started.
    #[must_use]
    pub fn find_destination(&self, address: SocketAddr, now_secs: u64) -> Option<&Destination> {
        let entry = self.destinations.get(&address)?;
        entry.last_used.store(now_secs, Relaxed);
        Some(&entry.destination)
    }

    /// Every subscribed destination, for dumps and idle eviction.
    pub fn destinations(&self) -> impl Iterator<Item = (&SocketAddr, &Arc<Entry>)> {
        self.destinations.iter()
    }
}

#[cfg(test)]
mod tests;
