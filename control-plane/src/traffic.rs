//! Golden metrics from the proxies' own counters, over the last minute or two. Enough for "is it
//! working now"; keeps no history, and nothing of a proxy whose stream has ended.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use heddle_api::proto::v1::{Traffic, TrafficSeries, traffic_series::Side};
use serde::Serialize;
use tokio::time::Instant;

/// Rates are over at least this, once a proxy has been known for so long, and at most twice this.
const WINDOW: Duration = Duration::from_secs(60);
/// Series kept of one proxy; the contract's own limit.
const SERIES_LIMIT: usize = 512;
/// Text that a proxy chose, kept of it at most.
const TEXT_LIMIT: usize = 512;
/// Buckets of durations, the unbounded last one included.
const BUCKETS: usize = 15;
/// Their upper bounds in milliseconds.
const BOUNDS_MS: [f64; BUCKETS - 1] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4];

/// What one proxy said: now, and long enough ago to tell a rate. Three samples at most.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// The base of rates: between one and two windows old, once the proxy is old enough.
    base: Option<Sample>,
    /// The next base.
    middle: Option<Sample>,
    latest: Option<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    series: HashMap<Peer, Counts>,
}

/// The other side of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "direction", rename_all = "lowercase")]
pub(crate) enum Peer {
    Outbound { service: String, route: String, backend: String },
    Inbound { source: String },
}

#[derive(Debug, Clone, Default)]
struct Counts {
    requests: u64,
    failures: u64,
    plaintext_requests: u64,
    durations: [u64; BUCKETS],
    connections: u64,
    plaintext_connections: u64,
    open_connections: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Samples {
    /// Takes in what a proxy tells.
    pub(crate) fn note(&mut self, traffic: Traffic, now: Instant) {
        let series = traffic.series.into_iter().take(SERIES_LIMIT);
        let series = series.filter_map(|one| Some((peer(&one)?, Counts::from(&one)))).collect();
        let sample = Sample { at: now, series };
        let due = |sample: &Sample| now.duration_since(sample.at) >= WINDOW;
        if self.base.is_none() {
            self.base = Some(sample.clone());
        } else if self.middle.as_ref().is_some_and(due) {
            self.base = self.middle.replace(sample.clone());
        } else if self.middle.is_none() && self.base.as_ref().is_some_and(due) {
            self.middle = Some(sample.clone());
        }
        self.latest = Some(sample);
    }
}

/// Everything the proxies of the mesh counted, by workload.
#[derive(Debug, Default)]
pub(crate) struct Table {
    workloads: BTreeMap<(String, String), Workload>,
}

/// One workload, all its pods together.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Workload {
    namespace: String,
    workload: String,
    /// SPIFFE ids of its pods; more than one where they run under several service accounts.
    identities: Vec<String>,
    /// Proxies whose counters are in here.
    pods: u64,
    traffic: Vec<Row>,
    #[serde(skip)]
    rows: BTreeMap<Peer, Rates>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    peer: Peer,
    #[serde(flatten)]
    rates: Rates,
}

/// Per second, but for what is open now.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Rates {
    requests: f64,
    failures: f64,
    plaintext_requests: f64,
    /// Requests per second by duration; `duration_bounds_ms` are the upper bounds, the last bucket
    /// has none. Buckets add up over replicas, percentiles would not.
    durations: [f64; BUCKETS],
    duration_bounds_ms: [f64; BUCKETS - 1],
    connections: f64,
    plaintext_connections: f64,
    open_connections: u64,
    sent_bytes: f64,
    received_bytes: f64,
}

impl Table {
    /// Adds one proxy of a workload.
    pub(crate) fn add(&mut self, namespace: &str, name: &str, identity: &str, samples: &Samples) {
        let key = (namespace.to_owned(), name.to_owned());
        let workload = self.workloads.entry(key).or_default();
        namespace.clone_into(&mut workload.namespace);
        name.clone_into(&mut workload.workload);
        if !workload.identities.iter().any(|known| known == identity) {
            workload.identities.push(identity.to_owned());
        }
        workload.pods += 1;
        let (Some(base), Some(latest)) = (&samples.base, &samples.latest) else { return };
        let seconds = latest.at.duration_since(base.at).as_secs_f64();
        for (peer, counts) in &latest.series {
            let rates = workload.rows.entry(peer.clone()).or_default();
            rates.duration_bounds_ms = BOUNDS_MS;
            rates.open_connections += counts.open_connections;
            if seconds > 0.0 {
                // A series that is new, or counts from zero again, began after the base.
                let before = base.series.get(peer).filter(|before| !counts.restarted(before));
                rates.add(counts, before.unwrap_or(&Counts::default()), seconds);
            }
        }
    }

    pub(crate) fn into_workloads(self) -> Vec<Workload> {
        let finish = |mut workload: Workload| {
            let rows = std::mem::take(&mut workload.rows).into_iter();
            workload.traffic = rows.map(|(peer, rates)| Row { peer, rates }).collect();
            workload
        };
        self.workloads.into_values().map(finish).collect()
    }
}

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "rates are estimates")]
    fn add(&mut self, now: &Counts, before: &Counts, seconds: f64) {
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        self.requests += rate(now.requests, before.requests);
        self.failures += rate(now.failures, before.failures);
        self.plaintext_requests += rate(now.plaintext_requests, before.plaintext_requests);
        for (sum, (now, before)) in
            self.durations.iter_mut().zip(now.durations.iter().zip(&before.durations))
        {
            *sum += rate(*now, *before);
        }
        self.connections += rate(now.connections, before.connections);
        self.plaintext_connections += rate(now.plaintext_connections, before.plaintext_connections);
        self.sent_bytes += rate(now.sent_bytes, before.sent_bytes);
        self.received_bytes += rate(now.received_bytes, before.received_bytes);
    }
}

impl Counts {
    fn restarted(&self, before: &Self) -> bool {
        self.requests < before.requests || self.connections < before.connections
    }
}

impl From<&TrafficSeries> for Counts {
    fn from(series: &TrafficSeries) -> Self {
        let mut durations = [0; BUCKETS];
        for (slot, count) in durations.iter_mut().zip(&series.durations) {
            *slot = *count;
        }
        Self {
            requests: series.requests,
            failures: series.failures,
            plaintext_requests: series.plaintext_requests,
            durations,
            connections: series.connections,
            plaintext_connections: series.plaintext_connections,
            open_connections: series.open_connections,
            sent_bytes: series.sent_bytes,
            received_bytes: series.received_bytes,
        }
    }
}

fn peer(series: &TrafficSeries) -> Option<Peer> {
    let bounded = |text: &str| text[..text.floor_char_boundary(TEXT_LIMIT)].to_owned();
    Some(match series.side.as_ref()? {
        Side::Outbound(side) => Peer::Outbound {
            service: bounded(&side.service),
            route: bounded(&side.route),
            backend: bounded(&side.backend),
        },
        Side::Inbound(side) => Peer::Inbound { source: bounded(&side.source) },
    })
}

#[cfg(test)]
mod tests {
    use heddle_api::proto::v1::InboundSide;

    use super::*;

    fn traffic(requests: u64, failures: u64) -> Traffic {
        let series = TrafficSeries {
            side: Some(Side::Inbound(InboundSide { source: "spiffe://x/ns/a/sa/b".to_owned() })),
            requests,
            failures,
            durations: vec![requests],
            ..TrafficSeries::default()
        };
        Traffic { series: vec![series] }
    }

    fn rates(samples: &Samples) -> Rates {
        let mut table = Table::default();
        table.add("shop", "web", "spiffe://x/ns/shop/sa/web", samples);
        let workload = table.into_workloads().remove(0);
        workload.traffic.first().map(|row| row.rates.clone()).unwrap_or_default()
    }

    #[test]
    fn rates_are_over_the_last_one_to_two_windows() {
        let (mut samples, begin) = (Samples::default(), Instant::now());
        // 100 requests a second for five minutes, then none.
        for tick in 0_u64..=60 {
            let count = 1000 * tick.min(30);
            samples.note(traffic(count, count / 10), begin + Duration::from_secs(10 * tick));
            match tick {
                0 => assert!(rates(&samples).requests.abs() < 1e-9),
                1..=30 => assert!((rates(&samples).requests - 100.0).abs() < 1e-9, "{tick}"),
                43.. => assert!(rates(&samples).requests.abs() < 1e-9, "{tick}"),
                _ => {}
            }
            if tick == 20 {
                assert!((rates(&samples).failures - 10.0).abs() < 1e-9);
                assert!((rates(&samples).durations[0] - 100.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_counter_that_falls_counts_from_zero() {
        let (mut samples, begin) = (Samples::default(), Instant::now());
        samples.note(traffic(5000, 0), begin);
        samples.note(traffic(100, 0), begin + Duration::from_secs(10));
        assert!((rates(&samples).requests - 10.0).abs() < 1e-9);
    }

    #[test]
    fn what_exceeds_the_contract_is_left_out() {
        let mut samples = Samples::default();
        let one = traffic(1, 0).series.remove(0);
        let series = (0..1000).map(|n| TrafficSeries {
            side: Some(Side::Inbound(InboundSide { source: n.to_string() })),
            ..one.clone()
        });
        samples.note(Traffic { series: series.collect() }, Instant::now());
        assert_eq!(samples.latest.unwrap().series.len(), SERIES_LIMIT);
    }
}
