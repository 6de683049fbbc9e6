//! Ending in order: serve, then drain (finish what was begun), then abort (drop what is left).
//!
//! One [`Signal`] per process moves the phases forward, never back. Every part holds a [`Watch`].

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A signal and the first watch of it.
#[must_use]
pub fn channel() -> (Signal, Watch) {
    let watch = Watch {
        draining: CancellationToken::new(),
        aborted: CancellationToken::new(),
        work: TaskTracker::new(),
    };
    (Signal { watch: watch.clone() }, watch)
}

/// Moves the phases forward. Whoever holds one may start a drain.
#[derive(Debug, Clone)]
pub struct Signal {
    watch: Watch,
}

/// Sees the phases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    draining: CancellationToken,
    aborted: CancellationToken,
    work: TaskTracker,
}

/// Work that a drain waits for. Ends when dropped.
#[derive(Debug)]
pub struct Work {
    _token: TaskTrackerToken,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All work ended by itself.
    Finished,
    /// The deadline passed; this much work was aborted.
    Aborted { left: usize },
}

impl Signal {
    /// Begins the drain: nothing new is taken on. May be called again without effect.
    pub fn start(&self) {
        self.watch.draining.cancel();
    }

    /// Drops whatever is still going on, at once.
    pub fn abort(&self) {
        self.start();
        self.watch.aborted.cancel();
    }

    /// Drains, waits for all work to end, and aborts what is left at the deadline.
    pub async fn finish(&self, deadline: Duration) -> Drained {
        self.start();
        self.watch.work.close();
        let ended = tokio::time::timeout(deadline, self.watch.work.wait()).await;
        let left = self.watch.work.len();
        self.abort();
        if ended.is_ok() { Drained::Finished } else { Drained::Aborted { left } }
    }
}

impl Watch {
    /// Resolves when the drain has begun.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// True once the drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when what is left is to be dropped.
    pub async fn aborted(&self) {
        self.aborted.cancelled().await;
    }

    /// The drain waits until the returned value is dropped.
    #[must_use]
    pub fn begin_work(&self) -> Work {
        Work { _token: self.work.token() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_work_then_finishes() {
        let (signal, watch) = channel();
        let work = watch.begin_work();
        let task = tokio::spawn(async move {
            watch.draining().await;
            assert!(watch.is_draining());
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(work);
            watch.aborted().await;
        });
        assert_eq!(signal.finish(Duration::from_secs(30)).await, Drained::Finished);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn aborts_what_is_left_at_the_deadline() {
        let (signal, watch) = channel();
        let _held = watch.begin_work();
        assert_eq!(signal.finish(Duration::from_secs(1)).await, Drained::Aborted { left: 1 });
        watch.aborted().await;
    }
}
