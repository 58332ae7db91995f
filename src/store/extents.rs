//! Blobs of upstreams: fetched by extent, verified, cached in memory.
//!
//! **Problem.** A blob may have terabytes, and a reader wants some of its bytes after one round
//! trip, verified against the blob's digest. Upstreams differ in what they offer for that.
//!
//! **Mechanism.** A blob is cut into aligned **extents** ([`extent_size`]), the unit of fetching and
//! caching. How an extent is fetched and verified depends on its [`BlobSource`]:
//!
//! - A blob of one extent comes whole, and is hashed: one round trip. If many will be needed soon
//!   ([`Extents::will_need`]), they come together ([`ahead`]).
//! - If the source proves parts, the extent and its proof come in one answer: the first byte of
//!   any blob takes one round trip.
//! - If it has a group table, each group is checked against the table, and the table against the
//!   digest.
//! - If it has only a list of chunks, or not even that, only the whole blob can be verified:
//!   nothing binds the list to the digest. [`ChunkVerification`] decides. The default fetches the whole blob
//!   once and **holds** it until it is hashed ([`download_buffer`]): small ones in memory, large ones in a
//!   file without a name in the temporary directory. The other returns bytes that match their
//!   chunk's digest, and compares with the blob's digest once it has seen all of it ([`integrity`]).
//!
//! **Invariants.** Unverified bytes are returned only with `verify=chunks`. An object that several
//! readers need is fetched once ([`single_flight`](super::single_flight)). A sequential reader gets extents
//! ahead of time ([`readers`]).

mod ahead;
mod download_buffer;
mod integrity;
mod readers;
mod source;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::download_buffer::WholeBlob;
use self::integrity::IntegrityTrackers;
use self::readers::Readers;
pub(super) use self::source::{BlobClaim, BlobSink, BlobSource, ExtentAnswer, SmallBlobSink};
use super::bounded::Bounded;
use super::concurrency::ConcurrencyLimit;
use super::failure::{CallFailure, FailureKind};
use super::in_flight::InFlight;
use super::single_flight::SingleFlight;
use super::{Damage, Object};
use crate::castore::{Digest, GroupTable, extent_size, group_size, verify_extent};

/// The verification that bytes need before they are returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ChunkVerification {
    /// They must belong to the blob's digest.
    #[default]
    Root,
    /// They must match the digest of a chunk in the source's list. The list may be wrong: then
    /// wrong bytes are returned until that is detected, and none after.
    Chunks,
}

impl ChunkVerification {
    /// Reads the value of the parameter `verify`.
    pub(super) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "root" => Ok(ChunkVerification::Root),
            "chunks" => Ok(ChunkVerification::Chunks),
            _ => Err("verify: write root or chunks".to_owned()),
        }
    }
}

/// The bytes of a part, after all checks.
enum VerifiedBytes {
    Found(Bytes),
    Absent,
    /// It cannot be checked by itself.
    OnlyWhole,
}

/// `bytes` in an allocation of their own. A slice holds all of the message or blob that it was cut
/// from, up to 8 MiB, and the bounds of the caches count only its length.
fn of_its_own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// The blobs of a [`BlobSource`].
#[derive(Debug)]
pub(super) struct Extents<S> {
    source: Arc<S>,
    verify: ChunkVerification,
    extents: Mutex<Bounded<(BlobClaim, u64), Bytes>>,
    tables: Mutex<Bounded<BlobClaim, Arc<GroupTable>>>,
    download_buffers: Mutex<Bounded<BlobClaim, Arc<download_buffer::DownloadBuffer>>>,
    /// The memory in use, including fetches in flight.
    space: download_buffer::DownloadBufferSpace,
    integrity_trackers: IntegrityTrackers,
    in_flight: InFlight,
    /// Of blobs that are prefetched one by one.
    alone: ConcurrencyLimit,
    readers: Readers,
    fetching: SingleFlight<(BlobClaim, u64), Result<Option<Bytes>, CallFailure>>,
    asking: SingleFlight<BlobClaim, Result<Option<Arc<GroupTable>>, CallFailure>>,
    buffering: SingleFlight<BlobClaim, Result<Option<WholeBlob>, CallFailure>>,
}

impl<S: BlobSource> Extents<S> {
    /// With limits in bytes for memory and for the temporary directory.
    pub(super) fn new(
        source: Arc<S>,
        verify: ChunkVerification,
        cache_bytes: usize,
        download_buffer_bytes: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            verify,
            extents: Mutex::new(Bounded::new(cache_bytes)),
            tables: Mutex::new(Bounded::new(cache_bytes / 4)),
            download_buffers: Mutex::new(Bounded::new(download_buffer_bytes)),
            space: download_buffer::DownloadBufferSpace::new(download_buffer_bytes as u64),
            integrity_trackers: IntegrityTrackers::new(),
            in_flight: InFlight::new(),
            alone: ConcurrencyLimit::new(),
            readers: Readers::new(),
            fetching: SingleFlight::default(),
            asking: SingleFlight::default(),
            buffering: SingleFlight::default(),
        })
    }

    /// Fills `buffer` from memory; returns false if something is missing.
    pub(super) fn read_now(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> bool {
        if self.integrity_trackers.is_quarantined(digest) {
            return false;
        }
        let extent = extent_size(size);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let Some(bytes) = self.extents.lock().get(&((*digest, size), at / extent)) else {
                return false;
            };
            let from = (at % extent) as usize;
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
    ) -> Result<Option<Bytes>, CallFailure> {
        if self.integrity_trackers.is_quarantined(digest) {
            return Err(CallFailure::Damaged(
                Object::Blob,
                *digest,
                Damage::Quarantined,
            ));
        }
        let extent = extent_size(size);
        let first = offset / extent;
        let last = (offset + length - 1) / extent;
        self.advance(digest, size, offset, length);
        let parts = (first..=last).map(|index| self.extent(*digest, size, index));
        let parts = try_join_all(parts).await?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let skip = (offset - first * extent) as usize;
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

    /// Watches a reader, and fetches ahead of a sequential one.
    fn advance(self: &Arc<Self>, digest: &Digest, size: u64, offset: u64, length: u64) {
        let ahead = self.readers.advance(digest, size, offset, length);
        for index in ahead {
            if !self.extents.lock().contains(&((*digest, size), index)) {
                self.start_fetch(*digest, size, index);
            }
        }
    }

    fn start_fetch(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> watch::Receiver<Option<Result<Option<Bytes>, CallFailure>>> {
        let runtime = self.source.runtime();
        self.fetching
            .start_fetch(((digest, size), index), runtime, || {
                let blobs = self.clone();
                async move { blobs.fetch(digest, size, index).await }
            })
    }

    async fn extent(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> Result<Option<Bytes>, CallFailure> {
        if let Some(bytes) = self.extents.lock().get(&((digest, size), index)) {
            return Ok(Some(bytes));
        }
        let mut result = self.start_fetch(digest, size, index);
        let received = result.wait_for(Option::is_some).await;
        let received = received.map(|received| received.clone()).ok().flatten();
        received.unwrap_or_else(|| Err(CallFailure::crashed()))
    }

    async fn fetch(
        self: Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> Result<Option<Bytes>, CallFailure> {
        if self.integrity_trackers.is_quarantined(&digest) {
            return Err(CallFailure::Damaged(
                Object::Blob,
                digest,
                Damage::Quarantined,
            ));
        }
        // The fetch before this one may have completed after the reader's check.
        if let Some(bytes) = self.extents.lock().get(&((digest, size), index)) {
            return Ok(Some(bytes));
        }
        let extent = extent_size(size);
        let start = index * extent;
        let length = extent.min(size - start);
        let bytes = if size <= extent {
            match self.whole_in_memory(&digest, size).await? {
                Some((bytes, _)) => bytes,
                None => return Ok(None),
            }
        } else {
            let download_buffer = self.download_buffers.lock().get(&(digest, size));
            let part = match &download_buffer {
                None => self.part(&digest, size, start, length).await?,
                Some(_) => VerifiedBytes::OnlyWhole,
            };
            match part {
                VerifiedBytes::Found(bytes) => bytes,
                VerifiedBytes::Absent => return Ok(None),
                VerifiedBytes::OnlyWhole => {
                    let whole = match download_buffer {
                        Some(download_buffer) => Some(WholeBlob::Buffered(download_buffer)),
                        None => self.whole(digest, size).await?,
                    };
                    match whole {
                        Some(WholeBlob::InMemory(all)) => {
                            all.slice(start as usize..(start + length) as usize)
                        }
                        Some(WholeBlob::Buffered(download_buffer)) => self.read_download_buffer(
                            &download_buffer,
                            &digest,
                            size,
                            start,
                            length,
                        )?,
                        None => return Ok(None),
                    }
                }
            }
        };
        let bytes = of_its_own(&bytes);
        self.keep(&digest, size, index, &bytes);
        Ok(Some(bytes))
    }

    fn keep(&self, digest: &Digest, size: u64, index: u64, bytes: &Bytes) {
        let cost = bytes.len() + 128;
        let key = ((*digest, size), index);
        self.extents.lock().insert(key, bytes.clone(), cost);
    }

    /// Frees the extents that begin in the `length` bytes at `offset`.
    pub(super) fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        let extent = extent_size(size);
        let mut extents = self.extents.lock();
        for index in offset.div_ceil(extent)..(offset + length).div_ceil(extent) {
            extents.remove(&((*digest, size), index));
        }
    }

    /// A part of a blob, bound to the blob's digest, or accepted by [`ChunkVerification`].
    async fn part(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<VerifiedBytes, CallFailure> {
        // A source with a wrong response before is not trusted to have right chunk lists.
        let chunks_suffice =
            self.verify == ChunkVerification::Chunks && !self.source.has_sent_corrupt();
        let part = {
            let _permit = self.in_flight.begin(length).await;
            let source = &self.source;
            source
                .part(digest, size, start, length, chunks_suffice)
                .await?
        };
        let bytes = match part {
            ExtentAnswer::Absent => return Ok(VerifiedBytes::Absent),
            ExtentAnswer::Unavailable => return Ok(VerifiedBytes::OnlyWhole),
            ExtentAnswer::Proven(bytes, proof) => {
                if bytes.len() as u64 != length {
                    return Err(self.wrong_size(digest, length, bytes.len() as u64));
                }
                if !verify_extent(digest, size, start, &bytes, &proof) {
                    return Err(self.wrong_bytes(digest, start));
                }
                return Ok(VerifiedBytes::Found(bytes));
            }
            ExtentAnswer::Chunks(bytes) => bytes,
        };
        if let Some(table) = self.table(*digest, size).await? {
            self.check(&table, digest, size, start, &bytes)?;
            return Ok(VerifiedBytes::Found(bytes));
        }
        if !chunks_suffice {
            return Ok(VerifiedBytes::OnlyWhole);
        }
        if bytes.len() as u64 != length {
            return Err(self.wrong_size(digest, length, bytes.len() as u64));
        }
        match self.integrity_trackers.saw(digest, size, start, &bytes) {
            true => Ok(VerifiedBytes::Found(bytes)),
            false => Err(self.wrong_bytes(digest, start)),
        }
    }

    fn wrong_size(&self, digest: &Digest, expected: u64, actual: u64) -> CallFailure {
        let damage = Damage::WrongSize { expected, actual };
        self.source.sent_corrupt(Object::Blob, digest, damage)
    }

    fn wrong_bytes(&self, digest: &Digest, offset: u64) -> CallFailure {
        let damage = Damage::WrongBytes { offset };
        self.source.sent_corrupt(Object::Blob, digest, damage)
    }

    /// Checks a part group by group.
    fn check(
        &self,
        table: &GroupTable,
        digest: &Digest,
        size: u64,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), CallFailure> {
        let length = extent_size(size).min(size - start);
        if bytes.len() as u64 != length {
            return Err(self.wrong_size(digest, length, bytes.len() as u64));
        }
        let group = group_size(size);
        for (index, bytes) in bytes.chunks(group as usize).enumerate() {
            let offset = start + index as u64 * group;
            if !table.verify(digest, offset, bytes) {
                return Err(self.wrong_bytes(digest, offset));
            }
        }
        Ok(())
    }

    /// The blob's table, if the server sends one.
    async fn table(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Option<Arc<GroupTable>>, CallFailure> {
        if let Some(table) = self.tables.lock().get(&(digest, size)) {
            return Ok(Some(table));
        }
        let runtime = self.source.runtime();
        let asked = self.asking.join((digest, size), runtime, || {
            let blobs = self.clone();
            async move { blobs.ask_table(digest, size).await }
        });
        asked.await.unwrap_or_else(|| Err(CallFailure::crashed()))
    }

    async fn ask_table(
        self: Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Option<Arc<GroupTable>>, CallFailure> {
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

    /// The blob's table; without one in the source, computed by reading the blob.
    pub(super) async fn group_table(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<GroupTable>, CallFailure> {
        if let Some(table) = self.table(*digest, size).await? {
            return Ok(Some(GroupTable::clone(&table)));
        }
        if let Some(download_buffer) = self.download_buffers.lock().get(&(*digest, size)) {
            return Ok(Some(download_buffer.table.clone()));
        }
        if size > download_buffer::MAX_BUFFERED {
            let download_buffer = self.download_buffer(digest, size).await?;
            return Ok(download_buffer.map(|download_buffer| download_buffer.table.clone()));
        }
        let download_buffer = self.whole_in_memory(digest, size).await?;
        Ok(download_buffer.map(|(_, table)| table))
    }
}

/// The largest blob that is read from an upstream, in bytes. The unit of fetching grows with the
/// size in the node: up to here it is 64 MiB at most.
pub(super) const LARGEST_BLOB: u64 = 4 << 40;

/// Checks that the size is 0 for the empty blob and for no other, and at most [`LARGEST_BLOB`].
pub(super) fn check_claim(digest: &Digest, size: u64) -> Result<(), CallFailure> {
    if size > LARGEST_BLOB {
        let why = format!(
            "blob {digest} has a stated size of {size} bytes, and the limit is {LARGEST_BLOB}"
        );
        return Err(CallFailure::Failed(FailureKind::Exhausted, why));
    }
    let damage = match (*digest == Digest::empty_blob(), size) {
        (true, 0) => return Ok(()),
        (true, expected) => Damage::WrongSize {
            expected,
            actual: 0,
        },
        (false, 0) => Damage::WrongBytes { offset: 0 },
        (false, _) => return Ok(()),
    };
    Err(CallFailure::Damaged(Object::Blob, *digest, damage))
}
