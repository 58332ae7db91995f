//! Packs: files to which objects are appended, one after the other.
//!
//! **Problem.** Small objects need sequential reads in walk order, several writing processes, and
//! no loss or half-written object after a crash.
//!
//! **Mechanism.** A pack starts with a header of 16 bytes ([`HEADER`], format, kind, zero), then
//! come records: a header of 44 bytes (tag, length, digest) and the object. A writer reserves space
//! at the end for its records, in the order of the calls, and writes without the lock. A pack has
//! one writer at a time, which holds a lock on the file (`flock`, so it ends with the process);
//! several imports write to several packs.
//!
//! **Invariants.** Only the index decides which records count; the headers are there so that a lost
//! index can be rebuilt ([`rebuild`](super::rebuild)). Bytes after the length in the index are a
//! dead writer's, and cut off. Records are never moved.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::dir::{StoreDirectory, is_at, try_lock};
use super::index::{Index, PackEntry};
use super::location::PackKind;
use crate::castore::Digest;
use crate::store::Error;

/// The first bytes of a pack.
const HEADER: &[u8; 12] = b"castore pack";
/// The format of packs, after [`HEADER`] as a little-endian u16.
const FORMAT: u16 = 1;
/// Bytes before the first record.
pub(super) const HEADER_LEN: u64 = 16;
/// Bytes of a record's header.
pub(super) const RECORD_HEADER: u64 = 44;
/// A pack that has reached this length gets no more objects.
const FULL: u64 = 1 << 30;
/// Bytes between two requests to the kernel to start writing to the disk: early enough that the
/// final sync finds little left to do.
const WRITEBACK: u64 = 16 << 20;

/// Bytes gathered before they are written.
const BATCH: usize = 1 << 20;

/// The content of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PackRecord {
    /// A blob, and its group table if it has one.
    Blob,
    /// The group table of a blob that has a file of its own.
    Table,
    Directory,
    /// Space that a garbage collection freed.
    Gone,
}

impl PackRecord {
    const ALL: [Self; 4] = [
        PackRecord::Blob,
        PackRecord::Table,
        PackRecord::Directory,
        PackRecord::Gone,
    ];

    fn tag(self) -> &'static [u8; 4] {
        match self {
            PackRecord::Blob => b"blob",
            PackRecord::Table => b"tabl",
            PackRecord::Directory => b"dir ",
            PackRecord::Gone => b"gone",
        }
    }

    /// Whether these bytes begin a record.
    pub(super) fn is_tag(bytes: &[u8]) -> bool {
        Self::ALL.iter().any(|record| record.tag() == bytes)
    }

    /// The content of a record's header: kind, digest and length; nothing if these bytes are none.
    pub(super) fn parse_header(bytes: &[u8]) -> Option<(Self, Digest, u64)> {
        let (tag, rest) = bytes.split_first_chunk::<4>()?;
        let record = Self::ALL.into_iter().find(|record| record.tag() == tag)?;
        let (len, rest) = rest.split_first_chunk()?;
        let digest: &[u8; Digest::LEN] = rest.first_chunk()?;
        Some((record, Digest::from(*digest), u64::from_le_bytes(*len)))
    }

    /// Appends the record's header. `len` is the length of the blob or Directory.
    pub(super) fn put_header(self, out: &mut Vec<u8>, digest: &Digest, len: u64) {
        out.extend_from_slice(self.tag());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(digest.as_bytes());
    }
}

/// A pack with an exclusive lock.
pub(super) struct PackWriter {
    pub(super) id: u32,
    pub(super) kind: PackKind,
    /// Locked.
    file: Arc<File>,
    path: PathBuf,
    /// The length in the index; 0 if the pack is not in it.
    committed: u64,
    /// The place of the next record.
    end: u64,
    /// Up to where the kernel was asked to start writing.
    nudged: u64,
}

/// Reserved space in a pack.
pub(super) struct ReservedSpace {
    pub(super) pack: u32,
    pub(super) offset: u64,
    file: Arc<File>,
    path: PathBuf,
    nudge: Option<(u64, u64)>,
}

impl PackWriter {
    /// Locks a pack with room in it and without a writer, or makes one.
    pub(super) fn claim(
        dir: &StoreDirectory,
        index: &Index,
        kind: PackKind,
    ) -> Result<Self, Error> {
        let packs = index.packs()?;
        let with_room = packs
            .iter()
            .rev()
            .filter(|pack| pack.kind == kind as u8 && pack.len < FULL);
        for pack in with_room {
            if let Some(writer) = Self::reopen(dir, index, kind, pack)? {
                return Ok(writer);
            }
        }
        let mut id = next_id(dir, &packs)?.max(index.next_pack()?);
        loop {
            if let Some(writer) = Self::create(dir, kind, id)? {
                return Ok(writer);
            }
            id += 1;
        }
    }

    fn reopen(
        dir: &StoreDirectory,
        index: &Index,
        kind: PackKind,
        pack: &PackEntry,
    ) -> Result<Option<Self>, Error> {
        let path = dir.pack(pack.id);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            // Damage, which readers of the pack report.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(dir.io("open for writing", &path)(error)),
        };
        if !try_lock(&file).map_err(dir.io("lock", &path))? {
            return Ok(None);
        }
        // Another process may have appended to it meanwhile.
        let packs = index.packs()?;
        let committed = committed(&packs, pack.id);
        let len = file.metadata().map_err(dir.io("inspect", &path))?.len();
        if committed == 0 || committed >= FULL || len < committed {
            return Ok(None);
        }
        if len > committed {
            file.set_len(committed).map_err(dir.io("cut", &path))?;
        }
        Ok(Some(Self {
            id: pack.id,
            kind,
            file: Arc::new(file),
            path,
            committed,
            end: committed,
            nudged: committed,
        }))
    }

    /// Nothing if another process made the pack first.
    fn create(dir: &StoreDirectory, kind: PackKind, id: u32) -> Result<Option<Self>, Error> {
        let path = dir.pack(id);
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = match made {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(dir.io("create", &path)(error)),
        };
        // Before it is locked, the file looks like a dead writer's.
        let ours = try_lock(&file)
            .and_then(|locked| Ok(locked && is_at(&file, &path)?))
            .map_err(dir.io("lock", &path))?;
        if !ours {
            return Ok(None);
        }
        dir.give_to_owner(&file, &path);
        let writer = Self {
            id,
            kind,
            file: Arc::new(file),
            path,
            committed: 0,
            end: HEADER_LEN,
            nudged: 0,
        };
        let mut header = [0; HEADER_LEN as usize];
        header[..12].copy_from_slice(HEADER);
        header[12..14].copy_from_slice(&FORMAT.to_le_bytes());
        header[14] = kind as u8;
        if let Err(error) = writer.file.write_all_at(&header, 0) {
            let error = dir.io("write", &writer.path)(error);
            writer.discard();
            return Err(error);
        }
        Ok(Some(writer))
    }

    pub(super) fn is_full(&self) -> bool {
        self.end >= FULL
    }

    pub(super) fn is_new(&self) -> bool {
        self.committed == 0
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Reserves space at the end.
    pub(super) fn reserve(&mut self, len: u64) -> ReservedSpace {
        let offset = self.end;
        self.end += len;
        let nudge = (offset - self.nudged >= WRITEBACK).then(|| {
            let from = std::mem::replace(&mut self.nudged, offset);
            (from, offset - from)
        });
        ReservedSpace {
            pack: self.id,
            offset,
            file: self.file.clone(),
            path: self.path.clone(),
            nudge,
        }
    }

    pub(super) fn sync(&self, dir: &StoreDirectory) -> Result<(), Error> {
        self.file.sync_data().map_err(dir.io("sync", &self.path))
    }

    /// Removes what was written since the last commit.
    pub(super) fn discard(self) {
        // What cannot be removed now is removed at the next opening for writing.
        let _ = match self.committed {
            0 => fs::remove_file(&self.path),
            committed => self.file.set_len(committed),
        };
    }
}

impl ReservedSpace {
    /// Writes `bytes` at `at` bytes after the start.
    pub(super) fn write(&self, dir: &StoreDirectory, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write_all_at(bytes, self.offset + at)
            .map_err(dir.io("write", &self.path))
    }
}

impl Drop for ReservedSpace {
    fn drop(&mut self) {
        if let Some((offset, len)) = self.nudge {
            start_writeback(&self.file, offset, len);
        }
    }
}

/// Writes records into their reserved space.
pub(super) struct RecordWriter<'a> {
    dir: &'a StoreDirectory,
    space: ReservedSpace,
    buffer: Vec<u8>,
    /// Bytes written before those in `buffer`.
    written: u64,
}

impl<'a> RecordWriter<'a> {
    /// For records of `len` bytes together.
    pub(super) fn new(dir: &'a StoreDirectory, space: ReservedSpace, len: u64) -> Self {
        // An object that does not fit in a batch makes the buffer grow by at most that.
        let capacity = len.min(BATCH as u64) as usize;
        Self {
            dir,
            space,
            buffer: Vec::with_capacity(capacity),
            written: 0,
        }
    }

    /// Writes an object whose bytes are the first of `parts`.
    pub(super) fn put(
        &mut self,
        record: PackRecord,
        digest: &Digest,
        parts: &[&[u8]],
    ) -> Result<(), Error> {
        let len = parts.first().map_or(0, |bytes| bytes.len() as u64);
        self.put_with_len(record, digest, len, parts)
    }

    pub(super) fn put_with_len(
        &mut self,
        record: PackRecord,
        digest: &Digest,
        len: u64,
        parts: &[&[u8]],
    ) -> Result<(), Error> {
        record.put_header(&mut self.buffer, digest, len);
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        if self.buffer.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.space.write(self.dir, self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.flush()
    }
}

/// Asks the kernel to start writing a range to the disk, without waiting for it.
pub(super) fn start_writeback(file: &File, offset: u64, len: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: takes no pointer; the descriptor is open for as long as `file` is borrowed.
    // A failure is harmless: the sync at the end does, and reports, the same.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as libc::off64_t,
            len as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// A number that no pack has, in the index or not.
fn next_id(dir: &StoreDirectory, packs: &[PackEntry]) -> Result<u32, Error> {
    let known = packs.last().map_or(0, |pack| pack.id + 1);
    let found = list(dir)?.into_iter().max().map_or(0, |id| id + 1);
    Ok(known.max(found))
}

/// The numbers of the packs in the directory.
pub(super) fn list(dir: &StoreDirectory) -> Result<Vec<u32>, Error> {
    let path = dir.packs();
    let mut ids = Vec::new();
    for entry in fs::read_dir(&path).map_err(dir.io("list", &path))? {
        let entry = entry.map_err(dir.io("list", &path))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(".pack"));
        ids.extend(id.and_then(|id| id.parse::<u32>().ok()));
    }
    Ok(ids)
}

/// Whether there may be bytes in packs that are not in the index.
pub(super) fn has_leftovers(dir: &StoreDirectory, packs: &[PackEntry]) -> Result<bool, Error> {
    for id in list(dir)? {
        // One that was removed meanwhile does not count.
        let found = fs::metadata(dir.pack(id));
        if found.is_ok_and(|found| !(1..=committed(packs, id)).contains(&found.len())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The length of a pack in the index; 0 if it is not in it.
fn committed(packs: &[PackEntry], id: u32) -> u64 {
    packs
        .binary_search_by_key(&id, |pack| pack.id)
        .ok()
        .and_then(|found| packs.get(found))
        .map_or(0, |pack| pack.len)
}

/// Removes what dead writers left in packs.
pub(super) fn reclaim(dir: &StoreDirectory, index: &Index) -> Result<(), Error> {
    let packs = index.packs()?;
    for id in list(dir)? {
        let path = dir.pack(id);
        let len = match fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(_) => continue,
        };
        if (1..=committed(&packs, id)).contains(&len) {
            continue;
        }
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
            continue;
        };
        let ours = try_lock(&file).and_then(|locked| Ok(locked && is_at(&file, &path)?));
        if !ours.map_err(dir.io("lock", &path))? {
            continue;
        }
        // Only now that no process writes to it is the index authoritative.
        let reclaimed: io::Result<()> = match committed(&index.packs()?, id) {
            0 => fs::remove_file(&path),
            committed if len > committed => file.set_len(committed),
            _ => Ok(()),
        };
        reclaimed.map_err(dir.io("reclaim", &path))?;
    }
    Ok(())
}
