//! What the control planes remember of the last minute, merged over replicas: counts and buckets add
//! up, percentiles are taken of the sum.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cluster::Cluster;

/// Key of a workload: namespace and name.
pub(crate) type WorkloadKey = (String, String);

/// One workload's traffic.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) identities: Vec<String>,
    pub(crate) pods: u64,
    pub(crate) traffic: Vec<Row>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) peer: Peer,
    #[serde(flatten)]
    pub(crate) rates: Rates,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(tag = "direction", rename_all = "lowercase")]
pub(crate) enum Peer {
    Outbound { service: String, route: String, backend: String },
    Inbound { source: String },
}

/// Per second.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Rates {
    pub(crate) requests: f64,
    pub(crate) failures: f64,
    pub(crate) plaintext_requests: f64,
    pub(crate) durations: Vec<f64>,
    pub(crate) duration_bounds_ms: Vec<f64>,
    pub(crate) connections: f64,
    pub(crate) plaintext_connections: f64,
    pub(crate) open_connections: u64,
    pub(crate) sent_bytes: f64,
    pub(crate) received_bytes: f64,
}

#[derive(Debug, Deserialize)]
struct Page {
    workloads: Vec<Workload>,
}

impl Cluster {
    /// The traffic of every workload.
    pub(crate) async fn traffic(&self) -> anyhow::Result<BTreeMap<WorkloadKey, Workload>> {
        let mut merged = BTreeMap::new();
        for (_, page) in self.pages("/debug/traffic").await? {
            let page: Page = serde_json::from_value(page)?;
            merge(&mut merged, page.workloads);
        }
        Ok(merged)
    }
}

fn merge(into: &mut BTreeMap<WorkloadKey, Workload>, workloads: Vec<Workload>) {
    for one in workloads {
        let all = into.entry((one.namespace.clone(), one.workload.clone())).or_default();
        all.namespace = one.namespace;
        all.workload = one.workload;
        all.pods += one.pods;
        for identity in one.identities {
            if !all.identities.contains(&identity) {
                all.identities.push(identity);
            }
        }
        for row in one.traffic {
            match all.traffic.iter_mut().find(|known| known.peer == row.peer) {
                Some(known) => known.rates.add(&row.rates),
                None => all.traffic.push(row),
            }
        }
    }
}

impl Rates {
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.plaintext_requests += other.plaintext_requests;
        if self.durations.len() < other.durations.len() {
            self.durations.resize(other.durations.len(), 0.0);
            self.duration_bounds_ms.clone_from(&other.duration_bounds_ms);
        }
        for (sum, rate) in self.durations.iter_mut().zip(&other.durations) {
            *sum += rate;
        }
        self.connections += other.connections;
        self.plaintext_connections += other.plaintext_connections;
        self.open_connections += other.open_connections;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
    }

    /// Share of requests that succeeded; `None` without requests.
    pub(crate) fn success(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| 1.0 - self.failures / self.requests)
    }

    /// The duration that `share` of the requests do not exceed, in milliseconds, by linear
    /// interpolation within its bucket; infinite beyond the last bound. `None` without requests.
    pub(crate) fn percentile(&self, share: f64) -> Option<f64> {
        let total: f64 = self.durations.iter().sum();
        if total <= 0.0 {
            return None;
        }
        let wanted = total * share;
        let (mut before, mut lower) = (0.0, 0.0);
        for (index, rate) in self.durations.iter().enumerate() {
            let upper = self.duration_bounds_ms.get(index).copied().unwrap_or(f64::INFINITY);
            if before + rate >= wanted && *rate > 0.0 {
                let part = ((wanted - before) / rate).clamp(0.0, 1.0);
                return Some(if upper.is_finite() {
                    lower + (upper - lower) * part
                } else {
                    upper
                });
            }
            before += rate;
            lower = upper;
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(requests: f64, durations: &[f64]) -> Vec<Workload> {
        let row = serde_json::json!({
            "direction": "inbound", "source": "spiffe://td/ns/shop/sa/a",
            "requests": requests, "failures": 1.0, "plaintext_requests": 0.0,
            "durations": durations, "duration_bounds_ms": [1.0, 2.0],
            "connections": 0.0, "plaintext_connections": 0.0, "open_connections": 2,
            "sent_bytes": 0.0, "received_bytes": 0.0,
        });
        let one = serde_json::json!([{
            "namespace": "shop", "workload": "web", "identities": ["spiffe://td/ns/shop/sa/web"],
            "pods": 1, "traffic": [row],
        }]);
        serde_json::from_value(one).unwrap()
    }

    #[test]
    fn replicas_add_up() {
        let mut merged = BTreeMap::new();
        merge(&mut merged, page(10.0, &[4.0, 6.0, 0.0]));
        merge(&mut merged, page(30.0, &[0.0, 30.0, 0.0]));
        let web = &merged[&("shop".to_owned(), "web".to_owned())];
        assert_eq!((web.pods, web.identities.len(), web.traffic.len()), (2, 1, 1));
        let rates = &web.traffic[0].rates;
        assert_eq!((rates.requests, rates.success()), (40.0, Some(0.95)));
        assert_eq!(rates.durations, [4.0, 36.0, 0.0]);
        assert_eq!(rates.open_connections, 4);
    }

    #[test]
    fn percentiles_are_within_their_bucket() {
        let rates = |durations: &[f64]| Rates {
            durations: durations.to_vec(),
            duration_bounds_ms: vec![1.0, 2.0, 4.0],
            ..Rates::default()
        };
        assert_eq!(rates(&[0.0, 0.0, 0.0, 0.0]).percentile(0.5), None);
        assert_eq!(rates(&[10.0, 0.0, 0.0, 0.0]).percentile(0.5), Some(0.5));
        assert_eq!(rates(&[5.0, 0.0, 5.0, 0.0]).percentile(0.75), Some(3.0));
        assert_eq!(rates(&[5.0, 0.0, 5.0, 0.0]).percentile(0.5), Some(1.0));
        assert_eq!(rates(&[0.0, 0.0, 0.0, 1.0]).percentile(0.5), Some(f64::INFINITY));
    }
}
