//! Versions that are read: the high-water mark of the resourceVersions of what was seen.
//!
//! All replicas read one API server, so a number means the same to each. Two of them are kept apart.
//! What proxies are *told* is the highest resourceVersion of any object seen: every other replica
//! sees that object too, within moments. What a replica *knows* may be more (a list is complete up to
//! the revision it was made at) and is only compared with what a proxy holds: told to proxies, it
//! would send them away from replicas that know as much and cannot tell.

use std::sync::{Arc, Mutex, PoisonError};

use heddle_api::proto::v1::Version;
use tokio::sync::watch;

use super::order;
use crate::index::Mark;

/// The marks of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Marks {
    current: Arc<Mutex<Current>>,
    floor: watch::Sender<Version>,
    known: watch::Sender<Version>,
}

#[derive(Debug, Default)]
struct Current {
    seen: Version,
    known: Version,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            current: Arc::default(),
            floor: watch::Sender::new(Version::default()),
            known: watch::Sender::new(Version::default()),
        }
    }
}

impl Marks {
    /// A higher epoch begins with the numbers of its own first reading, which may be lower.
    pub(super) fn observe(&self, mark: Mark) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let raise = |to: &mut Version, number| {
            if mark.epoch > to.epoch {
                *to = Version { epoch: mark.epoch, number };
            } else if mark.epoch == to.epoch {
                to.number = to.number.max(number);
            }
        };
        raise(&mut current.seen, mark.seen);
        raise(&mut current.known, mark.known.max(mark.seen));
    }

    /// An object outside the source's kinds was seen at this resourceVersion, and what is made of it
    /// is served from now on: a trust root, say.
    pub fn saw(&self, number: u64) {
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.seen.number = current.seen.number.max(number);
            current.known.number = current.known.number.max(number);
        }
        self.settle();
    }

    pub(super) fn current(&self) -> Version {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).seen
    }

    pub(super) fn settle(&self) {
        let (seen, known) = {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            (current.seen, current.known)
        };
        let raise = |to: &mut Version, version: Version| {
            let is_higher = order(version) > order(*to);
            if is_higher {
                *to = version;
            }
            is_higher
        };
        self.known.send_if_modified(|to| raise(to, known));
        // Told even when nothing else changes: proxies leave an epoch only for a higher one.
        self.floor.send_if_modified(|to| seen.epoch > to.epoch && raise(to, seen));
    }

    pub(super) fn floor(&self) -> watch::Receiver<Version> {
        self.floor.subscribe()
    }

    pub(super) fn known(&self) -> watch::Receiver<Version> {
        self.known.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_within_an_epoch_and_may_fall_with_the_next() {
        let marks = Marks::default();
        let (floor, known) = (marks.floor(), marks.known());
        let at = |epoch, number| Version { epoch, number };
        for (mark, told, bounds) in [
            ((1, 7, 9), at(1, 7), (at(1, 7), at(1, 9))),
            ((1, 5, 5), at(1, 7), (at(1, 7), at(1, 9))),
            ((1, 12, 0), at(1, 12), (at(1, 7), at(1, 12))),
            ((2, 3, 4), at(2, 3), (at(2, 3), at(2, 4))),
            // What was read before the epoch began and is told late raises nothing.
            ((1, 40, 40), at(2, 3), (at(2, 3), at(2, 4))),
        ] {
            let (epoch, seen, read) = mark;
            marks.observe(Mark { epoch, seen, known: read });
            assert_eq!(marks.current(), told, "{mark:?}");
            marks.settle();
            assert_eq!((*floor.borrow(), *known.borrow()), bounds, "{mark:?}");
        }
        marks.saw(8);
        assert_eq!((marks.current(), *known.borrow()), (at(2, 8), at(2, 8)));
    }

    #[test]
    fn nothing_is_known_before_it_is_published() {
        let marks = Marks::default();
        marks.observe(Mark { epoch: 1, seen: 5, known: 5 });
        assert_eq!(*marks.known().borrow(), Version::default());
    }
}
