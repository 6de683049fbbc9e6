//! Removes a cluster, whatever is left of it: processes by their control group, then files.
//! Namespaces, networks and mounts went with the processes.

use std::fs;
use std::io;

use anyhow::{Context as _, ensure};

use super::cgroup;
use super::layout::Layout;

/// Removes every process, control group and file of the cluster. Nothing to remove is no mistake.
///
/// # Errors
/// Names what could not be removed.
pub async fn down(layout: &Layout) -> anyhow::Result<()> {
    let lock = super::up::lock(layout)?;
    remove(layout).await?;
    // While it is held: whoever waits for it gets a file that nobody else can lock any more.
    let _ = fs::remove_file(layout.lock());
    drop(lock);
    // Another cluster's may be beside.
    if let Some(root) = layout.dir().parent() {
        let _ = fs::remove_dir(root);
    }
    Ok(())
}

/// The same for somebody who holds the lock and will use the name again.
pub(crate) async fn remove(layout: &Layout) -> anyhow::Result<()> {
    cgroup::remove(layout).await?;
    let dir = layout.dir();
    // All mounts are in namespaces that are gone. If not, better to stop than to delete through one.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let prefix = format!(" {}/", dir.display());
    ensure!(!mounts.contains(&prefix), "something is mounted below {}", dir.display());
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
