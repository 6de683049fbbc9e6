//! What was promised, and whether it held.

use super::clock::seconds;
use super::ledgers::audit;
use super::report::{CANARY, Report, SHARE_AFTER, SHARE_BEFORE, share};
use super::statistics::binomial_range;
use super::story::{EDIT_TO_EFFECT, Told};

/// Chance fails an honest split this rarely.
const CONFIDENCE: f64 = 0.999;
const LEAST_REQUESTS_PER_SPLIT: u64 = 10_000;
/// The frontend must go on under the policy, not just be spared a failure for want of requests.
const LEAST_SHARE_OF_RATE: f64 = 0.9;

/// Everything that is not as promised, each in a sentence.
pub(super) fn broken_promises(told: &Told, leftovers: &[String]) -> Vec<String> {
    let report = Report::new(told, leftovers.len());
    let mut broken = Vec::new();
    check_failures(told, &report, &mut broken);
    check_splits(told, &report, &mut broken);
    let mut promise = |held: bool, broken_by: String| {
        if !held {
            broken.push(broken_by);
        }
    };
    promise(
        report.certificates_renewed >= told.proxies,
        format!(
            "{} proxies renewed, and their peers saw {} new certificates",
            told.proxies, report.certificates_renewed
        ),
    );
    promise(
        told.allowed_status == 200,
        format!("before the policy the intruder got {}, not 200", told.allowed_status),
    );
    promise(
        report.denied_status == 403,
        format!("under the policy the intruder got {}, not 403", report.denied_status),
    );
    let sent = told.records.iter().chain(&told.bursts);
    let found = audit(sent, told.entries.iter());
    promise(found.duplicates == 0, format!("{} requests were served twice", found.duplicates));
    promise(
        found.unaccounted == 0,
        format!("{} answers came from no server that entered them", found.unaccounted),
    );
    promise(found.altered == 0, format!("{} requests arrived altered", found.altered));
    promise(
        told.wire.plaintext_markers == 0,
        format!("the marker passed in the clear {} times", told.wire.plaintext_markers),
    );
    promise(told.wire.packets > 0, "the capture saw no packet between the pods".to_owned());
    promise(
        told.wire_without_mesh.plaintext_markers > 0,
        "the capture saw no marker outside the mesh either, so it proves nothing".to_owned(),
    );
    broken.extend(leftovers.iter().map(|left| format!("left behind: {left}")));
    broken
}

fn check_failures(told: &Told, report: &Report, broken: &mut Vec<String>) {
    for record in told.records.iter().chain(&told.bursts) {
        if record.outcome.is_ok() {
            continue;
        }
        let was_in_flight =
            record.started_us <= told.dying.to_us && record.ended_us >= told.dying.from_us;
        let when = when(told, record.started_us);
        if !was_in_flight {
            broken.push(format!("{when} {} failed: {}", record.id, record.outcome));
        } else if !record.outcome.is_explicit_error() {
            broken.push(format!(
                "{when} {} failed and did not say why: {}",
                record.id, record.outcome
            ));
        }
    }
    if report.failed_during_pod_kill > report.in_flight_at_kill {
        broken.push(format!(
            "{} requests failed when a pod was killed, and {} were in flight",
            report.failed_during_pod_kill, report.in_flight_at_kill
        ));
    }
    // A client that stalled would have no failures either.
    for (name, span) in [
        ("while the control plane was away", told.control_plane_down),
        ("during renewal", told.renewal),
        ("while a pod stopped", told.pod_stop),
        ("while a pod was killed", told.pod_kill),
        ("under the policy", told.denial),
    ] {
        let expected = seconds(span.to_us - span.from_us) * told.rate * LEAST_SHARE_OF_RATE;
        let sent = span.began(&told.records).count();
        #[expect(clippy::cast_precision_loss, reason = "counts of requests, far below 2^52")]
        if (sent as f64) < expected {
            broken.push(format!("{name} the frontend sent {sent} requests, not {expected:.0}"));
        }
    }
}

fn check_splits(told: &Told, report: &Report, broken: &mut Vec<String>) {
    for (name, span, weight) in
        [("90/10", told.split_before, SHARE_BEFORE), ("50/50", told.split_after, SHARE_AFTER)]
    {
        let (canary, all) = share(span, &told.records);
        let (low, high) = binomial_range(all, weight, CONFIDENCE);
        if !(low..=high).contains(&canary) {
            broken.push(format!(
                "at {name} {CANARY} answered {canary} of {all}, outside {low}..{high}"
            ));
        }
        if all < LEAST_REQUESTS_PER_SPLIT {
            broken.push(format!("at {name} only {all} requests were answered"));
        }
    }
    let limit = EDIT_TO_EFFECT.as_secs_f64();
    if !(0.0..=limit).contains(&report.seconds_edit_to_effect) {
        broken.push(format!(
            "the edit took {} s to have an effect, not {limit} s",
            report.seconds_edit_to_effect
        ));
    }
}

/// The last event before a moment, for a person to know where to look.
fn when(told: &Told, at_us: u64) -> String {
    let since = told.marks.iter().rev().find(|(mark_us, _)| *mark_us <= at_us);
    since.map_or_else(
        || "before the first event".to_owned(),
        |(mark_us, label)| format!("{:.3} s after \"{label}\"", seconds(at_us - mark_us)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::story::Span;
    use super::*;
    use crate::app::{Called, Entry};
    use crate::capture::Seen;
    use crate::load::{Outcome, Record};

    const SECOND: u64 = 1_000_000;

    fn record(at_us: u64, outcome: Outcome) -> Record {
        let (id, method) = (at_us.to_string(), "GET".to_owned());
        Record { id, method, started_us: at_us, ended_us: at_us + 1000, outcome }
    }

    /// Two splits of ten seconds at 1,100 requests a second, exactly divided, and all the rest.
    fn honest() -> Told {
        let splits = (0..22_000_u64).map(|number| {
            let every = if number < 11_000 { 10 } else { 2 };
            let server = if number % every == 0 { CANARY } else { "web-v1" };
            let outcome = Outcome::Ok { server: server.to_owned(), pod: "a".to_owned() };
            record(number * 20 * SECOND / 22_000, outcome)
        });
        let records: Vec<_> = splits.collect();
        let entry = |record: &Record| Entry {
            server: match &record.outcome {
                Outcome::Ok { server, .. } => server.clone(),
                Outcome::Status { .. } | Outcome::Broken { .. } | Outcome::Wrong { .. } => {
                    panic!("made good above")
                }
            },
            pod: "a".to_owned(),
            id: record.id.clone(),
            method: record.method.clone(),
            body_sha256: String::new(),
        };
        let markers =
            |plaintext_markers| Seen { packets: 10, plaintext_markers, ..Seen::default() };
        let status = 403;
        Told {
            rate: 1000.0,
            entries: records.iter().map(entry).collect(),
            records,
            split_before: Span { from_us: 0, to_us: 10 * SECOND },
            edited_us: 10 * SECOND,
            split_after: Span { from_us: 10 * SECOND, to_us: 20 * SECOND },
            dying: Span { from_us: 15 * SECOND, to_us: 15 * SECOND + 5000 },
            pod_kill: Span { from_us: 15 * SECOND, to_us: 16 * SECOND },
            proxies: 6,
            certificates_renewed: 6,
            allowed_status: 200,
            denied: Some(Called { status, headers: Default::default(), body: String::new() }),
            wire: markers(0),
            wire_without_mesh: markers(1),
            ..Told::default()
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Told), expected: &str) {
        let mut told = honest();
        change(&mut told);
        let broken = broken_promises(&told, &[]);
        assert!(broken.iter().any(|promise| promise.contains(expected)), "{expected}: {broken:?}");
    }

    fn failed(reason: &str) -> Outcome {
        Outcome::Status { status: 503, reason: reason.to_owned() }
    }

    #[test]
    fn nothing_is_held_against_an_honest_mesh() {
        assert_eq!(broken_promises(&honest(), &[]), [""; 0]);
    }

    #[test]
    fn a_request_in_flight_at_the_kill_may_fail_when_it_says_why() {
        let mut told = honest();
        told.records.push(record(told.dying.from_us, failed("reset")));
        assert_eq!(broken_promises(&told, &[]), [""; 0]);
        check(|t| t.records.push(record(t.dying.from_us, failed(""))), "did not say why");
        check(|t| t.records.push(record(t.dying.to_us + 1, failed("reset"))), "status:503:reset");
    }

    #[test]
    fn every_promise_can_be_broken() {
        check(|told| told.bursts.push(record(1, failed("reset"))), "status:503:reset");
        check(|told| told.split_after.from_us = 5 * SECOND, "at 50/50 web-v2 answered");
        check(|told| told.split_before.to_us = SECOND, "only 1100 requests");
        check(|told| told.edited_us = 8 * SECOND, "the edit took 2");
        check(|told| told.certificates_renewed = 5, "5 new certificates");
        check(|told| told.allowed_status = 403, "got 403, not 200");
        check(|told| told.denied = None, "got 0, not 403");
        check(|told| told.entries.push(told.entries[0].clone()), "served twice");
        check(|told| drop(told.entries.pop()), "1 answers came from no server");
        check(|told| told.entries[0].method = "POST".to_owned(), "arrived altered");
        check(|told| told.wire.plaintext_markers = 1, "in the clear 1 times");
        check(|told| told.wire.packets = 0, "saw no packet");
        check(|told| told.wire_without_mesh.plaintext_markers = 0, "proves nothing");
        check(|told| told.denial = Span { from_us: 0, to_us: 40 * SECOND }, "under the policy");
        assert_eq!(broken_promises(&honest(), &["file x".to_owned()]), ["left behind: file x"]);
    }
}
