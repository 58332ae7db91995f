//! What a mount shows, and what it showed before and is still in use.
//!
//! A FUSE mount is one connection, whatever its root directory means. A mount of an image is a connection and an
//! EROFS file system for each tree: what is shown next is mounted in the place of what is shown
//! ([`follow`](super::follow)), and the former tree is served until its last user has finished.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::fs::InodeTable;
use crate::transport::fuse::hand_over::{MountDescriptors, MountHolder};
use crate::transport::fuse::mountpoint::{Mountpoint, UnmountOutcome};
use crate::transport::fuse::serving::ServingMount;

/// A tree that is served on a connection of its own.
pub(super) struct ServedTree {
    /// Its number among the trees of the mount.
    pub(super) number: u64,
    pub(super) serving: Arc<ServingMount>,
    pub(super) mountpoint: Mountpoint,
    pub(super) inode_table: Option<Arc<InodeTable>>,
}

/// The trees of a mount.
pub(super) struct ServedTrees {
    shown: RwLock<Arc<ServedTree>>,
    former: Mutex<Vec<Arc<ServedTree>>>,
    /// Whether nothing else is shown any more. Held while something is.
    closed: Mutex<bool>,
    /// Whether `shown` may be out of the mount table already, and what comes after it not be here yet.
    switches: AtomicBool,
    /// Whether a thread looks after them.
    is_watched: AtomicBool,
    holder: Option<Arc<dyn MountHolder>>,
    /// The highest number of a tree so far. None is used again: descriptors that are released late are of
    /// their own tree then.
    last_number: AtomicU64,
}

impl ServedTree {
    /// What the next process needs, if there can be one.
    pub(super) fn descriptors(&self) -> Option<MountDescriptors> {
        let inode_table = self.inode_table.clone()?;
        Some(MountDescriptors::new(
            self.serving.device.clone(),
            inode_table,
        ))
    }

    fn is_mounted(&self) -> bool {
        !self.serving.has_ended() && self.mountpoint.is_mounted()
    }
}

impl ServedTrees {
    /// `tree` is shown. The holder may have trees of numbers up to `last_number`.
    pub(super) fn new(
        tree: ServedTree,
        holder: Option<Arc<dyn MountHolder>>,
        last_number: u64,
    ) -> Self {
        Self {
            last_number: AtomicU64::new(last_number.max(tree.number)),
            shown: RwLock::new(Arc::new(tree)),
            former: Mutex::default(),
            closed: Mutex::default(),
            switches: AtomicBool::new(false),
            is_watched: AtomicBool::new(false),
            holder,
        }
    }

    /// What is shown.
    pub(super) fn shown(&self) -> Arc<ServedTree> {
        self.shown.read().clone()
    }

    /// What is shown, and then what was shown before and is in use.
    pub(super) fn all(&self) -> Vec<Arc<ServedTree>> {
        let former = self.former.lock();
        let shown = std::iter::once(self.shown());
        shown.chain(former.iter().cloned()).collect()
    }

    /// How many of those that were shown before are in use.
    pub(super) fn former(&self) -> usize {
        self.former.lock().len()
    }

    /// Adds a tree that was shown before.
    pub(super) fn add_former(&self, tree: Arc<ServedTree>) {
        self.former.lock().push(tree);
    }

    /// Whether a thread is to begin to look after them: the first time.
    pub(super) fn begin_watch(&self) -> bool {
        !self.is_watched.swap(true, Ordering::Relaxed)
    }

    /// Nothing else is shown from now on.
    pub(super) fn close(&self) {
        *self.closed.lock() = true;
    }

    /// Whether nothing else is shown any more. As long as the guard lives, that stays.
    pub(super) fn closed(&self) -> MutexGuard<'_, bool> {
        self.closed.lock()
    }

    /// Has `mount` mount a tree in the place of the one that is shown, which is a former one then. `mount` is given
    /// the number of the tree, and what holds its descriptors, so that a process that dies at any moment
    /// leaves what is mounted to the next one.
    pub(super) fn switch<E>(
        &self,
        mount: impl FnOnce(u64, Option<&dyn MountHolder>) -> Result<ServedTree, E>,
    ) -> Result<(), E> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        self.switches.store(true, Ordering::SeqCst);
        let mounted = mount(number, self.holder.as_deref());
        let outcome = mounted.map(|next| {
            let mut formers = self.former.lock();
            let former = std::mem::replace(&mut *self.shown.write(), Arc::new(next));
            formers.push(former);
        });
        self.switches.store(false, Ordering::SeqCst);
        if let (Err(_), Some(holder)) = (&outcome, &self.holder) {
            holder.forget(number);
        }
        outcome
    }

    /// Lets go of the former trees that have no user any more.
    pub(super) fn reap(&self) {
        let mut ended = Vec::new();
        self.former.lock().retain(|tree| {
            let has_ended = tree.serving.has_ended();
            if has_ended {
                ended.push(tree.clone());
            }
            !has_ended
        });
        for tree in ended {
            tree.serving.fs.end_use();
            // What is unmounted or handed over is held no more, or for the next process.
            if let Some(holder) = self.holder.as_ref().filter(|_| !*self.closed()) {
                holder.forget(tree.number);
            }
        }
    }

    /// `is_so` of the tree that is shown. While the next one is mounted, `meanwhile`.
    fn of_shown(&self, is_so: impl Fn(&ServedTree) -> bool, meanwhile: bool) -> bool {
        loop {
            let shown = self.shown();
            if is_so(&shown) == meanwhile || self.switches.load(Ordering::SeqCst) {
                return meanwhile;
            }
            if Arc::ptr_eq(&shown, &self.shown()) {
                return !meanwhile;
            }
        }
    }

    /// Whether all of them are gone, with their last users.
    pub(super) fn have_ended(&self) -> bool {
        let former = self.former.lock();
        let mut former = former.iter();
        self.of_shown(|shown| shown.serving.has_ended(), false)
            && former.all(|tree| tree.serving.has_ended())
    }

    /// Whether what is shown is at any mount point.
    pub(super) fn is_mounted(&self) -> bool {
        self.of_shown(ServedTree::is_mounted, true)
    }

    /// Unmounts what is shown. No other is shown any more.
    pub(super) fn unmount(&self) -> io::Result<UnmountOutcome> {
        let shown = self.shown();
        let outcome = shown.mountpoint.unmount(|| shown.serving.has_ended())?;
        if outcome != UnmountOutcome::Cleanly {
            return Ok(outcome);
        }
        let former = self.former.lock();
        let mut former = former.iter();
        let used = former.find(|tree| !tree.serving.has_ended());
        Ok(match used {
            Some(tree) => tree.mountpoint.in_use(),
            None => outcome,
        })
    }
}
