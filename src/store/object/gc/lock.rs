//! The lock of a collection: a bucket has one collection at a time.
//!
//! `castore-fs/gc/lock` has 33 bytes: `castore-fs gc 1` and a newline, the random id of the holder (16
//! bytes), and a byte: 0 released, 1 marking, 2 deleting. It is created on the condition that there is none, written
//! again every [`REFRESH`], and removed at the end. The lock of a process that died ends [`LIFE`]
//! after it was last written, by the bucket's clock; its holder deletes nothing if it could not write
//! it for [`CAUTION`], so that no request of it is under way then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinHandle;

use super::super::bucket::{Bucket, ObjectVersion, ReadVersion};
use super::super::bucket_time::BucketTime;
use super::candidates::{RandomId, random_id};
use crate::quantity::count;
use crate::store::Error;
use crate::store::failure::{CallFailure, FailureKind};

/// Its path.
pub(in crate::store::object) const LOCK: &str = "castore-fs/gc/lock";
/// Bytes of it that are read, at most.
const MAX_LOCK: u64 = 4 << 10;
const MAGIC: &[u8; 16] = b"castore-fs gc 1\n";
/// How often it is written, and how long it counts. A minute is twice the deadline of a request, and ten
/// are more than any request takes on its way.
const REFRESH: Duration = Duration::from_secs(60);
pub(super) const LIFE: Duration = Duration::from_secs(10 * 60);
/// How long its holder may delete without having written it.
const CAUTION: Duration = Duration::from_secs(3 * 60);
/// Attempts to take it.
const ATTEMPTS: usize = 3;

/// What the holder does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::object) enum LockState {
    Released,
    Marking,
    Deleting,
}

/// A lock as it is in a bucket.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::object) struct ReadLock {
    pub(in crate::store::object) holder: RandomId,
    pub(in crate::store::object) state: LockState,
    pub(in crate::store::object) modified: BucketTime,
}

impl ReadLock {
    /// The lock in a bucket, if there is one.
    pub(in crate::store::object) async fn read(
        bucket: &Bucket,
    ) -> Result<Option<Self>, CallFailure> {
        Ok(read(bucket).await?.map(|(lock, _)| lock))
    }

    /// Whether its holder may still delete, as far as the bucket's clock is known.
    pub(in crate::store::object) fn is_alive(&self, now: Option<BucketTime>) -> bool {
        let is_over = now.is_some_and(|now| now > self.modified.after(LIFE));
        self.state != LockState::Released && !is_over
    }
}

async fn read(bucket: &Bucket) -> Result<Option<(ReadLock, ObjectVersion)>, CallFailure> {
    let ReadVersion::Read(bytes, version) = bucket.get_unless(LOCK, MAX_LOCK, None).await? else {
        return Ok(None);
    };
    let parsed = bytes.strip_prefix(MAGIC).and_then(|bytes| {
        let (holder, state) = bytes.split_first_chunk()?;
        let state = match state {
            [0] => LockState::Released,
            [1] => LockState::Marking,
            [2] => LockState::Deleting,
            _ => return None,
        };
        Some((*holder, state))
    });
    let (holder, state) = parsed.ok_or_else(|| {
        let why = format!(
            "the lock of garbage collections, {LOCK}, is damaged or of another version of castore-fs. Use the \
             newest castore-fs; or, while no collection runs, delete that object"
        );
        CallFailure::Failed(FailureKind::Refused, why)
    })?;
    let modified = version.modified;
    let lock = ReadLock {
        holder,
        state,
        modified,
    };
    Ok(Some((lock, version)))
}

/// The lock while this process has it.
pub(super) struct GcLock {
    shared: Arc<SharedLock>,
    refreshing: JoinHandle<()>,
}

struct SharedLock {
    bucket: Arc<Bucket>,
    holder: RandomId,
    written: Mutex<WrittenLock>,
    is_lost: AtomicBool,
    /// Held while it is written.
    writing: tokio::sync::Mutex<()>,
}

struct WrittenLock {
    state: LockState,
    /// Seconds since boot, time in sleep included, before the write.
    at: i64,
    modified: BucketTime,
}

impl GcLock {
    /// Takes the lock; fails if another collection has it. Its state is "marking", or "deleting" if a collection died
    /// in that state: additions have to notice before it is another one.
    pub(super) async fn take(bucket: &Arc<Bucket>) -> Result<Self, CallFailure> {
        let holder = random_id();
        let began = since_boot();
        for _ in 0..ATTEMPTS {
            let before = read(bucket).await?;
            let state = match &before {
                Some((lock, _)) if lock.state == LockState::Deleting => LockState::Deleting,
                _ => LockState::Marking,
            };
            let body = body(holder, state);
            let is_written = match before {
                None => bucket.create(LOCK, body).await?,
                // The date is that of the answer just now.
                Some((lock, _)) if lock.is_alive(bucket.now()) => return Err(taken()),
                Some((_, version)) => bucket.replace(LOCK, body, &version).await?,
            };
            // A repeated request, or one of a service without conditional writes, may report either.
            match read(bucket).await? {
                Some((lock, _)) if lock.holder == holder => {
                    return Ok(Self::started(bucket, lock, began));
                }
                Some(_) if is_written => return Err(taken()),
                _ => {}
            }
        }
        let why = format!(
            "other garbage collections took the lock in each of {ATTEMPTS} attempts: run gc again later"
        );
        Err(CallFailure::Failed(FailureKind::Conflict, why))
    }

    fn started(bucket: &Arc<Bucket>, lock: ReadLock, at: i64) -> Self {
        let shared = Arc::new(SharedLock {
            bucket: bucket.clone(),
            holder: lock.holder,
            written: Mutex::new(WrittenLock {
                state: lock.state,
                at,
                modified: lock.modified,
            }),
            is_lost: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
        });
        let refreshed = shared.clone();
        let refreshing = bucket.runtime.spawn(
            async move {
                loop {
                    tokio::time::sleep(REFRESH).await;
                    if let Err(failure) = refreshed.refresh(None).await {
                        tracing::warn!("{}", refreshed.error(failure));
                    }
                }
            }
            .boxed(),
        );
        Self { shared, refreshing }
    }

    /// Whether it was taken from a collection that died while it deleted.
    pub(super) fn is_deleting(&self) -> bool {
        self.shared.written.lock().state == LockState::Deleting
    }

    /// Writes the lock with another state; returns the time of that by the bucket's clock.
    pub(super) async fn set(&self, state: LockState) -> Result<BucketTime, CallFailure> {
        self.shared.refresh(Some(state)).await?;
        Ok(self.shared.written.lock().modified)
    }

    /// Fails unless the lock is certainly held.
    pub(super) fn check(&self) -> Result<(), CallFailure> {
        let age = since_boot() - self.shared.written.lock().at;
        match self.shared.is_lost.load(Ordering::Relaxed) || age > CAUTION.as_secs() as i64 {
            false => Ok(()),
            true => Err(lost()),
        }
    }

    /// Releases it.
    pub(super) async fn release(self) {
        self.refreshing.abort();
        let shared = &self.shared;
        let _writing = shared.writing.lock().await;
        // What is not certainly held may be another collection's. This one's ends by itself.
        if self.check().is_err() {
            return;
        }
        if let Err(failure) = shared.bucket.delete(LOCK).await {
            // The key may have no right to delete.
            tracing::debug!("{}", shared.error(failure));
            let released = body(shared.holder, LockState::Released);
            if let Err(failure) = shared.bucket.put(LOCK, released).await {
                tracing::warn!("{}", shared.error(failure));
            }
        }
    }
}

impl Drop for GcLock {
    fn drop(&mut self) {
        self.refreshing.abort();
    }
}

impl SharedLock {
    fn error(&self, failure: CallFailure) -> Error {
        failure.of(
            &self.bucket.url,
            "writing the lock of the garbage collection",
        )
    }

    async fn refresh(&self, state: Option<LockState>) -> Result<(), CallFailure> {
        let _writing = self.writing.lock().await;
        let at = since_boot();
        let state = state.unwrap_or(self.written.lock().state);
        match read(&self.bucket).await? {
            Some((lock, _)) if lock.holder == self.holder => {}
            _ => {
                self.is_lost.store(true, Ordering::Relaxed);
                return Err(lost());
            }
        }
        let body = body(self.holder, state);
        self.bucket.put(LOCK, body).await?;
        let version = self.bucket.version(LOCK).await?.ok_or_else(lost)?;
        *self.written.lock() = WrittenLock {
            state,
            at,
            modified: version.modified,
        };
        Ok(())
    }
}

fn body(holder: RandomId, state: LockState) -> Bytes {
    let mut body = BytesMut::from(&MAGIC[..]);
    body.put_slice(&holder);
    body.put_u8(state as u8);
    body.freeze()
}

fn taken() -> CallFailure {
    let why = format!(
        "another garbage collection has the bucket; if its process was killed, its lock ends {} after it was \
         last written: try again then",
        count(LIFE.as_secs() / 60, "minute", "minutes")
    );
    CallFailure::Failed(FailureKind::Refused, why)
}

fn lost() -> CallFailure {
    let why = "this garbage collection lost its lock to another one, and stopped";
    CallFailure::Failed(FailureKind::Conflict, why.to_owned())
}

/// Seconds since boot; the time in which the machine slept counts.
fn since_boot() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}
