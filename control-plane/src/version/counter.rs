//! Versions that are counted: they only rise, also over restarts.
//!
//! A ceiling is kept on disk ahead of what is handed out, so that most versions cost no write. When
//! the disk refuses, serving goes on, the failure is counted, and the next version tries again: a
//! restart then begins so far above the last ceiling that what was handed out meanwhile stays below.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use heddle_api::proto::v1::Version;
use prometheus::IntCounter;
use tokio::sync::watch;

use crate::error::Error;
use crate::state;

/// Versions reserved by one write.
const RESERVED: u64 = 1_000;
/// Where a restart begins above the ceiling on disk: more than any disk-full spell hands out.
const RESTART_MARGIN: u64 = 1_000_000;

/// The one counter of a process. Cheap to clone.
#[derive(Clone)]
pub struct Counter {
    inner: Arc<Mutex<Inner>>,
    floor: watch::Sender<Version>,
}

struct Inner {
    path: PathBuf,
    last: Version,
    /// Numbers up to this one are safe over a restart.
    ceiling: u64,
    failing: bool,
    failures: IntCounter,
}

impl Counter {
    /// Continues above what `path` holds, or begins with epoch 1. `failures` counts writes that the
    /// disk refused.
    ///
    /// # Errors
    /// When the file cannot be read or is not what this module writes.
    pub fn open(path: PathBuf, failures: IntCounter) -> Result<Self, Error> {
        let last = match state::read_public(&path)? {
            Some(content) => parse(&content)
                .map(|kept| Version { number: kept.number + RESTART_MARGIN, ..kept })
                .ok_or_else(|| {
                    Error::content(
                        &path,
                        "is not \"<epoch> <number>\"; restore it, or write an \
                         epoch above the one the proxies hold, for instance \"2 0\"",
                    )
                })?,
            None => Version { epoch: 1, number: 0 },
        };
        let inner = Inner { path, last, ceiling: last.number, failing: false, failures };
        let counter = Self { inner: Arc::new(Mutex::new(inner)), floor: watch::Sender::new(last) };
        // Reserves the first numbers, so that the file exists from the start.
        let _ = counter.next();
        Ok(counter)
    }

    /// The next version, above all before it.
    #[must_use = "a version that is not used is lost"]
    pub fn next(&self) -> Version {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last.number += 1;
        if inner.last.number > inner.ceiling {
            inner.reserve();
        }
        inner.last
    }

    /// Begins a new epoch, above every version of the ones before: proxies that hold a higher number
    /// from a lost state follow this control plane again. An operator's decision, never taken here.
    ///
    /// # Errors
    /// When it cannot be kept on disk: an epoch that a restart forgets would freeze the fleet.
    pub fn raise_epoch(&self) -> Result<Version, Error> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let raised = Version { epoch: inner.last.epoch + 1, number: inner.last.number };
        inner.write(raised.epoch, inner.ceiling)?;
        inner.last = raised;
        self.floor.send_replace(raised);
        Ok(raised)
    }

    /// What is served is never below this: the version at start, or of the last raised epoch.
    #[must_use]
    pub fn floor(&self) -> watch::Receiver<Version> {
        self.floor.subscribe()
    }
}

impl Inner {
    fn reserve(&mut self) {
        let ceiling = self.last.number + RESERVED;
        match self.write(self.last.epoch, ceiling) {
            Ok(()) => {
                self.ceiling = ceiling;
                if std::mem::take(&mut self.failing) {
                    tracing::info!("versions are kept on disk again");
                }
            }
            Err(error) => {
                self.failures.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    let error = crate::error::chain(&error);
                    tracing::error!(error, "versions are not kept on disk; serving goes on");
                }
            }
        }
    }

    fn write(&self, epoch: u64, ceiling: u64) -> Result<(), Error> {
        state::write_atomic(&self.path, format!("{epoch} {ceiling}\n").as_bytes(), 0o644)
            .map_err(Error::file("write", &self.path))
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("floor", &*self.floor.borrow()).finish_non_exhaustive()
    }
}

fn parse(content: &[u8]) -> Option<Version> {
    let (epoch, number) = std::str::from_utf8(content).ok()?.trim_end().split_once(' ')?;
    let number = number.parse().ok().filter(|number| *number < u64::MAX / 2)?;
    Some(Version { epoch: epoch.parse().ok().filter(|epoch| *epoch > 0)?, number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::order;

    fn open(path: &std::path::Path) -> Counter {
        Counter::open(path.to_owned(), IntCounter::new("x", "x").unwrap()).unwrap()
    }

    #[test]
    fn rises_over_restarts_and_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("version");
        let versions = open(&path);
        let mut last = versions.next();
        for _ in 0..3_000 {
            let next = versions.next();
            assert!(order(next) > order(last));
            last = next;
        }
        let restarted = open(&path);
        assert!(order(restarted.next()) > order(last));
        let raised = restarted.raise_epoch().unwrap();
        assert_eq!(raised.epoch, 2);
        assert_eq!(*restarted.floor().borrow(), raised);
        assert_eq!(open(&path).next().epoch, 2);
    }

    #[test]
    fn a_full_disk_stops_nothing_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        std::fs::create_dir(&gone).unwrap();
        let path = gone.join("version");
        let failures = IntCounter::new("x", "x").unwrap();
        let versions = Counter::open(path.clone(), failures.clone()).unwrap();
        std::fs::remove_dir_all(&gone).unwrap();
        let mut last = versions.next();
        for _ in 0..RESERVED + 10 {
            last = versions.next();
        }
        assert!(failures.get() > 0);
        assert!(versions.raise_epoch().is_err());
        std::fs::create_dir(&gone).unwrap();
        last = Version { number: last.number.max(versions.next().number), ..last };
        assert!(order(open(&path).next()) > order(last));
    }

    #[test]
    fn refuses_what_it_did_not_write() {
        for content in ["", "1", "x 1", "1 x", "0 5", "1 2 3", "1 18446744073709551615"] {
            assert_eq!(parse(content.as_bytes()), None, "{content:?}");
        }
        assert_eq!(parse(b"3 41\n"), Some(Version { epoch: 3, number: 41 }));
    }
}
