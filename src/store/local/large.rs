//! Large blobs: each a plain file, so that the kernel can read it itself.
//!
//! A file is written in the import's own directory under `tmp/`, which is locked for as long as the
//! import lives, and is named by its digest there. Inside the index's commit it is *linked* to its
//! place under `blobs/`, and the first name is removed when the commit is complete. So a crash at
//! any moment leaves the first name, and by it the next opening for writing finds every file that
//! has got its place without an index entry.
//!
//! Writing and hashing overlap: a thread hashes the buffer that is being written. Whole 4 KiB
//! blocks of zeros are not written at all, and become holes.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::dir::{StoreDirectory, is_at, open_dir, try_lock};
use super::index::{Index, Snapshot};
use super::location::{ObjectLocation, StorageKind};
use super::pack::start_writeback;
use crate::castore::{BlobHasher, Digest, GroupTable};
use crate::store::Error;

/// Bytes hashed and written at once.
const BUFFER: usize = 1 << 20;
/// The smallest hole, and what holes are aligned to: a page.
const HOLE: usize = 4 << 10;
/// Bytes between two requests to the kernel to start writing to the disk.
const WRITEBACK: u64 = 32 << 20;

/// The unit of a file's `st_blocks`, in bytes.
pub(super) const ST_BLOCK: u64 = 512;
/// Directories that are synced one by one; if there are more, the whole disk is.
const FEW_DIRS: usize = 8;

/// An import's own directory under `tmp/`: locked while it lives, removed when it ends.
pub(super) struct TmpDir {
    path: PathBuf,
    /// Locked; and the descriptor by which the disk is synced, as it reports every write error
    /// since it was opened.
    lock: OwnedFd,
    next: AtomicU64,
    abandoned: AtomicBool,
}

impl TmpDir {
    pub(super) fn make(dir: &StoreDirectory) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", std::process::id());
            let path = dir.tmp().join(name);
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Of a dead process with this process id, and not removed yet.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(dir.io("create the directory", &path)(error)),
            }
            // Before it is locked, the directory looks like a dead import's.
            let locked = open_dir(&path)
                .and_then(|lock| Ok((try_lock(&lock)? && is_at(&lock, &path)?).then_some(lock)));
            match locked {
                Ok(Some(lock)) => {
                    dir.give_to_owner(&lock, &path);
                    return Ok(Self {
                        path,
                        lock,
                        next: AtomicU64::new(0),
                        abandoned: AtomicBool::new(false),
                    });
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(dir.io("lock", &path)(error)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory stays as it is on drop, for [`reclaim`] to sort out.
    pub(super) fn abandon(&self, abandoned: bool) {
        self.abandoned.store(abandoned, Ordering::Release);
    }

    /// Makes everything durable that was ever written to the store's disk.
    pub(super) fn sync_disk(&self, dir: &StoreDirectory) -> Result<(), Error> {
        rustix::fs::syncfs(&self.lock)
            .map_err(io::Error::from)
            .map_err(dir.io("sync the disk of", dir.path()))
    }
}

impl LargeFile {
    /// Takes a complete file, whose bytes were verified, for an import; it keeps its name.
    pub(super) fn take_over(
        dir: &StoreDirectory,
        tmp: &TmpDir,
        from: &Path,
        digest: &Digest,
        table: GroupTable,
        len: u64,
    ) -> Result<Self, Error> {
        let path = tmp.path.join(digest.to_hex());
        let linked = fs::hard_link(from, &path)
            .and_then(|()| File::open(&path))
            .and_then(|file| {
                file.set_permissions(Permissions::from_mode(0o444))?;
                Ok(file)
            });
        Ok(Self {
            digest: *digest,
            len,
            table,
            file: Some(linked.map_err(dir.io("take over", from))?),
            path,
        })
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        if *self.abandoned.get_mut() {
            return;
        }
        // What cannot be removed now is removed at the next opening for writing.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A large blob that is being written. Dropped before [`finish`](Self::finish), it is gone.
pub(super) struct LargeWriter {
    dir: Arc<StoreDirectory>,
    tmp: Arc<TmpDir>,
    path: PathBuf,
    file: File,
    /// Bytes that are neither hashed nor written yet.
    buffer: Vec<u8>,
    /// Bytes that are hashed and written.
    len: u64,
    /// Up to where the kernel was asked to start writing.
    nudged: u64,
    hasher: Option<HashingThread>,
    finished: bool,
}

/// The hashing thread, and its channel.
struct HashingThread {
    buffers: SyncSender<Arc<Vec<u8>>>,
    thread: JoinHandle<BlobHasher>,
}

/// A complete large blob, in the import's directory.
#[derive(Debug)]
pub(super) struct LargeFile {
    pub(super) digest: Digest,
    pub(super) len: u64,
    pub(super) table: GroupTable,
    /// For the sync, unless there are so many files that the whole disk is synced at once.
    pub(super) file: Option<File>,
    pub(super) path: PathBuf,
}

impl LargeWriter {
    pub(super) fn start(dir: &Arc<StoreDirectory>, tmp: Arc<TmpDir>) -> Result<Self, Error> {
        let number = tmp.next.fetch_add(1, Ordering::Relaxed);
        let path = tmp.path.join(format!("{number}.part"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(dir.io("create", &path))?;
        dir.give_to_owner(&file, &path);
        let (buffers, taken) = sync_channel::<Arc<Vec<u8>>>(2);
        let thread = thread::Builder::new()
            .name(String::from("hash"))
            .spawn(move || {
                let mut hasher = BlobHasher::new();
                taken.iter().for_each(|buffer| hasher.update(&buffer));
                hasher
            })
            .map_err(dir.io("start a thread to hash", &path))?;
        Ok(Self {
            dir: dir.clone(),
            tmp,
            path,
            file,
            buffer: Vec::with_capacity(BUFFER),
            len: 0,
            nudged: 0,
            hasher: Some(HashingThread { buffers, thread }),
            finished: false,
        })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (head, tail) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(head);
            bytes = tail;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let buffer = Arc::new(std::mem::take(&mut self.buffer));
        if let Some(hasher) = &self.hasher {
            // Fails only if the thread has panicked, which finish() reports.
            let _ = hasher.buffers.send(buffer.clone());
        }
        write_but_holes(&self.file, self.len, &buffer).map_err(self.dir.io("write", &self.path))?;
        self.len += buffer.len() as u64;
        if self.len - self.nudged >= WRITEBACK {
            start_writeback(&self.file, self.nudged, self.len - self.nudged);
            self.nudged = self.len;
        }
        // Reuse the buffer if the hasher is done with it.
        self.buffer = Arc::try_unwrap(buffer).unwrap_or_else(|_| Vec::with_capacity(BUFFER));
        self.buffer.clear();
        Ok(())
    }

    /// Ends the blob. The file is named by its digest from now on.
    pub(super) fn finish(mut self) -> Result<LargeFile, Error> {
        self.flush()?;
        let failed = self.dir.io("hash", &self.path);
        let hasher = self.hasher.take().map(|hasher| {
            drop(hasher.buffers);
            hasher.thread.join()
        });
        let Some(Ok(hasher)) = hasher else {
            return Err(failed(io::Error::other("the hashing thread panicked")));
        };
        let (digest, table) = hasher.finish();
        let path = self.tmp.path.join(digest.to_hex());
        self.file
            .set_len(self.len)
            .and_then(|()| self.file.set_permissions(Permissions::from_mode(0o444)))
            .and_then(|()| fs::rename(&self.path, &path))
            .and_then(|()| self.file.try_clone())
            .map(|file| {
                self.finished = true;
                LargeFile {
                    digest,
                    len: self.len,
                    table,
                    file: Some(file),
                    path,
                }
            })
            .map_err(self.dir.io("finish", &self.path))
    }
}

impl Drop for LargeWriter {
    fn drop(&mut self) {
        if let Some(hasher) = self.hasher.take() {
            drop(hasher.buffers);
            let _ = hasher.thread.join();
        }
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes `bytes` at `offset`, except for whole aligned blocks of zeros.
fn write_but_holes(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut start = 0;
    let mut end = 0;
    for block in bytes.chunks(HOLE) {
        if block.len() == HOLE && is_zero(block) {
            if start < end {
                file.write_all_at(&bytes[start..end], offset + start as u64)?;
            }
            start = end + HOLE;
        }
        end += block.len();
    }
    if start < end {
        file.write_all_at(&bytes[start..end], offset + start as u64)?;
    }
    Ok(())
}

fn is_zero(block: &[u8]) -> bool {
    // Most blocks that are not zero show it at once; the rest is one memcmp with itself, a byte on.
    matches!(block, [0, ..]) && block[1..] == block[..block.len() - 1]
}

/// Links finished files to their places, and makes the links durable.
///
/// Works inside the index's commit, so that no other process links or removes at the same time.
pub(super) fn place<'a>(
    dir: &StoreDirectory,
    tmp: &TmpDir,
    files: impl Iterator<Item = &'a LargeFile>,
) -> Result<(), Error> {
    let mut unsynced = HashSet::new();
    for file in files {
        let parent = dir.blob_dir(&file.digest);
        if !unsynced.contains(&parent) {
            if !parent.exists() {
                dir.make_dir(&parent)
                    .map_err(dir.io("create the directory", &parent))?;
                unsynced.insert(dir.blobs());
            }
            unsynced.insert(parent);
        }
        let place = dir.blob(&file.digest);
        let linked = match fs::hard_link(&file.path, &place) {
            // There is no index entry for it, or a damaged file is replaced.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&place).and_then(|()| fs::hard_link(&file.path, &place))
            }
            other => other,
        };
        linked.map_err(dir.io("create", &place))?;
    }
    if unsynced.len() > FEW_DIRS {
        return tmp.sync_disk(dir);
    }
    unsynced.iter().try_for_each(|path| dir.sync(path))
}

/// Removes the files that are not in `remaining`; returns the bytes that were freed.
///
/// No addition may run meanwhile.
pub(super) fn sweep(dir: &StoreDirectory, remaining: &Snapshot) -> Result<u64, Error> {
    let mut freed = 0;
    let blobs = dir.blobs();
    for start in fs::read_dir(&blobs).map_err(dir.io("list", &blobs))? {
        let start = start.map_err(dir.io("list", &blobs))?;
        let path = start.path();
        let files = match fs::read_dir(&path) {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotADirectory => continue,
            Err(error) => return Err(dir.io("list", &path)(error)),
        };
        for file in files {
            let file = file.map_err(dir.io("list", &path))?;
            let (first, rest) = (start.file_name(), file.file_name());
            let digest = first.to_str().zip(rest.to_str());
            let digest = digest.map(|(first, rest)| format!("{first}{rest}").parse::<Digest>());
            // Foreign files stay.
            let Some(Ok(digest)) = digest else { continue };
            let large = |at: ObjectLocation| at.kind == StorageKind::Large;
            if remaining.blob(&digest)?.is_some_and(large) {
                continue;
            }
            let path = file.path();
            let found = file.metadata().map_err(dir.io("inspect", &path))?;
            fs::remove_file(&path).map_err(dir.io("remove", &path))?;
            freed += found.blocks() * ST_BLOCK;
        }
    }
    Ok(freed)
}

/// Whether there is something under `tmp/`.
pub(super) fn has_leftovers(dir: &StoreDirectory) -> Result<bool, Error> {
    let tmp = dir.tmp();
    let mut entries = fs::read_dir(&tmp).map_err(dir.io("list", &tmp))?;
    Ok(entries.next().is_some())
}

/// Removes what dead imports left under `tmp/`, and what they linked into `blobs/` without
/// committing.
pub(super) fn reclaim(dir: &StoreDirectory, index: &Index) -> Result<(), Error> {
    let tmp = dir.tmp();
    for entry in fs::read_dir(&tmp).map_err(dir.io("list", &tmp))? {
        let path = entry.map_err(dir.io("list", &tmp))?.path();
        let lock = match open_dir(&path) {
            Ok(lock) => lock,
            // A file in `tmp/` itself exists for an instant only.
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                let _ = fs::remove_file(&path);
                continue;
            }
            Err(_) => continue,
        };
        let ours = try_lock(&lock).and_then(|locked| Ok(locked && is_at(&lock, &path)?));
        if !ours.map_err(dir.io("lock", &path))? {
            continue;
        }
        // The change prevents other processes from linking the same digest meanwhile.
        let mut change = index.change()?;
        for file in fs::read_dir(&path).map_err(dir.io("list", &path))? {
            let file = file.map_err(dir.io("list", &path))?;
            let name = file.file_name();
            let Some(Ok(digest)) = name.to_str().map(str::parse::<Digest>) else {
                continue;
            };
            if change.blob(&digest)?.is_some() {
                continue;
            }
            let place = dir.blob(&digest);
            let linked = File::open(file.path()).and_then(|file| is_at(&file, &place));
            if linked.map_err(dir.io("inspect", &place))? {
                fs::remove_file(&place).map_err(dir.io("reclaim", &place))?;
            }
        }
        drop(change);
        fs::remove_dir_all(&path).map_err(dir.io("reclaim", &path))?;
    }
    Ok(())
}
