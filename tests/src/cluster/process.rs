//! The programs of a cluster: started in a node, known by name, outliving whoever started them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::cgroup;
use super::hold::READY;
use super::layout::Layout;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// How a program is started; kept, so that it can be started again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Unique in the cluster: `kubelet-node1`.
    pub name: String,
    /// Whose namespaces it runs in.
    pub node: String,
    pub cwd: PathBuf,
    pub argv: Vec<String>,
}

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Clock ticks since boot.
    started: u64,
}

impl Process {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let pid = i32::try_from(pid)?;
        let started = started(pid).with_context(|| format!("process {pid} is gone already"))?;
        Ok(Self { pid, started })
    }

    #[must_use]
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it is still there; one that only its parent has not buried yet is not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// Every program that was started, and whether it runs.
///
/// # Errors
/// As the file system's.
pub fn list(layout: &Layout) -> anyhow::Result<Vec<(Launch, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.processes()).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "launch") {
            let launch: Launch = serde_json::from_slice(&fs::read(&path)?)?;
            let runs = find(layout, &launch.name).is_some();
            found.push((launch, runs));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(found)
}

/// Every process of the cluster, those in its pods too.
///
/// # Errors
/// There are no control groups on this machine.
pub fn members(layout: &Layout) -> anyhow::Result<BTreeSet<i32>> {
    cgroup::members(layout)
}

/// A program that runs.
#[must_use]
pub fn find(layout: &Layout, name: &str) -> Option<Process> {
    let bytes = fs::read(layout.processes().join(format!("{name}.pid"))).ok()?;
    let process: Process = serde_json::from_slice(&bytes).ok()?;
    process.is_alive().then_some(process)
}

/// Starts a program and keeps how.
///
/// # Errors
/// When it cannot be started at all.
pub(crate) fn start(layout: &Layout, launch: &Launch) -> anyhow::Result<Process> {
    let path = layout.processes().join(format!("{}.launch", launch.name));
    fs::write(&path, serde_json::to_vec(launch)?)?;
    let mut command = own_command(layout, &["__enter", &launch.name])?;
    command.stdout(log(layout, &launch.name)?);
    started_as(layout, &launch.name, &mut command)
}

/// Starts what was stopped or has died, as it was started before.
///
/// # Errors
/// There is no such program, or it runs.
pub fn restart(layout: &Layout, name: &str) -> anyhow::Result<Process> {
    let launch = read_launch(layout, name)?;
    ensure!(find(layout, name).is_none(), "{name} runs already");
    start(layout, &launch)
}

/// Signals a program.
///
/// # Errors
/// It does not run.
pub fn signal(layout: &Layout, name: &str, signal: Signal) -> anyhow::Result<Process> {
    read_launch(layout, name)?;
    let process = find(layout, name).with_context(|| format!("{name} does not run"))?;
    kill(Pid::from_raw(process.pid), signal).with_context(|| format!("signal {name}"))?;
    Ok(process)
}

/// Signals a program and waits for its end.
///
/// # Errors
/// It does not run, or does not end.
pub async fn stop(layout: &Layout, name: &str, with: Signal) -> anyhow::Result<()> {
    let process = signal(layout, name, with)?;
    let begun = Instant::now();
    while process.is_alive() {
        ensure!(begun.elapsed() < PATIENCE, "{name} does not end after {PATIENCE:?}");
        sleep(POLL).await;
    }
    Ok(())
}

/// An error, with the end of its log, when a program has ended by itself.
pub(crate) fn check(layout: &Layout, name: &str) -> anyhow::Result<()> {
    if find(layout, name).is_some() {
        return Ok(());
    }
    bail!("{name} has ended:\n{}", log_tail(layout, name))
}

pub(crate) fn log_tail(layout: &Layout, name: &str) -> String {
    const LENGTH: usize = 4000;
    let bytes = fs::read(layout.logs().join(format!("{name}.log"))).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LENGTH)..]).into_owned()
}

/// Starts the process that keeps a node's namespaces; returns when others may enter them.
///
/// # Errors
/// What it says against it.
pub(crate) fn start_holder(layout: &Layout, node: &str) -> anyhow::Result<Process> {
    use std::io::{BufRead as _, BufReader};
    let name = holder(node);
    let mut command = own_command(layout, &["__hold", node])?;
    let mut child = spawned(layout, &name, command.stdout(Stdio::piped()))?;
    let process = Process::of(child.id())?;
    record(layout, &name, process)?;
    let out = child.stdout.take().context("it was asked for")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    ensure!(line.trim() == READY, "{node} has no namespaces: {}", log_tail(layout, &name));
    Ok(process)
}

/// Starts the process through which the host reaches the API server; `arguments` as the program's
/// own command.
///
/// # Errors
/// When it cannot be started at all.
pub(crate) fn start_own(
    layout: &Layout,
    name: &str,
    arguments: &[&str],
) -> anyhow::Result<Process> {
    let mut command = own_command(layout, arguments)?;
    command.stdout(log(layout, name)?);
    started_as(layout, name, &mut command)
}

/// Becomes the program that `name` was launched as. Needs a process with one thread.
///
/// # Errors
/// Says which step failed.
pub fn become_program(layout: &Layout, name: &str) -> anyhow::Result<Infallible> {
    cgroup::join(layout)?;
    setsid().context("leave the terminal")?;
    let launch = read_launch(layout, name)?;
    become_command(layout, &launch.node, &launch.cwd, &launch.argv)
}

/// Becomes a command in a node, in the foreground of whoever asked. Needs a process with one thread.
///
/// # Errors
/// Says which step failed.
pub fn become_command(
    layout: &Layout,
    node: &str,
    cwd: &Path,
    argv: &[String],
) -> anyhow::Result<Infallible> {
    enter(layout, node, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    std::env::set_current_dir(cwd).with_context(|| format!("enter {}", cwd.display()))?;
    let (program, arguments) =
        argv.split_first().context("the command is empty: name a program")?;
    let mut command = Command::new(program);
    command.args(arguments);
    // Programs of packages that a person's search path may lack: iptables, conntrack.
    let path = std::env::var_os("PATH").unwrap_or_default().into_string().unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"));
    Err(command.exec()).with_context(|| format!("run {program}"))
}

/// Enters namespaces of a node. Takes effect for the calling thread.
///
/// # Errors
/// The node is not there.
pub(crate) fn enter(layout: &Layout, node: &str, which: CloneFlags) -> anyhow::Result<()> {
    let holder = find(layout, &holder(node))
        .with_context(|| format!("cluster {} has no node {node}", layout.name()))?;
    let open = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", holder.pid);
        File::open(&path).with_context(|| format!("open {path}"))
    };
    let kinds = [
        (CloneFlags::CLONE_NEWNET, "net"),
        (CloneFlags::CLONE_NEWUTS, "uts"),
        (CloneFlags::CLONE_NEWNS, "mnt"),
    ];
    let wanted = kinds.into_iter().filter(|(flag, _)| which.contains(*flag));
    let files = wanted.map(|(flag, kind)| Ok((flag, kind, open(kind)?)));
    for (flag, kind, file) in files.collect::<anyhow::Result<Vec<_>>>()? {
        setns(&file, flag).with_context(|| format!("enter the {kind} namespace of {node}"))?;
    }
    Ok(())
}

/// The name of the process that keeps a node's namespaces.
pub(crate) fn holder(node: &str) -> String {
    format!("namespaces-{node}")
}

fn started_as(layout: &Layout, name: &str, command: &mut Command) -> anyhow::Result<Process> {
    let child = spawned(layout, name, command)?;
    let process = Process::of(child.id())?;
    record(layout, name, process)?;
    Ok(process)
}

fn spawned(
    layout: &Layout,
    name: &str,
    command: &mut Command,
) -> anyhow::Result<std::process::Child> {
    command.stdin(Stdio::null()).stderr(log(layout, name)?);
    command.spawn().with_context(|| format!("start {name}"))
}

fn record(layout: &Layout, name: &str, process: Process) -> anyhow::Result<()> {
    let path = layout.processes().join(format!("{name}.pid"));
    Ok(fs::write(path, serde_json::to_vec(&process)?)?)
}

fn read_launch(layout: &Layout, name: &str) -> anyhow::Result<Launch> {
    let path = layout.processes().join(format!("{name}.launch"));
    let Ok(bytes) = fs::read(&path) else {
        let known: Vec<_> = list(layout)?.into_iter().map(|(launch, _)| launch.name).collect();
        bail!("no program {name:?} in cluster {}; there are {}", layout.name(), known.join(", "));
    };
    Ok(serde_json::from_slice(&bytes)?)
}

fn log(layout: &Layout, name: &str) -> anyhow::Result<File> {
    let path = layout.logs().join(format!("{name}.log"));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.with_context(|| format!("open {}", path.display()))
}

/// `heddle-cluster` itself, with one of its inner commands.
fn own_command(layout: &Layout, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(super::own_program()?);
    command.args(["--name", layout.name()]).args(arguments);
    Ok(command)
}

/// When the process with this number began; none when it has ended.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, spaces and parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_another_of_the_same_number() {
        let this = Process::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert!(!Process { started: this.started + 1, ..this }.is_alive());
        let mut child = Command::new("true").spawn().unwrap();
        let process = Process::of(child.id());
        child.wait().unwrap();
        assert!(process.map_or(true, |process| !process.is_alive()));
    }
}
