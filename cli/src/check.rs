//! `heddle check`: one line for each thing that should be so, and what to do where it is not.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::cluster::{Access, Cluster};
use crate::output::{Output, Printed};

mod install;
mod mesh;

/// Between two rounds of `--wait`.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Before the installation: is the cluster ready for it, and may you install?
    #[arg(long)]
    pre: bool,
    /// Try again for so long until all is well: 30s, 5m
    #[arg(long, value_parser = parse_wait)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let parsed: Result<heddle_resources::crd::Duration, _> = text.parse();
    parsed.map(|wait| Duration::from_millis(wait.as_millis())).map_err(|error| error.to_string())
}

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Good,
    /// Not as it should be, and nothing fails of it.
    Warning,
    Bad,
    /// Could not be looked at, for instance for want of a permission.
    Unknown,
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    category: &'static str,
    check: String,
    verdict: Verdict,
    /// What was seen, and what to do; empty where all is said.
    message: String,
}

/// The findings of one round.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn add(
        &mut self,
        category: &'static str,
        check: impl Into<String>,
        verdict: Verdict,
        message: impl Into<String>,
    ) {
        let (check, message) = (check.into(), message.into());
        self.0.push(Finding { category, check, verdict, message });
    }

    /// Good, or bad with the reason.
    pub(crate) fn judge(
        &mut self,
        category: &'static str,
        check: impl Into<String>,
        problem: Option<String>,
    ) {
        let verdict = if problem.is_none() { Verdict::Good } else { Verdict::Bad };
        self.add(category, check, verdict, problem.unwrap_or_default());
    }

    /// What the API server would not tell.
    pub(crate) fn unknown(
        &mut self,
        category: &'static str,
        check: impl Into<String>,
        error: &dyn std::error::Error,
    ) {
        self.add(category, check, Verdict::Unknown, error.to_string());
    }

    fn is_well(&self) -> bool {
        self.0.iter().all(|finding| finding.verdict != Verdict::Bad)
    }
}

pub(crate) async fn run(access: &Access, options: &Options) -> anyhow::Result<Printed> {
    let cluster = access.connect().await?;
    let begun = tokio::time::Instant::now();
    let findings = loop {
        let findings = round(&cluster, options.pre).await;
        let may_wait = options.wait.is_some_and(|wait| begun.elapsed() < wait);
        if findings.is_well() || !may_wait {
            break findings;
        }
        if let Some(bad) = findings.0.iter().find(|finding| finding.verdict == Verdict::Bad) {
            eprintln!("waiting: {}: {}", bad.check, bad.message);
        }
        tokio::time::sleep(PAUSE).await;
    };
    let text = options.output.print(&findings.0, || draw(&findings.0))?;
    Ok(Printed { text, is_well: findings.is_well() })
}

async fn round(cluster: &Cluster, pre: bool) -> Findings {
    let mut findings = Findings::default();
    // Without the API server there is nothing else to be seen.
    if !install::server(cluster, &mut findings).await {
        return findings;
    }
    if pre {
        install::permissions(cluster, &mut findings).await;
        return findings;
    }
    install::definitions(cluster, &mut findings).await;
    mesh::control_plane(cluster, &mut findings).await;
    mesh::webhooks(cluster, &mut findings).await;
    mesh::pods(cluster, &mut findings).await;
    mesh::proxies(cluster, &mut findings).await;
    mesh::objects(cluster, &mut findings).await;
    findings
}

fn draw(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut category = "";
    for finding in findings {
        if finding.category != category {
            category = finding.category;
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{category}");
        }
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Bad => "FAIL",
            Verdict::Unknown => "?   ",
        };
        let _ = writeln!(text, "  {mark}  {}", finding.check);
        for line in finding.message.lines() {
            let _ = writeln!(text, "        {line}");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (bad, warnings) = (count(Verdict::Bad), count(Verdict::Warning));
    let unknown = count(Verdict::Unknown);
    let result = if bad == 0 { "All is well" } else { "Not all is well" };
    let _ = writeln!(text, "\n{result}: {bad} failed, {warnings} warnings, {unknown} unknown");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_what_to_do_and_ends_in_failure() {
        let mut findings = Findings::default();
        findings.judge("cluster", "the API server answers", None);
        findings.add("mesh", "proxies", Verdict::Warning, "1 is behind");
        assert!(findings.is_well(), "a warning fails nothing");
        findings.judge("mesh", "webhooks", Some("no caBundle;\nwait for the leader".to_owned()));
        assert!(!findings.is_well());
        assert_eq!(
            draw(&findings.0),
            "cluster\n  ok    the API server answers\n\nmesh\n  warn  proxies\n        1 is behind\n  \
             FAIL  webhooks\n        no caBundle;\n        wait for the leader\n\n\
             Not all is well: 1 failed, 1 warnings, 0 unknown\n"
        );
    }

    #[test]
    fn waiting_is_written_as_kubernetes_writes_times() {
        assert_eq!(parse_wait("1m30s"), Ok(Duration::from_secs(90)));
        assert!(parse_wait("90").is_err());
    }
}
