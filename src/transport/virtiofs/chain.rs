//! A request in the guest's memory: a chain of descriptors, first those that the device reads, then
//! those that it writes.
//!
//! All of it was written by the guest and can be rewritten by it at any moment, so each word is
//! read once, and the request is copied out before it is parsed. Addresses are the guest's; the
//! crate's memory accessors check them against the existing memory.

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Descriptors of a request, at most: the pages of the largest READ and its headers, four times
/// over.
const MOST_DESCRIPTORS: usize = 1024;
/// Bytes of a request, at most. The largest that a kernel sends to a read-only file system is
/// SETXATTR, with a value of 64 KiB.
pub(super) const REQUEST_BYTES: usize = 128 << 10;
/// Bytes of `struct fuse_in_header`: no request is shorter.
pub(super) const HEADER_BYTES: usize = 40;
/// Where `struct fuse_in_header` has the request's number.
const UNIQUE: std::ops::Range<usize> = 8..16;

/// A chain that is no request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum MalformedChain {
    /// A descriptor refers to an invalid one: beyond the table, outside of memory, or an indirect
    /// table inside another.
    #[error("its chain of descriptors is cut short")]
    Broken,
    /// More descriptors than [`MOST_DESCRIPTORS`].
    #[error("its chain has more than {MOST_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// The protocol requires readable descriptors before writable ones.
    #[error("it has a readable descriptor after a writable one")]
    OutOfOrder,
    /// Less than a header.
    #[error("its {0} bytes are less than a header")]
    TooShort(usize),
    /// More than [`REQUEST_BYTES`].
    #[error("it has more than {REQUEST_BYTES} bytes")]
    TooLong,
    /// A descriptor names memory that the guest does not have.
    #[error("its bytes lie outside of the guest's memory")]
    OutsideMemory,
}

/// The parts of a chain beside the request itself.
pub(super) struct RequestChain {
    /// Where the reply goes.
    pub room: ReplyBuffers,
    /// The request's number, which the reply repeats.
    pub unique: u64,
}

/// Places in a guest's memory that wait for a reply.
pub(super) struct ReplyBuffers {
    memory: Arc<GuestMemoryMmap>,
    places: Vec<(GuestAddress, u32)>,
}

impl RequestChain {
    /// Copies the request of `chain` into `request`.
    pub(super) fn read(
        chain: DescriptorChain<Arc<GuestMemoryMmap>>,
        request: &mut Vec<u8>,
        memory: Arc<GuestMemoryMmap>,
    ) -> Result<Self, MalformedChain> {
        request.clear();
        let mut places = Vec::new();
        let mut more = true;
        for (count, descriptor) in chain.enumerate() {
            if count == MOST_DESCRIPTORS {
                return Err(MalformedChain::TooManyDescriptors);
            }
            more = descriptor.has_next();
            if descriptor.is_write_only() {
                places.push((descriptor.addr(), descriptor.len()));
                continue;
            }
            if !places.is_empty() {
                return Err(MalformedChain::OutOfOrder);
            }
            let start = request.len();
            let end = start + descriptor.len() as usize;
            if end > REQUEST_BYTES {
                return Err(MalformedChain::TooLong);
            }
            request.resize(end, 0);
            memory
                .read_slice(&mut request[start..], descriptor.addr())
                .map_err(|_| MalformedChain::OutsideMemory)?;
        }
        // The crate treats a chain that it cannot follow as if it ended there.
        if more {
            return Err(MalformedChain::Broken);
        }
        if request.len() < HEADER_BYTES {
            return Err(MalformedChain::TooShort(request.len()));
        }
        let mut unique = [0; 8];
        unique.copy_from_slice(&request[UNIQUE]);
        Ok(Self {
            room: ReplyBuffers { memory, places },
            unique: u64::from_ne_bytes(unique),
        })
    }
}

impl ReplyBuffers {
    /// Bytes of room.
    pub(super) fn len(&self) -> usize {
        // At most 1024 times 2^32.
        self.places.iter().map(|(_, length)| *length as usize).sum()
    }

    /// Copies `reply` to the guest; returns how many bytes were written, or nothing if a descriptor
    /// is outside of memory or the room does not suffice.
    pub(super) fn write(&self, reply: &[u8]) -> Option<u32> {
        let mut rest = reply;
        for (address, length) in &self.places {
            let (now, later) = rest.split_at(rest.len().min(*length as usize));
            if now.is_empty() {
                break;
            }
            self.memory.write_slice(now, *address).ok()?;
            rest = later;
        }
        rest.is_empty().then_some(reply.len() as u32)
    }
}
