//! A front end and its guest, in this process: guest memory in a memfd, rings driven by hand.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
const VERSION_1: u64 = 1 << 32;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const TABLE: u16 = 4;

/// The guest's memory: one piece from address 0 on.
pub(crate) const MEMORY: usize = 8 << 20;
/// Entries of a queue.
pub(crate) const ENTRIES: u16 = 64;
/// What each queue has of the memory for its rings and its requests.
const QUEUE_BYTES: u64 = 2 << 20;
/// How long a test waits for what should come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection and its guest.
pub(crate) struct FrontEnd {
    pub vhost: Frontend,
    pub memory: GuestMemoryMmap,
    pub queues: Vec<Queue>,
}

/// The guest's side of a queue.
pub(crate) struct Queue {
    base: u64,
    kick: EventFd,
    call: EventFd,
    next: u16,
    seen: u16,
    event_idx: bool,
}

/// A descriptor: address, length, flags, next.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor(pub u64, pub u32, pub u16, pub u16);

impl Descriptor {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.2.to_le_bytes());
        bytes[14..].copy_from_slice(&self.3.to_le_bytes());
        bytes
    }
}

impl FrontEnd {
    /// Connects to `socket`, with one high-priority queue and `requests` others.
    pub(crate) fn connect(socket: &Path, requests: usize, features: u64) -> Self {
        let file = std::fs::File::from(
            rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        file.set_len(MEMORY as u64).unwrap();
        let file = Some(FileOffset::new(file, 0));
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, file)]).unwrap();
        let count = 1 + requests;
        let mut vhost = Frontend::connect(socket, count as u64).unwrap();
        vhost.set_owner().unwrap();
        let offered = vhost.get_features().unwrap();
        let wanted = VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | features;
        assert_eq!(offered & wanted, wanted);
        let offered = vhost.get_protocol_features().unwrap();
        let known = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG;
        vhost.set_protocol_features(offered & known).unwrap();
        assert!(vhost.get_queue_num().unwrap() >= count as u64);
        vhost.set_features(wanted).unwrap();
        let mut front_end = Self {
            vhost,
            memory,
            queues: Vec::new(),
        };
        front_end.share_memory();
        for number in 0..count {
            let queue = Queue {
                base: number as u64 * QUEUE_BYTES,
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                call: EventFd::new(EFD_NONBLOCK).unwrap(),
                next: 0,
                seen: 0,
                event_idx: features & EVENT_IDX != 0,
            };
            front_end.queues.push(queue);
            front_end.start(number, 0);
        }
        front_end
    }

    fn share_memory(&self) {
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.vhost.set_mem_table(&[region]).unwrap();
    }

    /// Takes the memory away. Nothing here may touch it any more.
    pub(crate) fn truncate_memory(&self) {
        let region = self.memory.iter().next().unwrap();
        region.file_offset().unwrap().file().set_len(0).unwrap();
    }

    /// The connection.
    pub(crate) fn connection(&self) -> UnixStream {
        // SAFETY: the descriptor is open as long as the front end is.
        let socket = unsafe { BorrowedFd::borrow_raw(self.vhost.as_raw_fd()) };
        socket.try_clone_to_owned().unwrap().into()
    }

    /// Starts a queue at the ring index `at`.
    pub(crate) fn start(&mut self, number: usize, at: u16) {
        let queue = &self.queues[number];
        let vhost = &mut self.vhost;
        let host = |address: u64| {
            let address = self.memory.get_host_address(GuestAddress(address));
            address.unwrap() as u64
        };
        vhost.set_vring_num(number, ENTRIES).unwrap();
        let config = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: host(queue.table()),
            used_ring_addr: host(queue.used()),
            avail_ring_addr: host(queue.available()),
            log_addr: None,
        };
        vhost.set_vring_addr(number, &config).unwrap();
        vhost.set_vring_base(number, at).unwrap();
        vhost.set_vring_call(number, &queue.call).unwrap();
        vhost.set_vring_kick(number, &queue.kick).unwrap();
        vhost.set_vring_enable(number, true).unwrap();
    }

    /// Sets a queue up again, like a driver after a reset.
    pub(crate) fn restart(&mut self, number: usize) {
        self.vhost.get_vring_base(number).unwrap();
        let queue = &mut self.queues[number];
        for address in [queue.available(), queue.used()] {
            self.memory
                .write_slice(&[0; 600], GuestAddress(address))
                .unwrap();
        }
        (queue.next, queue.seen) = (0, 0);
        self.start(number, 0);
    }

    /// Makes `request` on a queue, leaving `room` bytes for the reply; gives the reply.
    pub(crate) fn request(&mut self, number: usize, request: &[u8], room: u32) -> Vec<u8> {
        let head = self.send(number, request, room);
        let (answered, length) = self.receive(number);
        assert_eq!(answered, head, "another request was answered");
        self.reply(number, head, length)
    }

    /// Makes a request; gives its descriptor's number.
    pub(crate) fn send(&mut self, number: usize, request: &[u8], room: u32) -> u16 {
        let queue = &self.queues[number];
        let head = queue.head();
        let (at, to) = (queue.request(head), queue.reply(head));
        self.memory.write_slice(request, GuestAddress(at)).unwrap();
        let chain = match room {
            0 => vec![Descriptor(at, request.len() as u32, 0, 0)],
            _ => vec![
                Descriptor(at, request.len() as u32, NEXT, head + 1),
                Descriptor(to, room, WRITE, 0),
            ],
        };
        self.offer(number, head, &chain);
        head
    }

    /// Puts descriptors into the table from `head` on, and makes them available.
    pub(crate) fn offer(&mut self, number: usize, head: u16, chain: &[Descriptor]) {
        for (index, descriptor) in (head..).zip(chain) {
            let address = self.queues[number].table() + u64::from(index) * 16;
            self.write(address, &descriptor.bytes());
        }
        self.make_available(number, head);
    }

    /// Makes the chain that begins at `head` available, and kicks.
    pub(crate) fn make_available(&mut self, number: usize, head: u16) {
        let queue = &mut self.queues[number];
        let slot = queue.available() + 4 + u64::from(queue.next % ENTRIES) * 2;
        queue.next = queue.next.wrapping_add(1);
        let (index, next) = (queue.available() + 2, queue.next);
        self.write(slot, &head.to_le_bytes());
        fence(Ordering::SeqCst);
        self.write(index, &next.to_le_bytes());
        self.kick(number);
    }

    pub(crate) fn kick(&self, number: usize) {
        self.queues[number].kick.write(1).unwrap();
    }

    /// Writes descriptors somewhere else: an indirect table.
    pub(crate) fn write_table(&self, address: u64, chain: &[Descriptor]) {
        for (index, descriptor) in chain.iter().enumerate() {
            self.write(address + index as u64 * 16, &descriptor.bytes());
        }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Waits for the next answer: its descriptor's number, and how many bytes were written.
    pub(crate) fn receive(&mut self, number: usize) -> (u16, u32) {
        let answer = self.receive_within(number, PATIENCE);
        answer.unwrap_or_else(|| panic!("no answer on queue {number}"))
    }

    pub(crate) fn receive_within(
        &mut self,
        number: usize,
        patience: Duration,
    ) -> Option<(u16, u32)> {
        let deadline = Instant::now() + patience;
        let queue = &self.queues[number];
        if queue.event_idx {
            // The driver's request to be notified of the very next one.
            let wish = queue.available() + 4 + u64::from(ENTRIES) * 2;
            self.write(wish, &queue.seen.to_le_bytes());
            fence(Ordering::SeqCst);
        }
        loop {
            let now: u16 = self
                .memory
                .read_obj(GuestAddress(queue.used() + 2))
                .unwrap();
            if now != queue.seen {
                break;
            }
            if Instant::now() > deadline {
                return None;
            }
            // Sleeps until it is notified, so that a reply without a notification is detected.
            // SAFETY: the descriptor is open as long as the queue is.
            let fd = unsafe { BorrowedFd::borrow_raw(queue.call.as_raw_fd()) };
            let mut call = [PollFd::new(&fd, PollFlags::IN)];
            let remaining = deadline.saturating_duration_since(Instant::now());
            let remaining = rustix::event::Timespec::try_from(remaining).unwrap();
            rustix::event::poll(&mut call, Some(&remaining)).unwrap();
            let _ = queue.call.read();
        }
        fence(Ordering::SeqCst);
        let slot = queue.used() + 4 + u64::from(queue.seen % ENTRIES) * 8;
        let [id, length]: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).unwrap();
        self.queues[number].seen = self.queues[number].seen.wrapping_add(1);
        Some((id as u16, length))
    }

    /// Whether the last that was given back cannot be, by which a guest's driver takes the device
    /// for broken.
    pub(crate) fn is_poisoned(&self, number: usize) -> bool {
        let used = self.queues[number].used();
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let last = u64::from(index.wrapping_sub(1) % ENTRIES);
        self.read(used + 4 + last * 8, 4) == [0xff; 4]
    }

    /// The reply to the request `head`.
    pub(crate) fn reply(&self, number: usize, head: u16, length: u32) -> Vec<u8> {
        self.read(self.queues[number].reply(head), length as usize)
    }
}

impl Queue {
    pub(crate) fn table(&self) -> u64 {
        self.base + 0x1000
    }

    pub(crate) fn available(&self) -> u64 {
        self.base + 0x2000
    }

    pub(crate) fn used(&self) -> u64 {
        self.base + 0x3000
    }

    /// Takes back kicks that no thread has seen.
    pub(crate) fn forget_kicks(&self) {
        let _ = self.kick.read();
    }

    /// A descriptor that is free: requests take two each, in turn.
    pub(crate) fn head(&self) -> u16 {
        self.next.wrapping_mul(2) % ENTRIES
    }

    /// The place of the request `head`.
    pub(crate) fn request(&self, head: u16) -> u64 {
        self.base + 0x1_0000 + u64::from(head) * 0x1000
    }

    /// Where the reply to the request `head` goes: 64 KiB apart, from 1 MiB on.
    pub(crate) fn reply(&self, head: u16) -> u64 {
        self.base + 0x10_0000 + u64::from(head % 16) * 0x1_0000
    }
}
