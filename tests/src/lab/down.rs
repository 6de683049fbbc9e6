//! Removes a lab, whatever is left of it.
//!
//! Needs nothing that a crash could have destroyed: processes are found by the network namespaces
//! they are in, namespaces by their names, files by their place. The node process goes first, so
//! that nothing new is started; a process on its way into a namespace dies with it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::layout::Layout;
use super::processes;

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Removes every process, namespace and file of the lab. Nothing to remove is no mistake.
///
/// # Errors
/// Names what could not be removed.
pub async fn down(layout: &Layout) -> anyhow::Result<()> {
    kill_until_gone("the node process", || node_processes(layout)).await?;
    kill_until_gone("processes in the lab's namespaces", || {
        let namespaces = layout.existing_netns();
        namespaces.iter().flat_map(|netns| processes::in_netns(netns)).collect()
    })
    .await?;
    for netns in layout.existing_netns() {
        let output = Command::new("ip")
            .args(["netns", "del", &netns])
            .output()
            .context("cannot run `ip`: install the package iproute2")?;
        if !output.status.success() {
            bail!("remove {netns}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    remove_dir(&layout.run())?;
    remove_dir(&layout.state())
}

/// The node processes of this lab; more than one only after accidents.
fn node_processes(layout: &Layout) -> Vec<Pid> {
    let program = layout.bin().join("heddle-lab").display().to_string();
    processes::with_arguments(|arguments| {
        arguments.first() == Some(&program)
            && matches!(arguments.get(1).map(String::as_str), Some("__node" | "__enter"))
    })
}

async fn kill_until_gone(what: &str, find: impl Fn() -> Vec<Pid>) -> anyhow::Result<()> {
    let gone = async {
        // Twice nothing: a process that had no arguments yet, or was between two namespaces, at the
        // first look is found at the second.
        let mut empty = 0;
        while empty < 2 {
            let found = find();
            processes::signal_all(&found, Signal::SIGKILL);
            empty = if found.is_empty() { empty + 1 } else { 0 };
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .with_context(|| format!("{what} do not end: {:?}", find()))
}

fn remove_dir(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
