//! How long this thread has hashed: for who tells where the time of a request went.
//!
//! Counted only while somebody wants to know ([`measure`]), since a look at the clock costs as much
//! as hashing a hundred bytes.

use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    /// What was counted since it was last asked for; nothing while nobody counts.
    static HASHED: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Does `work`; gives also how long this thread has hashed in it.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    HASHED.set(Some(Duration::ZERO));
    let outcome = work();
    let hashed = HASHED.take().unwrap_or_default();
    (outcome, hashed)
}

/// Does `hash`, and counts how long it takes if somebody wants to know.
pub(super) fn hashing<T>(hash: impl FnOnce() -> T) -> T {
    let Some(before) = HASHED.get() else {
        return hash();
    };
    let began = Instant::now();
    let outcome = hash();
    HASHED.set(Some(before + began.elapsed()));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::Digest;

    #[test]
    fn hashing_is_counted_where_somebody_asks_and_only_there() {
        let bytes = vec![7; 1 << 20];
        let (digest, hashed) = measure(|| Digest::of(&bytes));
        assert!(hashed > Duration::ZERO);
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(measure(|| ()).1, Duration::ZERO);
        assert_eq!(HASHED.get(), None);
    }
}
