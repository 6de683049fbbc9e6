//! The cluster's control groups: what finds every process that it ever had, containers included,
//! without believing any record.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use super::layout::Layout;

const MOUNT: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Makes the groups of the cluster and of its nodes' pods, in every hierarchy: the kubelet insists.
///
/// # Errors
/// Names the group that cannot be made.
pub(crate) fn create(layout: &Layout, nodes: &[String]) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        make(&hierarchy, &daemons_of(layout, &hierarchy))?;
        for node in nodes {
            make(&hierarchy, &layout.pods_cgroup(node))?;
        }
    }
    Ok(())
}

/// Puts this process, and what it will start, into the cluster's group. Fails once the cluster is
/// being removed: then nobody would find what this process starts.
///
/// # Errors
/// The group is not there.
pub(crate) fn join(layout: &Layout) -> anyhow::Result<()> {
    // One hierarchy is enough to be found by; of version 1's, all of them count pids.
    let hierarchies = hierarchies()?;
    let one = hierarchies.iter().find(|it| it.ends_with("pids")).or(hierarchies.first());
    let hierarchy = one.context("no control groups")?;
    let procs = hierarchy.join(daemons_of(layout, hierarchy)).join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))
}

/// Kills everything in the cluster's groups and removes them.
///
/// # Errors
/// Names what does not end.
pub(crate) async fn remove(layout: &Layout) -> anyhow::Result<()> {
    let begun = tokio::time::Instant::now();
    let mut left = members(layout)?;
    // Twice nothing: a process may start another between two looks.
    let mut empty = 0;
    while empty < 2 {
        for pid in &left {
            // Gone by now, perhaps.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if begun.elapsed() > PATIENCE {
            bail!("processes of cluster {} do not end: {left:?}", layout.name());
        }
        sleep(POLL).await;
        left = members(layout)?;
        empty = if left.is_empty() { empty + 1 } else { 0 };
    }
    for hierarchy in hierarchies()? {
        remove_tree(&hierarchy.join(layout.cgroup()), begun).await?;
        // Another cluster's groups may be beside.
        let _ = fs::remove_dir(hierarchy.join("heddle-cluster"));
    }
    Ok(())
}

/// Every process of the cluster.
///
/// # Errors
/// There are no control groups on this machine.
pub(crate) fn members(layout: &Layout) -> anyhow::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        for group in descendants(&hierarchy.join(layout.cgroup())) {
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    }
    // A process of another pid namespace shows as 0, which would mean ourselves.
    found.remove(&0);
    Ok(found)
}

/// Version 2 allows processes in leaves only, and the pods' groups are beside.
fn daemons_of(layout: &Layout, hierarchy: &Path) -> PathBuf {
    let group = layout.cgroup();
    if is_version_2(hierarchy) { group.join("daemons") } else { group }
}

fn is_version_2(hierarchy: &Path) -> bool {
    hierarchy.join("cgroup.controllers").exists()
}

/// Where hierarchies are mounted: one of version 2, or one per controller of version 1.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    if is_version_2(Path::new(MOUNT)) {
        return Ok(vec![MOUNT.into()]);
    }
    let entries = fs::read_dir(MOUNT).with_context(|| format!("read {MOUNT}"))?;
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.join("cgroup.procs").exists());
    // The same hierarchy by another name: cpu,cpuacct.
    found.retain(|path| !path.is_symlink());
    found.sort();
    ensure!(!found.is_empty(), "no control groups are mounted below {MOUNT}");
    Ok(found)
}

fn make(hierarchy: &Path, group: &Path) -> anyhow::Result<()> {
    let mut path = hierarchy.to_owned();
    for part in group {
        let parent = path.clone();
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make {}", path.display()));
            }
            _ => {}
        }
        // A set of processors is empty until somebody says otherwise, and then nothing may enter.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(parent.join(name))
                && !is_version_2(hierarchy)
            {
                fs::write(path.join(name), value)
                    .with_context(|| format!("set {name} of {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// A group and all below it, the deepest last.
fn descendants(group: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut next = vec![group.to_owned()];
    while let Some(path) = next.pop() {
        let Ok(entries) = fs::read_dir(&path) else { continue };
        next.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        found.push(path);
    }
    found
}

async fn remove_tree(group: &Path, begun: tokio::time::Instant) -> anyhow::Result<()> {
    for path in descendants(group).into_iter().rev() {
        // Busy for as long as the kernel buries its last process.
        while let Err(error) = fs::remove_dir(&path) {
            if error.kind() == io::ErrorKind::NotFound {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}
