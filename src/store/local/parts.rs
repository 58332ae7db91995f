//! Parts of large blobs that a cache has fetched, until it has them whole.
//!
//! `parts/<digest>.data` is as long as the blob and has holes where nothing came yet;
//! `parts/<digest>.map` holds the blob's group table, which was checked against the digest, and one
//! bit for each present segment. Every byte is checked against the table when it is read, so
//! nothing is ever synced: damage by a crash is detected, and the part fetched again.
//!
//! A complete blob is [taken over](LocalStore::adopt_part) by the store proper, as a large blob
//! whose file the kernel can read itself.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::folder::{Folder, make_folder};
use super::large::ST_BLOCK;
use super::read::read_verified;
use super::{LocalIngest, LocalStore};
use crate::castore::{Digest, GroupTable, group_size};
use crate::store::bounded::Bounded;
use crate::store::{Damage, Error, Ingest};

/// The first bytes of a map.
const MAGIC: &[u8; 12] = b"castore part";
/// The format of maps, behind [`MAGIC`] as a little-endian u16.
const FORMAT: u16 = 1;
/// Bytes before the group table: magic, format, zeros, length, segment size, digest.
const HEAD: usize = 12 + 2 + 2 + 8 + 8 + 32;
/// Blobs whose files are kept open: two each.
const OPEN: usize = 256;
/// Bytes that are checked at once before a blob is taken over.
const CHECKED_AT_ONCE: u64 = 1 << 20;

/// The parts in a store.
#[derive(Debug)]
pub(in crate::store) struct Parts {
    folder: Arc<Folder>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Blobs with files; nothing before the directory was listed.
    known: Option<HashSet<Digest>>,
    open: Bounded<Digest, Arc<Part>>,
}

/// Parts of one blob.
#[derive(Debug)]
struct Part {
    digest: Digest,
    len: u64,
    segment: u64,
    table: GroupTable,
    data: File,
    map: File,
    /// A bit for each present segment, the lowest of a byte first.
    here: Box<[AtomicU8]>,
    /// Missing segments.
    missing: AtomicU64,
}

impl Parts {
    pub(super) fn new(folder: Arc<Folder>) -> Self {
        Self {
            folder,
            state: Mutex::new(State {
                known: None,
                open: Bounded::new(OPEN),
            }),
        }
    }

    fn path(&self, digest: &Digest, end: &str) -> PathBuf {
        let name = format!("{}.{end}", digest.to_hex());
        self.folder.parts().join(name)
    }

    fn get(&self, digest: &Digest) -> Option<Arc<Part>> {
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
        let names = fs::read_dir(self.folder.parts()).into_iter().flatten();
        let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter_map(|name| name.strip_suffix(".map")?.parse().ok())
            .collect()
    }

    fn open(&self, digest: &Digest) -> io::Result<Part> {
        let mut options = File::options();
        options.read(true).write(true);
        let data = options.open(self.path(digest, "data"))?;
        let map = options.open(self.path(digest, "map"))?;
        let part = Part::load(*digest, data, map)?;
        part.ok_or_else(|| io::Error::from(ErrorKind::InvalidData))
    }

    /// Makes the files for a blob without any yet.
    fn create(
        &self,
        digest: &Digest,
        len: u64,
        segment: u64,
        table: &GroupTable,
    ) -> io::Result<Arc<Part>> {
        make_folder(&self.folder.parts())?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let data = options.open(self.path(digest, "data"))?;
        data.set_len(len)?;
        let new = self.path(digest, "new");
        let map = options.open(&new)?;
        let segments = len.div_ceil(segment);
        let mut bytes = Vec::with_capacity(HEAD);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&segment.to_le_bytes());
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(table.as_bytes());
        bytes.resize(bytes.len() + segments.div_ceil(8) as usize, 0);
        map.write_all_at(&bytes, 0)?;
        fs::rename(&new, self.path(digest, "map"))?;
        let part = Arc::new(Part {
            digest: *digest,
            len,
            segment,
            table: table.clone(),
            data,
            map,
            here: (0..segments.div_ceil(8))
                .map(|_| AtomicU8::new(0))
                .collect(),
            missing: AtomicU64::new(segments),
        });
        let mut state = self.state.lock();
        state.open.insert(*digest, part.clone(), 1);
        if let Some(known) = &mut state.known {
            known.insert(*digest);
        }
        Ok(part)
    }

    /// Fills `buffer` from the blob `digest` of `len` bytes, if all of that is here; the inner
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

    /// Whether the segment `index` of a blob is here, as far as is known without reading it.
    pub(in crate::store) fn has(&self, digest: &Digest, index: u64) -> bool {
        self.get(digest).is_some_and(|part| part.has(index))
    }

    /// The length and the table of a blob with present parts.
    pub(in crate::store) fn about(&self, digest: &Digest) -> Option<(u64, GroupTable)> {
        let part = self.get(digest)?;
        Some((part.len, part.table.clone()))
    }

    /// Stores the segment `index`, whose bytes were verified. Returns the bytes that are new on the
    /// disk, and whether the blob is complete now.
    pub(in crate::store) fn put(
        &self,
        digest: &Digest,
        (len, segment): (u64, u64),
        table: &GroupTable,
        index: u64,
        bytes: &[u8],
    ) -> Result<(u64, bool), Error> {
        let put = || {
            let part = match self.get(digest) {
                Some(part) if (part.len, part.segment) == (len, segment) => part,
                _ => self.create(digest, len, segment, table)?,
            };
            part.put(index, bytes)
        };
        put().map_err(self.folder.io("write", &self.path(digest, "data")))
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
        let names = fs::read_dir(self.folder.parts()).into_iter().flatten();
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

impl Part {
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
        let (len, segment) = (number(16), number(24));
        let format = u16::from_le_bytes([head[12], head[13]]);
        if head[..12] != MAGIC[..]
            || format != FORMAT
            || head[32..] != digest.as_bytes()[..]
            || segment == 0
            || !segment.is_multiple_of(group_size(len))
            || data.metadata()?.len() != len
        {
            return Ok(None);
        }
        let Some((table, here)) = rest.split_at_checked(GroupTable::byte_len(len) as usize) else {
            return Ok(None);
        };
        let segments = len.div_ceil(segment);
        if here.len() as u64 != segments.div_ceil(8) {
            return Ok(None);
        }
        let Ok(table) = GroupTable::decode(table, &digest, len) else {
            return Ok(None);
        };
        let set = here.iter().map(|byte| u64::from(byte.count_ones())).sum();
        Ok(Some(Self {
            digest,
            len,
            segment,
            table,
            data,
            map,
            missing: AtomicU64::new(segments.saturating_sub(set)),
            here: here.iter().map(|byte| AtomicU8::new(*byte)).collect(),
        }))
    }

    fn has(&self, index: u64) -> bool {
        let byte = self.here.get((index / 8) as usize);
        byte.is_some_and(|byte| byte.load(Ordering::Acquire) & (1 << (index % 8)) != 0)
    }

    fn note(&self, index: u64, here: bool) -> io::Result<()> {
        let Some(byte) = self.here.get((index / 8) as usize) else {
            return Ok(());
        };
        let bit = 1 << (index % 8);
        let (before, now) = match here {
            true => {
                let before = byte.fetch_or(bit, Ordering::AcqRel);
                (before, before | bit)
            }
            false => {
                let before = byte.fetch_and(!bit, Ordering::AcqRel);
                (before, before & !bit)
            }
        };
        match (before & bit != 0, here) {
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
            self.data.write_all_at(bytes, index * self.segment)?;
            self.note(index, true)?;
        }
        let whole = self.missing.load(Ordering::Acquire) == 0;
        Ok((if new { bytes.len() as u64 } else { 0 }, whole))
    }

    /// False if something is missing, or damaged.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let end = offset + buffer.len() as u64;
        let segments = offset / self.segment..end.div_ceil(self.segment);
        if !segments.clone().all(|index| self.has(index)) {
            return false;
        }
        let table = (!self.table.as_bytes().is_empty()).then_some(&self.table);
        let fill = |at, bytes: &mut [u8]| self.data.read_exact_at(bytes, at).map_err(Spoilt::Io);
        let read = read_verified(&self.digest, self.len, table, offset, buffer, fill);
        if let Err(spoilt) = &read {
            tracing::warn!(digest = %self.digest, "refetching a damaged cached part: {spoilt}");
            for index in segments {
                // If it cannot be noted it is detected again.
                let _ = self.note(index, false);
            }
        }
        read.is_ok()
    }
}

/// Why a part cannot be read after all.
#[derive(Debug, thiserror::Error)]
enum Spoilt {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error(transparent)]
    Io(io::Error),
}

impl LocalStore {
    /// The present parts of large blobs.
    pub(in crate::store) fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Makes a blob of the store of one of which every part is present. Returns whether that
    /// succeeded: every byte is verified, and wrong parts are removed. With `replaces` it replaces
    /// the store's own blob of that digest, which is damaged.
    pub(in crate::store) fn adopt_part(
        &self,
        digest: &Digest,
        replaces: bool,
    ) -> Result<bool, Error> {
        let parts = &self.0.parts;
        let Some(part) = parts.get(digest) else {
            return Ok(false);
        };
        let mut buffer = vec![0; part.segment.max(CHECKED_AT_ONCE) as usize];
        let step = buffer.len() as u64 / part.segment * part.segment;
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
        ingest.adopt(&data, digest, part.table.clone(), part.len)?;
        Box::new(ingest).commit()?;
        parts.remove(digest);
        Ok(true)
    }
}
