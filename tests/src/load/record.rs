//! What became of each request, and the two forms it is told in: a line per request for the
//! record, a line per 100 ms for whoever is watching.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How one request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200, and the answer was to this request: its id and the hash of its body came back.
    Ok { server: String, pod: String },
    /// Another status, with the reason a proxy gave for it (empty when none did).
    Status { status: u16, reason: String },
    /// No whole answer: `connect`, `send`, `body` or `timeout`, and the cause.
    Broken { stage: &'static str, cause: String },
    /// A 200 that answers something else than what was asked.
    Wrong { what: &'static str },
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok { .. })
    }

    /// Says what went wrong in a way a caller can act on: an answer with a reason, or an error of
    /// the connection. A wrong answer, or a failure that looks like the application's, is not.
    pub fn is_explicit_error(&self) -> bool {
        match self {
            Self::Ok { .. } | Self::Wrong { .. } => false,
            Self::Status { reason, .. } => !reason.is_empty(),
            Self::Broken { stage, .. } => *stage != "timeout",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (kind, first) = (parts.next()?, parts.next()?);
        let rest = parts.next().unwrap_or("").to_owned();
        Some(match kind {
            "ok" => Self::Ok { server: first.to_owned(), pod: rest },
            "status" => Self::Status { status: first.parse().ok()?, reason: rest },
            "broken" => Self::Broken { stage: find(&STAGES, first)?, cause: rest },
            "wrong" => Self::Wrong { what: find(&WRONGS, first)? },
            _ => return None,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok { server, pod } => write!(f, "ok:{server}:{pod}"),
            Self::Status { status, reason } => write!(f, "status:{status}:{reason}"),
            Self::Broken { stage, cause } => write!(f, "broken:{stage}:{cause}"),
            Self::Wrong { what } => write!(f, "wrong:{what}"),
        }
    }
}

/// One request, from the client's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: String,
    pub method: String,
    /// When it was due, microseconds since the Unix epoch.
    pub started_us: u64,
    /// When its outcome was known.
    pub ended_us: u64,
    pub outcome: Outcome,
}

impl Record {
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { id, method, started_us, ended_us, outcome } = self;
        // The cause is free text of the operating system or the peer; a line is a line.
        let outcome = outcome.to_string().replace(['\t', '\n', '\r'], " ");
        writeln!(out, "{id}\t{method}\t{started_us}\t{ended_us}\t{outcome}")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(5, '\t');
        Some(Self {
            id: parts.next()?.to_owned(),
            method: parts.next()?.to_owned(),
            started_us: parts.next()?.parse().ok()?,
            ended_us: parts.next()?.parse().ok()?,
            outcome: Outcome::parse(parts.next()?)?,
        })
    }
}

/// Reads a record file back; an unreadable line is an error that shows it.
pub fn parse_records(text: &str) -> anyhow::Result<Vec<Record>> {
    let parse = |line| Record::parse(line).ok_or_else(|| anyhow::anyhow!("not a record: {line}"));
    text.lines().map(parse).collect()
}

/// What happened in one interval of [`super::BUCKET_MS`], by the time requests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// End of the interval, microseconds since the Unix epoch.
    pub at_us: u64,
    pub in_flight: u64,
    /// Good answers by the server that gave them.
    pub ok: BTreeMap<String, u64>,
    /// The other outcomes, without their free text.
    pub failed: BTreeMap<String, u64>,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// Gathers outcomes until the interval is over.
#[derive(Debug)]
pub(super) struct Gathering {
    bucket: Bucket,
    latency_us: Histogram<u64>,
}

impl Gathering {
    pub(super) fn new() -> Self {
        // Bounds, because a histogram that grows by itself does not on a saturating record.
        let latency_us = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("within its limits");
        Self { bucket: Bucket::default(), latency_us }
    }

    pub(super) fn add(&mut self, record: &Record) {
        let (counts, key) = match &record.outcome {
            Outcome::Ok { server, .. } => (&mut self.bucket.ok, server.clone()),
            Outcome::Broken { stage, .. } => (&mut self.bucket.failed, format!("broken:{stage}")),
            Outcome::Status { .. } | Outcome::Wrong { .. } => {
                (&mut self.bucket.failed, record.outcome.to_string())
            }
        };
        *counts.entry(key).or_default() += 1;
        self.latency_us.saturating_record(record.ended_us.saturating_sub(record.started_us));
    }

    pub(super) fn take(&mut self, at_us: u64, in_flight: u64) -> Bucket {
        let p50_us = self.latency_us.value_at_quantile(0.5);
        let p99_us = self.latency_us.value_at_quantile(0.99);
        self.latency_us.reset();
        Bucket { at_us, in_flight, p50_us, p99_us, ..std::mem::take(&mut self.bucket) }
    }
}

fn find(known: &[&'static str], text: &str) -> Option<&'static str> {
    known.iter().copied().find(|word| *word == text)
}

/// Longer latencies are shown as this one; records have them in full.
const LONGEST_US: u64 = 60_000_000;
const STAGES: [&str; 4] = ["connect", "send", "body", "timeout"];
const WRONGS: [&str; 3] = ["not json", "id", "body hash"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_written() {
        let outcomes = [
            Outcome::Ok { server: "web-v1".into(), pod: "web-v1-a".into() },
            Outcome::Status { status: 503, reason: "no-endpoints".into() },
            Outcome::Status { status: 500, reason: String::new() },
            Outcome::Broken { stage: "connect", cause: "refused: os error 111".into() },
            Outcome::Wrong { what: "body hash" },
        ];
        let record = |outcome| Record {
            id: "a".into(),
            method: "POST".into(),
            started_us: 1,
            ended_us: 2,
            outcome,
        };
        let records: Vec<_> = outcomes.into_iter().map(record).collect();
        let mut text = Vec::new();
        records.iter().for_each(|record| record.write_to(&mut text).unwrap());
        assert_eq!(parse_records(std::str::from_utf8(&text).unwrap()).unwrap(), records);
        assert!(parse_records("a\tGET\t1\t2\tfine:x").is_err());
    }

    #[test]
    fn a_bucket_tells_slow_requests_from_fast_ones() {
        let mut gathering = Gathering::new();
        for latency_us in (0..98).map(|_| 1_000).chain([3_000_000, 3_000_000]) {
            gathering.add(&Record {
                id: String::new(),
                method: "GET".into(),
                started_us: 0,
                ended_us: latency_us,
                outcome: Outcome::Ok { server: "v1".into(), pod: "a".into() },
            });
        }
        let bucket = gathering.take(7, 1);
        assert_eq!((bucket.at_us, bucket.in_flight, bucket.ok["v1"]), (7, 1, 100));
        assert_eq!(bucket.p50_us / 10, 100);
        assert_eq!(bucket.p99_us / 10_000, 300);
        assert_eq!(gathering.take(8, 0).ok.len(), 0);
    }

    #[test]
    fn only_failures_that_say_why_are_explicit() {
        let cases = [
            ("ok:web-v1:a", false),
            ("status:503:connect-failed", true),
            ("status:500:", false),
            ("broken:body:reset", true),
            ("broken:timeout:", false),
            ("wrong:id", false),
        ];
        for (text, expected) in cases {
            assert_eq!(Outcome::parse(text).unwrap().is_explicit_error(), expected, "{text}");
        }
    }
}
