//! Blobs from far away: by segment, verified, kept in memory.
//!
//! A blob is cut into aligned **segments** ([`segment_size`]), the unit of fetching and caching.
//! How a segment comes, and is bound to the blob's digest, depends on what its [`Source`] offers:
//!
//! - A blob of one segment comes whole, and is hashed: one round trip.
//! - Where the source has a group table and parts of blobs, the table and the segment are asked for
//!   at once, so the first byte of any blob takes one round trip. Each group is checked against the
//!   table, and the table against the digest.
//! - From any other source only the whole blob can be bound to its digest. It is fetched once, and
//!   **held** until it was hashed: small ones in memory, large ones in a file without a name in the
//!   temporary folder ([`Spool`]). A chunk list would give verified chunks sooner, but nothing
//!   binds that list to the digest.
//!
//! A reader that goes through a blob from front to back gets segments ahead of time, twice as many
//! at each step up to [`MAX_AHEAD`].

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::{join, try_join_all};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::bounded::Bounded;
use super::failure::{Failure, found};
use super::flights::Flights;
use super::{Damage, Object};
use crate::castore::{BlobHasher, Digest, GroupTable, group_size};

/// The smallest segment, in bytes: what a random read of a few bytes costs, against what a message
/// and its bookkeeping cost (some 50 µs, in which a 10 Gbit/s link moves 64 KiB).
const SEGMENT: u64 = 256 << 10;
/// Segments fetched ahead of a sequential reader: 8 MiB, a 10 Gbit/s link's 7 ms.
const MAX_AHEAD: u64 = 32;
/// Blobs up to this many bytes are held in memory until they are bound to their digest.
const MAX_HELD: u64 = 8 << 20;
/// Readers whose progress is watched.
const READERS: usize = 4096;

/// Bytes of a segment of a blob of `size` bytes: a multiple of its group size.
fn segment_size(size: u64) -> u64 {
    SEGMENT.max(group_size(size))
}

/// A blob, and the bytes that a node says it has: what is known of the one may be a lie of the
/// other, so nothing is kept under the digest alone.
type Claim = (Digest, u64);

/// What a whole blob is given to, from front to back.
pub(super) type Sink<'a> = &'a mut (dyn FnMut(Bytes) -> Result<(), Failure> + Send);

/// Where blobs come from. Nothing that it gives is believed.
#[async_trait]
pub(super) trait Source: Debug + Send + Sync + 'static {
    /// On which fetches run.
    fn runtime(&self) -> &Handle;

    /// Notes that what came for `digest` is not what it promises.
    fn lied(&self, object: Object, digest: &Digest, damage: Damage) -> Failure;

    /// The whole blob, as it comes; false if there is none.
    async fn whole(&self, digest: &Digest, sink: Sink<'_>) -> Result<bool, Failure>;

    /// The blob's table, if there is one for it, checked against the digest.
    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Failure>;

    /// `length` bytes at `start`.
    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Part, Failure>;
}

/// What a question for a part of a blob came to.
#[derive(Debug)]
pub(super) enum Part {
    Found(Bytes),
    Absent,
    /// The source does not do this, or not for this blob.
    Unavailable,
}

/// The blobs of a [`Source`].
#[derive(Debug)]
pub(super) struct Segments<S> {
    source: Arc<S>,
    segments: Mutex<Bounded<(Claim, u64), Bytes>>,
    tables: Mutex<Bounded<Claim, Arc<GroupTable>>>,
    spools: Mutex<Bounded<Claim, Arc<Spool>>>,
    readers: Mutex<Bounded<Digest, Progress>>,
    fetching: Flights<(Claim, u64), Result<Option<Bytes>, Failure>>,
    asking: Flights<Claim, Result<Option<Arc<GroupTable>>, Failure>>,
    spooling: Flights<Claim, Result<Option<Whole>, Failure>>,
}

/// How far a reader of a blob got.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The segment that comes next if the reader goes on.
    next: u64,
    /// Segments to have ahead.
    ahead: u64,
    /// The first segment that was not asked for yet.
    fetched: u64,
}

/// A whole blob, bound to its digest.
#[derive(Clone, Debug)]
enum Whole {
    Held(Bytes),
    Spooled(Arc<Spool>),
}

/// A whole blob in a file that has no name and goes with us.
#[derive(Debug)]
struct Spool {
    file: File,
    table: GroupTable,
}

impl<S: Source> Segments<S> {
    pub(super) fn new(source: Arc<S>, cache_bytes: usize, spool_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            source,
            segments: Mutex::new(Bounded::new(cache_bytes)),
            tables: Mutex::new(Bounded::new(cache_bytes / 4)),
            spools: Mutex::new(Bounded::new(spool_bytes)),
            readers: Mutex::new(Bounded::new(READERS)),
            fetching: Flights::default(),
            asking: Flights::default(),
            spooling: Flights::default(),
        })
    }

    /// Fills `buffer` from what is in memory; false if something is lacking.
    pub(super) fn read_now(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> bool {
        let segment = segment_size(size);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let Some(bytes) = self.segments.lock().get(&((*digest, size), at / segment)) else {
                return false;
            };
            let from = (at % segment) as usize;
            let Some(part) = bytes.get(from..).filter(|part| !part.is_empty()) else {
                return false;
            };
            let length = part.len().min(buffer.len() - done);
            buffer[done..done + length].copy_from_slice(&part[..length]);
            done += length;
        }
        self.advance(digest, size, offset, buffer.len() as u64);
        true
    }

    /// `length` bytes at `offset`, which lie within the blob.
    pub(super) async fn read(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: u64,
    ) -> Result<Option<Bytes>, Failure> {
        let segment = segment_size(size);
        let first = offset / segment;
        let last = (offset + length - 1) / segment;
        self.advance(digest, size, offset, length);
        let parts = (first..=last).map(|index| self.segment(*digest, size, index));
        let parts = try_join_all(parts).await?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let skip = (offset - first * segment) as usize;
        let length = length as usize;
        if let [only] = &parts[..] {
            return Ok(Some(only.slice(skip..skip + length)));
        }
        let mut all = BytesMut::with_capacity(length);
        for (index, part) in parts.iter().enumerate() {
            let from = if index == 0 { skip } else { 0 };
            let to = part.len().min(from + length - all.len());
            all.extend_from_slice(&part[from..to]);
        }
        Ok(Some(all.freeze()))
    }

    /// Watches a reader, and fetches ahead of one that goes straight on.
    fn advance(self: &Arc<Self>, digest: &Digest, size: u64, offset: u64, length: u64) {
        let segment = segment_size(size);
        let segments = size.div_ceil(segment);
        if segments < 2 {
            return;
        }
        let first = offset / segment;
        let next = (offset + length).div_ceil(segment);
        let ahead = {
            let mut readers = self.readers.lock();
            let before = readers.get(digest);
            let progress = match before {
                // Still where it was: the same segment, or the one after.
                Some(before) if first + 1 == before.next || first == before.next => Progress {
                    next,
                    ahead: match next > before.next {
                        true => (before.ahead * 2).clamp(1, MAX_AHEAD),
                        false => before.ahead,
                    },
                    fetched: before.fetched.max(next),
                },
                _ => Progress {
                    next,
                    ahead: u64::from(offset == 0),
                    fetched: next,
                },
            };
            let until = (next + progress.ahead).min(segments);
            let ahead = progress.fetched..until;
            let fetched = progress.fetched.max(until);
            readers.insert(
                *digest,
                Progress {
                    fetched,
                    ..progress
                },
                1,
            );
            ahead
        };
        for index in ahead {
            if !self.segments.lock().contains(&((*digest, size), index)) {
                self.depart(*digest, size, index);
            }
        }
    }

    fn depart(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> watch::Receiver<Option<Result<Option<Bytes>, Failure>>> {
        let runtime = self.source.runtime();
        self.fetching.depart(((digest, size), index), runtime, || {
            let blobs = self.clone();
            async move { blobs.fetch(digest, size, index).await }
        })
    }

    async fn segment(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> Result<Option<Bytes>, Failure> {
        if let Some(bytes) = self.segments.lock().get(&((digest, size), index)) {
            return Ok(Some(bytes));
        }
        let mut landing = self.depart(digest, size, index);
        let landed = landing.wait_for(Option::is_some).await;
        let landed = landed.map(|landed| landed.clone()).ok().flatten();
        landed.unwrap_or_else(|| Err(Failure::crashed()))
    }

    async fn fetch(
        self: Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> Result<Option<Bytes>, Failure> {
        let segment = segment_size(size);
        let start = index * segment;
        let length = segment.min(size - start);
        let bytes = if size <= segment {
            match self.whole_in_memory(&digest, size).await? {
                Some((bytes, _)) => bytes,
                None => return Ok(None),
            }
        } else {
            let spool = self.spools.lock().get(&(digest, size));
            let part = match &spool {
                None => self.part(&digest, size, start, length).await?,
                Some(_) => Part::Unavailable,
            };
            match part {
                Part::Found(bytes) => bytes,
                Part::Absent => return Ok(None),
                Part::Unavailable => {
                    let whole = match spool {
                        Some(spool) => Some(Whole::Spooled(spool)),
                        None => self.whole(digest, size).await?,
                    };
                    match whole {
                        Some(Whole::Held(all)) => {
                            all.slice(start as usize..(start + length) as usize)
                        }
                        Some(Whole::Spooled(spool)) => {
                            self.read_spool(&spool, &digest, size, start, length)?
                        }
                        None => return Ok(None),
                    }
                }
            }
        };
        let cost = bytes.len() + 128;
        self.segments
            .lock()
            .insert(((digest, size), index), bytes.clone(), cost);
        Ok(Some(bytes))
    }

    /// A part of a blob, checked against the blob's table.
    async fn part(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Part, Failure> {
        let part = self.source.part(digest, size, start, length);
        let (table, part) = join(self.table(*digest, size), part).await;
        let bytes = match part? {
            Part::Found(bytes) => bytes,
            other => return Ok(other),
        };
        let Some(table) = table? else {
            return Ok(Part::Unavailable);
        };
        self.check(&table, digest, size, start, &bytes)?;
        Ok(Part::Found(bytes))
    }

    fn check(
        &self,
        table: &GroupTable,
        digest: &Digest,
        size: u64,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let expected = segment_size(size).min(size - start);
        if bytes.len() as u64 != expected {
            let damage = Damage::WrongSize {
                expected,
                actual: bytes.len() as u64,
            };
            return Err(self.source.lied(Object::Blob, digest, damage));
        }
        let group = group_size(size);
        for (index, bytes) in bytes.chunks(group as usize).enumerate() {
            let offset = start + index as u64 * group;
            if !table.verify(digest, offset, bytes) {
                let damage = Damage::WrongBytes { offset };
                return Err(self.source.lied(Object::Blob, digest, damage));
            }
        }
        Ok(())
    }

    /// The blob's table, if the server sends one.
    async fn table(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Option<Arc<GroupTable>>, Failure> {
        if let Some(table) = self.tables.lock().get(&(digest, size)) {
            return Ok(Some(table));
        }
        let runtime = self.source.runtime();
        let asked = self.asking.join((digest, size), runtime, || {
            let blobs = self.clone();
            async move { blobs.ask_table(digest, size).await }
        });
        asked.await.unwrap_or_else(|| Err(Failure::crashed()))
    }

    async fn ask_table(
        self: Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Option<Arc<GroupTable>>, Failure> {
        let table = self.source.table(&digest, size).await?;
        Ok(table.map(|table| {
            let bytes = table.as_bytes().len() + 128;
            let table = Arc::new(table);
            self.tables
                .lock()
                .insert((digest, size), table.clone(), bytes);
            table
        }))
    }

    /// The whole blob, held until it is bound to its digest.
    async fn whole(self: &Arc<Self>, digest: Digest, size: u64) -> Result<Option<Whole>, Failure> {
        let runtime = self.source.runtime();
        let fetched = self.spooling.join((digest, size), runtime, || {
            let blobs = self.clone();
            async move {
                if size <= MAX_HELD {
                    let held = blobs.whole_in_memory(&digest, size).await?;
                    if let Some((bytes, _)) = &held {
                        blobs.keep_all(&digest, size, bytes);
                    }
                    return Ok(held.map(|(bytes, _)| Whole::Held(bytes)));
                }
                Ok(blobs.spool(&digest, size).await?.map(Whole::Spooled))
            }
        });
        fetched.await.unwrap_or_else(|| Err(Failure::crashed()))
    }

    fn keep_all(&self, digest: &Digest, size: u64, bytes: &Bytes) {
        let segment = segment_size(size);
        let mut segments = self.segments.lock();
        for (index, start) in (0..size).step_by(segment as usize).enumerate() {
            let part = start as usize..(start + segment).min(size) as usize;
            let cost = part.len() + 128;
            segments.insert(((*digest, size), index as u64), bytes.slice(part), cost);
        }
    }

    async fn whole_in_memory(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<(Bytes, GroupTable)>, Failure> {
        // Room for what was promised, but no more than a source can make us take for a lie.
        let mut all = BytesMut::new();
        let mut only = None;
        let mut came = 0;
        let mut sink = |bytes: Bytes| {
            came += bytes.len() as u64;
            if came > size {
                return Err(self.too_long(digest, size, came));
            }
            if only.is_none() && all.is_empty() {
                only = Some(bytes);
                return Ok(());
            }
            if let Some(first) = only.take() {
                all.reserve(size.min(MAX_HELD) as usize);
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&bytes);
            Ok(())
        };
        if !found(self.source.whole(digest, &mut sink).await)?.unwrap_or(false) {
            return Ok(None);
        }
        let bytes = only.unwrap_or_else(|| all.freeze());
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes);
        let table = self.bind(digest, size, bytes.len() as u64, hasher)?;
        Ok(Some((bytes, table)))
    }

    async fn spool(&self, digest: &Digest, size: u64) -> Result<Option<Arc<Spool>>, Failure> {
        let failed = |error: std::io::Error| Failure::Spool(std::env::temp_dir(), error.kind());
        let mut file = tempfile::tempfile().map_err(failed)?;
        let mut hasher = BlobHasher::new();
        let mut came = 0;
        let mut sink = |bytes: Bytes| {
            came += bytes.len() as u64;
            if came > size {
                return Err(self.too_long(digest, size, came));
            }
            hasher.update(&bytes);
            file.write_all(&bytes).map_err(failed)
        };
        if !found(self.source.whole(digest, &mut sink).await)?.unwrap_or(false) {
            return Ok(None);
        }
        let table = self.bind(digest, size, came, hasher)?;
        let spool = Arc::new(Spool { file, table });
        let cost = usize::try_from(size).unwrap_or(usize::MAX);
        self.spools
            .lock()
            .insert((*digest, size), spool.clone(), cost);
        Ok(Some(spool))
    }

    fn too_long(&self, digest: &Digest, expected: u64, actual: u64) -> Failure {
        let damage = Damage::WrongSize { expected, actual };
        self.source.lied(Object::Blob, digest, damage)
    }

    fn read_spool(
        &self,
        spool: &Spool,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Bytes, Failure> {
        let mut bytes = vec![0; length as usize];
        spool
            .file
            .read_exact_at(&mut bytes, start)
            .map_err(|error| Failure::Spool(std::env::temp_dir(), error.kind()))?;
        self.check(&spool.table, digest, size, start, &bytes)?;
        Ok(bytes.into())
    }

    /// Checks what was hashed against what was promised.
    fn bind(
        &self,
        digest: &Digest,
        expected: u64,
        actual: u64,
        hasher: BlobHasher,
    ) -> Result<GroupTable, Failure> {
        if actual != expected {
            let damage = Damage::WrongSize { expected, actual };
            return Err(self.source.lied(Object::Blob, digest, damage));
        }
        let (hashed, table) = hasher.finish();
        if hashed != *digest {
            let damage = Damage::WrongBytes { offset: 0 };
            return Err(self.source.lied(Object::Blob, digest, damage));
        }
        Ok(table)
    }

    /// The blob's table; from a source that has none, by reading the blob.
    pub(super) async fn group_table(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<GroupTable>, Failure> {
        if let Some(table) = self.table(*digest, size).await? {
            return Ok(Some(GroupTable::clone(&table)));
        }
        if let Some(spool) = self.spools.lock().get(&(*digest, size)) {
            return Ok(Some(spool.table.clone()));
        }
        if size > MAX_HELD {
            let spool = self.spool(digest, size).await?;
            return Ok(spool.map(|spool| spool.table.clone()));
        }
        let held = self.whole_in_memory(digest, size).await?;
        Ok(held.map(|(_, table)| table))
    }
}

/// Checks that the empty blob, and it alone, is said to be empty.
pub(super) fn check_empty(digest: &Digest, size: u64) -> Result<(), Failure> {
    let damage = match (*digest == Digest::empty_blob(), size) {
        (true, 0) => return Ok(()),
        (true, expected) => Damage::WrongSize {
            expected,
            actual: 0,
        },
        (false, 0) => Damage::WrongBytes { offset: 0 },
        (false, _) => return Ok(()),
    };
    Err(Failure::Damaged(Object::Blob, *digest, damage))
}
