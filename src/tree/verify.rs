//! Reading everything below some roots again, and hashing it.
//!
//! The unit is the object, not the path: a Directory or blob with a thousand references is read
//! once. Objects wait on one stack, children pushed so that they come off in walk order (the order
//! in which a store lays them out); every core takes from it. A large blob is split into ranges,
//! since groups verify by themselves, so that one blob keeps all cores busy too.
//!
//! The store does the hashing ("verified or not at all"). Verification adds three things: it
//! requests every byte, compares the sizes in nodes with the objects, and finds every path to a
//! damaged object. Its work is bounded by the objects, not by what nodes state: an object is read
//! by the size of the first node that leads to it and reported once, and nothing more is read of a
//! damaged blob.
//!
//! Paths are searched only if there are faults: a second pass descends from the roots, into those
//! Directories alone that lead to damage.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::blob::copy_range;
use super::{TreeError, TreePath};
use crate::castore::{Digest, Directory, Node, NodeRef};
use crate::store::{self, Blocking, Object};

/// Bytes of a blob that are one piece of work.
const RANGE: u64 = 32 << 20;
/// Paths reported for one damaged object; its other places are only counted.
const MAX_PATHS: usize = 100;
/// How often, in all, the search for paths enters a Directory again.
const MAX_REVISITS: u64 = 100_000;

/// The progress of a verification; other threads may read it, and may stop the verification.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Directories read, each once.
    pub directories: AtomicU64,
    /// Blobs read to their end, each once.
    pub blobs: AtomicU64,
    /// Bytes of blobs read.
    pub bytes: AtomicU64,
    /// Set it to end the verification with [`TreeError::Interrupted`].
    pub stop: Arc<AtomicBool>,
}

/// The result of a verification.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Directories checked, each once.
    pub directories: u64,
    /// Blobs checked, each once.
    pub blobs: u64,
    /// Bytes of blobs read.
    pub blob_bytes: u64,
    /// The faults, in the order of the first path of each.
    pub faults: Vec<TreeFault>,
}

/// An object that is missing or damaged in the store, or whose node is wrong.
#[derive(Debug)]
pub struct TreeFault {
    /// What kind of object.
    pub object: Object,
    /// Its digest.
    pub digest: Digest,
    /// The fault.
    pub why: FaultCause,
    /// The paths of nodes that refer to it, in the order of a walk; the first hundred.
    pub paths: Vec<TreePath>,
    /// Further paths, as far as they were counted.
    pub more_paths: u64,
}

/// The fault of an object.
#[derive(Debug, thiserror::Error)]
pub enum FaultCause {
    /// It is missing.
    #[error("missing")]
    Missing,
    /// It does not match its digest, or cannot be read.
    #[error("{0}")]
    Store(#[source] store::Error),
    /// The object is sound; the nodes at these paths state another size.
    #[error("the node states the size {stated}, and the object has the size {actual}")]
    NodeSize {
        /// The size in the nodes.
        stated: u64,
        /// The sum of the Directory's entries.
        actual: u64,
    },
}

/// An object and the size that a node states: the unit of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CheckedClaim {
    object: Object,
    digest: Digest,
    size: u64,
}

/// Reads and hashes everything that is reachable from `roots`.
///
/// Fails only when it is stopped, or when the store does not report which object is at fault;
/// damage is no failure but a [`TreeFault`].
pub fn verify(
    store: &Blocking,
    roots: &[(TreePath, Node)],
    progress: &VerifyProgress,
) -> Result<VerifyReport, TreeError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let check = ObjectCheck {
        store,
        progress,
        state: Mutex::default(),
        changed: Condvar::new(),
    };
    check.push(
        roots
            .iter()
            .rev()
            .filter_map(|(_, node)| CheckedClaim::of(node.borrow())),
    );
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| check.work());
        }
    });
    if progress.stop.load(Ordering::Relaxed) {
        return Err(TreeError::Interrupted);
    }
    let state = check.state.into_inner();
    let mut report = VerifyReport {
        blob_bytes: progress.bytes.load(Ordering::Relaxed),
        ..VerifyReport::default()
    };
    for (object, _) in state.seen.keys() {
        match object {
            Object::Directory => report.directories += 1,
            Object::Blob => report.blobs += 1,
        }
    }
    let wrong = state.judge(store);
    if !wrong.is_empty() {
        report.faults = FaultSearch::new(store, wrong).run(roots);
    }
    Ok(report)
}

/// What names an object.
type ObjectKey = (Object, Digest);

/// The fault of an object, and the nodes with it: those that state another size than the `right`
/// one, or all.
#[derive(Debug)]
struct WrongObject {
    why: FaultCause,
    right: Option<u64>,
}

impl CheckedClaim {
    fn key(&self) -> ObjectKey {
        (self.object, self.digest)
    }

    /// What `node` states; a symbolic link states nothing.
    fn of(node: NodeRef<'_>) -> Option<Self> {
        match node {
            NodeRef::Directory { digest, size } => Some(CheckedClaim {
                object: Object::Directory,
                digest,
                size,
            }),
            NodeRef::File { digest, size, .. } => Some(CheckedClaim {
                object: Object::Blob,
                digest,
                size,
            }),
            NodeRef::Symlink { .. } => None,
        }
    }
}

/// The first pass: every object once.
struct ObjectCheck<'c> {
    store: &'c Blocking,
    progress: &'c VerifyProgress,
    state: Mutex<SeenObjects>,
    changed: Condvar,
}

#[derive(Default)]
struct SeenObjects {
    /// The size by which each object is read.
    seen: HashMap<ObjectKey, u64>,
    /// Other sizes that nodes state for it.
    disputed: HashMap<ObjectKey, BTreeSet<u64>>,
    stack: Vec<VerifyTask>,
    /// Threads that hold work, and may add more.
    busy: usize,
    faults: HashMap<ObjectKey, FaultCause>,
}

impl SeenObjects {
    /// The faults, once every object was read.
    fn judge(mut self, store: &Blocking) -> HashMap<ObjectKey, WrongObject> {
        let mut wrong = HashMap::new();
        for (key, others) in &self.disputed {
            let Some(&first) = self.seen.get(key) else {
                continue;
            };
            let right = match self.faults.get(key) {
                None => Some(first),
                Some(FaultCause::NodeSize { actual, .. }) => Some(*actual),
                // The size in the first node may have been wrong.
                Some(FaultCause::Missing | FaultCause::Store(_)) => sound_size(store, key, others),
            };
            let Some(right) = right else { continue };
            let stated = others.iter().copied().chain([first]);
            if let Some(stated) = stated.filter(|stated| *stated != right).min() {
                let why = FaultCause::NodeSize {
                    stated,
                    actual: right,
                };
                self.faults.remove(key);
                let right = Some(right);
                wrong.insert(*key, WrongObject { why, right });
            }
        }
        for (key, why) in self.faults {
            let right = match why {
                FaultCause::NodeSize { actual, .. } => Some(actual),
                FaultCause::Missing | FaultCause::Store(_) => None,
            };
            wrong.insert(key, WrongObject { why, right });
        }
        wrong
    }
}

/// The one of `sizes` with which the blob is sound, if the store has one.
fn sound_size(
    store: &Blocking,
    (object, digest): &ObjectKey,
    sizes: &BTreeSet<u64>,
) -> Option<u64> {
    if *object != Object::Blob {
        return None;
    }
    let size = store.blob_size(digest).ok()??;
    let no_path = TreePath::default();
    let is_sound = sizes.contains(&size)
        && copy_range(store, digest, size, 0..size, &no_path, |_, _| Ok(())).is_ok();
    is_sound.then_some(size)
}

/// An object, or a part of a blob, from `from` on.
struct VerifyTask {
    claim: CheckedClaim,
    from: u64,
    to: u64,
}

impl ObjectCheck<'_> {
    /// Puts objects on the stack that were not there before; the last comes off first.
    fn push(&self, claims: impl Iterator<Item = CheckedClaim>) {
        let mut state = self.state.lock();
        for claim in claims {
            match state.seen.entry(claim.key()) {
                Entry::Vacant(entry) => {
                    entry.insert(claim.size);
                    let to = match claim.object {
                        Object::Blob => claim.size,
                        Object::Directory => 0,
                    };
                    state.stack.push(VerifyTask { claim, from: 0, to });
                }
                Entry::Occupied(entry) if *entry.get() != claim.size => {
                    let disputed = state.disputed.entry(claim.key()).or_default();
                    disputed.insert(claim.size);
                }
                Entry::Occupied(_) => {}
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn work(&self) {
        while let Some(work) = self.take() {
            match work.claim.object {
                Object::Directory => self.directory(work.claim),
                Object::Blob => self.blob(&work),
            }
            let mut state = self.state.lock();
            state.busy -= 1;
            if state.busy == 0 && state.stack.is_empty() {
                self.changed.notify_all();
            }
        }
    }

    /// The next piece of work; none when all is done.
    fn take(&self) -> Option<VerifyTask> {
        let mut state = self.state.lock();
        loop {
            if self.progress.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(mut work) = state.stack.pop() {
                if state.faults.contains_key(&work.claim.key()) {
                    continue;
                }
                if work.to - work.from > RANGE {
                    let middle = work.from + RANGE;
                    state.stack.push(VerifyTask {
                        from: middle,
                        ..work
                    });
                    work.to = middle;
                    self.changed.notify_one();
                }
                state.busy += 1;
                return Some(work);
            }
            if state.busy == 0 {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    fn directory(&self, claim: CheckedClaim) {
        match self.store.directory(&claim.digest) {
            Ok(Some(directory)) => {
                self.progress.directories.fetch_add(1, Ordering::Relaxed);
                if directory.size() != claim.size {
                    let why = FaultCause::NodeSize {
                        stated: claim.size,
                        actual: directory.size(),
                    };
                    self.fault(claim, why);
                }
                let count = directory.len();
                let entries = (0..count).rev().filter_map(|index| directory.get(index));
                self.push(entries.filter_map(|entry| CheckedClaim::of(entry.node)));
            }
            Ok(None) => self.fault(claim, FaultCause::Missing),
            Err(error) => self.fault(claim, FaultCause::Store(error)),
        }
    }

    fn blob(&self, work: &VerifyTask) {
        let CheckedClaim { digest, size, .. } = work.claim;
        let no_path = TreePath::default();
        let range = work.from..work.to;
        let read = copy_range(self.store, &digest, size, range, &no_path, |_, bytes| {
            if self.progress.stop.load(Ordering::Relaxed) {
                return Err(TreeError::Interrupted);
            }
            let length = bytes.len() as u64;
            self.progress.bytes.fetch_add(length, Ordering::Relaxed);
            Ok(())
        });
        // To read nothing needs no blob. Other programs need the empty one: EIO without.
        let there = match (&read, size) {
            (Ok(()), 0) => self.store.has_blob(&digest),
            _ => Ok(true),
        };
        match there {
            Ok(true) => {}
            Ok(false) => return self.fault(work.claim, FaultCause::Missing),
            Err(error) => return self.fault(work.claim, FaultCause::Store(error)),
        }
        match read {
            // The last range counts for the blob.
            Ok(()) if work.to == size => {
                self.progress.blobs.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) | Err(TreeError::Interrupted) => {}
            Err(TreeError::Absent { .. }) => self.fault(work.claim, FaultCause::Missing),
            Err(TreeError::Object { source, .. } | TreeError::Store(source)) => {
                self.fault(work.claim, FaultCause::Store(source));
            }
            Err(_) => unreachable!("copy_range() fails with the error of the store or the sink"),
        }
    }

    /// Records the first fault of an object.
    fn fault(&self, claim: CheckedClaim, why: FaultCause) {
        let mut state = self.state.lock();
        state.faults.entry(claim.key()).or_insert(why);
    }
}

/// The second pass: the paths of the faults.
struct FaultSearch<'s> {
    store: &'s Blocking,
    faults: HashMap<ObjectKey, (TreeFault, Option<u64>)>,
    /// Faults with a known path, in the order of these paths.
    order: Vec<ObjectKey>,
    /// Whether a Directory leads to a fault.
    leads: HashMap<Digest, bool>,
    /// Directories that were entered.
    entered: HashSet<Digest>,
    /// How many times Directories may still be entered again.
    budget: u64,
}

/// A Directory on the way down in the second pass.
struct VerifyLevel {
    directory: Directory,
    next: usize,
    path_length: usize,
}

impl<'s> FaultSearch<'s> {
    fn new(store: &'s Blocking, wrong: HashMap<ObjectKey, WrongObject>) -> Self {
        let faults = wrong.into_iter().map(|((object, digest), wrong)| {
            let fault = TreeFault {
                object,
                digest,
                why: wrong.why,
                paths: Vec::new(),
                more_paths: 0,
            };
            ((object, digest), (fault, wrong.right))
        });
        Self {
            store,
            faults: faults.collect(),
            order: Vec::new(),
            leads: HashMap::new(),
            entered: HashSet::new(),
            budget: MAX_REVISITS,
        }
    }

    fn run(mut self, roots: &[(TreePath, Node)]) -> Vec<TreeFault> {
        for (path, node) in roots {
            self.note(path, node.borrow());
            if let Node::Directory { digest, .. } = node {
                self.mark(digest);
                self.collect(path, digest);
            }
        }
        let mut faults = self.faults;
        self.order
            .iter()
            .filter_map(|key| Some(faults.remove(key)?.0))
            .collect()
    }

    /// The fault of the object that a node refers to.
    fn fault(&mut self, claim: &CheckedClaim) -> Option<&mut TreeFault> {
        let (fault, right) = self.faults.get_mut(&claim.key())?;
        (*right != Some(claim.size)).then_some(fault)
    }

    /// Records the path if the node there has a fault.
    fn note(&mut self, path: &TreePath, node: NodeRef<'_>) {
        let Some(claim) = CheckedClaim::of(node) else {
            return;
        };
        let Some(fault) = self.fault(&claim) else {
            return;
        };
        let is_first = fault.paths.is_empty();
        if fault.paths.len() < MAX_PATHS {
            fault.paths.push(path.clone());
        } else {
            fault.more_paths += 1;
        }
        if is_first {
            self.order.push(claim.key());
        }
    }

    /// Determines, for the Directory `root` and all below it, which lead to a fault.
    fn mark(&mut self, root: &Digest) {
        let mut stack = Vec::new();
        self.open(root, 0, &mut stack);
        let mut found = vec![false];
        while let Some(level) = stack.last_mut() {
            let Some(entry) = level.directory.get(level.next) else {
                let digest = level.directory.digest();
                let leads = found.pop().unwrap_or_default();
                self.leads.insert(digest, leads);
                if let Some(above) = found.last_mut() {
                    *above |= leads;
                }
                stack.pop();
                continue;
            };
            level.next += 1;
            let wrong = CheckedClaim::of(entry.node).is_some_and(|claim| {
                let fault = self.faults.get(&claim.key());
                fault.is_some_and(|(_, right)| *right != Some(claim.size))
            });
            let below = match entry.node {
                NodeRef::Directory { digest, .. } => Some(digest),
                _ => None,
            };
            let known = below.and_then(|digest| self.leads.get(&digest).copied());
            if let Some(found) = found.last_mut() {
                *found |= wrong || known == Some(true);
            }
            if let (Some(digest), None) = (below, known)
                && self.open(&digest, 0, &mut stack)
            {
                found.push(false);
            }
        }
    }

    /// Descends from `root`, which is at `path`, to every fault.
    fn collect(&mut self, path: &TreePath, root: &Digest) {
        let mut path = path.clone();
        let mut stack = Vec::new();
        self.enter(root, &path, &mut stack);
        while let Some(level) = stack.last_mut() {
            path.truncate(level.path_length);
            let index = level.next;
            level.next += 1;
            // Held apart from the stack, which grows below.
            let directory = level.directory.clone();
            let Some(entry) = directory.get(index) else {
                stack.pop();
                continue;
            };
            path.push(entry.name);
            self.note(&path, entry.node);
            if let NodeRef::Directory { digest, .. } = entry.node {
                self.enter(&digest, &path, &mut stack);
            }
        }
    }

    /// Opens a Directory that leads to a fault. One with many references is entered for each of
    /// them, until that was done [`MAX_REVISITS`] times: a tree can have more paths than there is
    /// time for.
    fn enter(&mut self, digest: &Digest, path: &TreePath, stack: &mut Vec<VerifyLevel>) {
        if self.leads.get(digest) != Some(&true) {
            return;
        }
        if !self.entered.insert(*digest) {
            if self.budget == 0 {
                return;
            }
            self.budget -= 1;
        }
        self.open(digest, path.as_bytes().len(), stack);
    }

    /// Puts the Directory on the stack. An unreadable one leads nowhere.
    fn open(&mut self, digest: &Digest, path_length: usize, stack: &mut Vec<VerifyLevel>) -> bool {
        match self.store.directory(digest) {
            Ok(Some(directory)) => {
                stack.push(VerifyLevel {
                    directory,
                    next: 0,
                    path_length,
                });
                true
            }
            Ok(None) | Err(_) => {
                self.leads.insert(*digest, false);
                false
            }
        }
    }
}
