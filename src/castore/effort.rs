//! How long this thread has hashed, for the breakdown of a request's time.
//!
//! Counted only during [`measure`], since a reading of the clock costs as much as hashing a hundred
//! bytes.

use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    /// The time since [`measure`] began; nothing outside of it.
    static HASHED: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Runs `work`; returns also how long this thread has hashed in it.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    HASHED.set(Some(Duration::ZERO));
    let outcome = work();
    let hashed = HASHED.take().unwrap_or_default();
    (outcome, hashed)
}

/// Runs `hash`, and measures its time within [`measure`].
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
    fn hashing_is_timed_inside_measure_and_only_there() {
        let bytes = vec![7; 1 << 20];
        let (digest, hashed) = measure(|| Digest::of(&bytes));
        assert!(hashed > Duration::ZERO);
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(measure(|| ()).1, Duration::ZERO);
        assert_eq!(HASHED.get(), None);
    }
}
