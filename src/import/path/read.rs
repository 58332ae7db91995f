//! The readers: open, read and hash files, and put them into the store.

use std::os::fd::OwnedFd;

use rustix::fs::{Advice, FileType, SeekFrom, Stat};
use rustix::io::Errno;

use super::queue::{AbandonOnPanic, FileBatch, ImportAbandoned, ImportQueue, ReaderTask};
use super::{ImportError, ImportProgress, OFlags, ReadJob, failed, open, special};
use crate::castore::Digest;
use crate::import::SMALL;
use crate::import::assembly::{FileId, ReadFile};
use crate::store::{BlobWriter, Ingest};

/// Bytes that a reader gathers before it puts them.
const PUT: usize = 4 << 20;
/// Room for one small file more, and for the byte that shows that a file has grown.
const BUFFER: usize = PUT + SMALL as usize + 1;
/// Bytes of a large file read, or of a hole hashed, at once.
const STEP: usize = 1 << 20;
static ZEROS: [u8; STEP] = [0; STEP];
/// The most bytes of a file that does not state its length.
const MAX_SIZELESS: u64 = 1 << 30;

/// Works until the queue is empty and closed.
pub(super) fn serve(queue: &ImportQueue, ingest: &dyn Ingest, progress: &ImportProgress) {
    let _guard = AbandonOnPanic(queue);
    let mut reader = FileReader {
        queue,
        ingest,
        progress,
        buffer: vec![0; BUFFER],
        gathered: Vec::new(),
        used: 0,
    };
    while let Some(work) = queue.take() {
        let result = match work {
            ReaderTask::Batch(batch) => reader.batch(batch),
            ReaderTask::Large(job) => reader.large(&job).map_err(ReaderEnd::Error),
        };
        match result {
            Ok(()) => queue.done(),
            Err(ReaderEnd::Abandoned) => return,
            Err(ReaderEnd::Error(error)) => return queue.fail(error),
        }
    }
}

/// Why a reader ends early.
enum ReaderEnd {
    /// Another one failed.
    Abandoned,
    /// This one failed.
    Error(ImportError),
}

impl From<ImportError> for ReaderEnd {
    fn from(error: ImportError) -> Self {
        ReaderEnd::Error(error)
    }
}

/// A small file in the buffer.
struct GatheredFile {
    id: FileId,
    file: ReadFile,
    start: usize,
}

struct FileReader<'a> {
    queue: &'a ImportQueue,
    ingest: &'a dyn Ingest,
    progress: &'a ImportProgress,
    /// Always [`BUFFER`] bytes.
    buffer: Vec<u8>,
    gathered: Vec<GatheredFile>,
    /// Bytes of the buffer that are gathered.
    used: usize,
}

impl FileReader<'_> {
    fn batch(&mut self, batch: FileBatch) -> Result<(), ReaderEnd> {
        let FileBatch { number, jobs, .. } = batch;
        for job in jobs {
            self.progress.check()?;
            if self.used >= PUT {
                self.put(number)?;
            }
            if let Some(large) = self.small(job)? {
                self.queue.set_aside(large);
            }
        }
        self.put(number)?;
        self.queue.end_turn(number);
        Ok(())
    }

    /// Puts what is gathered, when it is the turn of the batch `number`.
    fn put(&mut self, number: u64) -> Result<(), ReaderEnd> {
        self.queue
            .wait_for_turn(number)
            .map_err(|ImportAbandoned| ReaderEnd::Abandoned)?;
        let blobs: Vec<(Digest, &[u8])> = self
            .gathered
            .iter()
            // The empty blob is everywhere.
            .filter(|gathered| gathered.file.size > 0)
            .map(|gathered| {
                let end = gathered.start + gathered.file.size as usize;
                (gathered.file.digest, &self.buffer[gathered.start..end])
            })
            .collect();
        if !blobs.is_empty() {
            self.ingest.put_blobs(&blobs).map_err(ImportError::from)?;
        }
        let files = self.gathered.drain(..);
        self.queue
            .add_files(files.map(|gathered| (gathered.id, gathered.file)));
        self.used = 0;
        Ok(())
    }

    /// Reads a file into the buffer; returns it if it is large.
    fn small(&mut self, job: ReadJob) -> Result<Option<ReadJob>, ImportError> {
        let (fd, stat) = open_file(&job)?;
        let mut size = stat.st_size as u64;
        if size > SMALL {
            return Ok(Some(job));
        }
        let start = self.used;
        // One byte more than the file has: a short read means that all was read. A file without
        // blocks may have another size than it states, and is read until its end.
        let virtual_file = has_no_blocks(&stat);
        let room = if virtual_file { SMALL } else { size };
        let space = &mut self.buffer[start..=start + room as usize];
        let mut length = 0;
        while length < space.len() {
            let part = &mut space[length..];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut *part))
                .map_err(|error| cannot_read(&job, error))?;
            length += read;
            if read == 0 || (length as u64 == size && !virtual_file) {
                break;
            }
        }
        if length as u64 != size {
            if !virtual_file || !is_unchanged(&job, &fd, &stat)? {
                return Err(ImportError::Changed { path: job.path() });
            }
            if length as u64 > SMALL {
                return Ok(Some(ReadJob {
                    sizeless: true,
                    ..job
                }));
            }
            size = length as u64;
        }
        let bytes = &self.buffer[start..start + length];
        let file = ReadFile {
            digest: Digest::of(bytes),
            size,
            executable: is_executable(&stat),
        };
        self.gathered.push(GatheredFile {
            id: job.file,
            file,
            start,
        });
        self.used = start + length;
        self.progress.add_file();
        self.progress.add_bytes(size);
        Ok(None)
    }

    /// Streams a file that does not state its length into the store, to its end.
    fn sizeless(&mut self, job: &ReadJob) -> Result<(), ImportError> {
        let (fd, stat) = open_file(job)?;
        let mut writer = self.ingest.blob_writer()?;
        let mut size = 0;
        loop {
            self.progress.check()?;
            let buffer = &mut self.buffer[..STEP];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut *buffer))
                .map_err(|error| cannot_read(job, error))?;
            if read == 0 {
                break;
            }
            size += read as u64;
            if size > MAX_SIZELESS {
                return Err(ImportError::Endless { path: job.path() });
            }
            writer.write(&self.buffer[..read])?;
            self.progress.add_bytes(read as u64);
        }
        if !is_unchanged(job, &fd, &stat)? {
            return Err(ImportError::Changed { path: job.path() });
        }
        let (digest, _) = writer.finish()?;
        let file = ReadFile {
            digest,
            size,
            executable: is_executable(&stat),
        };
        self.queue.add_files(std::iter::once((job.file, file)));
        self.progress.add_file();
        Ok(())
    }

    /// Streams a file into the store.
    fn large(&mut self, job: &ReadJob) -> Result<(), ImportError> {
        if job.sizeless {
            return self.sizeless(job);
        }
        let (fd, before) = open_file(job)?;
        // For example /proc/kcore, which has the length of the address space.
        if has_no_blocks(&before) && before.st_size as u64 > MAX_SIZELESS && is_proc(job, &fd)? {
            return Err(ImportError::Endless { path: job.path() });
        }
        // Advice: nothing is lost if it is not taken.
        let _ = rustix::fs::fadvise(&fd, 0, None, Advice::Sequential);
        let mut writer = self.ingest.blob_writer()?;
        let size = before.st_size as u64;
        // Fewer blocks than bytes: there may be holes, which need no reading.
        let sparse = (before.st_blocks as u64).saturating_mul(512) < size;
        let mut offset = 0;
        while offset < size {
            let data = match sparse {
                true => next_data(&fd, offset, size)
                    .map_err(|error| ImportError::io("find the holes of", job.path(), error))?,
                false => offset..size,
            };
            self.zeros(&mut *writer, data.start - offset)?;
            self.data(job, &fd, &mut *writer, data.clone())?;
            offset = data.end;
        }
        let unchanged = is_unchanged(job, &fd, &before)?;
        let (digest, written) = writer.finish()?;
        if !unchanged || written != size {
            return Err(ImportError::Changed { path: job.path() });
        }
        let file = ReadFile {
            digest,
            size,
            executable: is_executable(&before),
        };
        self.queue.add_files(std::iter::once((job.file, file)));
        self.progress.add_file();
        Ok(())
    }

    fn zeros(&self, writer: &mut dyn BlobWriter, mut length: u64) -> Result<(), ImportError> {
        while length > 0 {
            self.progress.check()?;
            let step = length.min(STEP as u64);
            writer.write(&ZEROS[..step as usize])?;
            self.progress.add_bytes(step);
            length -= step;
        }
        Ok(())
    }

    fn data(
        &mut self,
        job: &ReadJob,
        fd: &OwnedFd,
        writer: &mut dyn BlobWriter,
        range: std::ops::Range<u64>,
    ) -> Result<(), ImportError> {
        let mut offset = range.start;
        while offset < range.end {
            self.progress.check()?;
            let step = (range.end - offset).min(STEP as u64) as usize;
            let buffer = &mut self.buffer[..step];
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *buffer, offset))
                .map_err(|error| cannot_read(job, error))?;
            if read == 0 {
                return Err(ImportError::Changed { path: job.path() });
            }
            writer.write(&self.buffer[..read])?;
            self.progress.add_bytes(read as u64);
            offset += read as u64;
        }
        Ok(())
    }
}

/// Opens a file that was a regular one when it was listed.
pub(super) fn open_file(job: &ReadJob) -> Result<(OwnedFd, Stat), ImportError> {
    let fd = open(&job.dir, &job.name, OFlags::empty())?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| failed("stat", job.path(), error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((fd, stat)),
        FileType::Directory => Err(ImportError::Changed { path: job.path() }),
        kind => Err(ImportError::Special {
            path: job.path(),
            kind: special(kind),
        }),
    }
}

/// Whether a file takes no room on any disk: it is empty, or its contents are generated when it is
/// read (`/proc`, `/sys`), and then its stated size may be 0 or a page, whatever its length.
fn has_no_blocks(stat: &Stat) -> bool {
    stat.st_blocks == 0
}

/// Whether the file is of procfs.
fn is_proc(job: &ReadJob, fd: &OwnedFd) -> Result<bool, ImportError> {
    let statfs = rustix::fs::fstatfs(fd).map_err(|error| failed("stat", job.path(), error))?;
    Ok(statfs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Whether nothing has written to a file since it was `before`.
fn is_unchanged(job: &ReadJob, fd: &OwnedFd, before: &Stat) -> Result<bool, ImportError> {
    let after =
        rustix::fs::fstat(fd).map_err(|error| ImportError::io("stat", job.path(), error))?;
    let written = |stat: &Stat| {
        (
            stat.st_size,
            stat.st_blocks,
            stat.st_mtime,
            stat.st_mtime_nsec,
        )
    };
    Ok(written(before) == written(&after))
}

/// Files are opened without blocking: a read that would have to wait is from a file whose contents
/// are events, without an end.
fn cannot_read(job: &ReadJob, error: Errno) -> ImportError {
    match error {
        Errno::AGAIN => ImportError::Endless { path: job.path() },
        _ => ImportError::io("read", job.path(), error),
    }
}

/// Whether the owner can execute the file, which is also Nix's criterion.
fn is_executable(stat: &Stat) -> bool {
    stat.st_mode & 0o100 != 0
}

/// The first part of a file, from `offset` on, that is no hole. Empty, at the end, if the whole
/// rest is one.
fn next_data(fd: &OwnedFd, offset: u64, size: u64) -> Result<std::ops::Range<u64>, Errno> {
    let start = match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(start) => start.clamp(offset, size),
        Err(Errno::NXIO) => return Ok(size..size),
        // A file system without support for holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(offset..size),
        Err(error) => return Err(error),
    };
    let end = match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
        Ok(end) => end.clamp(start, size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error),
    };
    Ok(start..end)
}
