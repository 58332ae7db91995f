//! Warm-up: recording what is read first below a root, and prefetching it on the next cold mount.
//!
//! A mount that records notes the first access to every extent of every file ([`access_log`]), in the
//! order of the requests, and stores that as the root's profile ([`crate::profile`]). A mount with
//! a profile of what it shows, or of something similar, prefetches the extents in the profile, in
//! that order ([`profile_prefetch`]): for a fixed directory when the mount comes up, for a root when it is
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
//! A recording ends [`RECORDING_TIME`] after its beginning: later reads did not delay the program's
//! start. A process that takes over a mount does not continue its recordings, because files in the
//! kernel's cache cause no requests.

mod access_log;
mod count;
mod profile_prefetch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use self::access_log::{AccessLog, FirstAccess, MOST_NEWS, blob_key, key};
use self::count::{GaugeShare, WarmUpCounters};
use self::profile_prefetch::ProfilePrefetch;
use super::{CastoreFs, NodeId};
use crate::castore::{Digest, Node};
use crate::profile::{ProfileKey, ProfileRecording, Profiles};

pub use self::count::WarmUpCount;

/// How long a recording continues.
const RECORDING_TIME: Duration = Duration::from_secs(600);
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
pub struct WarmUpOptions {
    /// Where profiles are stored.
    pub profiles: Arc<Profiles>,
    /// The profile key of the directory in the mount root, if that is fixed.
    pub profile_key: Option<ProfileKey>,
    /// Bytes that are prefetched for one root, at most: the store keeps them until they are read.
    pub most_ahead: u64,
    /// The results.
    counters: Arc<WarmUpCounters>,
}

impl WarmUpOptions {
    /// With profiles in `profiles`, the one of `profile_key` if the mount root is a fixed directory,
    /// and at most `most_ahead` bytes for a root. Clones share their count.
    pub fn new(profiles: Arc<Profiles>, profile_key: Option<ProfileKey>, most_ahead: u64) -> Self {
        Self {
            profiles,
            profile_key,
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
pub(super) struct AccessRecorder {
    options: WarmUpOptions,
    access_log: AccessLog,
    recordings: Mutex<RecordingState>,
    share: GaugeShare,
    /// Roots with a lower index were used before this process took the mount over.
    first_root: u32,
}

struct RecordingState {
    /// By the index of the root, or of the version of a directory that follows a name; 0 for a fixed directory.
    roots: HashMap<u32, RecordedRoot>,
    /// Prefetches that are to begin.
    begun: Vec<ProfilePrefetch>,
    /// A list to swap with the one that accesses are noted in.
    notes: Vec<FirstAccess>,
    /// Extents that were prefetched and not read since; at most as many as accesses are noted.
    ahead: HashSet<u64>,
    saved: Instant,
    complained: bool,
}

/// What is known of the accesses below a root.
struct RecordedRoot {
    /// When the recording is complete.
    recording: Option<ProfileRecording>,
    /// When the first access came.
    began: Option<Instant>,
    unsaved: bool,
}

impl AccessRecorder {
    pub(super) fn new(options: WarmUpOptions, first_root: u32) -> Self {
        Self {
            share: GaugeShare::new(options.counters.clone()),
            options,
            access_log: AccessLog::default(),
            recordings: Mutex::new(RecordingState {
                roots: HashMap::new(),
                begun: Vec::new(),
                notes: access_log::list(),
                ahead: HashSet::new(),
                saved: Instant::now(),
                complained: false,
            }),
            first_root,
        }
    }

    /// The counters of the results.
    fn counters(&self) -> &WarmUpCounters {
        &self.options.counters
    }

    /// Notes that `length` bytes, which are the extent `key`, were prefetched.
    fn fetched(&self, key: u64, length: u64) {
        self.counters().extents.add(1);
        self.counters().bytes.add(length);
        let mut recordings = self.recordings.lock();
        if recordings.ahead.len() < MOST_NEWS {
            recordings.ahead.insert(key);
        }
    }

    /// Begins with the root `node`: records the accesses below it, and starts the prefetch of its
    /// profile.
    fn begin(
        &self,
        recordings: &mut RecordingState,
        root: u32,
        profile_key: ProfileKey,
        node: Node,
    ) {
        let (Node::Directory { digest, .. } | Node::File { digest, .. }) = node else {
            return;
        };
        if recordings.roots.contains_key(&root) || recordings.roots.len() >= MOST_ROOTS {
            return;
        }
        match self.options.profiles.find(&profile_key) {
            Ok(Some(found)) => {
                match found.own {
                    true => self.counters().own.add(1),
                    false => self.counters().similar.add(1),
                }
                let most = self.options.most_ahead;
                recordings
                    .begun
                    .push(ProfilePrefetch::new(found, &profile_key, node, most));
            }
            Ok(None) => self.counters().none.add(1),
            Err(error) => {
                self.counters().none.add(1);
                self.counters().failed_finds.add(1);
                tracing::warn!(
                    %error,
                    "nothing is prefetched for \"{profile_key}\"; what its programs read is \
                     recorded again"
                );
            }
        }
        let recorded = RecordedRoot {
            recording: Some(ProfileRecording::new(profile_key, digest)),
            began: None,
            unsaved: false,
        };
        recordings.roots.insert(root, recorded);
    }

    /// Writes profiles with news, if `now` or if it is time to, and complete ones in any case.
    fn save(&self, recordings: &mut RecordingState, now: bool) {
        let due = now || recordings.saved.elapsed() >= SAVES;
        for recorded in recordings.roots.values_mut() {
            let Some(recording) = &recorded.recording else {
                continue;
            };
            let over = recorded
                .began
                .is_some_and(|began| began.elapsed() >= RECORDING_TIME);
            let whole = over || recording.is_full();
            if recorded.unsaved && (due || whole)
                || whole && !recording.profile().files().is_empty()
            {
                let saved = self.options.profiles.save(recording, whole);
                recordings.saved = Instant::now();
                match saved {
                    Ok(()) => self.counters().saves.add(1),
                    Err(error) => {
                        self.counters().failed_saves.add(1);
                        if !std::mem::replace(&mut recordings.complained, true) {
                            tracing::warn!(%error, "cannot write a warm-up profile");
                        }
                    }
                }
                recorded.unsaved = false;
            }
            if whole {
                recorded.recording = None;
            }
        }
        let watched = |recorded: &&RecordedRoot| recorded.recording.is_some();
        let watched = recordings.roots.values().filter(watched).count();
        self.share.set_recording(watched as u64);
    }
}

impl CastoreFs {
    /// Whether accesses are recorded here.
    pub fn records_accesses(&self) -> bool {
        self.access_recorder.is_some()
    }

    /// The results, if warm-up is on.
    pub fn warm_up_count(&self) -> Option<WarmUpCount> {
        // Without the lock, which is held while profiles are written.
        self.access_recorder
            .as_ref()
            .map(|access_recorder| access_recorder.options.count())
    }

    /// Notes a request for bytes of the file `id`.
    pub(super) fn touch(&self, id: NodeId, digest: &Digest, offset: u64, length: u64) {
        if let Some(access_recorder) = &self.access_recorder {
            access_recorder.access_log.note(id, digest, offset, length);
        }
    }

    /// Notes that the root at `index` was looked up by its name.
    pub(super) fn record_root_access(&self, index: u32) {
        if let Some(access_recorder) = &self.access_recorder {
            access_recorder.access_log.record_root(index);
        }
    }

    /// Records and prefetches until `ended` returns true. For a thread of its own: it waits for the
    /// store and for the disk.
    pub fn warm_up(&self, ended: impl Fn() -> bool) {
        let Some(access_recorder) = &self.access_recorder else {
            return;
        };
        self.begin_with_mount_root(access_recorder, &mut access_recorder.recordings.lock());
        self.waiting
            .runtime()
            .block_on(self.keep_warm(access_recorder, ended));
        access_recorder.share.set_fetching(0);
        self.remember();
    }

    /// Begins with the directory in the mount root, if that has not been done.
    fn begin_with_mount_root(
        &self,
        access_recorder: &AccessRecorder,
        recordings: &mut RecordingState,
    ) {
        if let (Some(profile_key), Some((digest, size))) =
            (&access_recorder.options.profile_key, self.shown_directory())
            && !recordings.roots.contains_key(&self.shown_version())
        {
            if !recordings.roots.is_empty() {
                // Of the tree that was shown before. Its profile is this one's now.
                access_recorder.save(recordings, true);
                for recorded in recordings.roots.values_mut() {
                    recorded.recording = None;
                }
            }
            let node = Node::Directory { digest, size };
            let version = self.shown_version();
            access_recorder.begin(recordings, version, profile_key.clone(), node);
        }
    }

    async fn keep_warm(&self, access_recorder: &AccessRecorder, ended: impl Fn() -> bool) {
        let mut queue = VecDeque::new();
        let mut steps = FuturesUnordered::new();
        while !ended() {
            queue.extend(access_recorder.recordings.lock().begun.drain(..));
            // A step at a time, of each root in turn.
            if steps.is_empty()
                && let Some(due) = queue.iter().position(ProfilePrefetch::is_due)
                && let Some(ahead) = queue.remove(due)
            {
                steps.push(self.go_ahead(access_recorder, ahead));
            }
            tokio::select! {
                Some(ahead) = steps.next(), if !steps.is_empty() => queue.extend(ahead),
                () = access_recorder.access_log.stirred(PATIENCE, PAUSE) => {}
            }
            let fetching = (queue.len() + steps.len()) as u64;
            access_recorder.share.set_fetching(fetching);
            self.take_notes(access_recorder);
            let mut recordings = access_recorder.recordings.lock();
            access_recorder.save(&mut recordings, false);
        }
    }

    /// Writes what was recorded so far.
    pub fn remember(&self) {
        if let Some(access_recorder) = &self.access_recorder {
            self.take_notes(access_recorder);
            access_recorder.save(&mut access_recorder.recordings.lock(), true);
        }
    }

    /// Makes [`warm_up`](Self::warm_up) check at once whether it has ended.
    pub fn stir(&self) {
        if let Some(access_recorder) = &self.access_recorder {
            access_recorder.access_log.stir();
        }
    }

    /// Takes over the noted accesses.
    fn take_notes(&self, access_recorder: &AccessRecorder) {
        let mut recordings = access_recorder.recordings.lock();
        // A caller may want the recordings before the thread has begun.
        self.begin_with_mount_root(access_recorder, &mut recordings);
        let mut notes = std::mem::take(&mut recordings.notes);
        access_recorder.access_log.take(&mut notes);
        for note in notes.drain(..) {
            if note
                .extent()
                .is_some_and(|extent| recordings.ahead.remove(&key(note.blob_key, extent)))
            {
                access_recorder.counters().hits.add(1);
            }
            let Some((root, path)) = self.place(&note) else {
                continue;
            };
            if self.shows_roots()
                && root >= access_recorder.first_root
                && !recordings.roots.contains_key(&root)
                && let Some(found) = self.roots.get(root)
                && let Some(profile_key) = ProfileKey::new(found.root.name.as_bytes())
            {
                access_recorder.begin(&mut recordings, root, profile_key, found.root.node);
            }
            if let Some(extent) = note.extent()
                && let Some(recorded) = recordings.roots.get_mut(&root)
                && let Some(recording) = &mut recorded.recording
                && recording.record(&path, extent)
            {
                access_recorder.counters().recorded.add(1);
                recorded.unsaved = true;
                recorded.began.get_or_insert_with(Instant::now);
            }
        }
        recordings.notes = notes;
    }

    /// The root that contains a node, and the node's path below it. Nothing if the kernel has
    /// forgotten the node since, whose id may now mean another node, or if its Directories are no
    /// longer in memory.
    fn place(&self, note: &FirstAccess) -> Option<(u32, Vec<u8>)> {
        let mut trail = self.nodes.trail(note.id).into_iter();
        let mut root = 0;
        let mut path = Vec::new();
        let mut last = None;
        if self.shows_roots() || self.follows() {
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
        let is_it =
            note.extent().is_none() || last.is_some_and(|last| blob_key(&last) == note.blob_key);
        is_it.then_some((root, path))
    }
}
