//! Parts of large blobs that a cache has fetched, until it has them whole.
//!
//! `parts/<digest>.data` is as long as the blob and has holes where nothing came yet;
//! `parts/<digest>.map` holds the blob's group table, which was checked against the digest, and one
//! bit for each present extent. Every byte is checked against the table when it is read, so
//! nothing is ever synced: damage by a crash is detected, and the part fetched again.
//!
//! A complete blob is [taken over](LocalStore::promote_partial) by the store proper, as a large blob
//! whose file the kernel can read itself.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::dir::StoreDirectory;
use super::large::ST_BLOCK;
use super::read::read_verified;
use super::{LocalIngest, LocalStore};
use crate::castore::{Digest, GroupTable, group_size};
use crate::store::bounded::Bounded;
use crate::store::{Damage, Error, Ingest};

/// The first bytes of a map.
const MAGIC: &[u8; 12] = b"castore part";
/// The format of maps, after [`MAGIC`] as a little-endian u16.
const FORMAT: u16 = 1;
/// Bytes before the group table: magic, format, zeros, length, extent size, digest.
const HEAD: usize = 12 + 2 + 2 + 8 + 8 + 32;
/// Blobs whose files are kept open: two each.
const OPEN: usize = 256;
/// Bytes that are checked at once before a blob is taken over.
const CHECKED_AT_ONCE: u64 = 1 << 20;

/// The parts in a store.
#[derive(Debug)]
pub(in crate::store) struct PartialBlobs {
    dir: Arc<StoreDirectory>,
    state: Mutex<PartialBlobsState>,
}

#[derive(Debug)]
struct PartialBlobsState {
    /// Blobs with files; nothing before the directory was listed.
    known: Option<HashSet<Digest>>,
    open: Bounded<Digest, Arc<PartialBlob>>,
}

/// Parts of one blob.
#[derive(Debug)]
struct PartialBlob {
    digest: Digest,
    len: u64,
    extent: u64,
    table: GroupTable,
    data: File,
    map: File,
    /// A bit for each present extent, the lowest of a byte first.
    present: Box<[AtomicU8]>,
    /// Missing extents.
    missing: AtomicU64,
}

impl PartialBlobs {
    pub(super) fn new(dir: Arc<StoreDirectory>) -> Self {
        Self {
            dir,
            state: Mutex::new(PartialBlobsState {
                known: None,
                open: Bounded::new(OPEN),
            }),
        }
    }

    fn path(&self, digest: &Digest, end: &str) -> PathBuf {
        let name = format!("{}.{end}", digest.to_hex());
        self.dir.parts().join(name)
    }

    fn get(&self, digest: &Digest) -> Option<Arc<PartialBlob>> {
        let mut state = self.state.lock();
        if let Some(part) = state.open.get(digest) {
            return Some(part);
        }
        let known = match &state.known {
            Some(known) => known,
            None => state.known.insert(self.list()),
        };
        if !known.contains(digest) {
            return None;
        }
        drop(state);
        // Two threads at once open it twice, which is harmless.
        match self.open(digest) {
            Ok(part) => {
                let part = Arc::new(part);
                self.state.lock().open.insert(*digest, part.clone(), 1);
                Some(part)
            }
            Err(_) => {
                self.remove(digest);
                None
            }
        }
    }

    fn list(&self) -> HashSet<Digest> {
        let names = fs::read_dir(self.dir.parts()).into_iter().flatten();
        let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter_map(|name| name.strip_suffix(".map")?.parse().ok())
            .collect()
    }

    fn open(&self, digest: &Digest) -> io::Result<PartialBlob> {
        let mut options = File::options();
        options.read(true).write(true);
        let path = self.path(digest, "data");
        let data = options.open(&path)?;
        self.dir.give_to_owner(&data, &path);
        let map = options.open(self.path(digest, "map"))?;
        let part = PartialBlob::load(*digest, data, map)?;
        part.ok_or_else(|| io::Error::from(ErrorKind::InvalidData))
    }

    /// Makes the files for a blob without any yet.
    fn create(
        &self,
        digest: &Digest,
        len: u64,
        extent: u64,
        table: &GroupTable,
    ) -> io::Result<Arc<PartialBlob>> {
        self.dir.make_dir(&self.dir.parts())?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let path = self.path(digest, "data");
        let data = options.open(&path)?;
        self.dir.give_to_owner(&data, &path);
        data.set_len(len)?;
        let new = self.path(digest, "new");
        let map = options.open(&new)?;
        self.dir.give_to_owner(&map, &new);
        let extents = len.div_ceil(extent);
        let mut bytes = Vec::with_capacity(HEAD);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&extent.to_le_bytes());
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(table.as_bytes());
        bytes.resize(bytes.len() + extents.div_ceil(8) as usize, 0);
        map.write_all_at(&bytes, 0)?;
        fs::rename(&new, self.path(digest, "map"))?;
        let part = Arc::new(PartialBlob {
            digest: *digest,
            len,
            extent,
            table: table.clone(),
            data,
            map,
            present: (0..extents.div_ceil(8)).map(|_| AtomicU8::new(0)).collect(),
            missing: AtomicU64::new(extents),
        });
        let mut state = self.state.lock();
        state.open.insert(*digest, part.clone(), 1);
        if let Some(known) = &mut state.known {
            known.insert(*digest);
        }
        Ok(part)
    }

    /// Fills `buffer` from the blob `digest` of `len` bytes, if all of that is stored; the inner
    /// error means that a node states another length.
    pub(in crate::store) fn read(
        &self,
        digest: &Digest,
        len: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, Damage> {
        let Some(part) = self.get(digest) else {
            return Ok(false);
        };
        if part.len != len {
            return Err(Damage::WrongSize {
                expected: len,
                actual: part.len,
            });
        }
        Ok(part.read(offset, buffer))
    }

    /// Whether the extent `index` of a blob is stored, as far as is known without reading it.
    pub(in crate::store) fn has(&self, digest: &Digest, index: u64) -> bool {
        self.get(digest).is_some_and(|part| part.has(index))
    }

    /// The length and the table of a blob with present parts.
    pub(in crate::store) fn about(&self, digest: &Digest) -> Option<(u64, GroupTable)> {
        let part = self.get(digest)?;
        Some((part.len, part.table.clone()))
    }

    /// Bytes of the blob that are there.
    pub(in crate::store) fn present_bytes(&self, digest: &Digest) -> u64 {
        self.get(digest).map_or(0, |part| {
            let missing = part.missing.load(Ordering::Relaxed);
            part.len.saturating_sub(missing.saturating_mul(part.extent))
        })
    }

    /// Stores the extent `index`, whose bytes were verified. Returns the bytes that are new on the
    /// disk, and whether the blob is complete now.
    pub(in crate::store) fn put(
        &self,
        digest: &Digest,
        (len, extent): (u64, u64),
        table: &GroupTable,
        index: u64,
        bytes: &[u8],
    ) -> Result<(u64, bool), Error> {
        let put = || {
            let part = match self.get(digest) {
                Some(part) if (part.len, part.extent) == (len, extent) => part,
                _ => self.create(digest, len, extent, table)?,
            };
            part.put(index, bytes)
        };
        put().map_err(self.dir.io("write", &self.path(digest, "data")))
    }

    /// Removes all parts of a blob.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> u64 {
        let mut state = self.state.lock();
        state.open.remove(digest);
        if let Some(known) = &mut state.known {
            known.remove(digest);
        }
        drop(state);
        let data = self.path(digest, "data");
        let freed = fs::symlink_metadata(&data).map_or(0, |found| found.blocks() * ST_BLOCK);
        // Remaining files are found by the next sweep.
        let _ = fs::remove_file(self.path(digest, "map"));
        let _ = fs::remove_file(data);
        freed
    }

    /// Every blob with present parts, with the bytes that it takes on the disk.
    pub(in crate::store) fn sizes(&self) -> Vec<(Digest, u64)> {
        let names = fs::read_dir(self.dir.parts()).into_iter().flatten();
        let sizes = names.filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let digest = name.strip_suffix(".data")?.parse().ok()?;
            Some((digest, entry.metadata().ok()?.blocks() * ST_BLOCK))
        });
        sizes.collect()
    }

    /// Removes what is not to be kept; returns the number of blobs and the bytes that were freed.
    pub(super) fn sweep(&self, keep: impl Fn(&Digest) -> bool) -> Result<(u64, u64), Error> {
        let (mut count, mut freed) = (0, 0);
        let known = self.list();
        for digest in &known {
            if !keep(digest) {
                freed += self.remove(digest);
                count += 1;
            }
        }
        // Half made, or half removed, by a crash.
        for (digest, _) in self.sizes() {
            if !known.contains(&digest) && self.get(&digest).is_none() {
                freed += self.remove(&digest);
            }
        }
        Ok((count, freed))
    }
}

impl PartialBlob {
    /// Nothing if the map is invalid.
    fn load(digest: Digest, data: File, map: File) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; map.metadata()?.len().min(8 << 20) as usize];
        map.read_exact_at(&mut bytes, 0)?;
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let number = |at: usize| {
            let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let (len, extent) = (number(16), number(24));
        let format = u16::from_le_bytes([head[12], head[13]]);
        if head[..12] != MAGIC[..]
            || format != FORMAT
            || head[32..] != digest.as_bytes()[..]
            || extent == 0
            || !extent.is_multiple_of(group_size(len))
            || data.metadata()?.len() != len
        {
            return Ok(None);
        }
        let Some((table, present)) = rest.split_at_checked(GroupTable::byte_len(len) as usize)
        else {
            return Ok(None);
        };
        let extents = len.div_ceil(extent);
        if present.len() as u64 != extents.div_ceil(8) {
            return Ok(None);
        }
        let Ok(table) = GroupTable::decode(table, &digest, len) else {
            return Ok(None);
        };
        let set = present
            .iter()
            .map(|byte| u64::from(byte.count_ones()))
            .sum();
        Ok(Some(Self {
            digest,
            len,
            extent,
            table,
            data,
            map,
            missing: AtomicU64::new(extents.saturating_sub(set)),
            present: present.iter().map(|byte| AtomicU8::new(*byte)).collect(),
        }))
    }

    fn has(&self, index: u64) -> bool {
        let byte = self.present.get((index / 8) as usize);
        byte.is_some_and(|byte| byte.load(Ordering::Acquire) & (1 << (index % 8)) != 0)
    }

    fn note(&self, index: u64, present: bool) -> io::Result<()> {
        let Some(byte) = self.present.get((index / 8) as usize) else {
            return Ok(());
        };
        let bit = 1 << (index % 8);
        let (before, now) = match present {
            true => {
                let before = byte.fetch_or(bit, Ordering::AcqRel);
                (before, before | bit)
            }
            false => {
                let before = byte.fetch_and(!bit, Ordering::AcqRel);
                (before, before & !bit)
            }
        };
        match (before & bit != 0, present) {
            (false, true) => drop(self.missing.fetch_sub(1, Ordering::AcqRel)),
            (true, false) => drop(self.missing.fetch_add(1, Ordering::AcqRel)),
            _ => return Ok(()),
        }
        let at = HEAD as u64 + GroupTable::byte_len(self.len) + index / 8;
        self.map.write_all_at(&[now], at)
    }

    fn put(&self, index: u64, bytes: &[u8]) -> io::Result<(u64, bool)> {
        let new = !self.has(index);
        if new {
            self.data.write_all_at(bytes, index * self.extent)?;
            self.note(index, true)?;
        }
        let whole = self.missing.load(Ordering::Acquire) == 0;
        Ok((if new { bytes.len() as u64 } else { 0 }, whole))
    }

    /// False if something is missing, or damaged.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let end = offset + buffer.len() as u64;
        let extents = offset / self.extent..end.div_ceil(self.extent);
        if !extents.clone().all(|index| self.has(index)) {
            return false;
        }
        let table = (!self.table.as_bytes().is_empty()).then_some(&self.table);
        let fill = |at, bytes: &mut [u8]| {
            self.data
                .read_exact_at(bytes, at)
                .map_err(PartReadError::Io)
        };
        let read = read_verified(&self.digest, self.len, table, offset, buffer, fill);
        if let Err(spoilt) = &read {
            tracing::warn!(digest = %self.digest, "refetching a damaged cached part: {spoilt}");
            for index in extents {
                // If it cannot be noted it is detected again.
                let _ = self.note(index, false);
            }
        }
        read.is_ok()
    }
}

/// Why a part cannot be read after all.
#[derive(Debug, thiserror::Error)]
enum PartReadError {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error(transparent)]
    Io(io::Error),
}

impl LocalStore {
    /// The present parts of large blobs.
    pub(in crate::store) fn parts(&self) -> &PartialBlobs {
        &self.0.parts
    }

    /// Makes a blob of the store of one of which every part is present. Returns whether that
    /// succeeded: every byte is verified, and wrong parts are removed. With `replaces` it replaces
    /// the store's own blob of that digest, which is damaged.
    pub(in crate::store) fn promote_partial(
        &self,
        digest: &Digest,
        replaces: bool,
    ) -> Result<bool, Error> {
        let parts = &self.0.parts;
        let Some(part) = parts.get(digest) else {
            return Ok(false);
        };
        let mut buffer = vec![0; part.extent.max(CHECKED_AT_ONCE) as usize];
        let step = buffer.len() as u64 / part.extent * part.extent;
        let mut at = 0;
        while at < part.len {
            let length = step.min(part.len - at) as usize;
            if !part.read(at, &mut buffer[..length]) {
                return Ok(false);
            }
            at += length as u64;
        }
        let ingest: LocalIngest = self.addition()?;
        if replaces {
            ingest.replace(digest);
        }
        let data = parts.path(digest, "data");
        ingest.take_over(&data, digest, part.table.clone(), part.len)?;
        Box::new(ingest).commit()?;
        parts.remove(digest);
        Ok(true)
    }
}
