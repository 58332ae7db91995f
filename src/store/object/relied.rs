//! What additions rely on, beside garbage collections.
//!
//! An addition does not send what is there already. A collection may delete just that, as no root reaches
//! it yet; [`super::gc`] has the protocol. Here is the addition's part: it reads the state of collections, does not
//! count candidates as there, and remembers what was found or put while the state was the same. That is
//! trusted: nothing was deleted meanwhile. At the commit everything else below the roots is looked for.
//!
//! A bucket in which no collection ever ran has no list, and nothing is looked for: an addition costs
//! three requests more, answered "not found", and one for each root that it puts, for what its name stood for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use super::blobs::{MAX_STORED_CHUNK, MAX_STORED_LIST};
use super::bucket::{Bucket, ReadVersion};
use super::gc::ObjectKind;
use super::gc::candidates::{CandidateList, LIST, MAX_LIST, RandomId};
use super::gc::lock::{LockState, ReadLock};
use crate::castore::Digest;
use crate::quantity::count;
use crate::store::chunked::ChunkSource;
use crate::store::failure::{CallFailure, FailureKind};

/// How old the known state may be while an addition runs. At its commit it is read again.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How often an addition looks whether a sweep has ended, and how long it waits for that.
const LOOK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Objects that are trusted, at most; others are looked for again.
const MOST_TRUSTED: usize = 1 << 20;
/// Requests at once that look for objects, and that write candidates again: each of these has an object in
/// memory.
const HEADS_AT_ONCE: usize = 32;
const PUTS_AT_ONCE: usize = 4;

/// The state of the collections of a bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct GcState {
    list: Option<Arc<CandidateList>>,
    /// Of the list.
    e_tag: Option<String>,
    /// The holder of a lock that deletes, and whether it may be alive.
    deleting: Option<(RandomId, bool)>,
}

impl GcState {
    /// Whether nothing was deleted between the moments of the two, if a later one cannot have seen the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let id = |state: &Self| state.list.as_ref().map(|list| list.id);
        id(self) == id(other) && self.deleting == other.deleting
    }

    /// Whether the bucket has a list: a collection ran.
    pub(super) fn has_list(&self) -> bool {
        self.list.is_some()
    }

    fn is_candidate(&self, kind: ObjectKind, digest: &Digest) -> bool {
        let list = self.list.as_ref();
        list.is_some_and(|list| list.has(kind, digest))
    }

    fn is_deleting(&self) -> bool {
        matches!(self.deleting, Some((_, true)))
    }
}

/// What the roots of an addition need.
#[derive(Debug, Default)]
pub(super) struct NeededObjects {
    /// Closures that the commit writes.
    pub(super) written: HashSet<Digest>,
    /// Blobs of Directories of the addition, and of roots.
    pub(super) blobs: HashSet<Digest>,
    /// Chunks of blobs that the addition put.
    pub(super) chunks: HashSet<Digest>,
    /// By closures that were there before: the blobs of Directories that were read from them.
    pub(super) shared: HashMap<Digest, HashSet<Digest>>,
}

/// What additions of this process rely on.
#[derive(Debug)]
pub(super) struct ReliedObjects {
    bucket: Arc<Bucket>,
    known: Mutex<KnownState>,
    /// Held while the state is read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct KnownState {
    state: GcState,
    read: Option<Instant>,
    /// What was there or put under this state.
    trusted: HashSet<(ObjectKind, Digest)>,
}

impl ReliedObjects {
    pub(super) fn new(bucket: Arc<Bucket>) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        })
    }

    fn recent(&self) -> Option<GcState> {
        let known = self.known.lock();
        let is_recent = known.read.is_some_and(|read| read.elapsed() < MAX_AGE);
        is_recent.then(|| known.state.clone())
    }

    async fn current(&self) -> Result<GcState, CallFailure> {
        if let Some(recent) = self.recent() {
            return Ok(recent);
        }
        let reading = self.reading.lock().await;
        match self.recent() {
            Some(recent) => Ok(recent),
            None => self.read(&reading).await,
        }
    }

    /// Reads the state.
    pub(super) async fn refresh(&self) -> Result<GcState, CallFailure> {
        let reading = self.reading.lock().await;
        self.read(&reading).await
    }

    async fn read(&self, _: &tokio::sync::MutexGuard<'_, ()>) -> Result<GcState, CallFailure> {
        let began = Instant::now();
        let before = self.known.lock().state.clone();
        let known = before.e_tag.as_deref();
        let (list, e_tag) = match self.bucket.get_unless(LIST, MAX_LIST, known).await? {
            ReadVersion::Absent => (None, None),
            ReadVersion::Unchanged => (before.list.clone(), before.e_tag.clone()),
            ReadVersion::Read(bytes, version) => (
                Some(Arc::new(CandidateList::decode(&bytes)?)),
                version.e_tag,
            ),
        };
        let deleting = match &list {
            // The first collection writes a list before it deletes.
            None => None,
            Some(_) => ReadLock::read(&self.bucket)
                .await?
                .filter(|lock| lock.state == LockState::Deleting)
                .map(|lock| (lock.holder, lock.is_alive(self.bucket.now()))),
        };
        let state = GcState {
            list,
            e_tag,
            deleting,
        };
        let mut known = self.known.lock();
        if !known.state.is_same(&state) {
            known.trusted.clear();
        }
        known.state = state.clone();
        known.read = Some(began);
        Ok(state)
    }

    fn is_trusted(&self, kind: ObjectKind, digest: &Digest) -> bool {
        self.known.lock().trusted.contains(&(kind, *digest))
    }

    /// An object was there, or was put, after `state` was read.
    fn trust(&self, state: &GcState, kind: ObjectKind, digest: &Digest) {
        let mut known = self.known.lock();
        let may_go = state.is_deleting() && state.is_candidate(kind, digest);
        if known.state.is_same(state) && !may_go && known.trusted.len() < MOST_TRUSTED {
            known.trusted.insert((kind, *digest));
        }
    }

    /// Whether an addition can rely on an object: it is there, and no candidate.
    pub(super) async fn has(&self, kind: ObjectKind, digest: &Digest) -> Result<bool, CallFailure> {
        let mut state = self.current().await?;
        if state.is_candidate(kind, digest) {
            if self.is_trusted(kind, digest) {
                return Ok(true);
            }
            state = self
                .swept(state, |state| state.is_candidate(kind, digest))
                .await?;
            if state.is_candidate(kind, digest) {
                return Ok(false);
            }
        }
        let has = self
            .bucket
            .has(&self.bucket.path(kind.dir(), digest))
            .await?;
        if has {
            self.trust(&state, kind, digest);
        }
        Ok(has)
    }

    /// Puts an object.
    pub(super) async fn put(
        &self,
        kind: ObjectKind,
        digest: &Digest,
        bytes: bytes::Bytes,
    ) -> Result<(), CallFailure> {
        let state = self.current().await?;
        let path = self.bucket.path(kind.dir(), digest);
        self.bucket.put(&path, bytes).await?;
        self.trust(&state, kind, digest);
        Ok(())
    }

    /// Waits until no sweep deletes what `concerns` an addition; returns the state then.
    async fn swept(
        &self,
        mut state: GcState,
        concerns: impl Fn(&GcState) -> bool,
    ) -> Result<GcState, CallFailure> {
        let began = Instant::now();
        let mut is_reported = false;
        while state.is_deleting() && concerns(&state) {
            if !std::mem::replace(&mut is_reported, true) {
                let url = &self.bucket.url;
                tracing::warn!(
                    "{url}: an addition waits for a garbage collection, which deletes what it needs, or was killed \
                     and then counts as running for ten minutes"
                );
            }
            if began.elapsed() > PATIENCE {
                let why = "a garbage collection is deleting objects that this addition needs: run it again later";
                return Err(CallFailure::Failed(FailureKind::Conflict, why.to_owned()));
            }
            tokio::time::sleep(LOOK).await;
            state = self.refresh().await?;
        }
        Ok(state)
    }

    /// Makes sure that everything that is needed is there, and stays if the state is still the one that
    /// is returned once the roots are written. `state` was read just now.
    pub(super) async fn check(
        &self,
        state: GcState,
        needed: &NeededObjects,
    ) -> Result<GcState, CheckFailure> {
        if !state.has_list() {
            return Ok(state);
        }
        // What was trusted under an earlier state may have gone.
        let untrusted = |state: &GcState, kind, digest: &Digest| {
            state.is_candidate(kind, digest) && !self.is_trusted(kind, digest)
        };
        let concerns = |state: &GcState| {
            let blobs = needed.blobs.iter().chain(needed.shared.values().flatten());
            let mut closures = needed.written.iter();
            let mut chunks = needed.chunks.iter();
            closures.any(|digest| state.is_candidate(ObjectKind::Closure, digest))
                || chunks.any(|digest| untrusted(state, ObjectKind::Chunk, digest))
                || blobs
                    .into_iter()
                    .any(|digest| untrusted(state, ObjectKind::Blob, digest))
        };
        let state = self.swept(state, concerns).await?;
        if !state.has_list() {
            return Ok(state);
        }
        let mut blobs = needed.blobs.clone();
        for (closure, below) in &needed.shared {
            // Writers put a closure after what is below it, and a sweep deletes it before.
            if state.is_candidate(ObjectKind::Closure, closure)
                || !self.is_there(&state, ObjectKind::Closure, closure).await?
            {
                blobs.extend(below);
            }
        }
        let chunks = needed.chunks.iter().copied();
        let (candidates, others): (Vec<_>, Vec<_>) = blobs
            .into_iter()
            .map(|digest| (ObjectKind::Blob, digest))
            .chain(chunks.map(|digest| (ObjectKind::Chunk, digest)))
            .filter(|(kind, digest)| !self.is_trusted(*kind, digest))
            .partition(|(kind, digest)| state.is_candidate(*kind, digest));
        let (state_then, lost) = (&state, Mutex::new(HashSet::new()));
        let looks = others.into_iter().map(|(kind, digest)| {
            let lost = &lost;
            async move {
                if !self.is_there(state_then, kind, &digest).await? {
                    lost.lock().insert((kind, digest));
                }
                Ok::<_, CallFailure>(())
            }
        });
        let looks = stream::iter(looks).buffer_unordered(HEADS_AT_ONCE);
        looks.try_collect::<()>().await?;
        let puts = candidates.into_iter().map(|(kind, digest)| {
            let lost = &lost;
            async move {
                if !self.put_again(state_then, kind, &digest).await? {
                    lost.lock().insert((kind, digest));
                }
                Ok::<_, CallFailure>(())
            }
        });
        let puts = stream::iter(puts).buffer_unordered(PUTS_AT_ONCE);
        puts.try_collect::<()>().await?;
        let lost = lost.into_inner();
        match lost.is_empty() {
            true => Ok(state),
            false => Err(CheckFailure::Lost(lost)),
        }
    }

    async fn is_there(
        &self,
        state: &GcState,
        kind: ObjectKind,
        digest: &Digest,
    ) -> Result<bool, CallFailure> {
        if self.is_trusted(kind, digest) {
            return Ok(true);
        }
        let path = self.bucket.path(kind.dir(), digest);
        let has = self.bucket.has(&path).await?;
        if has {
            self.trust(state, kind, digest);
        }
        Ok(has)
    }

    /// Writes a candidate, and candidates among its chunks, again; returns whether all were there.
    async fn put_again(
        &self,
        state: &GcState,
        kind: ObjectKind,
        digest: &Digest,
    ) -> Result<bool, CallFailure> {
        if kind == ObjectKind::Blob {
            let Some(list) = self.bucket.stat(digest).await? else {
                return Ok(false);
            };
            let mut chunks = Vec::new();
            for chunk in &list.chunks {
                chunks.extend(Digest::try_from(&chunk.digest[..]));
            }
            if chunks.is_empty() {
                chunks.push(*digest);
            }
            for chunk in chunks {
                if state.is_candidate(ObjectKind::Chunk, &chunk)
                    && !self.is_trusted(ObjectKind::Chunk, &chunk)
                    && !self.put_one_again(state, ObjectKind::Chunk, &chunk).await?
                {
                    // The blob is of no use, and the next addition must not take it for there.
                    let path = self.bucket.path(kind.dir(), digest);
                    self.bucket.delete(&path).await?;
                    return Ok(false);
                }
            }
        }
        self.put_one_again(state, kind, digest).await
    }

    async fn put_one_again(
        &self,
        state: &GcState,
        kind: ObjectKind,
        digest: &Digest,
    ) -> Result<bool, CallFailure> {
        let path = self.bucket.path(kind.dir(), digest);
        let limit = match kind {
            ObjectKind::Chunk => MAX_STORED_CHUNK,
            _ => MAX_STORED_LIST,
        };
        let Some(bytes) = self.bucket.get(&path, limit).await? else {
            return Ok(false);
        };
        self.bucket.put(&path, bytes).await?;
        self.trust(state, kind, digest);
        Ok(true)
    }

    /// Deletes those lists of `blobs` that refer to a lost chunk, so that no addition takes such a blob for
    /// one that is there.
    pub(super) async fn discard(
        &self,
        blobs: Vec<Digest>,
        lost: &HashSet<(ObjectKind, Digest)>,
    ) -> Result<(), CallFailure> {
        if !lost.iter().any(|(kind, _)| *kind == ObjectKind::Chunk) {
            return Ok(());
        }
        let is_lost = |digest: &Digest| lost.contains(&(ObjectKind::Chunk, *digest));
        let discards = blobs.into_iter().map(|digest| async move {
            let Some(list) = self.bucket.stat(&digest).await? else {
                return Ok(());
            };
            let mut chunks = list.chunks.iter();
            let is_broken = match list.chunks.is_empty() {
                true => is_lost(&digest),
                false => chunks.any(|chunk| {
                    Digest::try_from(&chunk.digest[..]).is_ok_and(|chunk| is_lost(&chunk))
                }),
            };
            match is_broken {
                true => {
                    let path = self.bucket.path(ObjectKind::Blob.dir(), &digest);
                    self.bucket.delete(&path).await
                }
                false => Ok::<_, CallFailure>(()),
            }
        });
        let discards = stream::iter(discards).buffer_unordered(PUTS_AT_ONCE);
        discards.try_collect().await
    }
}

/// Why an addition cannot be committed.
#[derive(Debug)]
pub(super) enum CheckFailure {
    /// These are not there.
    Lost(HashSet<(ObjectKind, Digest)>),
    Call(CallFailure),
}

impl From<CallFailure> for CheckFailure {
    fn from(failure: CallFailure) -> Self {
        Self::Call(failure)
    }
}

impl From<CheckFailure> for CallFailure {
    fn from(failure: CheckFailure) -> Self {
        let lost = match failure {
            CheckFailure::Call(failure) => return failure,
            CheckFailure::Lost(lost) => lost,
        };
        let example = lost
            .iter()
            .max_by_key(|(kind, digest)| (*kind as u8, *digest.as_bytes()));
        let example = example.map_or_else(String::new, |(kind, digest)| {
            let kind = match kind {
                ObjectKind::Closure => "directory",
                ObjectKind::Blob => "blob",
                ObjectKind::Chunk => "chunk",
            };
            format!(" ({kind} {digest})")
        });
        let why = format!(
            "{} not there{example}: a garbage collection deleted them meanwhile, or they were \
             never sent. Run it again, which sends them",
            count(
                lost.len() as u64,
                "object that it needs is",
                "objects that it needs are"
            )
        );
        CallFailure::Failed(FailureKind::Refused, why)
    }
}
