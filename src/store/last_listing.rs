//! The last listing of an upstream that reports no new roots.
//!
//! A reader that keeps a listing notices changes by the version of the roots. While a thread waits for
//! that version, the listing is requested again before it is too old, and the version changes only if the
//! listing did. Without a waiting thread the version changes when the listing is too old, so that the next
//! reader requests it again.

use std::time::{Duration, Instant};

use prost::Message;

use crate::castore::Root;
use crate::proto::castore::v1::Entry;

/// How old a listing may be, unless a cache's `roots-max-age` is less.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The least age: for each request the server lists all of its roots.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// The age and hash of the last listing.
#[derive(Debug)]
pub(super) struct LastListing {
    max_age: Duration,
    last: Option<LastHash>,
    /// A request for the next one is under way.
    asking: bool,
    /// The last request failed: the last listing stays valid.
    failing: bool,
}

#[derive(Debug)]
struct LastHash {
    hash: blake3::Hash,
    when: Instant,
}

impl Default for LastListing {
    fn default() -> Self {
        Self {
            max_age: MAX_AGE,
            last: None,
            asking: false,
            failing: false,
        }
    }
}

impl LastListing {
    /// Listings are to be no older than `max_age`.
    pub(super) fn keep_fresh(&mut self, max_age: Duration) {
        self.max_age = self.max_age.min(max_age.max(LEAST_AGE));
    }

    /// Records a listing; returns whether it differs from the one before.
    pub(super) fn note(&mut self, roots: &[Root]) -> bool {
        let mut hasher = blake3::Hasher::new();
        for root in roots {
            hasher.update(&Entry::from(root).encode_length_delimited_to_vec());
        }
        let now = LastHash {
            hash: hasher.finalize(),
            when: Instant::now(),
        };
        self.failing = false;
        let before = self.last.replace(now);
        before.is_some_and(|before| Some(before.hash) != self.last.as_ref().map(|now| now.hash))
    }

    /// Whether the listing has to be requested again now. The caller then reports the result to
    /// [`end`](Self::end).
    pub(super) fn begin(&mut self) -> bool {
        // Early enough to arrive in time.
        let due = self.age().is_some_and(|age| age >= self.max_age * 3 / 4) && !self.asking;
        self.asking |= due;
        due
    }

    /// The request that [`begin`](Self::begin) demanded succeeded or failed.
    pub(super) fn end(&mut self, answered: bool) {
        self.asking = false;
        self.failing = !answered;
    }

    /// Whether the listing is too old. Returns true once.
    pub(super) fn is_too_old(&mut self) -> bool {
        let waits = self.asking || self.failing;
        let too_old = self.age().is_some_and(|age| age >= self.max_age) && !waits;
        if too_old {
            self.last = None;
        }
        too_old
    }

    fn age(&self) -> Option<Duration> {
        self.last.as_ref().map(|last| last.when.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Digest, Name, Node};

    #[test]
    fn a_listing_is_requested_again_in_time_and_compared() {
        let root = |name: &str| Root {
            name: Name::new(name.as_bytes()).unwrap(),
            node: Node::Directory {
                digest: Digest::empty_blob(),
                size: 0,
            },
        };
        let mut listing = LastListing::default();
        listing.keep_fresh(Duration::from_secs(40));
        assert!(
            !listing.begin() && !listing.is_too_old(),
            "there is no listing"
        );
        assert!(!listing.note(&[root("a")]), "there was none before");
        assert!(!listing.note(&[root("a")]));
        assert!(listing.note(&[root("a"), root("b")]));
        assert!(!listing.begin(), "it is young");
        let age = |listing: &mut LastListing, age: u64| {
            let last = listing.last.as_mut().unwrap();
            last.when = Instant::now()
                .checked_sub(Duration::from_secs(age))
                .unwrap();
        };
        age(&mut listing, 30);
        assert!(listing.begin());
        assert!(!listing.begin(), "one request at a time");
        age(&mut listing, 40);
        assert!(!listing.is_too_old(), "a newer one comes");
        listing.end(false);
        assert!(!listing.is_too_old(), "no newer one can be had");
        assert!(listing.begin(), "it is requested again");
        listing.end(true);
        assert!(listing.is_too_old());
        assert!(!listing.is_too_old(), "reported once");
    }
}
