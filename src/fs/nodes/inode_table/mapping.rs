//! The memory mapping of the persisted inode table: all its unsafe code.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use super::{RECORD_BYTES, StateHeader};

/// A record of which the file holds many.
///
/// # Safety
///
/// It has [`RECORD_BYTES`], which is a multiple of its alignment, and consists of atomics, for
/// which any bytes are a value.
pub(super) unsafe trait MappedRecord {}

/// A mapped part of the file. Holds only atomics, which other processes may change.
pub(in crate::fs::nodes) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is no thread's own, and what is in it is only ever seen as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of the file from `offset` on.
    pub(super) fn new(memory: &OwnedFd, offset: u64, bytes: usize) -> io::Result<Self> {
        // SAFETY: the address is the kernel's choice, so nothing that exists is mapped over.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                offset,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// The header, in a mapping of the first page.
    pub(super) fn header(&self) -> &StateHeader {
        debug_assert!(self.bytes >= size_of::<StateHeader>());
        // SAFETY: only called on the mapping of the file's first page, which is larger than a
        // Header and page-aligned; the file is sealed against shrinking; a Header is atomics, for
        // which any bytes are a value. The mapping lives as long as `self`.
        unsafe { self.start.cast().as_ref() }
    }

    /// The record at a place of a segment.
    pub(super) fn record<R: MappedRecord>(&self, at: u32) -> &R {
        assert!((at as usize) < self.bytes / RECORD_BYTES);
        // SAFETY: inside the mapping, by the line above; as for `header` otherwise. Records are
        // aligned, since their size is a multiple of their alignment and the start is a page's.
        unsafe { self.start.cast::<R>().add(at as usize).as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
