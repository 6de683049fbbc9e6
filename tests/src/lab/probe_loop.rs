//! Asks one container again and again whether it is ready, and reports what changes.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::enter::Enter;
use super::probe::{self, Check, Origin, Probe, Threshold};

/// Until its first success a container is asked more often: a lab should be up in a moment.
const EAGER_PERIOD: Duration = Duration::from_millis(50);

/// How a check is made.
#[derive(Debug)]
pub(crate) enum Checker {
    Network(Origin),
    Exec(Box<Enter>),
}

/// A change in what a container answers.
#[derive(Debug)]
pub(crate) struct Report {
    /// Which container, and which process of it.
    pub index: usize,
    pub pid: Pid,
    /// `Some` when readiness has changed.
    pub ready: Option<bool>,
    /// The last answer, when it was not a success.
    pub complaint: Option<String>,
}

/// Runs until aborted.
pub(crate) async fn run(
    index: usize,
    pid: Pid,
    probe: Probe,
    checker: Checker,
    reports: mpsc::Sender<Report>,
) {
    tokio::time::sleep(probe.initial_delay).await;
    let mut threshold = Threshold::new(&probe);
    let mut last: Option<String> = None;
    let mut period = EAGER_PERIOD.min(probe.period);
    loop {
        let answer = check(&probe, &checker).await;
        let complaint = answer.err().map(|error| format!("{error:#}"));
        let ready = threshold.record(complaint.is_none());
        if ready == Some(true) {
            period = probe.period;
        }
        if ready.is_some() || complaint != last {
            let report = Report { index, pid, ready, complaint: complaint.clone() };
            if reports.send(report).await.is_err() {
                return;
            }
        }
        last = complaint;
        tokio::time::sleep(period).await;
    }
}

async fn check(probe: &Probe, checker: &Checker) -> anyhow::Result<()> {
    match (checker, &probe.check) {
        (Checker::Network(origin), Check::Http { port, path, headers }) => {
            let answer =
                probe::fetch_http(origin.clone(), *port, path, headers, probe.timeout).await?;
            if !(200..400).contains(&answer.status) {
                let body: String = answer.body.chars().take(300).collect();
                bail!("GET {path} on port {port} answers {}: {body}", answer.status);
            }
            Ok(())
        }
        (Checker::Network(origin), Check::Tcp { port }) => {
            probe::check_tcp(origin.clone(), *port, probe.timeout).await
        }
        (Checker::Exec(enter), _) => check_exec(enter, probe.timeout).await,
        (Checker::Network(_), Check::Exec { .. }) => bail!("an exec probe needs a process"),
    }
}

async fn check_exec(enter: &Enter, timeout: Duration) -> anyhow::Result<()> {
    let mut enter = enter.clone();
    enter.parent = Some(Pid::this().as_raw());
    let child = Command::new(std::env::current_exe()?)
        .arg("__enter")
        .arg(serde_json::to_string(&enter)?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start the probe's command")?;
    let Ok(output) = tokio::time::timeout(timeout, child.wait_with_output()).await else {
        bail!("{:?} does not end within {} s", enter.argv, timeout.as_secs());
    };
    let output = output?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr.lines().last().unwrap_or_default();
        bail!("{:?}: {}: {line}", enter.argv, output.status);
    }
    Ok(())
}
