//! Blobs from a server: by segment, verified, kept in memory.
//!
//! A blob is cut into aligned **segments** ([`segment_size`]), the unit of fetching and caching.
//! How a segment comes, and is bound to the blob's digest:
//!
//! - A blob of one segment comes whole, and is hashed: one round trip.
//! - From a server that sends group tables and parts of blobs (ours does): the table and the
//!   segment are asked for at once, so the first byte of any blob takes one round trip. Each
//!   group is checked against the table, and the table against the digest.
//! - From any other server only the whole blob can be bound to its digest. It is fetched once, and
//!   **held** until it was hashed: small ones in memory, large ones in a file without a name in the
//!   temporary folder ([`Spool`]). A chunk list would give verified chunks sooner, but nothing
//!   binds that list to the digest.
//!
//! A reader that goes through a blob from front to back gets segments ahead of time, twice as many
//! at each step up to [`MAX_AHEAD`].

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::future::{join, try_join_all};
use parking_lot::Mutex;
use tonic::Code;

use super::endpoint::{Endpoint, Failure, Rest, found};
use crate::castore::bao_field::{self, BaoFieldError};
use crate::castore::{BlobHasher, Digest, GroupTable, group_size};
use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::castore::services::blob_service_client::BlobServiceClient;
use crate::proto::castore::v1::{BlobChunk, ReadBlobRequest, StatBlobRequest, StatBlobResponse};
use crate::proto::castore_fs::services::part_service_client::PartServiceClient;
use crate::proto::castore_fs::v1::{MissingRequest, ReadPartRequest};
use crate::store::bounded::Bounded;
use crate::store::flights::Flights;
use crate::store::{Damage, Object};

/// The smallest segment, in bytes: what a random read of a few bytes costs, against what a message
/// and its bookkeeping cost (some 50 µs, in which a 10 Gbit/s link moves 64 KiB).
const SEGMENT: u64 = 256 << 10;
/// Segments fetched ahead of a sequential reader: 8 MiB, a 10 Gbit/s link's 7 ms.
const MAX_AHEAD: u64 = 32;
/// Blobs up to this many bytes are held in memory until they are bound to their digest.
const MAX_HELD: u64 = 8 << 20;
/// Readers whose progress is watched.
const READERS: usize = 4096;
/// Digests in one question.
const MAX_QUESTIONS: usize = 4096;

/// Bytes of a segment of a blob of `size` bytes: a multiple of its group size.
fn segment_size(size: u64) -> u64 {
    SEGMENT.max(group_size(size))
}

/// The blobs of a server.
#[derive(Debug)]
pub(super) struct Blobs {
    endpoint: Arc<Endpoint>,
    segments: Mutex<Bounded<(Digest, u64), Bytes>>,
    tables: Mutex<Bounded<Digest, Arc<GroupTable>>>,
    spools: Mutex<Bounded<Digest, Arc<Spool>>>,
    readers: Mutex<Bounded<Digest, Progress>>,
    fetching: Flights<(Digest, u64), Result<Option<Bytes>, Failure>>,
    asking: Flights<Digest, Result<Option<Arc<GroupTable>>, Failure>>,
    spooling: Flights<Digest, Result<Option<Whole>, Failure>>,
    /// The server has no parts of blobs, or no tables: whole blobs then.
    whole_only: AtomicBool,
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

impl Blobs {
    pub(super) fn new(endpoint: Arc<Endpoint>, cache_bytes: usize, spool_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            segments: Mutex::new(Bounded::new(cache_bytes)),
            tables: Mutex::new(Bounded::new(cache_bytes / 4)),
            spools: Mutex::new(Bounded::new(spool_bytes)),
            readers: Mutex::new(Bounded::new(READERS)),
            fetching: Flights::default(),
            asking: Flights::default(),
            spooling: Flights::default(),
            whole_only: AtomicBool::new(false),
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
            let Some(bytes) = self.segments.lock().get(&(*digest, at / segment)) else {
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
            readers.insert(*digest, Progress { fetched, ..progress }, 1);
            ahead
        };
        for index in ahead {
            if !self.segments.lock().contains(&(*digest, index)) {
                self.depart(*digest, size, index);
            }
        }
    }

    fn depart(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> tokio::sync::watch::Receiver<Option<Result<Option<Bytes>, Failure>>> {
        let runtime = &self.endpoint.runtime;
        self.fetching.depart((digest, index), runtime, || {
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
        if let Some(bytes) = self.segments.lock().get(&(digest, index)) {
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
            let spool = self.spools.lock().get(&digest);
            let part = match &spool {
                None if !self.whole_only.load(Ordering::Relaxed) => {
                    self.part(&digest, size, start, length).await?
                }
                _ => Part::Unavailable,
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
                            self.from_spool(&spool, &digest, size, start, length)?
                        }
                        None => return Ok(None),
                    }
                }
            }
        };
        let cost = bytes.len() + 128;
        self.segments.lock().insert((digest, index), bytes.clone(), cost);
        Ok(Some(bytes))
    }

    /// A part of a blob by way of PartService, checked against the blob's table.
    async fn part(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Part, Failure> {
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        let bytes = async {
            let answer = self.endpoint.stream(|connection| {
                let request = ReadPartRequest {
                    digest: asked.clone(),
                    size,
                    offset: start,
                    length,
                };
                async move { part_client(connection).read(request).await }
            });
            collect(answer.await?, length).await
        };
        let (table, bytes) = join(self.table(*digest, size), bytes).await;
        let bytes = match bytes {
            Err(failure) if failure.is(Code::Unimplemented) => {
                self.whole_only.store(true, Ordering::Relaxed);
                return Ok(Part::Unavailable);
            }
            answer => found(answer)?,
        };
        let (Some(bytes), Some(table)) = (bytes, table?) else {
            // Without a table, nothing says whether the blob is absent or just its table.
            return Ok(match self.stat(digest, false).await? {
                Some(_) => Part::Unavailable,
                None => Part::Absent,
            });
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
            return Err(self.endpoint.lied(Object::Blob, digest, damage));
        }
        let group = group_size(size);
        for (index, bytes) in bytes.chunks(group as usize).enumerate() {
            let offset = start + index as u64 * group;
            if !table.verify(digest, offset, bytes) {
                let damage = Damage::WrongBytes { offset };
                return Err(self.endpoint.lied(Object::Blob, digest, damage));
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
        if let Some(table) = self.tables.lock().get(&digest) {
            return Ok(Some(table));
        }
        let runtime = &self.endpoint.runtime;
        let asked = self.asking.join(digest, runtime, || {
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
        let Some(answer) = self.stat(&digest, true).await? else {
            return Ok(None);
        };
        let table = bao_field::decode(&answer.bao, &digest, size).map_err(|error| {
            let damage = match error {
                BaoFieldError::Size { expected, actual } => Damage::WrongSize { expected, actual },
                BaoFieldError::Groups(error) => Damage::Groups(error),
            };
            self.endpoint.lied(Object::Blob, &digest, damage)
        })?;
        Ok(table.map(|table| {
            let bytes = table.as_bytes().len() + 128;
            let table = Arc::new(table);
            self.tables.lock().insert(digest, table.clone(), bytes);
            table
        }))
    }

    /// The whole blob, held until it is bound to its digest.
    async fn whole(self: &Arc<Self>, digest: Digest, size: u64) -> Result<Option<Whole>, Failure> {
        let runtime = &self.endpoint.runtime;
        let fetched = self.spooling.join(digest, runtime, || {
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
            segments.insert((*digest, index as u64), bytes.slice(part), cost);
        }
    }

    async fn whole_in_memory(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<(Bytes, GroupTable)>, Failure> {
        let Some(stream) = found(self.read_whole(digest).await)? else {
            return Ok(None);
        };
        let Some(bytes) = found(collect(stream, size).await)? else {
            return Ok(None);
        };
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes);
        let table = self.bind(digest, size, bytes.len() as u64, hasher)?;
        Ok(Some((bytes, table)))
    }

    async fn spool(&self, digest: &Digest, size: u64) -> Result<Option<Arc<Spool>>, Failure> {
        let Some(stream) = found(self.read_whole(digest).await)? else {
            return Ok(None);
        };
        let failed = |error: std::io::Error| Failure::Spool(std::env::temp_dir(), error.kind());
        let mut file = tempfile::tempfile().map_err(failed)?;
        let mut hasher = BlobHasher::new();
        let mut came = 0;
        let mut next = stream;
        while let Some((chunk, mut rest)) = next {
            came += chunk.data.len() as u64;
            if came > size {
                break;
            }
            hasher.update(&chunk.data);
            file.write_all(&chunk.data).map_err(failed)?;
            next = rest.next().await?.map(|chunk| (chunk, rest));
        }
        let table = self.bind(digest, size, came, hasher)?;
        let spool = Arc::new(Spool { file, table });
        self.spools.lock().insert(*digest, spool.clone(), size as usize);
        Ok(Some(spool))
    }

    fn from_spool(
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
            return Err(self.endpoint.lied(Object::Blob, digest, damage));
        }
        let (hashed, table) = hasher.finish();
        if hashed != *digest {
            let damage = Damage::WrongBytes { offset: 0 };
            return Err(self.endpoint.lied(Object::Blob, digest, damage));
        }
        Ok(table)
    }

    async fn read_whole(
        &self,
        digest: &Digest,
    ) -> Result<Option<(BlobChunk, Rest<BlobChunk>)>, Failure> {
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        self.endpoint
            .stream(|connection| {
                let digest = asked.clone();
                async move { client(connection).read(ReadBlobRequest { digest }).await }
            })
            .await
    }

    async fn stat(&self, digest: &Digest, bao: bool) -> Result<Option<StatBlobResponse>, Failure> {
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        let answer = self.endpoint.call(|connection| {
            let request = StatBlobRequest {
                digest: asked.clone(),
                send_chunks: false,
                send_bao: bao,
            };
            async move { Ok(client(connection).stat(request).await?.into_inner()) }
        });
        found(answer.await)
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, Failure> {
        Ok(self.stat(digest, false).await?.is_some())
    }

    /// Which of `digests` the server does not have, by index.
    pub(super) async fn missing(&self, digests: &[Digest]) -> Result<Vec<usize>, Failure> {
        let mut missing = Vec::new();
        for (chunk, digests) in digests.chunks(MAX_QUESTIONS).enumerate() {
            let asked: Vec<_> = digests
                .iter()
                .map(|digest| Bytes::copy_from_slice(digest.as_bytes()))
                .collect();
            let answer = self.endpoint.call(|connection| {
                let digests = asked.clone();
                async move {
                    let mut client = part_client(connection);
                    Ok(client.missing(MissingRequest { digests }).await?.into_inner())
                }
            });
            let base = chunk * MAX_QUESTIONS;
            missing.extend(answer.await?.missing.into_iter().map(|at| base + at as usize));
        }
        Ok(missing)
    }

    /// The blob's size; from a server that does not say, by reading it.
    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>, Failure> {
        let Some(answer) = self.stat(digest, true).await? else {
            return Ok(None);
        };
        if let Some(size) = bao_field::size(&answer.bao) {
            return Ok(Some(size));
        }
        let sizes = answer.chunks.iter().map(|chunk| chunk.size);
        if let Some(size) = sizes.reduce(u64::saturating_add) {
            return Ok(Some(size));
        }
        let mut size = 0;
        let mut next = self.read_whole(digest).await?;
        while let Some((chunk, mut rest)) = next {
            size += chunk.data.len() as u64;
            next = rest.next().await?.map(|chunk| (chunk, rest));
        }
        Ok(Some(size))
    }

    /// The blob's table; from a server that sends none, by reading the blob.
    pub(super) async fn group_table(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<GroupTable>, Failure> {
        if let Some(table) = self.table(*digest, size).await? {
            return Ok(Some(GroupTable::clone(&table)));
        }
        if let Some(spool) = self.spools.lock().get(digest) {
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

/// What a question for a part of a blob came to.
enum Part {
    Found(Bytes),
    Absent,
    /// The server does not do this, or not for this blob.
    Unavailable,
}

/// All of a stream that should be `expected` bytes long; gives up soon after it is longer.
async fn collect(
    stream: Option<(BlobChunk, Rest<BlobChunk>)>,
    expected: u64,
) -> Result<Bytes, Failure> {
    let Some((first, mut rest)) = stream else {
        return Ok(Bytes::new());
    };
    let Some(second) = rest.next().await? else {
        return Ok(first.data);
    };
    // Room for what was promised, but no more than a server can make us take for a lie.
    let mut all = BytesMut::with_capacity(expected.min(MAX_HELD) as usize);
    all.extend_from_slice(&first.data);
    all.extend_from_slice(&second.data);
    while all.len() as u64 <= expected
        && let Some(next) = rest.next().await?
    {
        all.extend_from_slice(&next.data);
    }
    Ok(all.freeze())
}

fn client(connection: super::endpoint::Connection) -> BlobServiceClient<super::endpoint::Connection> {
    BlobServiceClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn part_client(
    connection: super::endpoint::Connection,
) -> PartServiceClient<super::endpoint::Connection> {
    PartServiceClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
