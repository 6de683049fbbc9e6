//! The clients' records against the servers' ledgers: each request is exactly one of
//!
//! - ok: answered, entered once by the server that answered;
//! - refused: an error that says why, and no server saw it;
//! - ambiguous: an error that says why, and a server saw it;
//! - and three that must not exist: lost, duplicated, misrouted.

use std::collections::{BTreeMap, HashMap};

use anyhow::ensure;

use super::now_us;
use crate::app::Entry;
use crate::load::{Outcome, Record};

/// A stretch of time in which clients may notice something.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    from_us: u64,
    to_us: u64,
}

impl Window {
    /// From now on, until it is closed.
    #[must_use]
    pub fn open() -> Self {
        Self { from_us: now_us(), to_us: u64::MAX }
    }

    #[must_use]
    pub fn close(self) -> Self {
        Self { to_us: now_us(), ..self }
    }

    /// Whether a request was on its way in it.
    #[must_use]
    pub fn touches(&self, record: &Record) -> bool {
        record.started_us <= self.to_us && record.ended_us >= self.from_us
    }
}

/// Both sides of some requests.
#[derive(Debug)]
pub struct Account {
    pub records: Vec<Record>,
    entries: HashMap<String, Vec<Entry>>,
    /// Whether a policy lets requests that may be repeated be repeated.
    repeats: bool,
}

impl Account {
    #[must_use]
    pub fn new(records: Vec<Record>, ledger: Vec<Entry>) -> Self {
        let mut entries: HashMap<_, Vec<_>> = HashMap::new();
        for entry in ledger {
            entries.entry(entry.id.clone()).or_default().push(entry);
        }
        Self { records, entries, repeats: false }
    }

    /// The same where a policy allows GETs to be tried again after somebody may have acted.
    #[must_use]
    pub fn with_repeats(self) -> Self {
        Self { repeats: true, ..self }
    }

    /// Requests that were not answered.
    pub fn failures(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| !record.outcome.is_ok())
    }

    /// The servers' entries of a request.
    #[must_use]
    pub fn entries(&self, id: &str) -> &[Entry] {
        self.entries.get(id).map_or(&[], Vec::as_slice)
    }

    /// Good answers by the pod that gave them.
    #[must_use]
    pub fn by_pod(&self) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for record in &self.records {
            if let Outcome::Ok { pod, .. } = &record.outcome {
                *counts.entry(pod.as_str()).or_default() += 1;
            }
        }
        counts
    }

    /// How often each failure was met.
    #[must_use]
    pub fn failure_kinds(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for record in self.failures() {
            *counts.entry(record.outcome.to_string()).or_default() += 1;
        }
        counts
    }

    /// Every request was answered, by whom it should be, once.
    ///
    /// # Errors
    /// Those that were not.
    pub fn expect_clean(&self) -> anyhow::Result<()> {
        self.expect_nothing_impossible()?;
        let failed: Vec<_> = self.failures().map(show).take(10).collect();
        let (all, kinds) = (self.records.len(), self.failure_kinds());
        ensure!(failed.is_empty(), "failed, of {all}: {kinds:?}\n{}", failed.join("\n"));
        Ok(())
    }

    /// Failures say why, and were on their way in the window; `limit` of them at most.
    ///
    /// # Errors
    /// Those that were not.
    pub fn expect_only_within(&self, window: Window, limit: usize) -> anyhow::Result<()> {
        self.expect_nothing_impossible()?;
        let odd: Vec<_> = self
            .failures()
            .filter(|record| !window.touches(record) || !record.outcome.is_explicit_error())
            .map(|record| {
                let after = i128::from(record.started_us) - i128::from(window.from_us);
                format!("{} us after the beginning: {}", after, show(record))
            })
            .take(10)
            .collect();
        let (all, kinds) = (self.records.len(), self.failure_kinds());
        ensure!(odd.is_empty(), "out of the fault's window, or not explained: {}", odd.join("\n"));
        let failed = self.failures().count();
        ensure!(failed <= limit, "{failed} of {all} failed, {limit} may: {kinds:?}");
        Ok(())
    }

    /// Nothing lost, duplicated or misrouted.
    ///
    /// # Errors
    /// What was.
    pub fn expect_nothing_impossible(&self) -> anyhow::Result<()> {
        ensure!(!self.records.is_empty(), "no request was made");
        let impossible: Vec<_> = self.records.iter().filter_map(|r| self.flaw(r)).collect();
        let some = &impossible[..impossible.len().min(10)];
        ensure!(some.is_empty(), "{} impossible: {}", impossible.len(), some.join("\n"));
        Ok(())
    }

    fn flaw(&self, record: &Record) -> Option<String> {
        let entries = self.entries(&record.id);
        let may_repeat = self.repeats && record.method == "GET";
        let flaw = match &record.outcome {
            Outcome::Wrong { .. } => "lost",
            Outcome::Ok { .. } if entries.is_empty() => "lost",
            Outcome::Ok { server, pod } if !is_by(entries, server, pod) => "misrouted",
            Outcome::Ok { .. } | Outcome::Status { .. } | Outcome::Broken { .. }
                if entries.len() > 1 && !may_repeat =>
            {
                "duplicated"
            }
            Outcome::Ok { .. } | Outcome::Status { .. } | Outcome::Broken { .. } => return None,
        };
        Some(format!("{flaw}: {} {entries:?}", show(record)))
    }
}

fn is_by(entries: &[Entry], server: &str, pod: &str) -> bool {
    entries.iter().any(|entry| entry.server == server && entry.pod == pod)
}

fn show(record: &Record) -> String {
    let took = record.ended_us.saturating_sub(record.started_us);
    format!("{} {} after {took} us: {}", record.method, record.id, record.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(method: &str, outcome: Outcome) -> Record {
        Record { id: "1".into(), method: method.into(), started_us: 10, ended_us: 20, outcome }
    }

    fn entry(pod: &str) -> Entry {
        Entry {
            server: "web".into(),
            pod: pod.into(),
            id: "1".into(),
            method: "POST".into(),
            body_sha256: "00".into(),
        }
    }

    #[test]
    fn what_must_not_exist_is_found() {
        let ok = || Outcome::Ok { server: "web".into(), pod: "a".into() };
        let lost = || Outcome::Status { status: 502, reason: "connection-lost".into() };
        let cases = [
            ("POST", ok(), vec!["a"], true),
            ("POST", ok(), vec![], false),
            ("POST", ok(), vec!["b"], false),
            ("POST", ok(), vec!["a", "a"], false),
            ("POST", lost(), vec!["b", "a"], false),
            ("POST", lost(), vec!["a"], true),
            ("POST", lost(), vec![], true),
            ("GET", Outcome::Wrong { what: "id" }, vec!["a"], false),
        ];
        for (method, outcome, pods, fine) in cases {
            let ledger = pods.iter().map(|pod| entry(pod)).collect();
            let account = Account::new(vec![record(method, outcome.clone())], ledger);
            let found = account.expect_nothing_impossible();
            assert_eq!(found.is_ok(), fine, "{method} {outcome} {pods:?}: {found:?}");
        }
        let twice = || Account::new(vec![record("GET", ok())], vec![entry("b"), entry("a")]);
        assert!(twice().expect_nothing_impossible().is_err());
        assert!(twice().with_repeats().expect_nothing_impossible().is_ok());
    }

    #[test]
    fn failures_belong_to_the_window_and_say_why() {
        let lost = Outcome::Status { status: 502, reason: "connection-lost".into() };
        let silent = Outcome::Broken { stage: "timeout", cause: String::new() };
        let within = Window { from_us: 15, to_us: 30 };
        let later = Window { from_us: 21, to_us: 30 };
        for (outcome, window, limit, fine) in [
            (lost.clone(), within, 1, true),
            (lost.clone(), within, 0, false),
            (lost, later, 1, false),
            (silent, within, 1, false),
        ] {
            let account = Account::new(vec![record("GET", outcome.clone())], vec![]);
            let found = account.expect_only_within(window, limit);
            assert_eq!(found.is_ok(), fine, "{outcome} {window:?} {limit}: {found:?}");
            assert!(account.expect_clean().is_err());
        }
    }
}
