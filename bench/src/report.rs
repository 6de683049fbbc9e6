//! What was measured, as data: samples by metric and variant, their summaries, the gates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::goals::Goal;

/// Everything `report.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub environment: Environment,
    /// By metric, then by variant.
    pub results: BTreeMap<Metric, BTreeMap<String, Summary>>,
    /// Samples that do not count, and why.
    pub void: Vec<Void>,
    pub gates: Vec<Gate>,
    pub goals: Vec<Goal>,
}

impl Report {
    /// What makes the run fail: a promise that was missed, an answer that Heddle lost or got wrong.
    /// What a peer lost only takes its sample away.
    pub(crate) fn failures(&self) -> Vec<String> {
        let missed = self.gates.iter().filter(|gate| gate.verdict == Verdict::Fail);
        let missed = missed.map(|gate| format!("missed: {}", gate.promise));
        let void = self.void.iter().filter(|void| void.variant == "heddle");
        let void = void.map(|void| format!("void: {}, round {}", void.measurement, void.round + 1));
        missed.chain(void).collect()
    }
}

/// Where, when and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub date: String,
    pub commit: String,
    pub profile: String,
    pub quick: bool,
    pub rounds: u32,
    pub counted_seconds: f64,
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    /// Load and applications on one CPU, sidecars on another.
    pub pinned: bool,
    /// Whether latency was measured with sidecars and load ahead of everything else.
    pub realtime: bool,
    /// Share of CPU time that the hypervisor gave to others during the run.
    pub steal_percent: f64,
    pub versions: BTreeMap<String, String>,
}

impl Environment {
    /// Only figures that others can hold us to are for keeping.
    pub(crate) fn why_not_published(&self) -> Option<String> {
        if self.quick {
            return Some("the report is of a quick run; `make bench` makes a full one".into());
        }
        let profile = &self.profile;
        (profile != "release").then(|| {
            format!("the report is of a build with profile `{profile}`; `make bench` makes another")
        })
    }
}

/// What is measured, in the order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Http1C1CpuUs,
    Http1C16CpuUs,
    Http1C64CpuUs,
    Http1C1Rps,
    Http1C16Rps,
    Http1C64Rps,
    RateCpuUs,
    RateP50Us,
    RateP99Us,
    AddedP50Us,
    AddedP99Us,
    GrpcCpuUs,
    GrpcRps,
    StreamCpuSPerGb,
    StreamGbitS,
    RssIdleMb,
    #[serde(rename = "rss_256_connections_mb")]
    Rss256Mb,
    ColdStartMs,
    GreetingFirstMs,
    GreetingLaterMs,
    GreetingFirstAddedMs,
    GreetingLaterAddedMs,
}

impl Metric {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 22] = [
        Self::Http1C1CpuUs,
        Self::Http1C16CpuUs,
        Self::Http1C64CpuUs,
        Self::Http1C1Rps,
        Self::Http1C16Rps,
        Self::Http1C64Rps,
        Self::RateCpuUs,
        Self::RateP50Us,
        Self::RateP99Us,
        Self::AddedP50Us,
        Self::AddedP99Us,
        Self::GrpcCpuUs,
        Self::GrpcRps,
        Self::StreamCpuSPerGb,
        Self::StreamGbitS,
        Self::RssIdleMb,
        Self::Rss256Mb,
        Self::ColdStartMs,
        Self::GreetingFirstMs,
        Self::GreetingLaterMs,
        Self::GreetingFirstAddedMs,
        Self::GreetingLaterAddedMs,
    ];

    pub(crate) fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::Http1C1Rps
                | Self::Http1C16Rps
                | Self::Http1C64Rps
                | Self::GrpcRps
                | Self::StreamGbitS
        )
    }
}

/// The samples of one metric and variant, one per round, and what they come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub min: f64,
    pub median: f64,
    pub max: f64,
    pub samples: Vec<f64>,
}

impl Summary {
    /// `None` without samples.
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { min, median, max, samples: samples.to_vec() })
    }
}

/// A measurement that does not count.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Void {
    pub variant: String,
    pub measurement: String,
    pub round: u32,
    pub reason: String,
}

/// Collects samples while the rounds go on.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    samples: BTreeMap<Metric, BTreeMap<String, Vec<f64>>>,
    pub void: Vec<Void>,
}

impl Samples {
    pub(crate) fn add(&mut self, metric: Metric, variant: &str, value: f64) {
        self.samples.entry(metric).or_default().entry(variant.into()).or_default().push(value);
    }

    pub(crate) fn summarize(&self) -> BTreeMap<Metric, BTreeMap<String, Summary>> {
        let variants = |variants: &BTreeMap<String, Vec<f64>>| {
            let summary = |(name, samples): (&String, &Vec<f64>)| {
                Summary::of(samples).map(|summary| (name.clone(), summary))
            };
            variants.iter().filter_map(summary).collect()
        };
        self.samples.iter().map(|(metric, all)| (*metric, variants(all))).collect()
    }
}

/// A promise, and whether it was kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Gate {
    pub promise: String,
    pub limit: Option<f64>,
    pub found: Option<Summary>,
    pub verdict: Verdict,
}

/// One noisy round must not fail a run, and one lucky round must not hide a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Pass,
    /// The median misses, but not every sample.
    Warn,
    /// Every sample misses.
    Fail,
    /// One of the two was not measured.
    NotMeasured,
}

/// Each promise about Heddle: what must be at most what.
///
/// A range misses when all of it does; where only the median misses, that is a warning.
pub(crate) fn judge(results: &BTreeMap<Metric, BTreeMap<String, Summary>>) -> Vec<Gate> {
    let heddle = |metric| results.get(&metric)?.get("heddle");
    let of_envoy =
        |metric, factor: f64| better(results, metric, "envoy").map(|s| factor * s.median);
    let ratio = |metric, factor, promise: &str| {
        judge_range(promise, of_envoy(metric, factor), heddle(metric))
    };
    let added = |metric, limit, promise: &str| judge_median(promise, Some(limit), heddle(metric));
    vec![
        ratio(
            Metric::Http1C16CpuUs,
            0.40,
            "CPU per request at 16 connections: at most 0.40 of Envoy's better mode",
        ),
        judge_range(
            "resident memory of an idle sidecar: at most 12 MB",
            Some(12.0),
            heddle(Metric::RssIdleMb),
        ),
        ratio(Metric::ColdStartMs, 0.40, "cold start: at most 0.40 of Envoy's"),
        added(
            Metric::GreetingFirstAddedMs,
            20.0,
            "server speaks first, unseen port: at most 20 ms over no proxy",
        ),
        added(
            Metric::GreetingLaterAddedMs,
            2.0,
            "server speaks first, seen port: at most 2 ms over no proxy",
        ),
    ]
}

/// For samples that are rounds, of which some are disturbed.
fn judge_range(promise: &str, limit: Option<f64>, found: Option<&Summary>) -> Gate {
    let mut gate = judge_median(promise, limit, found);
    let reached = limit.zip(found).is_some_and(|(limit, found)| found.min <= limit);
    if gate.verdict == Verdict::Fail && reached {
        gate.verdict = Verdict::Warn;
    }
    gate
}

/// For samples that are so many that their median is steady.
fn judge_median(promise: &str, limit: Option<f64>, found: Option<&Summary>) -> Gate {
    let verdict = match (limit, found) {
        (Some(limit), Some(found)) if found.median <= limit => Verdict::Pass,
        (Some(_), Some(_)) => Verdict::Fail,
        _ => Verdict::NotMeasured,
    };
    Gate { promise: promise.into(), limit, found: found.cloned(), verdict }
}

/// The better of a contender's variants.
pub(crate) fn better<'a>(
    results: &'a BTreeMap<Metric, BTreeMap<String, Summary>>,
    metric: Metric,
    contender: &str,
) -> Option<&'a Summary> {
    let variants = results.get(&metric)?.iter();
    let of_contender = variants.filter(|(name, _)| {
        name.strip_prefix(contender).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    });
    let by_median = |a: &&Summary, b: &&Summary| a.median.total_cmp(&b.median);
    let summaries = of_contender.map(|(_, summary)| summary);
    if metric.more_is_better() { summaries.max_by(by_median) } else { summaries.min_by(by_median) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(samples: &[f64]) -> Summary {
        Summary::of(samples).unwrap()
    }

    #[test]
    fn medians() {
        for (samples, expected) in
            [(&[3.0][..], 3.0), (&[5.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0)]
        {
            assert_eq!(summary(samples).median, expected);
        }
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_gate_fails_only_when_every_sample_misses() {
        for (limit, samples, expected) in [
            (Some(10.0), Some(&[8.0, 9.0, 30.0][..]), Verdict::Pass),
            (Some(10.0), Some(&[8.0, 11.0, 12.0]), Verdict::Warn),
            (Some(10.0), Some(&[11.0, 11.0, 12.0]), Verdict::Fail),
            (None, Some(&[1.0]), Verdict::NotMeasured),
            (Some(10.0), None, Verdict::NotMeasured),
        ] {
            let found = samples.map(summary);
            assert_eq!(judge_range("", limit, found.as_ref()).verdict, expected);
        }
    }

    #[test]
    fn only_full_runs_of_released_code_are_published() {
        let published = |quick, profile: &str| {
            let environment = Environment { quick, profile: profile.into(), ..Default::default() };
            environment.why_not_published().is_none()
        };
        assert!(published(false, "release"));
        assert!(!published(true, "release"));
        assert!(!published(false, "quick-release") && !published(false, "debug"));
    }

    #[test]
    fn a_run_fails_on_what_heddle_missed_or_lost() {
        let gate =
            |verdict| Gate { promise: format!("{verdict:?}"), limit: None, found: None, verdict };
        let void = |variant: &str| Void {
            variant: variant.into(),
            measurement: "grpc".into(),
            round: 1,
            reason: String::new(),
        };
        let report = Report {
            environment: Environment::default(),
            results: BTreeMap::new(),
            void: vec![void("envoy-h1"), void("heddle")],
            gates: [Verdict::Pass, Verdict::Warn, Verdict::Fail, Verdict::NotMeasured]
                .map(gate)
                .into(),
            goals: Vec::new(),
        };
        assert_eq!(report.failures(), ["missed: Fail", "void: grpc, round 2"]);
    }

    #[test]
    fn the_better_mode_counts() {
        let mut samples = Samples::default();
        for (variant, cpu, rps) in
            [("envoy-h1", 300.0, 3000.0), ("envoy-h2", 200.0, 4000.0), ("heddle", 60.0, 9000.0)]
        {
            samples.add(Metric::Http1C16CpuUs, variant, cpu);
            samples.add(Metric::Http1C16Rps, variant, rps);
        }
        let results = samples.summarize();
        assert_eq!(better(&results, Metric::Http1C16CpuUs, "envoy").unwrap().median, 200.0);
        assert_eq!(better(&results, Metric::Http1C16Rps, "envoy").unwrap().median, 4000.0);
        assert!(better(&results, Metric::Http1C16Rps, "haproxy").is_none());
        let gate = &judge(&results)[0];
        assert_eq!((gate.limit, gate.verdict), (Some(80.0), Verdict::Pass));
    }
}
