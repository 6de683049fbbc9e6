//! What a proxy says of the resources it was given.

use heddle_api::proto::v1::{Report, ResourceReport, ResourceType};

use super::super::fleet::{Member, Rejecting};
use super::super::ledger::Verdict;
use super::{Context, bounded};
use crate::catalog::Key;
use crate::metrics::{kind_label, rejection_label};

/// Notes every verdict of a report.
pub(super) fn note_all(context: &Context, member: &Member, report: Report) {
    for report in report.resources {
        note(context, member, report);
    }
}

fn note(context: &Context, member: &Member, report: ResourceReport) {
    let Ok(kind) = ResourceType::try_from(report.r#type) else { return };
    let key = Key::new(kind, report.name);
    let verdict = if report.rejection.is_some() { Verdict::Rejected } else { Verdict::Active };
    let before = member.lock_ledger().judge(&key, report.hash, verdict);
    let Some(before) = before.filter(|before| *before != verdict) else { return };
    let pod = &member.pod;
    let rejection = report.rejection.map(|rejection| Rejecting {
        pod: pod.clone(),
        reason: rejection.reason(),
        path: bounded(rejection.path),
        message: bounded(rejection.message),
    });
    if let Some(Rejecting { reason, path, message, .. }) = &rejection {
        let labels = [kind_label(key.kind), rejection_label(*reason)];
        context.metrics.rejections.with_label_values(&labels).inc();
        tracing::debug!(%pod, kind = labels[0], name = ?key.name, reason = labels[1], ?path, ?message,
                "resource rejected");
    }
    let reason = rejection.as_ref().map(|rejection| rejection_label(rejection.reason));
    if context.fleet.judged(&key, report.hash, before, pod, rejection) {
        tracing::warn!(kind = kind_label(key.kind), name = ?key.name, %pod, reason,
                "a resource is rejected by its first proxy");
    }
}
