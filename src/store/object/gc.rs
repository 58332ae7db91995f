//! Garbage collection of a bucket.
//!
//! A bucket has no lock that keeps writers out, and no object can be deleted on the condition that no program
//! has come to rely on it. So a collection has two phases, in different calls, with the grace between
//! them.
//!
//! **Mark.** The first writes a list of candidates ([`candidates`]): objects that no root reaches, that nothing
//! reaches which stays, and that are older than the grace. Additions read the list, and do not rely on what
//! is on it: they write such an object again, as if it were not there.
//!
//! **Sweep.** The second marks again, from the roots as they are now, and deletes the candidates that are still
//! unreachable and were not written since; then it writes the next list. Closures go first, then blobs, then
//! chunks: at every moment, what is below an object that exists is there, and an interrupted sweep is
//! continued by the next.
//!
//! **Additions beside a sweep.** An addition reads the state before it relies on anything, and again after it wrote its
//! roots ([`super::relied`]): the list, which has another id whenever it is written, and the lock ([`lock`]), whose state is
//! "deleting" before the sweep lists the roots. If both are the same as before, nothing was deleted meanwhile, and
//! a later sweep sees the roots. If not, the addition looks for every object below its roots, and fails if one is gone.
//! That needs no clock, but a service whose reads see what was written before.
//!
//! **Clocks.** Ages are differences of times of the bucket: the dates of objects, that of the lock just written among them.
//!
//! Programs that do not read the list can lose what they rely on: the caller makes sure that none writes to the
//! bucket.

pub(super) mod candidates;
pub(super) mod lock;
mod survey;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use self::candidates::CandidateList;
use self::lock::{GcLock, LockState};
use self::survey::{Survey, survey};
use super::bucket_time::BucketTime;
use super::{ObjectStore, ObjectStoreCalls};
use crate::castore::Digest;
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::{Error, upstream};

/// The kinds of objects that are collected, each after those that refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ObjectKind {
    Closure,
    Blob,
    Chunk,
}

impl ObjectKind {
    const ALL: [Self; 3] = [Self::Closure, Self::Blob, Self::Chunk];

    /// Where they are.
    pub(super) fn dir(self) -> &'static str {
        match self {
            Self::Closure => "dirs",
            Self::Blob => "blobs",
            Self::Chunk => "chunks",
        }
    }
}

/// The options of a collection of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketGcOptions {
    /// The least age of a candidate, and of the list when its candidates are deleted. With zero, both phases are
    /// in one call.
    pub grace: Duration,
    /// Writes and deletes nothing, and only reports.
    pub dry_run: bool,
}

/// Numbers of objects of a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BucketObjects {
    /// Closures of Directories.
    pub closures: u64,
    /// Blobs: their lists of chunks.
    pub blobs: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of all of these, as they are stored.
    pub bytes: u64,
}

impl BucketObjects {
    fn add(&mut self, kind: ObjectKind, count: u64, bytes: u64) {
        match kind {
            ObjectKind::Closure => self.closures += count,
            ObjectKind::Blob => self.blobs += count,
            ObjectKind::Chunk => self.chunks += count,
        }
        self.bytes += bytes;
    }

    fn add_all(&mut self, other: &Self) {
        self.closures += other.closures;
        self.blobs += other.blobs;
        self.chunks += other.chunks;
        self.bytes += other.bytes;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.closures + self.blobs + self.chunks
    }
}

/// The outcome of a collection of a bucket. Times are in seconds since 1970, by the bucket's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketGcReport {
    /// What was deleted.
    pub deleted: BucketObjects,
    /// What is on the list of candidates now.
    pub candidates: BucketObjects,
    /// From when on a collection with the same grace deletes them, if there are any.
    pub candidates_until: Option<u64>,
    /// Whether the list was there already, and its grace has not passed: the bucket was not marked again.
    pub is_waiting: bool,
    /// Objects that no root reaches and that are no candidates: they are too young, or something that stays refers
    /// to them.
    pub grace: BucketObjects,
    /// When the latest of these is old enough.
    pub grace_until: Option<u64>,
    /// Objects for which the list had no room. Later collections take them.
    pub omitted: u64,
}

impl ObjectStore {
    /// Collects garbage, if no program writes to the bucket that does not know the list of candidates, and none
    /// has contents there without a root.
    ///
    /// Fails if the roots or anything below them cannot be read, with nothing deleted unless an earlier list was
    /// swept in the same call, and if another collection runs. A failure while objects are deleted leaves the others to the next call.
    pub fn collect_garbage(&self, options: &BucketGcOptions) -> Result<BucketGcReport, Error> {
        let store = self.upstream_calls().clone();
        let options = options.clone();
        let url = store.bucket.url.clone();
        let runtime = store.bucket.runtime.clone();
        let collected = upstream::wait(&runtime, async move {
            match options.dry_run {
                true => look(&store, options.grace).await,
                false => collect(&store, options.grace).await,
            }
        });
        collected.map_err(|failure| failure.of(&url, "the garbage collection"))
    }
}

/// A dry run.
async fn look(store: &ObjectStoreCalls, grace: Duration) -> Result<BucketGcReport, CallFailure> {
    let list = CandidateList::read(&store.bucket).await?;
    let now = store.bucket.now().ok_or_else(|| {
        let why = "the service reports no date, which --dry-run needs";
        CallFailure::Failed(FailureKind::Refused, why.to_owned())
    })?;
    let mut report = BucketGcReport::default();
    match list.filter(|list| !list.is_empty()) {
        Some(list) if list.time.after(grace) > now => report.waits_for(&list, grace),
        Some(list) => {
            let found = survey(store, |kind, digest, modified| {
                !is_deletable(&list, kind, digest, modified)
            });
            report.deleted = found.await?.unprotected_count;
        }
        None => {
            let found = survey(store, |_, _, modified| !is_candidate(modified, now, grace)).await?;
            report.marked(&found, now, grace);
            // One call does both phases.
            if grace.is_zero() {
                report.deleted = std::mem::take(&mut report.candidates);
                report.candidates_until = None;
            }
        }
    }
    Ok(report)
}

async fn collect(
    store: &Arc<ObjectStoreCalls>,
    grace: Duration,
) -> Result<BucketGcReport, CallFailure> {
    let lock = GcLock::take(&store.bucket).await?;
    let collected = collect_locked(store, &lock, grace).await;
    match &collected {
        // What additions rely on is not known: the lock stays, until its life is over.
        Err(CollectFailure::StillDeleting(_)) => drop(lock),
        _ => lock.release().await,
    }
    collected.map_err(|failure| match failure {
        CollectFailure::StillDeleting(failure) | CollectFailure::Released(failure) => failure,
    })
}

/// Why a collection failed.
enum CollectFailure {
    /// It has begun to delete, and could not report that to additions by another list.
    StillDeleting(CallFailure),
    Released(CallFailure),
}

impl From<CallFailure> for CollectFailure {
    fn from(failure: CallFailure) -> Self {
        Self::Released(failure)
    }
}

async fn collect_locked(
    store: &ObjectStoreCalls,
    lock: &GcLock,
    grace: Duration,
) -> Result<BucketGcReport, CollectFailure> {
    let bucket = &store.bucket;
    let mut report = BucketGcReport::default();
    if lock.is_deleting()
        && let Some(list) = CandidateList::read(bucket).await?
    {
        list.renewed().write(bucket).await?;
    }
    let now = lock.set(LockState::Marking).await?;
    if let Some(list) = CandidateList::read(bucket).await?
        && !list.is_empty()
    {
        if list.time.after(grace) > now {
            report.waits_for(&list, grace);
            return Ok(report);
        }
        report.deleted = sweep(store, lock, &list).await?;
    }
    let now = lock.set(LockState::Marking).await?;
    let found = survey(store, |_, _, modified| !is_candidate(modified, now, grace)).await?;
    report.marked(&found, now, grace);
    let list = CandidateList::new(now, found.unprotected_count.bytes, found.unprotected);
    lock.check()?;
    list.write(bucket).await?;
    if grace.is_zero() && !list.is_empty() {
        let deleted = sweep(store, lock, &list).await?;
        report.deleted.add_all(&deleted);
        report.candidates = BucketObjects::default();
        report.candidates_until = None;
    }
    Ok(report)
}

/// Deletes the candidates that are still unreachable; leaves an empty list.
async fn sweep(
    store: &ObjectStoreCalls,
    lock: &GcLock,
    list: &CandidateList,
) -> Result<BucketObjects, CollectFailure> {
    let bucket = &store.bucket;
    let now = lock.set(LockState::Deleting).await;
    let swept = async {
        let now = now?;
        // The roots are listed after the lock was written.
        let found = survey(store, |kind, digest, modified| {
            !is_deletable(list, kind, digest, modified)
        });
        let found = found.await?;
        delete(store, lock, &found).await?;
        Ok((now, found.unprotected_count))
    };
    let swept: Result<_, CallFailure> = swept.await;
    // Additions that began before notice by the other id.
    let next = match &swept {
        Ok((now, _)) => CandidateList::new(*now, 0, Default::default()),
        Err(_) => list.renewed(),
    };
    let written = async {
        lock.check()?;
        next.write(bucket).await
    };
    if let Err(failure) = written.await {
        return Err(CollectFailure::StillDeleting(
            swept.err().unwrap_or(failure),
        ));
    }
    let (_, deleted) = swept?;
    Ok(deleted)
}

/// Deletes what a survey found, closures first.
async fn delete(
    store: &ObjectStoreCalls,
    lock: &GcLock,
    found: &Survey,
) -> Result<(), CallFailure> {
    let bucket = &store.bucket;
    for kind in ObjectKind::ALL {
        for batch in found.unprotected[kind as usize].chunks(BATCH) {
            lock.check()?;
            let paths: Vec<_> = batch
                .iter()
                .map(|digest| bucket.path(kind.dir(), digest))
                .collect();
            bucket.delete_all(&paths).await.map_err(no_right)?;
        }
    }
    Ok(())
}

/// Objects that are deleted between two looks at the lock.
const BATCH: usize = 1000;

/// Explains why the service refuses to delete.
fn no_right(failure: CallFailure) -> CallFailure {
    match failure {
        CallFailure::Failed(FailureKind::Denied | FailureKind::Unauthenticated, why) => {
            let why = format!(
                "the service does not let this key delete (s3:DeleteObject). Give it that right, and run gc again, \
                 which continues: {why}"
            );
            CallFailure::Failed(FailureKind::Refused, why)
        }
        failure => failure,
    }
}

/// Whether an object written at `modified` is old enough for a list that is begun `now`.
fn is_candidate(modified: BucketTime, now: BucketTime, grace: Duration) -> bool {
    // What was written at the same moment looks like what is written later, and again.
    modified < now && modified.after(grace) <= now
}

/// Whether a candidate has not been written since the list was begun.
fn is_deletable(
    list: &CandidateList,
    kind: ObjectKind,
    digest: Digest,
    modified: BucketTime,
) -> bool {
    modified < list.time && list.has(kind, &digest)
}

impl BucketGcReport {
    /// Nothing is done, as the list has to become older.
    fn waits_for(&mut self, list: &CandidateList, grace: Duration) {
        for kind in ObjectKind::ALL {
            self.candidates.add(kind, list.count(kind), 0);
        }
        self.candidates.bytes = list.bytes;
        self.candidates_until = Some(list.time.after(grace).seconds());
        self.is_waiting = true;
    }

    /// A list was made `now`.
    fn marked(&mut self, found: &Survey, now: BucketTime, grace: Duration) {
        self.candidates = found.unprotected_count;
        let any = self.candidates.count() > 0;
        self.candidates_until = any.then(|| now.after(grace).seconds());
        self.grace = found.spared;
        let any = self.grace.count() > 0;
        self.grace_until = any.then(|| found.latest.after(grace).seconds());
        self.omitted = found.omitted;
    }
}
