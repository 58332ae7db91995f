//! Reading and verification.
//!
//! A blob is verified by the group (see [`GroupTable`]), so a read touches only the groups that it
//! covers: whole groups are read straight into the caller's buffer and hashed there; a partially
//! requested group goes through a buffer of the thread's own. Nothing is allocated.
//!
//! What cannot be read correctly is *damaged*, never absent: the index promised it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::dir::StoreDirectory;
use super::location::{ObjectLocation, StorageKind};
use crate::castore::{Digest, Directory, GroupTable, MAX_DIRECTORY_BYTES, group_size};
use crate::store::bounded::Bounded;
use crate::store::{Damage, Error, Object};

/// Files of large blobs kept open. Packs are few and have as many again.
const OPEN_FILES: usize = 256;
/// Bytes of group tables cached.
const TABLES: usize = 32 << 20;
/// The approximate size of a table besides its hashes.
const TABLE_OVERHEAD: usize = 128;

/// The store's open files, and the tables read from them.
#[derive(Debug)]
pub(super) struct PackFiles {
    dir: Arc<StoreDirectory>,
    packs: Mutex<Bounded<u32, Arc<OwnedFd>>>,
    large: Mutex<Bounded<Digest, Arc<OwnedFd>>>,
    tables: Mutex<Bounded<Digest, Arc<GroupTable>>>,
}

/// Why bytes cannot be read.
enum ReadFailure {
    Damage(Damage),
    Io(PathBuf, io::Error),
}

impl From<Damage> for ReadFailure {
    fn from(damage: Damage) -> Self {
        ReadFailure::Damage(damage)
    }
}

thread_local! {
    /// A partially requested group.
    static GROUP: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl PackFiles {
    pub(super) fn new(dir: Arc<StoreDirectory>) -> Self {
        Self {
            dir,
            packs: Mutex::new(Bounded::new(OPEN_FILES)),
            large: Mutex::new(Bounded::new(OPEN_FILES)),
            tables: Mutex::new(Bounded::new(TABLES)),
        }
    }

    /// Fills `buffer` from the blob at `offset`, unless the blob ends first.
    pub(super) fn read(
        &self,
        digest: &Digest,
        at: ObjectLocation,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        let remaining = at.len.saturating_sub(offset);
        let length = buffer
            .len()
            .min(usize::try_from(remaining).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(0);
        }
        self.read_groups(digest, at, offset, &mut buffer[..length])
            .map(|()| length)
            .map_err(|failure| self.error(Object::Blob, digest, failure))
    }

    fn read_groups(
        &self,
        digest: &Digest,
        at: ObjectLocation,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadFailure> {
        let source = self.source(digest, at)?;
        let table = match GroupTable::byte_len(at.len) {
            // Hashed as a whole.
            _ if buffer.len() as u64 == at.len => None,
            0 => None,
            _ => Some(self.table(digest, at)?),
        };
        let fill = |offset, buffer: &mut [u8]| source.fill(offset, buffer);
        read_verified(digest, at.len, table.as_deref(), offset, buffer, fill)
    }

    /// The table that verifies the blob's parts.
    pub(super) fn group_table(
        &self,
        digest: &Digest,
        at: ObjectLocation,
    ) -> Result<GroupTable, Error> {
        if GroupTable::byte_len(at.len) == 0 {
            let empty = GroupTable::decode(&[], digest, at.len).map_err(Damage::from);
            return empty.map_err(|damage| self.error(Object::Blob, digest, damage.into()));
        }
        let table = self.table(digest, at);
        let table = table.map_err(|failure| self.error(Object::Blob, digest, failure))?;
        Ok(GroupTable::clone(&table))
    }

    pub(super) fn directory(
        &self,
        digest: &Digest,
        at: ObjectLocation,
    ) -> Result<Directory, Error> {
        let read = || -> Result<Directory, ReadFailure> {
            if at.len > MAX_DIRECTORY_BYTES as u64 {
                // No valid index entry has this.
                return Err(Damage::WrongSize {
                    expected: MAX_DIRECTORY_BYTES as u64,
                    actual: at.len,
                }
                .into());
            }
            let mut bytes = vec![0; at.len as usize];
            self.in_pack(at.pack, at.offset, at.len)?
                .fill(0, &mut bytes)?;
            Ok(Directory::decode_verified(bytes, digest).map_err(Damage::from)?)
        };
        read().map_err(|failure| self.error(Object::Directory, digest, failure))
    }

    /// The file of a large blob, if it has the right length.
    pub(super) fn large_file(&self, digest: &Digest, len: u64) -> Result<Arc<OwnedFd>, Error> {
        let checked = || -> Result<Arc<OwnedFd>, ReadFailure> {
            let file = self.open_large(digest)?;
            match length(&file) {
                Ok(actual) if actual == len => Ok(file),
                Ok(actual) => {
                    let expected = len;
                    Err(Damage::WrongSize { expected, actual }.into())
                }
                Err(error) => Err(ReadFailure::Io(self.dir.blob(digest), error)),
            }
        };
        checked().map_err(|failure| self.error(Object::Blob, digest, failure))
    }

    /// Closes the file of a large blob: it was replaced.
    pub(super) fn forget(&self, digest: &Digest) {
        self.large.lock().remove(digest);
        self.tables.lock().remove(digest);
    }

    /// Closes every file: some were removed, and take space as long as they are open.
    pub(super) fn forget_all(&self) {
        self.packs.lock().clear();
        self.large.lock().clear();
    }

    /// The error for a blob whose length is not the stated one.
    pub(super) fn wrong_size(&self, digest: &Digest, expected: u64, actual: u64) -> Error {
        let damage = Damage::WrongSize { expected, actual };
        self.error(Object::Blob, digest, damage.into())
    }

    fn table(&self, digest: &Digest, at: ObjectLocation) -> Result<Arc<GroupTable>, ReadFailure> {
        if let Some(table) = self.tables.lock().get(digest) {
            return Ok(table);
        }
        let len = GroupTable::byte_len(at.len);
        let offset = match at.kind {
            StorageKind::Large => at.offset,
            _ => at.offset.saturating_add(at.len),
        };
        let mut bytes = vec![0; len as usize];
        self.in_pack(at.pack, offset, len)?.fill(0, &mut bytes)?;
        let table = GroupTable::decode(&bytes, digest, at.len).map_err(Damage::from)?;
        let table = Arc::new(table);
        let weight = bytes.len() + TABLE_OVERHEAD;
        self.tables.lock().insert(*digest, table.clone(), weight);
        Ok(table)
    }

    fn source(&self, digest: &Digest, at: ObjectLocation) -> Result<FileRange<'_>, ReadFailure> {
        match at.kind {
            StorageKind::Large => Ok(FileRange {
                file: self.open_large(digest)?,
                path: SourcePath::Large(&self.dir, *digest),
                start: 0,
                len: at.len,
            }),
            _ => self.in_pack(at.pack, at.offset, at.len),
        }
    }

    fn in_pack(&self, id: u32, start: u64, len: u64) -> Result<FileRange<'_>, ReadFailure> {
        let kept = self.packs.lock().get(&id);
        let file = match kept {
            Some(file) => file,
            None => {
                let file = open(&self.dir.pack(id))?;
                self.packs.lock().insert(id, file.clone(), 1);
                file
            }
        };
        Ok(FileRange {
            file,
            path: SourcePath::Pack(&self.dir, id),
            start,
            len,
        })
    }

    fn open_large(&self, digest: &Digest) -> Result<Arc<OwnedFd>, ReadFailure> {
        if let Some(file) = self.large.lock().get(digest) {
            return Ok(file);
        }
        let file = open(&self.dir.blob(digest))?;
        self.large.lock().insert(*digest, file.clone(), 1);
        Ok(file)
    }

    fn error(&self, object: Object, digest: &Digest, failure: ReadFailure) -> Error {
        match failure {
            ReadFailure::Damage(damage) => Error::Damaged {
                store: self.dir.url().to_owned(),
                object,
                digest: *digest,
                damage: Box::new(damage),
            },
            ReadFailure::Io(path, source) => self.dir.io("read", &path)(source),
        }
    }
}

/// Fills `buffer` with bytes of the blob `digest` of `len` bytes, from `offset` on, by `fill`;
/// verified against its table. A blob of one group has none, and one that is read whole needs none.
pub(super) fn read_verified<E: From<Damage>>(
    digest: &Digest,
    len: u64,
    table: Option<&GroupTable>,
    offset: u64,
    buffer: &mut [u8],
    fill: impl Fn(u64, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    if buffer.len() as u64 == len {
        fill(0, buffer)?;
        return match Digest::of(buffer) == *digest {
            true => Ok(()),
            false => Err(Damage::WrongBytes { offset: 0 }.into()),
        };
    }
    let end = offset + buffer.len() as u64;
    let group = group_size(len);
    let verify = |start: u64, bytes: &[u8]| {
        let right = match table {
            Some(table) => table.verify(digest, start, bytes),
            None => Digest::of(bytes) == *digest,
        };
        match right {
            true => Ok(()),
            false => Err(Damage::WrongBytes { offset: start }),
        }
    };
    let mut next = offset;
    while next < end {
        let start = next - next % group;
        let stop = (start + group).min(len);
        if next == start && stop <= end {
            // As many whole groups as there are, in place.
            let stop = if end == len { end } else { end - end % group };
            let run = &mut buffer[(next - offset) as usize..(stop - offset) as usize];
            fill(next, run)?;
            for bytes in run.chunks(group as usize) {
                verify(next, bytes)?;
                next += bytes.len() as u64;
            }
        } else {
            let record_end = stop.min(end);
            let wanted = &mut buffer[(next - offset) as usize..(record_end - offset) as usize];
            GROUP.with_borrow_mut(|scratch| {
                let length = (stop - start) as usize;
                if scratch.len() < length {
                    scratch.resize(length, 0);
                }
                let bytes = &mut scratch[..length];
                fill(start, bytes)?;
                verify(start, bytes)?;
                let from = (next - start) as usize;
                wanted.copy_from_slice(&bytes[from..from + wanted.len()]);
                Ok::<_, E>(())
            })?;
            next = record_end;
        }
    }
    Ok(())
}

/// A range of a file.
struct FileRange<'a> {
    file: Arc<OwnedFd>,
    path: SourcePath<'a>,
    start: u64,
    len: u64,
}

/// The file's path, made only for an error.
enum SourcePath<'a> {
    Pack(&'a StoreDirectory, u32),
    Large(&'a StoreDirectory, Digest),
}

impl FileRange<'_> {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadFailure> {
        let mut done = 0;
        while done < buffer.len() {
            let at = self.start.saturating_add(offset) + done as u64;
            match rustix::io::pread(&self.file, &mut buffer[done..], at) {
                Ok(0) => return Err(self.short()),
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ReadFailure::Io(self.path(), error.into())),
            }
        }
        Ok(())
    }

    /// The file ends before the object does.
    fn short(&self) -> ReadFailure {
        match length(&self.file) {
            Ok(length) => ReadFailure::Damage(Damage::WrongSize {
                expected: self.len,
                actual: length.saturating_sub(self.start),
            }),
            Err(error) => ReadFailure::Io(self.path(), error),
        }
    }

    fn path(&self) -> PathBuf {
        match &self.path {
            SourcePath::Pack(dir, id) => dir.pack(*id),
            SourcePath::Large(dir, digest) => dir.blob(digest),
        }
    }
}

fn open(path: &Path) -> Result<Arc<OwnedFd>, ReadFailure> {
    match File::open(path) {
        Ok(file) => Ok(Arc::new(file.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Damage::Gone(path.to_owned()).into())
        }
        Err(error) => Err(ReadFailure::Io(path.to_owned(), error)),
    }
}

fn length(file: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size as u64)
}
