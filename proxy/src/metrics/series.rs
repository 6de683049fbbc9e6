//! What requests and opaque connections count into: atomics only on the way that every request
//! takes, a lock on the way that only failures take.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use heddle_api::proto::v1;

use super::family::{Family, HistogramValue};
use super::labels::{Label, Tls};
use super::{Gauge, lock};
use crate::error::Reason;

/// How a request ended. The one place where a request is recorded takes this.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Status of the response's head; `None` when the caller left before one was sent.
    pub status: Option<u16>,
    /// `grpc-status` of the trailers or of a trailers-only answer.
    pub grpc_status: Option<u32>,
    /// How the peer's side of the request was secured: the caller's on inbound, the endpoint's on
    /// outbound.
    pub tls: Tls,
    /// Set when the proxy had to say so itself.
    pub flag: Option<Reason>,
    /// From the request's head to the response's last byte.
    pub duration: Duration,
}

/// `1xx` to `5xx`; 0 stands for no response.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const SUCCESS: usize = 2;
/// The codes 0 to 16 that gRPC defines, then one for all others.
const GRPC_CODES: [&str; 18] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
    "other",
];
/// Of these: unknown, deadline exceeded, unimplemented, internal, unavailable, data loss. The others
/// tell the caller of its own mistake, or are success.
const SERVER_FAILED: [&str; 6] = ["2", "4", "12", "13", "14", "15"];
/// Upper bounds in seconds, for Prometheus.
const BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The same in microseconds, for comparing.
const BOUNDS_US: [u64; 14] = [
    500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

type ByGrpc = [AtomicU64; GRPC_CODES.len()];

/// Requests that share their open labels.
#[derive(Debug, Default)]
pub struct RequestSeries {
    /// Neither gRPC nor flagged, by TLS and class.
    plain: [[AtomicU64; CLASSES.len()]; 2],
    /// gRPC over 2xx, not flagged, by TLS and code. Made when the first comes.
    grpc: OnceLock<Box<[ByGrpc; 2]>>,
    /// Everything else.
    rare: Mutex<BTreeMap<Rare, u64>>,
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rare {
    tls: usize,
    class: usize,
    grpc: Option<usize>,
    flag: Option<usize>,
}

impl RequestSeries {
    /// Records a request, once, at its end.
    pub fn record(&self, outcome: &Outcome) {
        let tls = outcome.tls.index();
        let class = outcome.status.map_or(0, |status| usize::from(status / 100).clamp(1, 5));
        let grpc = outcome
            .grpc_status
            .map(|code| usize::try_from(code).unwrap_or(usize::MAX).min(GRPC_CODES.len() - 1));
        match (grpc, outcome.flag) {
            (None, None) => {
                self.plain[tls][class].fetch_add(1, Relaxed);
            }
            (Some(code), None) if class == SUCCESS => {
                self.grpc.get_or_init(Box::default)[tls][code].fetch_add(1, Relaxed);
            }
            _ => {
                let flag = outcome.flag.map(Label::index);
                *lock(&self.rare).entry(Rare { tls, class, grpc, flag }).or_default() += 1;
            }
        }
        let us = u64::try_from(outcome.duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub(super) fn collect(
        &self,
        labels: &[(&'static str, &str)],
        total: &mut Family,
        duration: &mut Family,
    ) {
        for row in self.rows() {
            let (Rare { tls, class, grpc, flag }, value) = row;
            let own = [
                ("status_class", CLASSES[class]),
                ("grpc_status", grpc.map_or("", |code| GRPC_CODES[code])),
                ("tls", Tls::ALL[tls].name()),
                ("flag", flag.map_or("", |flag| Reason::ALL[flag].name())),
            ];
            total.add(&[labels, &own].concat(), value);
        }
        let mut sum = 0;
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| {
                sum += bucket.load(Relaxed);
                sum
            })
            .collect();
        let value = HistogramValue {
            bounds: &BOUNDS,
            counts,
            sum: Duration::from_micros(self.sum_us.load(Relaxed)).as_secs_f64(),
        };
        duration.observe(labels, &value);
    }

    /// Adds what was counted to `into`.
    pub(super) fn sum(&self, into: &mut v1::TrafficSeries) {
        for (Rare { tls, class, grpc, .. }, value) in self.rows() {
            into.requests += value;
            let failed = match grpc {
                Some(code) => SERVER_FAILED.contains(&GRPC_CODES[code]),
                None => matches!(CLASSES[class], "none" | "5xx"),
            };
            if failed {
                into.failures += value;
            }
            if tls == Tls::None.index() {
                into.plaintext_requests += value;
            }
        }
        into.durations = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        while into.durations.last() == Some(&0) {
            into.durations.pop();
        }
    }

    /// Everything that was counted at least once.
    fn rows(&self) -> Vec<(Rare, u64)> {
        let mut rows: Vec<_> = lock(&self.rare).iter().map(|(row, value)| (*row, *value)).collect();
        for tls in 0..self.plain.len() {
            let plain = self.plain[tls].iter().enumerate().map(|(class, value)| {
                (Rare { tls, class, grpc: None, flag: None }, value.load(Relaxed))
            });
            rows.extend(plain.filter(|(_, value)| *value > 0));
            let Some(codes) = self.grpc.get() else { continue };
            let grpc = codes[tls].iter().enumerate().map(|(code, value)| {
                let row = Rare { tls, class: SUCCESS, grpc: Some(code), flag: None };
                (row, value.load(Relaxed))
            });
            rows.extend(grpc.filter(|(_, value)| *value > 0));
        }
        rows
    }
}

/// Opaque connections that share their open labels.
#[derive(Debug, Default)]
pub struct TcpSeries {
    open: Gauge,
    total: [AtomicU64; 2],
    sent: AtomicU64,
    received: AtomicU64,
}

/// An opaque connection while it is open.
#[derive(Debug)]
pub struct OpenConnection(Arc<TcpSeries>);

impl TcpSeries {
    /// Counts a connection until the returned value is dropped.
    #[must_use]
    pub fn open(self: &Arc<Self>, tls: Tls) -> OpenConnection {
        self.total[tls.index()].fetch_add(1, Relaxed);
        self.open.add(1);
        OpenConnection(Arc::clone(self))
    }

    pub(super) fn collect(
        &self,
        labels: &[(&'static str, &str)],
        open: &mut Family,
        total: &mut Family,
        bytes: &mut Family,
    ) {
        open.set(labels, self.open.value());
        for tls in Tls::ALL {
            let value = self.total[tls.index()].load(Relaxed);
            total.add_if_not_zero(&[labels, &[("tls", tls.name())]].concat(), value);
        }
        let ways = [("sent", &self.sent), ("received", &self.received)];
        for (way, value) in ways {
            bytes.add(&[labels, &[("way", way)]].concat(), value.load(Relaxed));
        }
    }
}

impl TcpSeries {
    /// Adds what was counted to `into`.
    pub(super) fn sum(&self, into: &mut v1::TrafficSeries) {
        let total = |tls: Tls| self.total[tls.index()].load(Relaxed);
        into.connections += total(Tls::Mutual) + total(Tls::None);
        into.plaintext_connections += total(Tls::None);
        into.open_connections += u64::try_from(self.open.value()).unwrap_or(0);
        into.sent_bytes += self.sent.load(Relaxed);
        into.received_bytes += self.received.load(Relaxed);
    }
}

impl OpenConnection {
    /// Bytes that went from source to destination.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.fetch_add(bytes, Relaxed);
    }

    /// Bytes that went from destination to source.
    pub fn received(&self, bytes: u64) {
        self.0.received.fetch_add(bytes, Relaxed);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.add(-1);
    }
}
