//! Where Heddle wants to be, beyond what it promises: ratios to Envoy's better mode. They fail
//! nothing; they say how far the way is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::{Metric, Summary, better};

/// One goal and the measured distance to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub what: String,
    /// At most this ratio, or at least when more is better.
    pub target: f64,
    pub at_least: bool,
    pub found: Option<f64>,
}

impl Goal {
    pub(crate) fn is_reached(&self) -> Option<bool> {
        self.found
            .map(|found| if self.at_least { found >= self.target } else { found <= self.target })
    }
}

/// Which sample of each side is compared.
#[derive(Debug, Clone, Copy)]
enum Of {
    Median,
    /// For what a shared machine disturbs too much.
    Best,
}

const GOALS: [(&str, Metric, Of, f64); 10] = [
    ("CPU per request, 16 connections", Metric::Http1C16CpuUs, Of::Median, 0.30),
    ("requests per second, 64 connections", Metric::Http1C64Rps, Of::Median, 3.0),
    ("CPU per request at a fixed rate", Metric::RateCpuUs, Of::Median, 0.45),
    ("added p50 at a fixed rate", Metric::AddedP50Us, Of::Median, 0.50),
    ("added p99 at a fixed rate, best round", Metric::AddedP99Us, Of::Best, 0.50),
    ("gRPC calls per second", Metric::GrpcRps, Of::Median, 3.0),
    ("TCP throughput", Metric::StreamGbitS, Of::Median, 1.0),
    ("idle memory", Metric::RssIdleMb, Of::Median, 0.20),
    ("memory with 256 connections", Metric::Rss256Mb, Of::Median, 0.25),
    ("cold start", Metric::ColdStartMs, Of::Median, 0.40),
];

/// Every goal, with what was found.
pub(crate) fn compare(results: &BTreeMap<Metric, BTreeMap<String, Summary>>) -> Vec<Goal> {
    let goal = |(what, metric, of, target): (&str, Metric, Of, f64)| {
        let at_least = metric.more_is_better();
        let pick = |summary: &Summary| match (of, at_least) {
            (Of::Median, _) => summary.median,
            (Of::Best, true) => summary.max,
            (Of::Best, false) => summary.min,
        };
        let ours = results.get(&metric).and_then(|variants| variants.get("heddle"));
        let found = ours.zip(better(results, metric, "envoy")).map(|(a, b)| pick(a) / pick(b));
        Goal { what: what.into(), target, at_least, found }
    };
    GOALS.into_iter().map(goal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Samples;

    #[test]
    fn ratios_are_to_the_better_mode_and_p99_to_the_best_round() {
        let mut samples = Samples::default();
        for (metric, variant, value) in [
            (Metric::GrpcRps, "heddle", 9.0),
            (Metric::GrpcRps, "envoy-h2", 2.0),
            (Metric::AddedP99Us, "heddle", 50.0),
            (Metric::AddedP99Us, "heddle", 900.0),
            (Metric::AddedP99Us, "envoy-h1", 80.0),
            (Metric::AddedP99Us, "envoy-h2", 90.0),
            (Metric::RssIdleMb, "heddle", 5.0),
        ] {
            samples.add(metric, variant, value);
        }
        let goals = compare(&samples.summarize());
        let found = |metric| {
            let index = GOALS.iter().position(|(_, of, ..)| *of == metric).unwrap();
            (goals[index].found, goals[index].is_reached())
        };
        assert_eq!(found(Metric::GrpcRps), (Some(4.5), Some(true)));
        assert_eq!(found(Metric::AddedP99Us), (Some(0.625), Some(false)));
        assert_eq!(found(Metric::RssIdleMb), (None, None));
    }
}
