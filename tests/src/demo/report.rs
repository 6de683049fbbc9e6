//! The numbers: one flat object, every one of them computed from what was noted.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::clock::{millis, seconds};
use super::ledgers::audit;
use super::statistics::{find_change_us, quantile};
use super::story::{Span, Told};
use crate::load::{Outcome, Record};

/// The version whose share is reported, and its weights before and after the edit.
pub(super) const CANARY: &str = "web-v2";
pub(super) const SHARE_BEFORE: f64 = 0.1;
pub(super) const SHARE_AFTER: f64 = 0.5;

/// What `report.json` holds; `docs/demo.md` says how each is measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) split_before_v2_share: f64,
    pub(super) split_after_v2_share: f64,
    pub(super) requests_before: u64,
    pub(super) requests_after: u64,
    /// -1 when the split never changed.
    pub(super) seconds_edit_to_effect: f64,
    pub(super) control_plane_down_s: f64,
    pub(super) failed_while_down: u64,
    pub(super) certificates_renewed: u64,
    pub(super) failed_during_renewal: u64,
    pub(super) failed_during_pod_stop: u64,
    pub(super) failed_during_pod_kill: u64,
    pub(super) in_flight_at_kill: u64,
    pub(super) duplicates: u64,
    pub(super) denied_status: u16,
    pub(super) plaintext_markers_seen: u64,
    pub(super) plaintext_markers_seen_without_mesh: u64,
    pub(super) leftovers: u64,
}

impl Report {
    pub(super) fn new(told: &Told, leftovers: usize) -> Self {
        let sent = told.records.iter().chain(&told.bursts);
        let mut latencies_us: Vec<_> = told
            .records
            .iter()
            .filter(|record| record.outcome.is_ok())
            .map(|record| record.ended_us.saturating_sub(record.started_us))
            .collect();
        latencies_us.sort_unstable();
        let before = share(told.split_before, &told.records);
        let after = share(told.split_after, &told.records);
        Self {
            requests: sent.clone().count() as u64,
            failed: sent.clone().filter(|record| !record.outcome.is_ok()).count() as u64,
            p50_ms: millis(quantile(&latencies_us, 0.5)),
            p99_ms: millis(quantile(&latencies_us, 0.99)),
            split_before_v2_share: ratio(before),
            split_after_v2_share: ratio(after),
            requests_before: before.1,
            requests_after: after.1,
            seconds_edit_to_effect: edit_to_effect(told),
            control_plane_down_s: seconds(
                told.control_plane_down.to_us - told.control_plane_down.from_us,
            ),
            failed_while_down: failed(told, told.control_plane_down),
            certificates_renewed: told.certificates_renewed,
            failed_during_renewal: failed(told, told.renewal),
            failed_during_pod_stop: failed(told, told.pod_stop),
            failed_during_pod_kill: failed(told, told.pod_kill),
            in_flight_at_kill: told.dying.in_flight(&told.records).count() as u64,
            duplicates: audit(sent, told.entries.iter()).duplicates,
            denied_status: told.denied.as_ref().map_or(0, |denied| denied.status),
            plaintext_markers_seen: told.wire.plaintext_markers,
            plaintext_markers_seen_without_mesh: told.wire_without_mesh.plaintext_markers,
            leftovers: leftovers as u64,
        }
    }

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn table(&self) -> String {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let rows = [
            ("requests", format!("{}, {} failed", self.requests, self.failed)),
            ("latency", format!("p50 {:.2} ms, p99 {:.2} ms", self.p50_ms, self.p99_ms)),
            (
                "v2 at 90/10",
                format!("{} of {}", percent(self.split_before_v2_share), self.requests_before),
            ),
            (
                "v2 at 50/50",
                format!("{} of {}", percent(self.split_after_v2_share), self.requests_after),
            ),
            ("edit to effect", format!("{:.3} s", self.seconds_edit_to_effect)),
            (
                "control plane away",
                format!("{:.1} s, {} failed", self.control_plane_down_s, self.failed_while_down),
            ),
            (
                "certificates renewed",
                format!("{}, {} failed", self.certificates_renewed, self.failed_during_renewal),
            ),
            ("pod stopped", format!("{} failed", self.failed_during_pod_stop)),
            (
                "pod killed",
                format!(
                    "{} failed of {} in flight",
                    self.failed_during_pod_kill, self.in_flight_at_kill
                ),
            ),
            ("served twice", self.duplicates.to_string()),
            ("intruder", self.denied_status.to_string()),
            (
                "markers on the wire",
                format!(
                    "{} (without the mesh {})",
                    self.plaintext_markers_seen, self.plaintext_markers_seen_without_mesh
                ),
            ),
            ("left behind", self.leftovers.to_string()),
        ];
        let rows = rows.map(|(name, value)| format!("  {name:<22} {value}\n"));
        format!("\n{}", rows.concat())
    }
}

/// Failures among requests that were on their way at any moment of the span.
fn failed(told: &Told, span: Span) -> u64 {
    let all = span.in_flight(&told.records).chain(span.in_flight(&told.bursts));
    all.filter(|record| !record.outcome.is_ok()).count() as u64
}

/// Good answers by the canary, and all good answers, to requests that began in the span.
pub(super) fn share(span: Span, records: &[Record]) -> (u64, u64) {
    span.began(records).fold((0, 0), |(canary, all), record| match &record.outcome {
        Outcome::Ok { server, .. } => (canary + u64::from(server == CANARY), all + 1),
        Outcome::Status { .. } | Outcome::Broken { .. } | Outcome::Wrong { .. } => (canary, all),
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests, far below 2^52")]
fn ratio((part, whole): (u64, u64)) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn edit_to_effect(told: &Told) -> f64 {
    let around = Span { from_us: told.split_before.from_us, to_us: told.split_after.to_us };
    let around: Vec<_> = around.began(&told.records).collect();
    find_change_us(&around, CANARY, SHARE_BEFORE, SHARE_AFTER)
        .map_or(-1.0, |changed_us| seconds(changed_us.saturating_sub(told.edited_us)))
}
