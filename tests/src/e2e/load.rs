//! A load client in a pod. It needs nobody once it runs: what happens to the API server, to the
//! kubelet or to this test does not happen to the load.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::time::{Instant, sleep};

use super::space::{POLL, Space};
use crate::load::{Record, parse_records};

/// What to send, how fast, for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    pub url: String,
    pub rate: u32,
    pub seconds: u32,
    pub connections: u32,
    /// In a header and in every body, for whoever watches the wire.
    pub marker: String,
}

impl Plan {
    /// GET and POST by turns, at a rate that leaves the machine some time for others.
    #[must_use]
    pub fn of(url: &str, seconds: u32) -> Self {
        let marker = "heddle-e2e-marker".to_owned();
        Self { url: url.into(), rate: 100, seconds, connections: 8, marker }
    }
}

/// A client at work.
#[derive(Debug)]
pub struct Load<'a> {
    space: Space<'a>,
    name: String,
    seconds: u32,
}

impl<'a> Load<'a> {
    /// Starts a client as the service account `frontend`; returns when it has sent something.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(space: Space<'a>, name: &str, plan: &Plan) -> anyhow::Result<Self> {
        let this = Self { space, name: name.to_owned(), seconds: plan.seconds };
        space.ask(&["delete", "pod", name, "--ignore-not-found"]).await?;
        space.apply(&manifest(name, plan)).await?;
        let begun = Instant::now();
        while !this.log().await.is_ok_and(|log| log.contains("\"at_us\"")) {
            if begun.elapsed() > START {
                let pod = space.ask(&["describe", "pod", name]).await?;
                bail!("{name} does not start:\n{pod}");
            }
            sleep(POLL).await;
        }
        Ok(this)
    }

    /// Waits for its end and returns every request. That it sent anything at all at the end shows
    /// that it was there throughout.
    ///
    /// # Errors
    /// It was lost.
    pub async fn finish(self) -> anyhow::Result<Vec<Record>> {
        let begun = Instant::now();
        let limit = Duration::from_secs(u64::from(self.seconds)) + START;
        let state = "-o=jsonpath={.status.containerStatuses[?(@.name==\"load\")]\
                     .state.terminated.reason}";
        // Not answered means not known, while the API server is away.
        while self
            .space
            .ask(&["get", "pod", &self.name, state])
            .await
            .unwrap_or_default()
            .is_empty()
        {
            ensure!(begun.elapsed() < limit, "{} does not end after {limit:?}", self.name);
            sleep(POLL).await;
        }
        let log = self.log().await?;
        let lines = log.lines().filter(|line| !line.starts_with('{'));
        let records = parse_records(&lines.collect::<Vec<_>>().join("\n"));
        let records = records.with_context(|| format!("the log of {}", self.name))?;
        ensure!(!records.is_empty(), "{} has sent nothing", self.name);
        Ok(records)
    }

    async fn log(&self) -> anyhow::Result<String> {
        self.space.ask(&["logs", &self.name, "--container=load"]).await
    }
}

fn manifest(name: &str, plan: &Plan) -> String {
    let Plan { url, rate, seconds, connections, marker } = plan;
    let duration_ms = u64::from(*seconds) * 1000;
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: load }} }}
spec:
  restartPolicy: Never
  serviceAccountName: frontend
  containers:
    - name: load
      image: heddle/app:{version}
      args: [load, {url:?}, --rate={rate}, --duration-ms={duration_ms}, --records=-,
        --connections={connections}, --marker={marker}]
",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// How long a pod may take to start, or to be seen to have ended.
const START: Duration = Duration::from_secs(60);
