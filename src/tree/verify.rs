//! Reading everything below some roots again, and hashing it.
//!
//! The unit is the object, not the path: a Directory or blob that a thousand places refer to is
//! read once. Objects wait on one stack, children pushed so that they come off in walk order (the
//! order in which a store lays them out); every core takes from it. A large blob goes on as ranges,
//! since groups verify by themselves, so that one blob keeps all cores busy too.
//!
//! The store does the hashing ("verified or not at all"); what is added here is to ask for every
//! byte, to compare what nodes say (sizes) with what they refer to, and to find every path that a
//! damaged object spoils.
//!
//! Paths are looked for only when something is wrong: a second pass goes down from the roots, into
//! those Directories alone that lead to damage.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::blob::copy_range;
use super::{Error, TreePath};
use crate::castore::{Digest, Directory, Node, NodeRef};
use crate::store::{self, Blocking, Object};

/// Bytes of a blob that are one piece of work.
const RANGE: u64 = 32 << 20;
/// Paths given for one damaged object; its other places are only counted.
const MAX_PATHS: usize = 100;
/// How often, in all, the search for paths goes into a Directory that it has been in before.
const MAX_REPEATS: u64 = 100_000;

/// How a verification goes on; may be looked at from other threads, and stops it when told.
#[derive(Debug, Default)]
pub struct Progress {
    /// Directories read, each once.
    pub directories: AtomicU64,
    /// Blobs read to their end, each once.
    pub blobs: AtomicU64,
    /// Bytes of blobs read.
    pub bytes: AtomicU64,
    /// Set it to end the verification with [`Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// Directories looked at, each once.
    pub directories: u64,
    /// Blobs looked at, each once.
    pub blobs: u64,
    /// Bytes of blobs read.
    pub blob_bytes: u64,
    /// What is wrong, in the order of the first path of each.
    pub faults: Vec<Fault>,
}

/// An object that is not, or not whole, in the store, or that a node is wrong about.
#[derive(Debug)]
pub struct Fault {
    /// What kind of object.
    pub object: Object,
    /// Its digest.
    pub digest: Digest,
    /// What is wrong with it.
    pub why: Why,
    /// Where nodes refer to it, in the order of a walk; the first hundred.
    pub paths: Vec<TreePath>,
    /// Further places, as far as they were counted.
    pub more_paths: u64,
}

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// It is not there.
    #[error("missing")]
    Missing,
    /// It is there and is not what its digest promises, or cannot be read.
    #[error("{0}")]
    Store(#[source] store::Error),
    /// The object is sound; the nodes at these paths give it another size.
    #[error("the node says size {said}, it is {actual}")]
    NodeSize {
        /// What the nodes say.
        said: u64,
        /// What the Directory's entries add up to.
        actual: u64,
    },
}

/// An object and the size that a node gives it: what one check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Claim {
    object: Object,
    digest: Digest,
    size: u64,
}

/// Reads and hashes again everything that can be reached from `roots`.
///
/// Fails only when it was told to stop, or when the store cannot say what is wrong with which
/// object; damage is no failure but a [`Fault`].
pub fn verify(
    store: &Blocking,
    roots: &[(TreePath, Node)],
    progress: &Progress,
) -> Result<Report, Error> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let check = Check {
        store,
        progress,
        state: Mutex::default(),
        changed: Condvar::new(),
    };
    check.push(
        roots
            .iter()
            .rev()
            .filter_map(|(_, node)| Claim::of(node.borrow())),
    );
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| check.work());
        }
    });
    if progress.stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let state = check.state.into_inner();
    let mut report = Report {
        blob_bytes: progress.bytes.load(Ordering::Relaxed),
        ..Report::default()
    };
    for claim in &state.seen {
        match claim.object {
            Object::Directory => report.directories += 1,
            Object::Blob => report.blobs += 1,
        }
    }
    if !state.faults.is_empty() {
        report.faults = Search::new(store, state.faults).run(roots);
    }
    Ok(report)
}

impl Claim {
    /// What `node` claims; a symbolic link claims nothing.
    fn of(node: NodeRef<'_>) -> Option<Self> {
        match node {
            NodeRef::Directory { digest, size } => Some(Claim {
                object: Object::Directory,
                digest,
                size,
            }),
            NodeRef::File { digest, size, .. } => Some(Claim {
                object: Object::Blob,
                digest,
                size,
            }),
            NodeRef::Symlink { .. } => None,
        }
    }
}

/// The first pass: every object once.
struct Check<'c> {
    store: &'c Blocking,
    progress: &'c Progress,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: HashSet<Claim>,
    stack: Vec<Work>,
    /// Threads that hold work, and may add more.
    busy: usize,
    faults: HashMap<Claim, Why>,
}

/// An object, or a part of a blob, from `from` on.
struct Work {
    claim: Claim,
    from: u64,
    to: u64,
}

impl Check<'_> {
    /// Puts objects on the stack that were not there before; the last comes off first.
    fn push(&self, claims: impl Iterator<Item = Claim>) {
        let mut state = self.state.lock();
        for claim in claims {
            if state.seen.insert(claim) {
                let to = match claim.object {
                    Object::Blob => claim.size,
                    Object::Directory => 0,
                };
                state.stack.push(Work { claim, from: 0, to });
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
    fn take(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if self.progress.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(mut work) = state.stack.pop() {
                if work.to - work.from > RANGE {
                    let middle = work.from + RANGE;
                    state.stack.push(Work {
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

    fn directory(&self, claim: Claim) {
        match self.store.directory(&claim.digest) {
            Ok(Some(directory)) => {
                self.progress.directories.fetch_add(1, Ordering::Relaxed);
                if directory.size() != claim.size {
                    let why = Why::NodeSize {
                        said: claim.size,
                        actual: directory.size(),
                    };
                    self.fault(claim, why);
                }
                let count = directory.len();
                let entries = (0..count).rev().filter_map(|index| directory.get(index));
                self.push(entries.filter_map(|entry| Claim::of(entry.node)));
            }
            Ok(None) => self.fault(claim, Why::Missing),
            Err(error) => self.fault(claim, Why::Store(error)),
        }
    }

    fn blob(&self, work: &Work) {
        let Claim { digest, size, .. } = work.claim;
        let no_path = TreePath::default();
        let range = work.from..work.to;
        let read = copy_range(self.store, &digest, size, range, &no_path, |_, bytes| {
            if self.progress.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let length = bytes.len() as u64;
            self.progress.bytes.fetch_add(length, Ordering::Relaxed);
            Ok(())
        });
        match read {
            // The last range counts for the blob.
            Ok(()) if work.to == size => {
                self.progress.blobs.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) | Err(Error::Interrupted) => {}
            Err(Error::Absent { .. }) => self.fault(work.claim, Why::Missing),
            Err(Error::Object { source, .. } | Error::Store(source)) => {
                self.fault(work.claim, Why::Store(source));
            }
            Err(_) => unreachable!("copy_range() fails with what the store or the sink says"),
        }
    }

    /// Keeps the first that was found about an object.
    fn fault(&self, claim: Claim, why: Why) {
        self.state.lock().faults.entry(claim).or_insert(why);
    }
}

/// The second pass: the paths of what is wrong.
struct Search<'s> {
    store: &'s Blocking,
    faults: HashMap<Claim, Fault>,
    /// Those of which a path is known, in the order of these paths.
    order: Vec<Claim>,
    /// Whether a Directory leads to something wrong.
    leads: HashMap<Digest, bool>,
    /// Directories that were gone into.
    entered: HashSet<Digest>,
    /// Directories that may still be gone into more than once.
    budget: u64,
}

/// A Directory on the way down in the second pass.
struct Level {
    directory: Directory,
    next: usize,
    path_length: usize,
}

impl<'s> Search<'s> {
    fn new(store: &'s Blocking, faults: HashMap<Claim, Why>) -> Self {
        let faults = faults.into_iter().map(|(claim, why)| {
            let fault = Fault {
                object: claim.object,
                digest: claim.digest,
                why,
                paths: Vec::new(),
                more_paths: 0,
            };
            (claim, fault)
        });
        Self {
            store,
            faults: faults.collect(),
            order: Vec::new(),
            leads: HashMap::new(),
            entered: HashSet::new(),
            budget: MAX_REPEATS,
        }
    }

    fn run(mut self, roots: &[(TreePath, Node)]) -> Vec<Fault> {
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
            .filter_map(|claim| faults.remove(claim))
            .collect()
    }

    /// Keeps the path if the node there is wrong.
    fn note(&mut self, path: &TreePath, node: NodeRef<'_>) {
        let Some(claim) = Claim::of(node) else { return };
        let Some(fault) = self.faults.get_mut(&claim) else {
            return;
        };
        if fault.paths.is_empty() {
            self.order.push(claim);
        }
        if fault.paths.len() < MAX_PATHS {
            fault.paths.push(path.clone());
        } else {
            fault.more_paths += 1;
        }
    }

    /// Finds out, for the Directory `root` and all below it, which lead to something wrong.
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
            let wrong = Claim::of(entry.node).is_some_and(|claim| self.faults.contains_key(&claim));
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

    /// Goes down from `root`, which stands at `path`, wherever something is wrong.
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

    /// Opens a Directory that leads to something wrong. One that many places refer to is gone into
    /// for each of them, until that was done [`MAX_REPEATS`] times: a tree can have more paths
    /// than there is time for.
    fn enter(&mut self, digest: &Digest, path: &TreePath, stack: &mut Vec<Level>) {
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

    /// Puts the Directory on the stack. One that cannot be had leads nowhere.
    fn open(&mut self, digest: &Digest, path_length: usize, stack: &mut Vec<Level>) -> bool {
        match self.store.directory(digest) {
            Ok(Some(directory)) => {
                stack.push(Level {
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
