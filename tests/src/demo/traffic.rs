//! A load client in a pod: started, watched on the live line, ended, and its record read.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, bail};

use super::screen::Screen;
use crate::lab::{Lab, PodKey};
use crate::load::{BUCKET_MS, Bucket, Record, parse_records};

/// Seconds the live line looks back.
const LIVE_SECONDS: u64 = 1;

#[derive(Debug)]
pub(super) struct Traffic {
    /// Its standard input is what keeps it going.
    child: Child,
    watcher: JoinHandle<()>,
    records: PathBuf,
}

/// A client's arguments; the rest are the client's defaults.
#[derive(Clone, Debug)]
pub(super) struct Plan<'a> {
    pub(super) pod: &'a str,
    pub(super) url: String,
    pub(super) rate: u32,
    pub(super) connections: u32,
    /// 0: until it is ended.
    pub(super) duration_ms: u64,
    pub(super) marker: &'a str,
}

impl Traffic {
    pub(super) fn start(
        lab: &Lab,
        plan: &Plan<'_>,
        screen: Option<Arc<Screen>>,
    ) -> anyhow::Result<Self> {
        // Several clients may run in one pod, one after another.
        let name = format!("records-{:08x}.tsv", rand::random::<u32>());
        let mut command = lab.exec_command(plan.pod);
        command.args(["heddle-app", "load", &plan.url, "--records", &name]);
        command.args(["--marker", plan.marker]);
        for (flag, value) in [
            ("--rate", u64::from(plan.rate)),
            ("--connections", u64::from(plan.connections)),
            ("--duration-ms", plan.duration_ms),
        ] {
            command.arg(flag).arg(value.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the load client")?;
        let buckets = BufReader::new(child.stdout.take().expect("piped above"));
        let watcher = std::thread::spawn(move || watch(buckets, screen.as_deref()));
        let pod: PodKey = plan.pod.parse()?;
        let records = lab.layout().pod(&pod).join("work").join("app").join(name);
        Ok(Self { child, watcher, records })
    }

    /// Ends it if it has no end of its own, and returns what it recorded.
    pub(super) fn finish(mut self) -> anyhow::Result<Vec<Record>> {
        drop(self.child.stdin.take());
        self.wait()
    }

    fn wait(mut self) -> anyhow::Result<Vec<Record>> {
        let mut complaint = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut complaint)?;
        }
        // Its status says whether requests failed, which its record says better.
        self.child.wait()?;
        if self.watcher.join().is_err() {
            bail!("watching the load client panicked");
        }
        if !complaint.trim().is_empty() {
            bail!("the load client: {}", complaint.trim());
        }
        let text = fs::read_to_string(&self.records)
            .with_context(|| format!("read {}", self.records.display()))?;
        parse_records(&text)
    }

    /// Runs a client that ends by itself.
    pub(super) fn run(lab: &Lab, plan: &Plan<'_>) -> anyhow::Result<Vec<Record>> {
        Self::start(lab, plan, None)?.wait()
    }
}

fn watch(lines: impl std::io::BufRead, screen: Option<&Screen>) {
    let mut recent = VecDeque::new();
    let keep = usize::try_from(LIVE_SECONDS * 1000 / BUCKET_MS).expect("a handful");
    // Read to the end in any case: a client whose output nobody reads would stop.
    for line in lines.lines().map_while(Result::ok) {
        let Ok(bucket) = serde_json::from_str::<Bucket>(&line) else { continue };
        recent.push_back(bucket);
        if recent.len() > keep {
            recent.pop_front();
        }
        if let Some(screen) = screen {
            screen.show(&describe(&recent));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests, far below 2^52")]
fn describe(recent: &VecDeque<Bucket>) -> String {
    let mut by_server: BTreeMap<&str, u64> = BTreeMap::new();
    for (server, count) in recent.iter().flat_map(|bucket| &bucket.ok) {
        *by_server.entry(server).or_default() += count;
    }
    let ok: u64 = by_server.values().sum();
    let all = ok + recent.iter().flat_map(|bucket| bucket.failed.values()).sum::<u64>();
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let rps = all * 1000 / (recent.len() as u64 * BUCKET_MS).max(1);
    let mut medians: Vec<_> = recent.iter().map(|bucket| bucket.p50_us).collect();
    medians.sort_unstable();
    let p50_ms = medians.get(medians.len() / 2).copied().unwrap_or(0) as f64 / 1000.0;
    let p99_ms = recent.iter().map(|bucket| bucket.p99_us).max().unwrap_or(0) as f64 / 1000.0;
    let mut text = format!(
        "          {rps:5} rps   p50 {p50_ms:5.2} ms   p99 {p99_ms:6.2} ms   success {:6.2} %",
        percent(ok, all)
    );
    for (server, count) in by_server {
        text.push_str(&format!("   {server} {:5.1} %", percent(count, ok)));
    }
    text
}
