//! Puts the messages of one atomic set together. Pure.

use heddle_api::proto::v1::Update;

/// Bodies of one set together; what a pod calls is far smaller.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Entries of all lists of one set together.
const MAX_ENTRIES: usize = 1_000_000;

/// A set under way.
#[derive(Debug, Default)]
pub(super) struct Staging {
    set: Update,
    bytes: usize,
}

/// A set that does not fit into a proxy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane sent a set larger than {MAX_BYTES} bytes or {MAX_ENTRIES} entries")]
pub(super) struct TooLarge;

impl Staging {
    /// Takes one message; returns the set when it is complete.
    pub(super) fn add(&mut self, update: Update) -> Result<Option<Update>, TooLarge> {
        self.bytes += update.resources.iter().map(|resource| resource.body.len()).sum::<usize>();
        let more = update.more;
        let set = &mut self.set;
        set.resources.extend(update.resources);
        set.removed.extend(update.removed);
        set.resolved.extend(update.resolved);
        set.confirmed.extend(update.confirmed);
        set.complete |= update.complete;
        set.version = update.version.or(set.version);
        let entries = [set.resources.len(), set.removed.len(), set.resolved.len()];
        let entries = entries.iter().sum::<usize>() + set.confirmed.len();
        if self.bytes > MAX_BYTES || entries > MAX_ENTRIES {
            return Err(TooLarge);
        }
        if more {
            return Ok(None);
        }
        self.bytes = 0;
        Ok(Some(std::mem::take(&mut self.set)))
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::proto::v1::{Resource, Version};

    use super::*;

    fn update(name: &str, more: bool, body: usize) -> Update {
        let resource =
            Resource { name: name.into(), body: vec![0; body].into(), ..Resource::default() };
        let version = Some(Version { epoch: 1, number: 2 });
        Update { resources: vec![resource], more, version, ..Update::default() }
    }

    #[test]
    fn nothing_comes_out_before_the_last_message() {
        let mut staging = Staging::default();
        assert_eq!(staging.add(update("a", true, 1)), Ok(None));
        let last = Update { complete: true, version: None, ..update("b", false, 1) };
        let set = staging.add(last).unwrap().unwrap();
        let names: Vec<_> = set.resources.iter().map(|r| r.name.as_str()).collect();
        assert_eq!((names, set.complete, set.more), (vec!["a", "b"], true, false));
        assert_eq!(set.version, Some(Version { epoch: 1, number: 2 }));
        let set = staging.add(update("c", false, 1)).unwrap().unwrap();
        assert_eq!((set.resources.len(), set.complete), (1, false));
    }

    #[test]
    fn a_set_has_a_limit() {
        let mut staging = Staging::default();
        assert_eq!(staging.add(update("a", true, MAX_BYTES)), Ok(None));
        assert_eq!(staging.add(update("b", false, 1)), Err(TooLarge));
    }
}
