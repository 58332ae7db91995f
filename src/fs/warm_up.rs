//! Warm-up: recording what is read first below a root, and prefetching it on the next cold mount.
//!
//! A mount that records notes the first access to every extent of every file ([`touched`]), in the
//! order of the requests, and stores that as the root's profile ([`crate::profile`]). A mount with
//! a profile of what it shows, or of something similar, prefetches the extents in the profile, in
//! that order ([`ahead`]): for a fixed directory when the mount comes up, for a root when it is
//! first looked up by name or read from.
//!
//! Recording costs a request one bitmap check, and an entry in a list on the first access to an
//! extent. A thread of the mount does the rest ([`CastoreFs::warm_up`]). It writes a profile every
//! few seconds while there is something new, when the mount ends, and on [`CastoreFs::remember`]. A
//! process that dies suddenly loses its last seconds.
//!
//! "Mount" means the session that INIT begins, in a guest as well: a device has a file system for
//! each session of a guest, and records each as a mount (`transport::virtiofs::warm_up`). All share
//! one count ([`WarmUpCount`]).
//!
//! A recording ends [`LEARNS_FOR`] after its beginning: later reads did not delay the program's
//! start. A process that takes over a mount does not continue its recordings, because files in the
//! kernel's cache cause no requests.

mod ahead;
mod count;
mod touched;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use self::ahead::Ahead;
use self::count::{Counters, Share};
use self::touched::{MOST_NEWS, Note, Touched, key, piece};
use super::{CastoreFs, NodeId, Top};
use crate::castore::{Digest, Node};
use crate::profile::{Profiles, Recording, Subject};

pub use self::count::WarmUpCount;

/// How long a recording goes on.
const LEARNS_FOR: Duration = Duration::from_secs(600);
/// How often profiles are written while there is something new.
const SAVES: Duration = Duration::from_secs(2);
/// How long accesses may wait to be processed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long to wait for the next access: the mount's end is noticed in between.
const PATIENCE: Duration = Duration::from_millis(500);
/// Roots that a mount records, at most.
const MOST_ROOTS: usize = 4096;

/// The warm-up options of a mount.
#[derive(Clone, Debug)]
pub struct WarmUp {
    /// Where profiles are stored.
    pub profiles: Arc<Profiles>,
    /// The profile key of the directory in the mount root, if that is fixed.
    pub subject: Option<Subject>,
    /// Bytes that are prefetched for one root, at most: the store keeps them until they are read.
    pub most_ahead: u64,
    /// The results.
    counters: Arc<Counters>,
}

impl WarmUp {
    /// With profiles in `profiles`, the one of `subject` if the mount root is a fixed directory,
    /// and at most `most_ahead` bytes for a root. Clones share their count.
    pub fn new(profiles: Arc<Profiles>, subject: Option<Subject>, most_ahead: u64) -> Self {
        Self {
            profiles,
            subject,
            most_ahead,
            counters: Arc::default(),
        }
    }

    /// The results so far.
    pub fn count(&self) -> WarmUpCount {
        self.counters.now()
    }
}

/// The recorder of a mount.
pub(super) struct Learner {
    options: WarmUp,
    touched: Touched,
    learning: Mutex<Learning>,
    share: Share,
    /// Roots with a lower index were used before this process took the mount over.
    first_root: u32,
}

struct Learning {
    /// By the index of the root; 0 for a fixed directory.
    roots: HashMap<u32, Learnt>,
    /// Prefetches that are to begin.
    begun: Vec<Ahead>,
    /// A list to swap with the one that accesses are noted in.
    notes: Vec<Note>,
    /// Extents that were prefetched and not read since; at most as many as accesses are noted.
    ahead: HashSet<u64>,
    saved: Instant,
    complained: bool,
}

/// What is known of the accesses below a root.
struct Learnt {
    /// When the recording is complete.
    recording: Option<Recording>,
    /// When the first access came.
    began: Option<Instant>,
    unsaved: bool,
}

impl Learner {
    pub(super) fn new(options: WarmUp, first_root: u32) -> Self {
        Self {
            share: Share::new(options.counters.clone()),
            options,
            touched: Touched::default(),
            learning: Mutex::new(Learning {
                roots: HashMap::new(),
                begun: Vec::new(),
                notes: touched::list(),
                ahead: HashSet::new(),
                saved: Instant::now(),
                complained: false,
            }),
            first_root,
        }
    }

    /// The counters of the results.
    fn counters(&self) -> &Counters {
        &self.options.counters
    }

    /// Notes that `length` bytes, which are the extent `key`, were prefetched.
    fn fetched(&self, key: u64, length: u64) {
        self.counters().stretches.add(1);
        self.counters().bytes.add(length);
        let mut learning = self.learning.lock();
        if learning.ahead.len() < MOST_NEWS {
            learning.ahead.insert(key);
        }
    }

    /// Begins with the root `node`: records the accesses below it, and starts the prefetch of its
    /// profile.
    fn begin(&self, learning: &mut Learning, root: u32, subject: Subject, node: Node) {
        let (Node::Directory { digest, .. } | Node::File { digest, .. }) = node else {
            return;
        };
        if learning.roots.contains_key(&root) || learning.roots.len() >= MOST_ROOTS {
            return;
        }
        match self.options.profiles.find(&subject) {
            Ok(Some(found)) => {
                match found.own {
                    true => self.counters().own.add(1),
                    false => self.counters().similar.add(1),
                }
                let most = self.options.most_ahead;
                learning.begun.push(Ahead::new(found, &subject, node, most));
            }
            Ok(None) => self.counters().none.add(1),
            Err(error) => {
                self.counters().none.add(1);
                self.counters().failed_finds.add(1);
                tracing::warn!(
                    %error,
                    "nothing is prefetched for \"{subject}\"; what its programs read is \
                     recorded again"
                );
            }
        }
        let learnt = Learnt {
            recording: Some(Recording::new(subject, digest)),
            began: None,
            unsaved: false,
        };
        learning.roots.insert(root, learnt);
    }

    /// Writes profiles with news, if `now` or if it is time to, and complete ones in any case.
    fn save(&self, learning: &mut Learning, now: bool) {
        let due = now || learning.saved.elapsed() >= SAVES;
        for learnt in learning.roots.values_mut() {
            let Some(recording) = &learnt.recording else {
                continue;
            };
            let over = learnt
                .began
                .is_some_and(|began| began.elapsed() >= LEARNS_FOR);
            let whole = over || recording.is_full();
            if learnt.unsaved && (due || whole) || whole && !recording.profile().files().is_empty()
            {
                let saved = self.options.profiles.save(recording, whole);
                learning.saved = Instant::now();
                match saved {
                    Ok(()) => self.counters().saves.add(1),
                    Err(error) => {
                        self.counters().failed_saves.add(1);
                        if !std::mem::replace(&mut learning.complained, true) {
                            tracing::warn!(%error, "cannot write a warm-up profile");
                        }
                    }
                }
                learnt.unsaved = false;
            }
            if whole {
                learnt.recording = None;
            }
        }
        let watched = |learnt: &&Learnt| learnt.recording.is_some();
        let watched = learning.roots.values().filter(watched).count();
        self.share.set_learning(watched as u64);
    }
}

impl CastoreFs {
    /// Whether accesses are recorded here.
    pub fn learns(&self) -> bool {
        self.learner.is_some()
    }

    /// The results, if warm-up is on.
    pub fn warm_up_count(&self) -> Option<WarmUpCount> {
        // Without the lock, which is held while profiles are written.
        self.learner.as_ref().map(|learner| learner.options.count())
    }

    /// Notes a request for bytes of the file `id`.
    pub(super) fn touch(&self, id: NodeId, digest: &Digest, offset: u64, length: u64) {
        if let Some(learner) = &self.learner {
            learner.touched.note(id, digest, offset, length);
        }
    }

    /// Notes that the root at `index` was looked up by its name.
    pub(super) fn touch_root(&self, index: u32) {
        if let Some(learner) = &self.learner {
            learner.touched.note_root(index);
        }
    }

    /// Records and prefetches until `ended` returns true. For a thread of its own: it waits for the
    /// store and for the disk.
    pub fn warm_up(&self, ended: impl Fn() -> bool) {
        let Some(learner) = &self.learner else { return };
        self.begin_with_top(learner, &mut learner.learning.lock());
        self.waiting
            .runtime()
            .block_on(self.keep_warm(learner, ended));
        learner.share.set_fetching(0);
        self.remember();
    }

    /// Begins with the directory in the mount root, if that has not been done.
    fn begin_with_top(&self, learner: &Learner, learning: &mut Learning) {
        if let (Some(subject), Top::Directory { digest, size }) =
            (&learner.options.subject, &self.options.top)
            && !learning.roots.contains_key(&0)
        {
            let node = Node::Directory {
                digest: *digest,
                size: *size,
            };
            learner.begin(learning, 0, subject.clone(), node);
        }
    }

    async fn keep_warm(&self, learner: &Learner, ended: impl Fn() -> bool) {
        let mut queue = VecDeque::new();
        let mut steps = FuturesUnordered::new();
        while !ended() {
            queue.extend(learner.learning.lock().begun.drain(..));
            // A step at a time, of each root in turn.
            if steps.is_empty()
                && let Some(due) = queue.iter().position(Ahead::is_due)
                && let Some(ahead) = queue.remove(due)
            {
                steps.push(self.go_ahead(learner, ahead));
            }
            tokio::select! {
                Some(ahead) = steps.next(), if !steps.is_empty() => queue.extend(ahead),
                () = learner.touched.stirred(PATIENCE, PAUSE) => {}
            }
            let fetching = (queue.len() + steps.len()) as u64;
            learner.share.set_fetching(fetching);
            self.take_notes(learner);
            let mut learning = learner.learning.lock();
            learner.save(&mut learning, false);
        }
    }

    /// Writes what was recorded so far.
    pub fn remember(&self) {
        if let Some(learner) = &self.learner {
            self.take_notes(learner);
            learner.save(&mut learner.learning.lock(), true);
        }
    }

    /// Makes [`warm_up`](Self::warm_up) check at once whether it has ended.
    pub fn stir(&self) {
        if let Some(learner) = &self.learner {
            learner.touched.stir();
        }
    }

    /// Takes over the noted accesses.
    fn take_notes(&self, learner: &Learner) {
        let mut learning = learner.learning.lock();
        // A caller may want the recordings before the thread has begun.
        self.begin_with_top(learner, &mut learning);
        let mut notes = std::mem::take(&mut learning.notes);
        learner.touched.take(&mut notes);
        for note in notes.drain(..) {
            if note
                .stretch()
                .is_some_and(|stretch| learning.ahead.remove(&key(note.piece, stretch)))
            {
                learner.counters().hits.add(1);
            }
            let Some((root, path)) = self.place(&note) else {
                continue;
            };
            if self.shows_roots()
                && root >= learner.first_root
                && !learning.roots.contains_key(&root)
                && let Some(found) = self.roots.get(root)
                && let Some(subject) = Subject::new(found.root.name.as_bytes())
            {
                learner.begin(&mut learning, root, subject, found.root.node);
            }
            if let Some(stretch) = note.stretch()
                && let Some(learnt) = learning.roots.get_mut(&root)
                && let Some(recording) = &mut learnt.recording
                && recording.touch(&path, stretch)
            {
                learner.counters().learned.add(1);
                learnt.unsaved = true;
                learnt.began.get_or_insert_with(Instant::now);
            }
        }
        learning.notes = notes;
    }

    /// The root that contains a node, and the node's path below it. Nothing if the kernel has
    /// forgotten the node since, whose id may now mean another node, or if its Directories are no
    /// longer in memory.
    fn place(&self, note: &Note) -> Option<(u32, Vec<u8>)> {
        let mut trail = self.nodes.trail(note.id).into_iter();
        let mut root = 0;
        let mut path = Vec::new();
        let mut last = None;
        if self.shows_roots() {
            root = trail.next()?.1;
            last = self.roots.get(root)?.root.node.digest();
        }
        for (directory, index) in trail {
            let directory = directory?;
            let entry = directory.get(index as usize)?;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name);
            last = entry.node.digest();
        }
        let is_it = note.stretch().is_none() || last.is_some_and(|last| piece(&last) == note.piece);
        is_it.then_some((root, path))
    }
}
