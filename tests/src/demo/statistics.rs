//! The statistics of a split: which shares chance allows, and when a share changed. Pure.

use crate::load::{Outcome, Record};

/// The inclusive range of successes that `n` draws with probability `p` fall in with at least
/// `confidence`, by the exact binomial distribution, the rest divided evenly over both sides.
#[expect(clippy::cast_precision_loss, reason = "counts of requests, far below 2^52")]
pub fn binomial_range(n: u64, p: f64, confidence: f64) -> (u64, u64) {
    let tail = (1.0 - confidence) / 2.0;
    let odds = (p / (1.0 - p)).ln();
    // Logarithms: (1 - p)^n alone is below what a float can hold.
    let mut ln_probability = n as f64 * (1.0 - p).ln();
    let mut below = 0.0;
    let mut low = None;
    for k in 0..=n {
        let probability = ln_probability.exp();
        if low.is_none() && below + probability > tail {
            low = Some(k);
        }
        below += probability;
        if below >= 1.0 - tail {
            return (low.unwrap_or(k), k);
        }
        ln_probability += ((n - k) as f64 / (k + 1) as f64).ln() + odds;
    }
    (low.unwrap_or(n), n)
}

/// When the share of `version` among the good answers went from `before` to `after`: the start of
/// the first request of the most likely later part, given that there is exactly one change.
/// `None` when the records are likelier without one.
pub(super) fn find_change_us(
    records: &[&Record],
    version: &str,
    before: f64,
    after: f64,
) -> Option<u64> {
    let mut drawn: Vec<(u64, bool)> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            Outcome::Ok { server, .. } => Some((record.started_us, server == version)),
            Outcome::Status { .. } | Outcome::Broken { .. } | Outcome::Wrong { .. } => None,
        })
        .collect();
    drawn.sort_unstable();
    let gain = |is_version: bool| {
        if is_version { (after / before).ln() } else { ((1.0 - after) / (1.0 - before)).ln() }
    };
    // Walking back, how much likelier the new share makes everything from here on.
    let (mut sum, mut best) = (0.0, (0.0, None));
    for (started_us, is_version) in drawn.into_iter().rev() {
        sum += gain(is_version);
        if sum > best.0 {
            best = (sum, Some(started_us));
        }
    }
    best.1
}

/// The value that `quantile` of the others do not exceed; 0 of nothing.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index within the slice"
)]
pub(super) fn quantile(sorted: &[u64], quantile: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * quantile).round() as usize).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against tables of the binomial distribution (R: qbinom).
    #[test]
    fn binomial_ranges() {
        let cases = [
            ((10, 0.5, 0.95), (2, 8)),
            ((100, 0.5, 0.95), (40, 60)),
            ((100, 0.1, 0.999), (2, 21)),
            ((10_000, 0.5, 0.999), (4835, 5165)),
        ];
        for ((n, p, confidence), expected) in cases {
            assert_eq!(binomial_range(n, p, confidence), expected, "n {n} p {p} at {confidence}");
        }
    }

    fn record(started_us: u64, server: &str) -> Record {
        Record {
            id: String::new(),
            method: "GET".into(),
            started_us,
            ended_us: started_us,
            outcome: Outcome::Ok { server: server.into(), pod: String::new() },
        }
    }

    #[test]
    fn a_change_is_found_where_it_is() {
        // Every tenth, and from 1000 on every second.
        let records: Vec<_> = (0..2000)
            .map(|at| {
                record(at, if at % if at < 1000 { 10 } else { 2 } == 0 { "v2" } else { "v1" })
            })
            .collect();
        let all: Vec<_> = records.iter().collect();
        let found = find_change_us(&all, "v2", 0.1, 0.5).unwrap();
        assert!((995..=1005).contains(&found), "{found}");
        assert_eq!(find_change_us(&all[..1000], "v2", 0.1, 0.5), None);
    }

    #[test]
    fn quantiles() {
        let sorted: Vec<_> = (0..=100).collect();
        assert_eq!(
            (quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&[], 0.5)),
            (50, 99, 0)
        );
    }
}
