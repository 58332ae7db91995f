//! An LRU cache in memory, with a limit in bytes or pieces.

use std::fmt;
use std::hash::Hash;

use lru::LruCache;

/// Values with their cost in bytes.
pub(crate) struct Bounded<K: Hash + Eq, V> {
    entries: LruCache<K, (V, usize)>,
    bytes: usize,
    limit: usize,
}

impl<K: Hash + Eq, V: Clone> Bounded<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: LruCache::unbounded(),
            bytes: 0,
            limit,
        }
    }

    /// The value of `key`, which becomes the most recently used.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.entries.get(key).map(|(value, _)| value.clone())
    }

    /// Removes the value of `key`.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some((_, bytes)) = self.entries.pop(key) {
            self.bytes -= bytes;
        }
    }

    /// Removes the least recently used value; returns false if there is none.
    pub(super) fn pop_oldest(&mut self) -> bool {
        let oldest = self.entries.pop_lru();
        if let Some((_, (_, bytes))) = &oldest {
            self.bytes -= bytes;
        }
        oldest.is_some()
    }

    /// Removes everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains(key)
    }

    /// Stores `value`, removing others if needed, and even if it alone is over the limit.
    pub(crate) fn insert(&mut self, key: K, value: V, bytes: usize) {
        self.bytes += bytes;
        if let Some((_, (_, old))) = self.entries.push(key, (value, bytes)) {
            self.bytes -= old;
        }
        while self.bytes > self.limit && self.entries.len() > 1 {
            match self.entries.pop_lru() {
                Some((_, (_, old))) => self.bytes -= old,
                None => break,
            }
        }
    }
}

impl<K: Hash + Eq, V> fmt::Debug for Bounded<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries, {} bytes", self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_is_removed_first() {
        let mut cache = Bounded::new(10);
        cache.insert(1, 'a', 4);
        cache.insert(2, 'b', 4);
        assert_eq!(cache.get(&1), Some('a'));
        cache.insert(3, 'c', 4);
        assert_eq!((cache.get(&1), cache.get(&2)), (Some('a'), None));
        cache.insert(1, 'd', 2);
        assert_eq!(cache.bytes, 6);
        cache.insert(4, 'e', 100);
        assert_eq!((cache.get(&4), cache.get(&1)), (Some('e'), None));
        assert!(cache.contains(&4));
        cache.remove(&4);
        assert_eq!((cache.get(&4), cache.bytes), (None, 0));
    }
}
