//! What the servers entered against what the clients recorded. Pure.

use std::collections::HashMap;

use crate::app::Entry;
use crate::load::{Outcome, Record};

/// Where the two sides differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Requests that servers took on more often than once, counting each time too many.
    pub(super) duplicates: u64,
    /// Good answers to requests that the server they name never entered.
    pub(super) unaccounted: u64,
    /// Entries with another method than was sent.
    pub(super) altered: u64,
}

/// Entries of requests that no record mentions (probes, other clients) are nobody's duplicate.
pub(super) fn audit<'a>(
    records: impl Iterator<Item = &'a Record>,
    entries: impl Iterator<Item = &'a Entry>,
) -> Audit {
    let mut by_id: HashMap<&str, Vec<&Entry>> = HashMap::new();
    for entry in entries {
        by_id.entry(&entry.id).or_default().push(entry);
    }
    let mut audit = Audit::default();
    for record in records {
        let entries = by_id.get(record.id.as_str()).map_or(&[][..], Vec::as_slice);
        audit.duplicates += (entries.len() as u64).saturating_sub(1);
        audit.altered +=
            entries.iter().filter(|entry| entry.method != record.method).count() as u64;
        if let Outcome::Ok { server, pod } = &record.outcome
            && !entries.iter().any(|entry| entry.server == *server && entry.pod == *pod)
        {
            audit.unaccounted += 1;
        }
    }
    audit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, outcome: Outcome) -> Record {
        Record { id: id.into(), method: "POST".into(), started_us: 0, ended_us: 1, outcome }
    }

    fn entry(id: &str, pod: &str, method: &str) -> Entry {
        Entry {
            server: "v1".into(),
            pod: pod.into(),
            id: id.into(),
            method: method.into(),
            body_sha256: String::new(),
        }
    }

    #[test]
    fn differences_are_counted() {
        let ok = || Outcome::Ok { server: "v1".into(), pod: "a".into() };
        let failed = || Outcome::Status { status: 503, reason: "reset".into() };
        let records = [
            record("once", ok()),
            record("twice", ok()),
            record("failed but done", failed()),
            record("failed and not done", failed()),
            record("answered by nobody", ok()),
            record("answered by another", ok()),
            record("altered", ok()),
        ];
        let entries = [
            entry("once", "a", "POST"),
            entry("twice", "b", "POST"),
            entry("twice", "a", "POST"),
            entry("failed but done", "a", "POST"),
            entry("answered by another", "b", "POST"),
            entry("altered", "a", "GET"),
            entry("a probe", "a", "GET"),
            entry("a probe", "a", "GET"),
        ];
        let found = audit(records.iter(), entries.iter());
        assert_eq!(found, Audit { duplicates: 1, unaccounted: 2, altered: 1 });
    }
}
