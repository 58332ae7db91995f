//! The store's list of its root nodes, as the answer to look-ups.
//!
//! A mount below a Nix store gets a look-up for each name that Nix is about to create. Where the store
//! lists its roots, a name that is not in the list is absent without a request, and no endpoint observes
//! it. The list is taken when the mount begins and after each change that the store reports. Some stores
//! report none (a Nix store path added to an object store, or to a server that has no watch): the list is
//! taken again once it has answered and is older than [`HOLDS`], but no more than a twentieth of the time
//! goes into that.
//!
//! A list that could not be taken is none: names are then asked for one by one.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CastoreFs;
use super::waiting::NotInPlace;

/// How long a list of a store that reports no changes holds: as long as such a store's answer that there
/// is no such name.
const HOLDS: Duration = Duration::from_secs(10);
/// How many times as long as taking it took a list holds at least.
const TIMES: u32 = 20;
/// How long a store that could not list its roots is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// Whether the list is there.
#[derive(Debug, Default)]
pub(super) struct ListedRoots(Mutex<RootListingState>);

#[derive(Clone, Copy, Debug, Default)]
enum RootListingState {
    /// It was never asked for.
    #[default]
    None,
    /// It is there.
    Listed {
        /// When it is old.
        old: Instant,
        /// Whether it has answered.
        used: bool,
    },
    /// It could not be taken.
    Failed {
        /// When to try again.
        again: Instant,
    },
}

impl ListedRoots {
    /// Whether a name that the mount has not got from the list is absent.
    pub(super) fn answers(&self) -> bool {
        match &mut *self.0.lock() {
            RootListingState::Listed { used, .. } => {
                *used = true;
                true
            }
            RootListingState::None | RootListingState::Failed { .. } => false,
        }
    }

    /// It is there: asked for at `began`, complete `now`.
    fn taken(&self, began: Instant, now: Instant) {
        let old = now + HOLDS.max((now - began) * TIMES);
        *self.0.lock() = RootListingState::Listed { old, used: false };
    }

    fn failed(&self, now: Instant) {
        *self.0.lock() = RootListingState::Failed { again: now + RETRY };
    }

    fn is_due(&self, now: Instant) -> bool {
        match *self.0.lock() {
            RootListingState::None => false,
            RootListingState::Listed { old, used } => used && old <= now,
            RootListingState::Failed { again } => again <= now,
        }
    }
}

impl CastoreFs {
    /// Whether the store's list is to be taken again, though the store has reported no change.
    pub fn list_is_due(&self) -> bool {
        self.listed.is_due(Instant::now())
    }

    /// Takes the store's list of its root nodes, from which names are looked up then; gives what else it
    /// knows of them if it could not be taken. Blocks.
    pub(super) fn take_list(&self) -> Result<(), NotInPlace> {
        let began = Instant::now();
        match self.waiting.block(self.store.complete_roots()) {
            Ok(now) => {
                self.roots.update(now);
                self.listed.taken(began, Instant::now());
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "names are looked up without the store's list of its roots");
                self.listed.failed(Instant::now());
                self.refresh_roots()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_answered_is_taken_again_when_it_is_old() {
        let listed = ListedRoots::default();
        let start = Instant::now();
        assert!(!listed.answers() && !listed.is_due(start));
        listed.taken(start, start);
        assert!(!listed.is_due(start + HOLDS), "nothing was looked up");
        assert!(listed.answers());
        assert!(!listed.is_due(start + HOLDS - Duration::from_millis(1)));
        assert!(listed.is_due(start + HOLDS));
        // One that takes long is not taken all the time.
        let end = start + Duration::from_secs(60);
        listed.taken(start, end);
        assert!(listed.answers());
        assert!(!listed.is_due(end + Duration::from_secs(1199)));
        assert!(listed.is_due(end + Duration::from_secs(1200)));
        listed.failed(end);
        assert!(!listed.answers() && !listed.is_due(end));
        assert!(listed.is_due(end + RETRY));
    }
}
