//! Processes under measurement: started in a network namespace, under a uid, on a CPU; read from
//! /proc; killed when dropped.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::netns::Netns;

/// What to run, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    pub uid: u32,
    /// Receives both outputs.
    pub log: PathBuf,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(
        launch: &Launch,
        netns: &Netns,
        cpu: Option<usize>,
    ) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log)
            .with_context(|| format!("open {}", launch.log.display()))?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .env_clear()
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .uid(launch.uid)
            .gid(launch.uid)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        // A child inherits the network namespace and the CPUs of the thread that makes it.
        let child = {
            let _inside = netns.enter()?;
            let _pinned = cpu.map(Pinned::to).transpose()?;
            command.spawn().with_context(|| format!("run {}", launch.program.display()))?
        };
        let pid = child.id().context("the process ended at once")?;
        Ok(Self { child, pid, log: launch.log.clone() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for a process that is to end by itself.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let status = self.child.wait().await?;
        if !status.success() {
            bail!("{status}:\n{}", self.last_words());
        }
        Ok(())
    }

    /// Fails when the process has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("a process ended ({status}):\n{}", self.last_words());
        }
        Ok(())
    }

    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("{}:\n{}", self.log.display(), lines.join("\n"))
    }
}

impl Drop for Process {
    /// Returns when it is gone: what it held must not be in the way of what comes next.
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to wait for either.
        if self.child.start_kill().is_ok()
            && let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
        {
            // The status is left for the runtime to collect.
            let _ =
                waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let _ = self.child.try_wait();
        }
    }
}

/// What processes have used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Time on a CPU of all threads of all of them.
    pub cpu: Duration,
    /// Resident memory of the largest.
    pub rss_kib: u64,
}

impl Usage {
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        for pid in pids {
            usage.cpu += cpu(*pid).with_context(|| format!("process {pid} has ended"))?;
            usage.rss_kib = usage.rss_kib.max(rss_kib(*pid)?);
        }
        Ok(usage)
    }
}

fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().join("schedstat");
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        nanoseconds += parse_schedstat(&text)?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// "<ns on a CPU> <ns waiting for one> <slices>"
fn parse_schedstat(text: &str) -> anyhow::Result<u64> {
    let first = text.split_whitespace().next().context("an empty schedstat")?;
    first.parse().with_context(|| format!("schedstat {text:?}"))
}

fn rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_rss(&status).with_context(|| format!("process {pid} has ended"))
}

fn parse_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Which CPU does what: load and applications on one, sidecars on another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpus {
    pub allowed: usize,
    pub load: Option<usize>,
    pub sidecars: Option<usize>,
}

impl Cpus {
    /// Nothing is pinned where there is but one CPU.
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
        let cpus: Vec<_> =
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
        let (load, sidecars) = match cpus[..] {
            [load, sidecars, ..] => (Some(load), Some(sidecars)),
            _ => (None, None),
        };
        Ok(Self { allowed: cpus.len(), load, sidecars })
    }
}

/// While it lives, this thread runs on one CPU.
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    pub(crate) fn to(cpu: usize) -> anyhow::Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
        let mut set = CpuSet::new();
        set.set(cpu).context("CPU number")?;
        sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The CPUs of before may have been taken from us since; then the pin stays.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// Puts processes ahead of everything else on their CPU, or back. False when that is not allowed
/// here.
pub(crate) async fn set_realtime(pids: &BTreeSet<u32>, realtime: bool) -> bool {
    let (policy, priority) = if realtime { ("--rr", "1") } else { ("--other", "0") };
    for pid in pids {
        let changed = Command::new("chrt")
            .args(["--all-tasks", policy, "--pid", priority, &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        if !changed.is_ok_and(|status| status.success()) {
            return false;
        }
    }
    true
}

/// Copies a program to where every uid may execute it.
pub(crate) fn install(program: &Path, into: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let target = into.join(name);
    std::fs::copy(program, &target).with_context(|| format!("copy {}", program.display()))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(parse_schedstat("123456 789 10\n").unwrap(), 123_456);
        assert!(parse_schedstat("").is_err());
        assert!(parse_schedstat("-1 0 0").is_err());
        assert_eq!(parse_rss("Name:\tx\nVmRSS:\t    5412 kB\nThreads:\t1\n"), Some(5412));
        assert_eq!(parse_rss("Name:\tVmRSS\n"), None);
    }

    #[test]
    fn our_own_usage_grows() {
        let pid = std::process::id();
        let before = Usage::of(&[pid]).unwrap();
        let mut sum = 0u64;
        while Usage::of(&[pid]).unwrap().cpu <= before.cpu {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(before.rss_kib > 0);
    }
}
