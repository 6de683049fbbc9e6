//! A load client in a pod: started, followed while it runs, ended, and its record read.

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::{World, eventually};
use crate::lab::PodKey;
use crate::load::{Bucket, Record, parse_records};

/// A client's arguments.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Where it runs; its container is called `app`.
    pub pod: &'a str,
    pub url: &'a str,
    /// Requests per second; 0: as fast as answers come.
    pub rate: u64,
    pub connections: u64,
    /// 0: until it is ended.
    pub duration_ms: u64,
    pub post_percent: u64,
    pub timeout_ms: u64,
    pub marker: &'a str,
}

impl<'a> Plan<'a> {
    /// What runs beside most faults: GETs and POSTs in turn, until ended.
    #[must_use]
    pub fn steady(pod: &'a str, url: &'a str) -> Self {
        Self {
            pod,
            url,
            rate: 300,
            connections: 12,
            duration_ms: 0,
            post_percent: 50,
            timeout_ms: 10_000,
            marker: "-",
        }
    }

    /// Many at once for a moment: more connections than there were.
    #[must_use]
    pub fn burst(pod: &'a str, url: &'a str) -> Self {
        Self { rate: 0, connections: 48, duration_ms: 200, ..Self::steady(pod, url) }
    }
}

/// A load client that runs. Its standard input is what keeps it going.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    watcher: JoinHandle<()>,
    answered: Arc<AtomicU64>,
    records: PathBuf,
}

impl Traffic {
    /// Returns when the first answers have come.
    ///
    /// # Errors
    /// When the client cannot be started, or hears nothing.
    pub fn start(world: &World, plan: &Plan<'_>) -> anyhow::Result<Self> {
        let traffic = Self::spawn(world, plan)?;
        traffic.more(20)?;
        Ok(traffic)
    }

    /// Runs a client that ends by itself.
    ///
    /// # Errors
    /// When the client cannot be started or its record not read.
    pub fn run(world: &World, plan: &Plan<'_>) -> anyhow::Result<Vec<Record>> {
        Self::spawn(world, plan)?.wait()
    }

    fn spawn(world: &World, plan: &Plan<'_>) -> anyhow::Result<Self> {
        // Several clients may run in one pod.
        let name = format!("records-{:08x}.tsv", rand::random::<u32>());
        let mut command = world.lab().exec_command(plan.pod);
        command.args(["heddle-app", "load", plan.url, "--records", &name]);
        command.args(["--marker", plan.marker]);
        for (flag, value) in [
            ("--rate", plan.rate),
            ("--connections", plan.connections),
            ("--duration-ms", plan.duration_ms),
            ("--post-percent", plan.post_percent),
            ("--timeout-ms", plan.timeout_ms),
        ] {
            command.arg(flag).arg(value.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the load client")?;
        let buckets = BufReader::new(child.stdout.take().expect("piped above"));
        let answered = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&answered);
        let watcher = std::thread::spawn(move || count(buckets, &counter));
        let pod: PodKey = plan.pod.parse()?;
        let records = world.lab().layout().pod(&pod).join("work/app").join(name);
        Ok(Self { child, watcher, answered, records })
    }

    /// Waits for so many more requests to end, well or not.
    ///
    /// # Errors
    /// They do not.
    pub fn more(&self, requests: u64) -> anyhow::Result<()> {
        let wanted = self.answered.load(Ordering::Relaxed) + requests;
        let answered = || {
            let answered = self.answered.load(Ordering::Relaxed);
            ensure!(answered >= wanted, "{answered} of {wanted}");
            Ok(())
        };
        eventually("answers to the load client", Duration::from_secs(40), answered).map(drop)
    }

    /// Ends it and returns what it recorded.
    ///
    /// # Errors
    /// When the client itself failed.
    pub fn finish(mut self) -> anyhow::Result<Vec<Record>> {
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
            bail!("following the load client panicked");
        }
        ensure!(complaint.trim().is_empty(), "the load client: {}", complaint.trim());
        let text = fs::read_to_string(&self.records)
            .with_context(|| format!("read {}", self.records.display()))?;
        parse_records(&text)
    }
}

/// Reads to the end in any case: a client whose output nobody reads would stop.
fn count(lines: impl BufRead, answered: &AtomicU64) {
    for line in lines.lines().map_while(Result::ok) {
        let Ok(bucket) = serde_json::from_str::<Bucket>(&line) else { continue };
        let ended = bucket.ok.values().sum::<u64>() + bucket.failed.values().sum::<u64>();
        answered.fetch_add(ended, Ordering::Relaxed);
    }
}
