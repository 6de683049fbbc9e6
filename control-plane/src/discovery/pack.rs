//! Cuts one atomic set into messages that a proxy accepts. Pure.

use std::sync::Arc;

use heddle_api::proto::v1::{Resource, ResourceRef, Update, Version};

use crate::catalog::{Encoded, Key};

/// A message is ended when it holds this much.
const MESSAGE_SIZE: usize = 1 << 20;
/// A body above this fits in no message that a proxy would take.
pub(crate) const BODY_LIMIT: usize = 3 << 20;
/// Of every item, beside its names and body: tags, lengths, numbers.
const OVERHEAD: usize = 48;

/// One set, before it is cut.
#[derive(Debug, Default)]
pub(crate) struct Set {
    pub(crate) changed: Vec<Arc<Encoded>>,
    pub(crate) removed: Vec<Key>,
    pub(crate) resolved: Vec<String>,
    pub(crate) confirmed: Vec<Key>,
    pub(crate) complete: bool,
    pub(crate) version: Version,
}

/// The set as messages, at least one; all but the last say `more`.
pub(crate) fn pack(set: Set) -> Vec<Update> {
    let mut messages = Messages { done: Vec::new(), open: Update::default(), size: 0 };
    for key in &set.confirmed {
        messages.grow(key.name.len()).confirmed.push(reference(key));
    }
    for resource in &set.changed {
        let size = resource.key.name.len() + resource.body.len();
        messages.grow(size).resources.push(encode(resource));
    }
    for key in &set.removed {
        messages.grow(key.name.len()).removed.push(reference(key));
    }
    for address in set.resolved {
        messages.grow(address.len()).resolved.push(address);
    }
    let mut all = messages.done;
    all.push(Update { complete: set.complete, ..messages.open });
    let last = all.len() - 1;
    for (position, message) in all.iter_mut().enumerate() {
        message.version = Some(set.version);
        message.more = position < last;
    }
    all
}

struct Messages {
    done: Vec<Update>,
    open: Update,
    size: usize,
}

impl Messages {
    /// The message that takes an item of this size.
    fn grow(&mut self, size: usize) -> &mut Update {
        let size = size + OVERHEAD;
        if self.size > 0 && self.size + size > MESSAGE_SIZE {
            self.done.push(std::mem::take(&mut self.open));
            self.size = 0;
        }
        self.size += size;
        &mut self.open
    }
}

fn encode(resource: &Encoded) -> Resource {
    Resource {
        r#type: resource.key.kind.into(),
        name: resource.key.name.to_string(),
        version: Some(resource.version),
        hash: resource.hash,
        min_level: resource.min_level,
        body: resource.body.clone(),
    }
}

fn reference(key: &Key) -> ResourceRef {
    ResourceRef { r#type: key.kind.into(), name: key.name.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use heddle_api::proto::v1::ResourceType;
    use prost::Message as _;

    fn resource(name: &str, size: usize) -> Arc<Encoded> {
        Arc::new(Encoded {
            sources: Box::default(),
            key: Key::new(ResourceType::Endpoints, name),
            version: Version { epoch: 1, number: 2 },
            hash: 3,
            min_level: 1,
            body: Bytes::from(vec![7; size]),
        })
    }

    #[test]
    fn an_empty_set_is_one_message() {
        let version = Version { epoch: 1, number: 9 };
        let set = Set { complete: true, version, ..Set::default() };
        let [only] = pack(set).try_into().unwrap();
        assert!(only.complete && !only.more);
        assert_eq!(only.version, Some(version));
    }

    #[test]
    fn a_large_set_is_cut_and_only_its_last_message_ends_it() {
        let changed: Vec<_> = (0..40).map(|n| resource(&n.to_string(), 100_000)).collect();
        let confirmed: Vec<_> =
            (0..30_000).map(|n| Key::new(ResourceType::Address, format!("10.0.0.1:{n}"))).collect();
        let resolved: Vec<_> = (0..30_000).map(|n| format!("10.0.0.1:{n}")).collect();
        let all = pack(Set { changed, confirmed, resolved, complete: true, ..Set::default() });
        assert!(all.len() > 4, "{}", all.len());
        for message in &all {
            assert!(message.encoded_len() <= MESSAGE_SIZE, "{}", message.encoded_len());
        }
        let (last, others) = all.split_last().unwrap();
        assert!(!last.more && last.complete);
        assert!(others.iter().all(|message| message.more && !message.complete));
        let count = |of: fn(&Update) -> usize| all.iter().map(of).sum::<usize>();
        assert_eq!(count(|m| m.resources.len()), 40);
        assert_eq!(count(|m| m.confirmed.len()), 30_000);
        assert_eq!(count(|m| m.resolved.len()), 30_000);
    }

    #[test]
    fn a_body_above_the_cut_travels_alone() {
        let all = pack(Set {
            changed: vec![resource("a", 10), resource("b", BODY_LIMIT), resource("c", 10)],
            ..Set::default()
        });
        let names: Vec<Vec<&str>> = all
            .iter()
            .map(|message| message.resources.iter().map(|r| r.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["a"], vec!["b"], vec!["c"]]);
    }
}
