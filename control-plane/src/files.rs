//! The source `files`: a directory of YAML files → batches of changes.
//!
//! Watches the directory, reads what changed, and tells the whole difference at once. A file that
//! cannot be read or holds a mistake keeps saying what it last said without one. Only reads: a full
//! disk does not concern it. Knows nothing of what becomes of its batches.

use std::path::PathBuf;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::index::Batch;

use self::directory::Directory;
use self::watch::Watch;

mod directory;
mod merge;
mod watch;

/// Subdirectory with what a cluster's controllers would fill in.
const STATE: &str = ".state";
/// A burst of changes is over when nothing happened for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … and is not waited for longer than this.
const BURST_LIMIT: Duration = Duration::from_millis(250);
/// A net below inotify, which is silent on some file systems and loses its directory when that is
/// replaced.
const POLL: Duration = Duration::from_secs(2);

/// What is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// What controllers fill in: an endpoint that is gone must be told without delay.
    State,
    Everything,
}

/// Reads `dir` until the receiver is gone. `failures` counts readings with a mistake in them.
pub async fn run(dir: PathBuf, batches: mpsc::Sender<Batch>, failures: IntCounter) {
    let mut watch = Watch::new(&dir);
    let mut directory = Directory::new(dir, failures);
    let mut extent = Extent::Everything;
    let mut polled = Instant::now();
    loop {
        // Reading blocks; a thread that may be blocked does it.
        let read = tokio::task::spawn_blocking(move || {
            let outcome = directory.read(extent, Instant::now());
            // Watching what has appeared comes after reading it, so what happened between is read
            // once more.
            let rewatched = watch.refresh();
            (directory, watch, outcome, rewatched)
        });
        let (outcome, rewatched);
        match read.await {
            Ok(read) => (directory, watch, outcome, rewatched) = read,
            Err(error) => {
                warn!(error = %error, "the files source has ended");
                return;
            }
        }
        if let Some(batch) = outcome.batch
            && batches.send(batch).await.is_err()
        {
            return;
        }
        if extent == Extent::Everything {
            polled = Instant::now();
        }
        let due = outcome.settles.unwrap_or(polled + POLL);
        extent = match rewatched {
            true => Extent::Everything,
            false => tokio::select! {
                biased;
                () = batches.closed() => return,
                extent = watch.changed() => extent,
                () = sleep_until(due) => Extent::Everything,
            },
        };
    }
}

#[cfg(test)]
mod tests;
