//! OPEN and READ: from a node's blob to its reader.
//!
//! The store reads and verifies straight into the transport's reply buffer. For virtiofs, the
//! crate's writer reads from a "file", and that file is the blob.

use std::io;

use fuse_backend_rs::api::filesystem::ZeroCopyWriter;
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;

use super::CastoreFs;
use super::errno::{self, failure};
use super::node_id::{NodeId, NodePlace};
use super::page_cache_push;
use super::passthrough::{OpenReply, OpenRequest, Passthrough};
use super::waiting::{self, AwaitedObject, FetchedObject, NotInPlace};
use crate::castore::{Digest, Node};
use crate::store::Answer;

impl CastoreFs {
    /// Writes up to `length` bytes of the file `id` from `offset` on to `out`; returns how many.
    pub(super) fn read_file(
        &self,
        id: NodeId,
        offset: u64,
        length: u32,
        out: &mut dyn ZeroCopyWriter,
    ) -> io::Result<usize> {
        let (digest, size) = self.file(id)?;
        let rest = size.saturating_sub(offset).min(u64::from(length)) as usize;
        if rest == 0 {
            return Ok(0);
        }
        self.record_read(id, &digest, size, offset, rest as u64);
        let mut blob = BlobFile {
            fs: self,
            id,
            digest,
            size,
        };
        let mut done = 0;
        while done < rest {
            match out.write_from(&mut blob, rest - done, offset + done as u64)? {
                0 => break,
                written => done += written,
            }
        }
        Ok(done)
    }

    /// Fills `buffer` from the file `id` at `offset`, unless the file ends first; returns the
    /// number of bytes.
    pub fn read_into(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(read) = self.read_image(id, offset, buffer) {
            return read;
        }
        let (digest, size) = self.file(id)?;
        let rest = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if rest == 0 {
            return Ok(0);
        }
        self.record_read(id, &digest, size, offset, rest as u64);
        self.read_blob(id, &digest, size, offset, &mut buffer[..rest])
    }

    /// Notes a read, once. Small files that are read from their start may be part of a walk.
    fn record_read(&self, id: NodeId, digest: &Digest, size: u64, offset: u64, length: u64) {
        if waiting::has_waited_for_bytes() {
            return;
        }
        self.touch(id, digest, offset, length);
        if offset == 0 {
            self.walk_passes(id);
        }
        if offset == 0
            && size <= page_cache_push::SMALL
            && let Some(NodePlace::Entry { slot, index }) = id.place()
        {
            self.page_cache_push.read(slot, index);
        }
    }

    /// Opens the file `id` with the flags of open(2), in a mount that uses `passthrough`.
    pub fn open_file(
        &self,
        passthrough: &Passthrough,
        request: OpenRequest,
        id: NodeId,
        flags: u32,
    ) -> io::Result<OpenReply> {
        if flags as i32 & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(failure(libc::EROFS));
        }
        if let Some(digest) = self.image_digest(id) {
            return passthrough.open(request, id, &digest, || Ok(None));
        }
        let (digest, size) = self.file(id)?;
        let opened = passthrough.open(request, id, &digest, || {
            self.store
                .backing_file(&digest, size)
                .map(|found| found.map(|found| found.file))
                .map_err(|error| self.failed(id, Some(&digest), &error))
        })?;
        if opened.backing.is_some() {
            // The kernel does not report its reads of a backing file, so the OPEN counts as one.
            self.touch(id, &digest, 0, size.min(1));
        }
        Ok(opened)
    }

    /// The digest and size of the file `id`.
    fn file(&self, id: NodeId) -> io::Result<(Digest, u64)> {
        match id.place() {
            Some(NodePlace::Entry { slot, index }) => match self.entry(slot, index)?.node {
                Node::File { digest, size, .. } => Ok((digest, size)),
                _ => Err(failure(libc::EINVAL)),
            },
            Some(NodePlace::Directory(_)) => Err(failure(libc::EISDIR)),
            None => Err(failure(libc::ESTALE)),
        }
    }

    fn read_blob(
        &self,
        id: NodeId,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let wanted = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let read = match self.store.read_now(digest, size, offset, buffer) {
            Ok(Answer::Found(length)) => Ok(Some(length)),
            Ok(Answer::Absent) => Ok(None),
            Ok(Answer::Wait) => {
                if offset == 0 && !waiting::has_waited_for_bytes() {
                    self.walk_waits(id);
                }
                let bytes = AwaitedObject::Bytes {
                    digest: *digest,
                    size,
                    offset,
                    length: buffer.len(),
                };
                match self.waiting.wait(&self.store, bytes) {
                    Ok(FetchedObject::Bytes(Some(bytes))) => {
                        let length = bytes.len().min(buffer.len());
                        buffer[..length].copy_from_slice(&bytes[..length]);
                        Ok(Some(length))
                    }
                    Ok(_) => Ok(None),
                    Err(NotInPlace::Failed(error)) => Err(error),
                    Err(NotInPlace::Parked) => return Err(errno::parked()),
                }
            }
            Err(error) => Err(error),
        };
        match read {
            // A store that returns fewer bytes than the blob has does not report it: a program must
            // not take it for the end of the file.
            Ok(Some(length)) if length == wanted => Ok(length),
            Ok(Some(_)) | Ok(None) => Err(self.missing(id, "blob", digest)),
            Err(error) => Err(self.failed(id, Some(digest), &error)),
        }
    }
}

/// A blob in the shape of a file, for [`ZeroCopyWriter::write_from`].
struct BlobFile<'a> {
    fs: &'a CastoreFs,
    id: NodeId,
    digest: Digest,
    size: u64,
}

impl FileReadWriteVolatile for BlobFile<'_> {
    fn read_at_volatile(&mut self, slice: FileVolatileSlice, offset: u64) -> io::Result<usize> {
        // SAFETY: the slice is `len` writable bytes that live as long as `slice`, and its owner
        // shares it with no other thread during this call. A virtiofs guest can write to its own
        // memory meanwhile. It can spoil the reply that it gets, and nothing else: what was read is
        // not looked at again here.
        let buffer = unsafe { std::slice::from_raw_parts_mut(slice.as_ptr(), slice.len()) };
        self.fs
            .read_blob(self.id, &self.digest, self.size, offset, buffer)
    }

    fn read_vectored_at_volatile(
        &mut self,
        slices: &[FileVolatileSlice],
        offset: u64,
    ) -> io::Result<usize> {
        let mut done = 0;
        for slice in slices {
            let read = self.read_at_volatile(*slice, offset + done as u64)?;
            done += read;
            if read < slice.len() {
                break;
            }
        }
        Ok(done)
    }

    fn read_volatile(&mut self, _: FileVolatileSlice) -> io::Result<usize> {
        Err(failure(libc::ESPIPE))
    }

    fn write_volatile(&mut self, _: FileVolatileSlice) -> io::Result<usize> {
        Err(failure(libc::EROFS))
    }

    fn write_at_volatile(&mut self, _: FileVolatileSlice, _: u64) -> io::Result<usize> {
        Err(failure(libc::EROFS))
    }
}
