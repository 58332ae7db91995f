//! Garbage collection: gives back what no root leads to.
//!
//! **Mark.** From the roots (and what is too young to be judged, see below) every Directory is read
//! and everything below it noted. Most of this is done beside everybody else.
//!
//! **Alone.** Then additions are kept out: each holds a shared lock for as long as it lives, and the
//! collection takes it alone. What an addition counted on stays until it has ended; the next one
//! looks at the index anew. Under that lock the mark is completed with what came meanwhile, which is
//! little, and everything that is not marked leaves the index in one commit.
//!
//! **Sweep.** Only then the bytes go: packs in which nothing is left and large files are removed,
//! and holes are punched into the others ([`space`]). A process that dies on the way leaves bytes
//! that no index entry leads to, and the next collection finds them as it finds all others: it looks
//! at what is live, never at what has just died.
//!
//! **Readers** need not know. What they read is verified, so bytes that have gone under an old
//! snapshot of the index are noticed, and the reader looks again in a fresh one. Nothing is ever
//! moved, and no pack's number used twice.
//!
//! **Too young.** Additions over the network come in several (blobs, Directories, the root), so what
//! was added less than a *grace* ago counts as reached, and all below it. So does what was below a
//! root that went away less than a grace ago: one that is shown without a lease.
//!
//! **In use.** What a mount shows, of roots that were removed too, is reached as long as the mount is
//! there ([`leases`]).

mod evict;
mod mark;
mod space;

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(in crate::store) use self::evict::Keep;
use self::mark::Marks;
use super::index::{MEMORY, Snapshot, now};
use super::location::{Kind, Location};
use super::{Inner, LocalStore, large, leases};
use crate::castore::Digest;
use crate::store::Error;

/// A time, in seconds since 1970, after everything that was noted: far from overflowing when a minute
/// is added.
const NEVER: u64 = u64::MAX / 2;

/// How garbage is collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// What was added, or below a root that was removed, within this time stays. At most a day: the
    /// store remembers no more.
    pub grace: Duration,
    /// Removes nothing, and only says what would be.
    pub dry_run: bool,
    /// How long to wait until the additions that are under way have ended.
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

/// What a garbage collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Directories.
    pub directories: u64,
    /// Parts of blobs that a cache had.
    pub parts: u64,
    /// Bytes that the disk has back. A dry run says what the objects take; of small ones whose
    /// neighbours stay, not all of it comes back.
    pub freed: u64,
}

/// What is to be removed, and what stays.
struct Plan {
    blobs: Vec<Digest>,
    directories: Vec<Digest>,
    /// Directories that stay.
    kept: Vec<Digest>,
    /// Packs in which nothing stays.
    packs: Vec<u32>,
    /// Of each other pack, what stays.
    live: HashMap<u32, space::Live>,
    collected: Collected,
}

impl LocalStore {
    /// Removes everything that no root node leads to, less what is younger than the grace.
    /// Root nodes that a cache remembers count, and what is below them stays.
    ///
    /// Fails if additions under way do not end within the patience, and if a Directory below a root
    /// cannot be read: what is below that would be lost.
    pub fn collect_garbage(&self, options: &GcOptions) -> Result<Collected, Error> {
        let store = &*self.0;
        let now = now();
        let cutoff = match options.grace.is_zero() {
            // Nothing is young, whatever the clock was when it was added.
            true => NEVER,
            false => now.saturating_sub(options.grace.min(MEMORY).as_secs()),
        };
        let mut marks = Marks::default();
        let mut snapshot = store.index.fresh()?;
        if !options.dry_run && snapshot.is_ahead_of(now)? {
            store.folder.check_writable()?;
            let mut change = store.index.change()?;
            change.correct_times(now)?;
            change
                .commit()
                .map_err(super::index::CommitError::into_error)?;
            snapshot = store.index.fresh()?;
        }
        mark_all(store, &snapshot, &mut marks, cutoff)?;
        if options.dry_run {
            return Ok(plan(&snapshot, &marks)?.collected);
        }
        self.sweep(&mut marks, options.patience, false, |snapshot, marks| {
            mark_all(store, snapshot, marks, cutoff)
        })
    }

    /// Removes what is not in `marks`, after `complete` has brought them up to date. With `doubt`
    /// what stays is not said to be whole any more.
    fn sweep(
        &self,
        marks: &mut Marks,
        patience: Duration,
        doubt: bool,
        complete: impl FnOnce(&Snapshot, &mut Marks) -> Result<(), Error>,
    ) -> Result<Collected, Error> {
        let store = &*self.0;
        store.folder.check_writable()?;
        let alone = store.folder.be_alone(patience)?;
        let alone = alone.ok_or_else(|| Error::Refused {
            store: store.folder.url().to_owned(),
            what: "the garbage collection".to_owned(),
            why: format!(
                "additions were under way for {patience:?}: try again when they have ended"
            ),
        })?;
        // Nobody adds: whatever lies about was left by the dead.
        *store.reclaimed.lock() = false;
        store.prepare_to_write()?;
        let snapshot = store.index.fresh()?;
        complete(&snapshot, marks)?;
        let plan = plan(&snapshot, marks)?;
        let mut collected = plan.collected;
        if !plan.is_empty() || snapshot.incomplete > 0 {
            let mut change = store.index.change()?;
            change.remove_expired()?;
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
        collected.freed = large::sweep(&store.folder, &remaining)?;
        let (parts, part_bytes) = store.parts.sweep(|digest| marks.has_blob(digest))?;
        collected.parts = parts;
        collected.freed += part_bytes;
        collected.freed += space::remove_packs(&store.folder, &plan.packs)?;
        // What is dead in packs is nobody's: additions may go on beside the rest.
        drop(alone);
        store.notice_removals()?;
        for (pack, live) in &plan.live {
            collected.freed += space::punch(&store.folder, *pack, live)?;
        }
        Ok(collected)
    }
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.directories.is_empty() && self.packs.is_empty()
    }
}

/// Marks from everything that a plain collection spares.
fn mark_all(
    store: &Inner,
    snapshot: &Snapshot,
    marks: &mut Marks,
    cutoff: u64,
) -> Result<(), Error> {
    marks.look_again(store, snapshot)?;
    for root in snapshot.roots()? {
        marks.below(store, snapshot, root.node.borrow())?;
    }
    for node in leases::in_use(&store.folder)? {
        marks.below_past(store, snapshot, node.borrow())?;
    }
    for root in snapshot.incomplete_roots()? {
        marks.below_past(store, snapshot, root.node.borrow())?;
    }
    for root in snapshot.past_roots(cutoff)? {
        marks.below_past(store, snapshot, root.node.borrow())?;
    }
    for root in snapshot.cached_roots()?.values() {
        if let Some(root) = &root.root {
            marks.below_past(store, snapshot, root.node.borrow())?;
        }
    }
    let young: HashMap<u32, u64> = snapshot.young(cutoff)?.into_iter().collect();
    if young.is_empty() {
        return Ok(());
    }
    let is_young = |at: &Location| young.get(&at.pack).is_some_and(|from| at.offset >= *from);
    snapshot.each_blob(|digest, at| {
        if is_young(&at) {
            marks.blob(digest);
        }
    })?;
    let mut directories = Vec::new();
    snapshot.each_directory(|digest, at| {
        if is_young(&at) {
            directories.push(digest);
        }
    })?;
    for digest in directories {
        marks.below_directory(store, snapshot, digest, false)?;
    }
    Ok(())
}

fn plan(snapshot: &Snapshot, marks: &Marks) -> Result<Plan, Error> {
    let packs = snapshot.packs()?;
    let mut live: HashMap<u32, space::Live> = packs
        .iter()
        .map(|pack| (pack.id, space::Live::new(pack.len)))
        .collect();
    let mut plan = Plan {
        blobs: Vec::new(),
        directories: Vec::new(),
        kept: Vec::new(),
        packs: Vec::new(),
        live: HashMap::new(),
        collected: Collected::default(),
    };
    let collected = &mut plan.collected;
    snapshot.each_blob(|digest, at| {
        if marks.has_blob(&digest) {
            if let Some(live) = live.get_mut(&at.pack) {
                live.add(&at);
            }
        } else {
            plan.blobs.push(digest);
            collected.blobs += 1;
            collected.blob_bytes += at.len;
            collected.freed += space::record_len(&at);
            collected.freed += if at.kind == Kind::Large { at.len } else { 0 };
        }
    })?;
    snapshot.each_directory(|digest, at| {
        if marks.has_directory(&digest) {
            plan.kept.push(digest);
            if let Some(live) = live.get_mut(&at.pack) {
                live.add(&at);
            }
        } else {
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
