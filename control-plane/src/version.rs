//! Versions of what is served, in their one order. Where they come from is the source's matter:
//! counted by this process alone, or read from the API server, where every replica reads the same.

use heddle_api::proto::v1::Version;
use tokio::sync::watch;

use crate::index::Mark;

pub use self::counter::Counter;
pub use self::marks::Marks;

mod counter;
mod marks;

/// The one source of versions in a process. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Versions {
    Counted(Counter),
    Marked(Marks),
}

impl Versions {
    /// The version of what is compiled now. Never below one before.
    #[must_use = "a version that is not used is lost"]
    pub fn next(&self) -> Version {
        match self {
            Self::Counted(counter) => counter.next(),
            Self::Marked(marks) => marks.current(),
        }
    }

    /// Notes how far the source has read, before what it read is compiled.
    pub fn observe(&self, mark: Option<Mark>) {
        if let (Self::Marked(marks), Some(mark)) = (self, mark) {
            marks.observe(mark);
        }
    }

    /// What was observed is compiled and published now.
    pub fn settle(&self) {
        if let Self::Marked(marks) = self {
            marks.settle();
        }
    }

    /// What is served is never below this.
    #[must_use]
    pub fn floor(&self) -> watch::Receiver<Version> {
        match self {
            Self::Counted(counter) => counter.floor(),
            Self::Marked(marks) => marks.floor(),
        }
    }

    /// What is served says everything up to this, also where it never had to say it.
    #[must_use]
    pub fn known(&self) -> watch::Receiver<Version> {
        match self {
            Self::Counted(counter) => counter.floor(),
            Self::Marked(marks) => marks.known(),
        }
    }
}

/// The order of versions: epochs first.
#[must_use]
pub fn order(version: Version) -> (u64, u64) {
    (version.epoch, version.number)
}
