//! Learning what is touched first below a root, and fetching it ahead on the next cold mount.
//!
//! A mount that learns notes the first touch of every stretch of every file ([`touched`]), in the order
//! in which requests come, and keeps that as the root's profile ([`crate::profile`]). A mount with a
//! profile of what it shows, or of something similar, fetches what that names, in that order
//! ([`ahead`]): the directory at its top when it comes up, a root node of a mount that shows those when
//! it is first looked up by name or read from.
//!
//! A request pays for a look at a table of bits, and for a place in a list where nobody has touched a
//! stretch before. Everything else is done by a thread of the mount's own ([`CastoreFs::warm_up`]). It
//! writes a profile every few seconds while there is something new, and when the mount ends or somebody
//! asks for it ([`CastoreFs::remember`]): a process that dies suddenly loses its last seconds.
//!
//! "Mount" is what INIT begins, in a guest as well: a device has a file system for each session of a
//! guest, and learns of each as of a mount (`transport::virtiofs::warm_up`). All have one count
//! ([`WarmUpCount`]).
//!
//! A recording ends [`LEARNS_FOR`] after its beginning: what a program reads later was not in the way of
//! its start. A successor that goes on with a mount does not go on with its recordings: what the kernel
//! has in its cache is not asked of it.

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
/// How long touches may wait to be looked at.
const PAUSE: Duration = Duration::from_millis(100);
/// How long to wait for the next one: the mount's end is noticed in between.
const PATIENCE: Duration = Duration::from_millis(500);
/// Root nodes of which a mount learns, at most.
const MOST_ROOTS: usize = 4096;

/// What a mount that learns is told.
#[derive(Clone, Debug)]
pub struct WarmUp {
    /// Where profiles are kept.
    pub profiles: Arc<Profiles>,
    /// What the directory at the top is called, where that is fixed.
    pub subject: Option<Subject>,
    /// Bytes that are fetched ahead for one root, at most: what the store keeps until it is read.
    pub most_ahead: u64,
    /// What comes of it.
    counters: Arc<Counters>,
}

impl WarmUp {
    /// With profiles in `profiles`, the one of `subject` where that is what is at the top, and no more
    /// than `most_ahead` bytes for a root. Clones count together.
    pub fn new(profiles: Arc<Profiles>, subject: Option<Subject>, most_ahead: u64) -> Self {
        Self {
            profiles,
            subject,
            most_ahead,
            counters: Arc::default(),
        }
    }

    /// What came of it so far.
    pub fn count(&self) -> WarmUpCount {
        self.counters.now()
    }
}

/// A mount's learning.
pub(super) struct Learner {
    options: WarmUp,
    touched: Touched,
    learning: Mutex<Learning>,
    share: Share,
    /// Root nodes with a lower index were used before this process came.
    first_root: u32,
}

struct Learning {
    /// By the index of the root node; 0 for a fixed top.
    roots: HashMap<u32, Learnt>,
    /// Fetches that begin.
    begun: Vec<Ahead>,
    /// A list that takes the place of the one that touches are noted in.
    notes: Vec<Note>,
    /// Stretches that were fetched ahead and not touched since; no more than touches are noted.
    ahead: HashSet<u64>,
    saved: Instant,
    complained: bool,
}

/// What is known of the users of a root.
struct Learnt {
    /// Until it is whole.
    recording: Option<Recording>,
    /// When something was touched first.
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

    /// What comes of it.
    fn counters(&self) -> &Counters {
        &self.options.counters
    }

    /// Notes that `length` bytes, which are the stretch `key`, were fetched ahead.
    fn fetched(&self, key: u64, length: u64) {
        self.counters().stretches.add(1);
        self.counters().bytes.add(length);
        let mut learning = self.learning.lock();
        if learning.ahead.len() < MOST_NEWS {
            learning.ahead.insert(key);
        }
    }

    /// Begins with the root `node`: notes what is touched below it, and has fetched what is known to be.
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
                    "nothing is fetched ahead of the users of \"{subject}\"; what they touch is \
                     learned anew"
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

    /// Writes what is new, if it is time to, and in any case what is complete.
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
                            tracing::warn!(%error, "what was learned is not kept");
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
    /// Whether what is touched first is learned here.
    pub fn learns(&self) -> bool {
        self.learner.is_some()
    }

    /// How that fares.
    pub fn warm_up_count(&self) -> Option<WarmUpCount> {
        // Without the lock, which is held while profiles are written.
        self.learner.as_ref().map(|learner| learner.options.count())
    }

    /// Notes that bytes of the file `id` are wanted.
    pub(super) fn touch(&self, id: NodeId, digest: &Digest, offset: u64, length: u64) {
        if let Some(learner) = &self.learner {
            learner.touched.note(id, digest, offset, length);
        }
    }

    /// Notes that the root node at `index` was looked up by its name.
    pub(super) fn touch_root(&self, index: u32) {
        if let Some(learner) = &self.learner {
            learner.touched.note_root(index);
        }
    }

    /// Learns, and fetches ahead, until `ended` says so. For a thread of its own: it waits for the store
    /// and for the disk.
    pub fn warm_up(&self, ended: impl Fn() -> bool) {
        let Some(learner) = &self.learner else { return };
        self.begin_with_top(learner, &mut learner.learning.lock());
        self.waiting
            .runtime()
            .block_on(self.keep_warm(learner, ended));
        learner.share.set_fetching(0);
        self.remember();
    }

    /// Begins with the directory at the top, if that has not been done.
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

    /// Writes what was learned so far.
    pub fn remember(&self) {
        if let Some(learner) = &self.learner {
            self.take_notes(learner);
            learner.save(&mut learner.learning.lock(), true);
        }
    }

    /// Has [`warm_up`](Self::warm_up) look at once whether it has ended.
    pub fn stir(&self) {
        if let Some(learner) = &self.learner {
            learner.touched.stir();
        }
    }

    /// Takes over what was noted.
    fn take_notes(&self, learner: &Learner) {
        let mut learning = learner.learning.lock();
        // Who asks what was learned may come before the thread has begun.
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

    /// The root that a node is below, and its path from there. Nothing if the kernel has forgotten the
    /// node since, whose id may mean another by now, or if its Directories are not in memory any more.
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
