//! When to look at the directory again: inotify, with bursts taken together.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::{BURST_LIMIT, Extent, QUIET, STATE};

pub(super) struct Watch {
    dir: PathBuf,
    /// `None` when the system gives no more watches: polling alone has to do.
    watcher: Option<RecommendedWatcher>,
    /// Directories under watch, by what they were then: a replaced directory needs a new watch.
    watched: HashMap<PathBuf, (u64, u64)>,
    signals: Arc<Signals>,
}

/// Set by the watcher's thread. A flag each, not a queue: what happened is read from the directory.
#[derive(Default)]
struct Signals {
    objects: Notify,
    state: Notify,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> Self {
        let signals = Arc::new(Signals::default());
        let heard = signals.clone();
        let state = dir.join(STATE);
        let on_event = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else {
                return heard.objects.notify_one();
            };
            if !is_change(event.kind) {
                return;
            }
            // The directory itself among them: `.state` has appeared, or is gone.
            match !event.paths.is_empty() && event.paths.iter().all(|path| path.starts_with(&state))
            {
                true => heard.state.notify_one(),
                false => heard.objects.notify_one(),
            }
        };
        let watcher = notify::recommended_watcher(on_event)
            .inspect_err(|error| warn!(error = %error, "no inotify: changes are seen by polling"))
            .ok();
        let mut watch = Self { dir: dir.to_owned(), watcher, watched: HashMap::new(), signals };
        // Before the first reading: what changes while it goes on is heard.
        watch.refresh();
        watch
    }

    /// Watches what is there now. True when it was not watched before.
    pub(super) fn refresh(&mut self) -> bool {
        let mut is_new = false;
        for path in [self.dir.clone(), self.dir.join(STATE)] {
            let identity = fs::metadata(&path).map(|meta| (meta.dev(), meta.ino())).ok();
            if identity == self.watched.get(&path).copied() {
                continue;
            }
            let Some(watcher) = &mut self.watcher else { continue };
            if self.watched.remove(&path).is_some() {
                // Fails for a directory that is gone, whose watch is gone with it.
                let _ = watcher.unwatch(&path);
            }
            let Some(identity) = identity else { continue };
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, identity);
                    is_new = true;
                }
                Err(error) => debug!(path = %path.display(), error = %error, "not watched"),
            }
        }
        is_new
    }

    /// Waits for a change and for the end of the burst it belongs to; what controllers fill in is
    /// not waited for.
    pub(super) async fn changed(&self) -> Extent {
        tokio::select! {
            biased;
            () = self.signals.state.notified() => return Extent::State,
            () = self.signals.objects.notified() => {}
        }
        let limit = Instant::now() + BURST_LIMIT;
        loop {
            let quiet = (Instant::now() + QUIET).min(limit);
            tokio::select! {
                biased;
                () = self.signals.state.notified() => {
                    // Told at once; the burst is waited for when this was read.
                    self.signals.objects.notify_one();
                    return Extent::State;
                }
                () = sleep_until(quiet) => return Extent::Everything,
                () = self.signals.objects.notified() => {}
            }
        }
    }
}

/// Reading is no change, and our own reading would wake us for ever.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}
