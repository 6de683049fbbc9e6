//! Where and when a run took place, and whose programs took part.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// First line of what a program says.
pub(crate) fn ask(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    output.status.success().then(|| line.trim().to_owned())
}

/// "2026-11-21"
pub(crate) fn today() -> String {
    ask(Path::new("date"), &["-u", "+%F"]).unwrap_or_else(|| "unknown".into())
}

/// The commit that the work tree stands on, and whether it has been changed since.
pub(crate) fn commit() -> String {
    let git = |args: &[&str]| ask(Path::new("git"), args);
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    // Says something only when there is a change.
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(_) => format!("{commit} with changes"),
        None => commit,
    }
}

/// Of the programs that are not ours.
pub(crate) fn versions(envoy: Option<&Path>, haproxy: Option<&Path>) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    if let Some(version) = envoy.and_then(|envoy| ask(envoy, &["--version"])) {
        versions.insert("Envoy".into(), envoy_version(&version).to_owned());
    }
    if let Some(version) = haproxy.and_then(|haproxy| ask(haproxy, &["-v"])) {
        versions.insert("HAProxy".into(), haproxy_version(&version).to_owned());
    }
    versions
}

/// ".../envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
fn envoy_version(line: &str) -> &str {
    line.split('/').rev().nth(3).unwrap_or(line)
}

/// "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://..."
fn haproxy_version(line: &str) -> &str {
    line.split_whitespace().nth(2).unwrap_or(line)
}

pub(crate) fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "unknown".into(), |release| release.trim().to_owned())
}

pub(crate) fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown CPU".into(), |(_, model)| model.trim().to_owned())
}

/// CPU time since boot, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuTime {
    all: u64,
    stolen: u64,
}

impl CpuTime {
    pub(crate) fn now() -> anyhow::Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat")?).context("read /proc/stat")
    }

    /// "cpu  user nice system idle iowait irq softirq steal guest guest_nice"; the guests' time is
    /// contained in user and nice.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let fields: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
        Some(Self { all: fields.iter().sum(), stolen: *fields.get(7)? })
    }

    /// Percentage of the time since `before` that went to other machines.
    pub(crate) fn stolen_since(self, before: Self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "no machine is up for 2^52 ticks")]
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        share(self.stolen.saturating_sub(before.stolen), self.all.saturating_sub(before.all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_cut_out() {
        let line = "envoy  version: f3dd7ef3bf/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(envoy_version(line), "1.40.0");
        assert_eq!(
            haproxy_version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - x"),
            "2.6.12-1+deb12u4"
        );
    }

    #[test]
    fn steal_is_a_share() {
        let before = CpuTime::parse("cpu  10 0 10 70 0 0 0 10 5 0\n").unwrap();
        let after = CpuTime::parse("cpu  60 0 10 70 0 0 10 50 5 0\n").unwrap();
        assert_eq!(before, CpuTime { all: 100, stolen: 10 });
        assert!((after.stolen_since(before) - 40.0).abs() < 1e-9);
        assert_eq!(CpuTime::parse("cpu0 1 2 3"), None);
    }
}
