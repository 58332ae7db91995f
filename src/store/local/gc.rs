//! Garbage collection: removes what no root reaches.
//!
//! **Mark.** From the roots (and what is too young, see below) every Directory is read and
//! everything below it noted. Most of this runs beside additions and readers.
//!
//! **Exclusive.** Then additions are locked out: each holds a shared lock for as long as it lives,
//! and the collection takes it exclusively. Objects that an addition relies on stay until it has
//! ended; the next one reads the index again. Under that lock the mark is completed with what came
//! meanwhile, which is little, and everything unmarked leaves the index in one commit.
//!
//! **Sweep.** Only then bytes are freed: empty packs and large files are removed, and holes are
//! punched into the others ([`space`]). A process that dies meanwhile leaves bytes without an index
//! entry, and the next collection finds them like all others: it looks at what is live, never at
//! what was just removed.
//!
//! **Readers** need no notification. Their reads are verified, so bytes that have gone under an old
//! snapshot of the index are noticed, and the reader looks again in a fresh one. Nothing is ever
//! moved, and no pack number used twice.
//!
//! **Too young.** Additions over the network come in several steps (blobs, Directories, the root),
//! so what was added less than a *grace* ago counts as reachable, with all below it. So does what
//! was below a root that was removed less than a grace ago: one that is shown without a lease.
//!
//! **In use.** What a mount shows, including removed roots, is reachable as long as the mount
//! exists ([`leases`]).

mod evict;
mod mark;
mod space;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(in crate::store) use self::evict::CacheRetention;
use self::mark::{MarkReason, MarkedObjects};
use super::index::{MEMORY, Snapshot};
use super::location::{ObjectLocation, StorageKind};
use super::{LocalInner, LocalStore, large, leases};
use crate::castore::Digest;
use crate::clock::unix_seconds;
use crate::store::Error;

/// A time, in seconds since 1970, after every noted one: far from overflowing when a minute is
/// added.
const NEVER: u64 = u64::MAX / 2;

/// The options of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// What was added, or below a root that was removed, within this time stays. At most a day: the
    /// store has no older records.
    pub grace: Duration,
    /// Removes nothing, and only reports what would be removed.
    pub dry_run: bool,
    /// How long to wait until running additions have ended.
    pub patience: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(60 * 60),
            dry_run: false,
            patience: Duration::from_secs(60),
        }
    }
}

/// The progress of a collection; other threads may read it.
#[derive(Debug, Default)]
pub struct GcProgress {
    /// Directories that were read to find what stays. Most of a collection is that.
    pub directories: AtomicU64,
}

/// The result of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcResult {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Directories.
    pub directories: u64,
    /// Parts of blobs in a cache.
    pub parts: u64,
    /// Bytes that were freed on the disk. A dry run counts the objects; of small ones whose
    /// neighbours stay, not all is freed.
    pub freed: u64,
}

/// Objects that no root reaches, and that stay for the same reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SparedObjects {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Directories.
    pub directories: u64,
}

impl SparedObjects {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blobs == 0 && self.directories == 0
    }
}

/// What a collection removed, and what it spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// What it removed.
    pub removed: GcResult,
    /// What was added, or was below a root that was removed, within the grace.
    pub grace: SparedObjects,
    /// When the grace of the last of these ends, in seconds since 1970; 0 if there are none.
    pub grace_until: u64,
    /// What mounts and guests show. It stays until they end.
    pub in_use: SparedObjects,
    /// What belongs to paths whose content has not come completely. It stays for a day at most.
    pub incomplete: SparedObjects,
}

impl GcReport {
    /// Counts an object that stays; returns the numbers that it belongs to, if no root reaches it.
    fn spared(&mut self, reason: MarkReason) -> Option<&mut SparedObjects> {
        match reason {
            MarkReason::Reachable => None,
            MarkReason::InUse => Some(&mut self.in_use),
            MarkReason::Incomplete => Some(&mut self.incomplete),
            MarkReason::Grace(until) => {
                self.grace_until = until.max(self.grace_until);
                Some(&mut self.grace)
            }
        }
    }
}

/// What is to be removed, and what stays.
struct GcPlan {
    blobs: Vec<Digest>,
    directories: Vec<Digest>,
    /// Directories that stay.
    kept: Vec<Digest>,
    /// Packs in which nothing stays.
    packs: Vec<u32>,
    /// Of each other pack, what stays.
    live: HashMap<u32, space::LiveRecords>,
    report: GcReport,
}

impl LocalStore {
    /// Removes everything that no root reaches, except what is younger than the grace. The cached
    /// roots of a cache count as roots.
    ///
    /// Fails if running additions do not end within the patience, and if a Directory below a root
    /// cannot be read: what is below that would be lost.
    pub fn collect_garbage(&self, options: &GcOptions) -> Result<GcResult, Error> {
        Ok(self.collect_and_report(options)?.removed)
    }

    /// As [`collect_garbage`](Self::collect_garbage); returns also what was spared.
    pub fn collect_and_report(&self, options: &GcOptions) -> Result<GcReport, Error> {
        self.collect_with_progress(options, Arc::default())
    }

    /// As [`collect_and_report`](Self::collect_and_report), with `progress` for another thread.
    pub fn collect_with_progress(
        &self,
        options: &GcOptions,
        progress: Arc<GcProgress>,
    ) -> Result<GcReport, Error> {
        let store = &*self.0;
        let now = unix_seconds();
        let grace = options.grace.min(MEMORY).as_secs();
        let cutoff = match options.grace.is_zero() {
            // Nothing is young, whatever the clock was when it was added.
            true => NEVER,
            false => now.saturating_sub(grace),
        };
        let mut marks = MarkedObjects::with_progress(progress);
        let mut snapshot = store.index.fresh()?;
        if !options.dry_run && snapshot.is_ahead_of(now)? {
            store.dir.check_writable()?;
            let mut change = store.index.change()?;
            change.correct_times(now)?;
            change
                .commit()
                .map_err(super::index::CommitError::into_error)?;
            snapshot = store.index.fresh()?;
        }
        mark_all(store, &snapshot, &mut marks, cutoff, grace)?;
        if options.dry_run {
            return Ok(plan(&snapshot, &marks)?.report);
        }
        self.sweep(&mut marks, options.patience, false, |snapshot, marks| {
            mark_all(store, snapshot, marks, cutoff, grace)
        })
    }

    /// Removes what is not in `marks`, after `complete` has updated them. With `doubt`, trees that
    /// stay are no longer marked complete.
    fn sweep(
        &self,
        marks: &mut MarkedObjects,
        patience: Duration,
        doubt: bool,
        complete: impl FnOnce(&Snapshot, &mut MarkedObjects) -> Result<(), Error>,
    ) -> Result<GcReport, Error> {
        let store = &*self.0;
        store.dir.check_writable()?;
        let alone = store.dir.be_alone(patience)?;
        let alone = alone.ok_or_else(|| Error::Refused {
            store: store.dir.url().to_owned(),
            what: "the garbage collection".to_owned(),
            why: format!(
                "additions were under way for {patience:?}: try again when they have ended"
            ),
        })?;
        // No addition runs: files without an entry are leftovers of dead processes.
        *store.reclaimed.lock() = false;
        store.prepare_to_write()?;
        let snapshot = store.index.fresh()?;
        complete(&snapshot, marks)?;
        let plan = plan(&snapshot, marks)?;
        let mut report = plan.report;
        let collected = &mut report.removed;
        if !plan.is_empty() || snapshot.incomplete > 0 {
            let mut change = store.index.change()?;
            change.remove_expired()?;
            change.forget_waiting_nars()?;
            change.remove(&plan.blobs, &plan.directories, &plan.packs)?;
            if doubt {
                change.doubt(&plan.kept)?;
            }
            change
                .commit()
                .map_err(super::index::CommitError::into_error)?;
        }
        let remaining = store.index.fresh()?;
        drop(snapshot);
        collected.freed = large::sweep(&store.dir, &remaining)?;
        let (parts, part_bytes) = store.parts.sweep(|digest| marks.has_blob(digest))?;
        collected.parts = parts;
        collected.freed += part_bytes;
        collected.freed += space::remove_packs(&store.dir, &plan.packs)?;
        // Dead bytes in packs have no owner: additions may run meanwhile.
        drop(alone);
        store.notice_removals()?;
        for (pack, live) in &plan.live {
            collected.freed += space::punch(&store.dir, *pack, live)?;
        }
        Ok(report)
    }
}

impl GcPlan {
    fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.directories.is_empty() && self.packs.is_empty()
    }
}

/// Marks from everything that a plain collection spares. `cutoff` is in seconds since 1970, and
/// `grace` in seconds.
fn mark_all(
    store: &LocalInner,
    snapshot: &Snapshot,
    marks: &mut MarkedObjects,
    cutoff: u64,
    grace: u64,
) -> Result<(), Error> {
    marks.look_again(store, snapshot)?;
    for root in snapshot.roots()? {
        marks.below(store, snapshot, root.node.borrow())?;
    }
    for root in snapshot.cached_roots()?.values() {
        if let Some(root) = &root.root {
            let node = root.node.borrow();
            marks.below_past(store, snapshot, node, MarkReason::Reachable)?;
        }
    }
    for node in leases::in_use(&store.dir)? {
        marks.below_past(store, snapshot, node.borrow(), MarkReason::InUse)?;
    }
    for root in snapshot.incomplete_roots()? {
        let node = root.node.borrow();
        marks.below_past(store, snapshot, node, MarkReason::Incomplete)?;
    }
    for node in snapshot.waiting_nodes()? {
        marks.below_past(store, snapshot, node.borrow(), MarkReason::Incomplete)?;
    }
    // The latest first: what several reach is read once.
    for (removed, root) in snapshot.past_roots(cutoff)?.iter().rev() {
        // The time of a removal is in whole seconds.
        let reason = MarkReason::Grace(removed.saturating_add(grace + 1));
        marks.below_past(store, snapshot, root.node.borrow(), reason)?;
    }
    let young = snapshot.young(cutoff)?;
    if young.is_empty() {
        return Ok(());
    }
    let until = |at: &ObjectLocation| young.added(at).map(|added| added + grace);
    snapshot.each_blob(|digest, at| {
        if let Some(until) = until(&at) {
            marks.blob(digest, MarkReason::Grace(until));
        }
    })?;
    let mut directories = Vec::new();
    snapshot.each_directory(|digest, at| {
        if let Some(until) = until(&at) {
            directories.push((until, digest));
        }
    })?;
    directories.sort_unstable_by_key(|(until, _)| std::cmp::Reverse(*until));
    for (until, digest) in directories {
        let reason = MarkReason::Grace(until);
        marks.below_directory(store, snapshot, digest, reason, false)?;
    }
    Ok(())
}

fn plan(snapshot: &Snapshot, marks: &MarkedObjects) -> Result<GcPlan, Error> {
    let packs = snapshot.packs()?;
    let mut live: HashMap<u32, space::LiveRecords> = packs
        .iter()
        .map(|pack| (pack.id, space::LiveRecords::new(pack.len)))
        .collect();
    let mut plan = GcPlan {
        blobs: Vec::new(),
        directories: Vec::new(),
        kept: Vec::new(),
        packs: Vec::new(),
        live: HashMap::new(),
        report: GcReport::default(),
    };
    let report = &mut plan.report;
    snapshot.each_blob(|digest, at| {
        if let Some(reason) = marks.blob_reason(&digest) {
            if let Some(live) = live.get_mut(&at.pack) {
                live.add(&at);
            }
            if let Some(spared) = report.spared(reason) {
                spared.blobs += 1;
                spared.blob_bytes += at.len;
            }
        } else {
            let collected = &mut report.removed;
            plan.blobs.push(digest);
            collected.blobs += 1;
            collected.blob_bytes += at.len;
            collected.freed += space::record_len(&at);
            collected.freed += if at.kind == StorageKind::Large {
                at.len
            } else {
                0
            };
        }
    })?;
    snapshot.each_directory(|digest, at| {
        if let Some(reason) = marks.directory_reason(&digest) {
            plan.kept.push(digest);
            if let Some(live) = live.get_mut(&at.pack) {
                live.add(&at);
            }
            if let Some(spared) = report.spared(reason) {
                spared.directories += 1;
            }
        } else {
            let collected = &mut report.removed;
            plan.directories.push(digest);
            collected.directories += 1;
            collected.freed += space::record_len(&at);
        }
    })?;
    let (dead, live): (HashMap<_, _>, _) = live.into_iter().partition(|(_, live)| live.is_empty());
    plan.packs = dead.into_keys().collect();
    plan.live = live;
    Ok(plan)
}
