//! Blobs of upstreams: fetched by segment, verified, cached in memory.
//!
//! **Problem.** A blob may have terabytes, and a reader wants some of its bytes after one round
//! trip, verified against the blob's digest. Upstreams differ in what they offer for that.
//!
//! **Mechanism.** A blob is cut into aligned **segments** ([`part_size`]), the unit of fetching and
//! caching. How a segment is fetched and verified depends on its [`Source`]:
//!
//! - A blob of one segment comes whole, and is hashed: one round trip. If many will be needed soon
//!   ([`Segments::will_need`]), they come together ([`ahead`]).
//! - If the source proves parts, the segment and its proof come in one answer: the first byte of
//!   any blob takes one round trip.
//! - If it has a group table, each group is checked against the table, and the table against the
//!   digest.
//! - If it has only a list of chunks, or not even that, only the whole blob can be verified:
//!   nothing binds the list to the digest. [`Verify`] decides. The default fetches the whole blob
//!   once and **holds** it until it is hashed ([`held`]): small ones in memory, large ones in a
//!   file without a name in the temporary directory. The other returns bytes that match their
//!   chunk's digest, and compares with the blob's digest once it has seen all of it ([`witness`]).
//!
//! **Invariants.** Unverified bytes are returned only with `verify=chunks`. An object that several
//! readers need is fetched once ([`flights`](super::flights)). A sequential reader gets segments
//! ahead of time ([`readers`]).

mod ahead;
mod held;
mod readers;
mod source;
mod witness;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Code;

use self::held::Whole;
use self::readers::Readers;
pub(super) use self::source::{Claim, Many, Part, Sink, Source};
use self::witness::Witnesses;
use super::bounded::Bounded;
use super::failure::Failure;
use super::flights::Flights;
use super::in_flight::InFlight;
use super::{Damage, Object};
use crate::castore::{Digest, GroupTable, group_size, part_size, verify_part};

/// The verification that bytes need before they are returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verify {
    /// They must belong to the blob's digest.
    #[default]
    Root,
    /// They must match the digest of a chunk in the source's list. The list may be wrong: then
    /// wrong bytes are returned until that is detected, and none after.
    Chunks,
}

impl Verify {
    /// Reads the value of the parameter `verify`.
    pub(super) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "root" => Ok(Verify::Root),
            "chunks" => Ok(Verify::Chunks),
            _ => Err("verify: write root or chunks".to_owned()),
        }
    }
}

/// The bytes of a part, after all checks.
enum Known {
    Found(Bytes),
    Absent,
    /// It cannot be checked by itself.
    OnlyWhole,
}

/// The blobs of a [`Source`].
#[derive(Debug)]
pub(super) struct Segments<S> {
    source: Arc<S>,
    verify: Verify,
    segments: Mutex<Bounded<(Claim, u64), Bytes>>,
    tables: Mutex<Bounded<Claim, Arc<GroupTable>>>,
    spools: Mutex<Bounded<Claim, Arc<held::Spool>>>,
    /// The memory in use, including fetches in flight.
    space: held::SpoolSpace,
    witnesses: Witnesses,
    in_flight: InFlight,
    /// Permits for blobs that are prefetched one by one.
    alone: tokio::sync::Semaphore,
    readers: Readers,
    fetching: Flights<(Claim, u64), Result<Option<Bytes>, Failure>>,
    asking: Flights<Claim, Result<Option<Arc<GroupTable>>, Failure>>,
    spooling: Flights<Claim, Result<Option<Whole>, Failure>>,
}

impl<S: Source> Segments<S> {
    /// With limits in bytes for memory and for the temporary directory.
    pub(super) fn new(
        source: Arc<S>,
        verify: Verify,
        cache_bytes: usize,
        spool_bytes: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            verify,
            segments: Mutex::new(Bounded::new(cache_bytes)),
            tables: Mutex::new(Bounded::new(cache_bytes / 4)),
            spools: Mutex::new(Bounded::new(spool_bytes)),
            space: held::SpoolSpace::new(spool_bytes as u64),
            witnesses: Witnesses::new(),
            in_flight: InFlight::new(),
            alone: Self::turns(),
            readers: Readers::new(),
            fetching: Flights::default(),
            asking: Flights::default(),
            spooling: Flights::default(),
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
        if self.witnesses.is_quarantined(digest) {
            return false;
        }
        let segment = part_size(size);
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
        if self.witnesses.is_quarantined(digest) {
            return Err(Failure::Damaged(Object::Blob, *digest, Damage::Quarantined));
        }
        let segment = part_size(size);
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

    /// Watches a reader, and fetches ahead of a sequential one.
    fn advance(self: &Arc<Self>, digest: &Digest, size: u64, offset: u64, length: u64) {
        let ahead = self.readers.advance(digest, size, offset, length);
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
        if self.witnesses.is_quarantined(&digest) {
            return Err(Failure::Damaged(Object::Blob, digest, Damage::Quarantined));
        }
        // The fetch before this one may have completed after the reader's check.
        if let Some(bytes) = self.segments.lock().get(&((digest, size), index)) {
            return Ok(Some(bytes));
        }
        let segment = part_size(size);
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
                Some(_) => Known::OnlyWhole,
            };
            match part {
                Known::Found(bytes) => bytes,
                Known::Absent => return Ok(None),
                Known::OnlyWhole => {
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
        self.keep(&digest, size, index, &bytes);
        Ok(Some(bytes))
    }

    fn keep(&self, digest: &Digest, size: u64, index: u64, bytes: &Bytes) {
        let cost = bytes.len() + 128;
        let key = ((*digest, size), index);
        self.segments.lock().insert(key, bytes.clone(), cost);
    }

    /// A part of a blob, bound to the blob's digest, or accepted by [`Verify`].
    async fn part(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Known, Failure> {
        // A source with a wrong response before is not trusted to have right chunk lists.
        let chunks_suffice = self.verify == Verify::Chunks && !self.source.is_liar();
        let part = {
            let _permit = self.in_flight.begin(length).await;
            let source = &self.source;
            source
                .part(digest, size, start, length, chunks_suffice)
                .await?
        };
        let bytes = match part {
            Part::Absent => return Ok(Known::Absent),
            Part::Unavailable => return Ok(Known::OnlyWhole),
            Part::Proven(bytes, proof) => {
                if bytes.len() as u64 != length {
                    return Err(self.wrong_size(digest, length, bytes.len() as u64));
                }
                if !verify_part(digest, size, start, &bytes, &proof) {
                    return Err(self.wrong_bytes(digest, start));
                }
                return Ok(Known::Found(bytes));
            }
            Part::Chunks(bytes) => bytes,
        };
        if let Some(table) = self.table(*digest, size).await? {
            self.check(&table, digest, size, start, &bytes)?;
            return Ok(Known::Found(bytes));
        }
        if !chunks_suffice {
            return Ok(Known::OnlyWhole);
        }
        if bytes.len() as u64 != length {
            return Err(self.wrong_size(digest, length, bytes.len() as u64));
        }
        match self.witnesses.saw(digest, size, start, &bytes) {
            true => Ok(Known::Found(bytes)),
            false => Err(self.wrong_bytes(digest, start)),
        }
    }

    fn wrong_size(&self, digest: &Digest, expected: u64, actual: u64) -> Failure {
        let damage = Damage::WrongSize { expected, actual };
        self.source.lied(Object::Blob, digest, damage)
    }

    fn wrong_bytes(&self, digest: &Digest, offset: u64) -> Failure {
        let damage = Damage::WrongBytes { offset };
        self.source.lied(Object::Blob, digest, damage)
    }

    /// Checks a part group by group.
    fn check(
        &self,
        table: &GroupTable,
        digest: &Digest,
        size: u64,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let length = part_size(size).min(size - start);
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

    /// The blob's table; without one in the source, computed by reading the blob.
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
        if size > held::MAX_HELD {
            let spool = self.spool(digest, size).await?;
            return Ok(spool.map(|spool| spool.table.clone()));
        }
        let held = self.whole_in_memory(digest, size).await?;
        Ok(held.map(|(_, table)| table))
    }
}

/// The largest blob that is read from an upstream, in bytes. The unit of fetching grows with the
/// size in the node: up to here it is 64 MiB at most.
pub(super) const LARGEST_BLOB: u64 = 4 << 40;

/// Checks that the size is 0 for the empty blob and for no other, and at most [`LARGEST_BLOB`].
pub(super) fn check_claim(digest: &Digest, size: u64) -> Result<(), Failure> {
    if size > LARGEST_BLOB {
        let why = format!(
            "blob {digest} has a stated size of {size} bytes, and the limit is {LARGEST_BLOB}"
        );
        return Err(Failure::Status(Code::ResourceExhausted, why));
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
    Err(Failure::Damaged(Object::Blob, *digest, damage))
}
