//! A map that is cheap to clone and cheap to change after a clone: hashed into shards, each shared
//! until it is written to.
//!
//! A catalog is published with every change while readers still hold older ones. Copying one shard
//! of some hundred entries per changed key beats copying the whole map, and is simpler than a tree.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

const SHARDS: usize = 256;

pub(crate) struct Shards<K, V> {
    hasher: RandomState,
    shards: Arc<[Arc<HashMap<K, V>>]>,
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        Self { hasher: self.hasher.clone(), shards: self.shards.clone() }
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { hasher: RandomState::new(), shards: std::iter::repeat_n(empty, SHARDS).collect() }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Shards<K, V> {
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.shards[self.shard_of(key)].get(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let shard = self.shard_of(&key);
        self.shard_mut(shard).insert(key, value);
    }

    /// True when there was such an entry.
    pub(crate) fn remove<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let shard = self.shard_of(key);
        // Looked up first: removing nothing must not copy the shard.
        self.shards[shard].contains_key(key) && self.shard_mut(shard).remove(key).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    fn shard_of<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARDS as u64)
            .expect("below the number of shards")
    }

    fn shard_mut(&mut self, shard: usize) -> &mut HashMap<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut map = Shards::default();
        for key in 0..1000 {
            map.insert(key, key * 2);
        }
        let before = map.clone();
        map.insert(7, 0);
        assert!(map.remove(&8));
        assert!(!map.remove(&8));
        assert_eq!((before.get(&7), before.get(&8), before.len()), (Some(&14), Some(&16), 1000));
        assert_eq!((map.get(&7), map.get(&8), map.len()), (Some(&0), None, 999));
        assert_eq!(map.values().count(), 999);
    }
}
