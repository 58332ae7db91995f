//! Private memory in which a reply is made, before it goes as a whole to a guest or to the kernel.
//!
//! A request that turns out to have to wait is answered later, and what was written so far must not
//! be visible. The crate's writer for virtiofs writes to the memory of a chain of descriptors, and
//! the store reads and verifies right there. If that were the guest's memory, the guest could
//! change bytes between reading and verification and make a sound store look damaged; and a Rust
//! `&mut [u8]` must not be written by others. So the chain that the crate sees is private: a single
//! descriptor in a small private memory. The cost is one copy of what is warm in the cache: 1 MiB
//! in less than a tenth of a millisecond.

use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::OutHeader;
use fuse_backend_rs::transport::{VirtioFsWriter, Writer};
use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

/// Room for a reply: the largest READ and the header.
pub(super) const REPLY_BYTES: usize = (1 << 20) + 4096;

/// Where the descriptor lies, and below it the two rings of a queue.
const TABLE: GuestAddress = GuestAddress(0);
const AVAILABLE: GuestAddress = GuestAddress(0x100);
const USED: GuestAddress = GuestAddress(0x200);
/// Where the reply is written.
const REPLY: GuestAddress = GuestAddress(0x1000);
/// Entries of the queue.
const ENTRIES: u16 = 2;
/// `VIRTQ_DESC_F_WRITE`: the device may write.
const WRITABLE: u16 = 2;

/// There is no memory for a reply.
#[derive(Debug, Error)]
#[error("cannot make a reply buffer of {REPLY_BYTES} bytes: {0}")]
pub(super) struct NoBuffer(String);

/// Memory for one reply at a time.
pub(super) struct ReplyBuffer {
    memory: Arc<GuestMemoryMmap>,
    chain: DescriptorChain<Arc<GuestMemoryMmap>>,
}

impl ReplyBuffer {
    /// Maps the memory; pages are allocated once they are written to.
    pub(super) fn new() -> Result<Self, NoBuffer> {
        let size = REPLY.0 as usize + REPLY_BYTES;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(TABLE, size)])
            .map_err(|error| NoBuffer(error.to_string()))?;
        let memory = Arc::new(memory);
        let failed = |error: virtio_queue::Error| NoBuffer(error.to_string());
        // A queue with one chain in it, since the crate makes chains only from queues.
        let mut queue = Queue::new(ENTRIES).map_err(failed)?;
        queue.try_set_desc_table_address(TABLE).map_err(failed)?;
        queue
            .try_set_avail_ring_address(AVAILABLE)
            .map_err(failed)?;
        queue.try_set_used_ring_address(USED).map_err(failed)?;
        queue.set_ready(true);
        // The available ring: flags, index, and the number of the first descriptor, which is 0.
        memory
            .write_obj(1u16.to_le(), GuestAddress(AVAILABLE.0 + 2))
            .map_err(|error| NoBuffer(error.to_string()))?;
        let chain = queue.iter(memory.clone()).map_err(failed)?.next();
        let buffer = Self {
            memory,
            chain: chain.ok_or_else(|| NoBuffer("the queue is empty".to_owned()))?,
        };
        Ok(buffer)
    }

    /// A writer of replies of up to `room` bytes, but of no more than the buffer has.
    pub(super) fn writer(&mut self, room: usize) -> Result<Writer<'_>, NoBuffer> {
        let length = room.min(REPLY_BYTES) as u32;
        let failed = |error: String| NoBuffer(error);
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&REPLY.0.to_le_bytes());
        descriptor[8..12].copy_from_slice(&length.to_le_bytes());
        descriptor[12..14].copy_from_slice(&WRITABLE.to_le_bytes());
        self.memory
            .write_slice(&descriptor, TABLE)
            .map_err(|error| failed(error.to_string()))?;
        // An earlier reply must not be taken for this one.
        self.memory
            .write_slice(OutHeader::default().as_slice(), REPLY)
            .map_err(|error| failed(error.to_string()))?;
        let writer = VirtioFsWriter::new(&*self.memory, self.chain.clone())
            .map_err(|error| failed(error.to_string()))?;
        Ok(Writer::VirtioFs(writer))
    }

    /// The finished reply, of the length that its header states; nothing if there is none.
    pub(super) fn reply(&self) -> &[u8] {
        let header: OutHeader = self.memory.read_obj(REPLY).unwrap_or_default();
        let length = (header.len as usize).min(REPLY_BYTES);
        let Ok(slice) = vm_memory::GuestMemory::get_slice(&*self.memory, REPLY, length) else {
            return &[];
        };
        let start = slice.ptr_guard().as_ptr();
        // SAFETY: `get_slice` checked that `length` bytes from REPLY on are mapped, and the mapping
        // lives as long as `self.memory`. There is no other access to it: `writer` borrows this
        // buffer mutably, and its writers end with the borrow.
        unsafe { std::slice::from_raw_parts(start, length) }
    }
}
