//! A cache bounded by weight.
//!
//! When it grows over its bound, the older half goes at once: no list to keep in order on every
//! hit, and the cost of choosing is spread over as many insertions.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

/// Shared values by key, the least recently used of which are dropped.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    bound: usize,
    inner: Mutex<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    slots: HashMap<K, Slot<V>>,
    weight: usize,
    clock: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: Arc<V>,
    weight: usize,
    used: u64,
}

impl<K: Eq + Hash + Copy, V> Cache<K, V> {
    /// A cache of values that weigh `bound` together.
    pub(super) fn new(bound: usize) -> Self {
        Self {
            bound,
            inner: Mutex::new(Inner {
                slots: HashMap::new(),
                weight: 0,
                clock: 0,
            }),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<Arc<V>> {
        let inner = &mut *self.inner.lock();
        let slot = inner.slots.get_mut(key)?;
        inner.clock += 1;
        slot.used = inner.clock;
        Some(slot.value.clone())
    }

    pub(super) fn put(&self, key: K, value: Arc<V>, weight: usize) {
        let inner = &mut *self.inner.lock();
        inner.clock += 1;
        let used = inner.clock;
        inner.weight += weight;
        if let Some(old) = inner.slots.insert(
            key,
            Slot {
                value,
                weight,
                used,
            },
        ) {
            inner.weight -= old.weight;
        }
        while inner.weight > self.bound && inner.slots.len() > 1 {
            let mut ages: Vec<u64> = inner.slots.values().map(|slot| slot.used).collect();
            let middle = ages.len() / 2;
            let (_, &mut oldest_kept, _) = ages.select_nth_unstable(middle);
            inner.slots.retain(|_, slot| slot.used >= oldest_kept);
            inner.weight = inner.slots.values().map(|slot| slot.weight).sum();
        }
    }

    pub(super) fn remove(&self, key: &K) {
        let inner = &mut *self.inner.lock();
        if let Some(old) = inner.slots.remove(key) {
            inner.weight -= old.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_and_the_weight_is_bounded() {
        let cache = Cache::new(1000);
        for key in 0..100_000u32 {
            cache.put(key, Arc::new(key), 10);
            assert!(cache.inner.lock().weight <= 1000);
            assert_eq!(cache.get(&0).as_deref(), Some(&0), "used before {key}");
        }
        assert!(cache.get(&99_999).is_some());
        assert!(cache.get(&1).is_none());
        cache.remove(&0);
        assert!(cache.get(&0).is_none());
    }
}
