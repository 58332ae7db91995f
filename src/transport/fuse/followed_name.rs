//! The name that a mount follows: what it stands for, and when to look again.

use std::time::Duration;

use crate::castore::Digest;
use crate::store::{Blocking, Error};
use crate::tree::{Target, TreeError};

/// How long to wait for the store at once: the mount's end is noticed in between.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// The pause after a failure of the store.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// A name that a mount follows.
pub(super) struct FollowedName {
    target: Target,
    /// The target as it was configured, printable.
    text: String,
    store: Blocking,
    /// The version of the store's roots at the last look.
    seen: Option<u64>,
    /// Whether to look again although the store has reported no change.
    is_due: bool,
    /// What cannot be shown.
    refused: Option<Digest>,
    /// Why the mount does not show what the name stands for, as it was logged.
    reported: Option<String>,
}

impl FollowedName {
    /// `target` in `store`.
    pub(super) fn new(target: Target, store: Blocking) -> Self {
        Self {
            text: target.to_string(),
            target,
            store,
            seen: None,
            is_due: false,
            refused: None,
            reported: None,
        }
    }

    /// Waits for a change of the store's roots, for no longer than [`PATIENCE`]. Returns the directory that the
    /// name stands for, digest and size, if that is another than `shown`. A name that is gone changes nothing,
    /// and is logged once; neither does a store that fails.
    pub(super) fn next(&mut self, shown: Option<Digest>) -> Result<Option<(Digest, u64)>, Error> {
        let store = self.store.store();
        let version = match self.seen {
            Some(seen) => store.wait_for_roots(seen, PATIENCE)?,
            None => store.roots_version()?,
        };
        if Some(version) == self.seen && !self.is_due {
            return Ok(None);
        }
        self.is_due = true;
        // Read after the version: what changes in between changes the version again.
        let found = match self.target.resolve_mount_root(&self.store) {
            Ok(found) => Some(found),
            Err(TreeError::Store(error) | TreeError::Object { source: error, .. }) => {
                return Err(error);
            }
            Err(error) => {
                self.report(error.to_string());
                None
            }
        };
        self.seen = Some(version);
        self.is_due = false;
        if found.is_some_and(|(digest, _)| Some(digest) == shown) {
            self.reported = None;
            return Ok(None);
        }
        Ok(found.filter(|(digest, _)| Some(*digest) != self.refused))
    }

    /// Whether the name still stands for `digest`. If not, the next look is due.
    pub(super) fn stands_for(&mut self, digest: Digest) -> bool {
        let found = self.target.resolve_mount_root(&self.store);
        let is_same = found.is_ok_and(|(found, _)| found == digest);
        self.is_due |= !is_same;
        is_same
    }

    /// Notes that `digest` is shown now.
    pub(super) fn shown(&mut self, digest: Digest) {
        self.reported = None;
        tracing::info!(root = self.text, %digest, "the mount shows another tree now");
    }

    /// Notes that what the name stands for is not shown, because of `why`; to be tried again.
    pub(super) fn postpone(&mut self, why: String) {
        self.is_due = true;
        self.report(why);
    }

    /// Notes that `digest` cannot be shown, because of `why`: it is not tried again.
    pub(super) fn refuse(&mut self, digest: Digest, why: String) {
        self.refused = Some(digest);
        self.report(why);
    }

    /// Logs `why`, unless that was the last message.
    fn report(&mut self, why: String) {
        if self.reported.as_ref() != Some(&why) {
            tracing::warn!(
                root = self.text,
                why,
                "the mount keeps the tree that it shows: what its root stands for now cannot be shown"
            );
            self.reported = Some(why);
        }
    }
}
