//! A guest's side of a queue that is driven by arbitrary input: used by
//! `fuzz/fuzz_targets/virtqueue.rs` and by a test.
//!
//! An input is one of two kinds of hostile guest. The first writes arbitrary bytes into its memory
//! and declares them to be rings; it tests the rings, chains and descriptors. The second makes
//! well-formed chains with arbitrary requests; it tests the code that reads them.

use std::sync::Arc;

use tokio::runtime::Runtime;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use super::queue_events::QueueEvents;
use super::queue_worker;
use super::record::GuestRecord;
use super::ring::Ring;
use super::session::{Guest, GuestView};
use super::{MOST_DIRECTORIES, ROOT_TIMEOUT};
use crate::castore::{Digest, Directory, Name, Node, Root, SymlinkTarget};
use crate::fs::FsOptions;
use crate::store::{MemoryStore, Store};
use crate::transport::requests::RequestCounters;
use crate::transport::traffic::ReplyCounters;

/// The guest's memory: two pieces with a hole between them.
const LOW: (u64, usize) = (0, 0x2_0000);
const HIGH: (u64, usize) = (0x4_0000, 0x1_0000);
/// Entries of the queue.
const ENTRIES: u16 = 16;
/// Where the second kind of guest has its rings, requests and replies.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x1_0000;
const REPLY: u64 = HIGH.0;

/// The attacked device.
pub struct FuzzTarget {
    shown: Arc<GuestView>,
    _runtime: Runtime,
}

impl Default for FuzzTarget {
    fn default() -> Self {
        Self::new().expect("a runtime and a small store in memory")
    }
}

impl FuzzTarget {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let store = MemoryStore::new();
        let ingest = store.ingest()?;
        let content: Vec<u8> = (0..100_000u32).map(|at| (at / 7) as u8).collect();
        let digest = Digest::of(&content);
        ingest.put_blobs(&[(digest, &content)])?;
        let node = Node::File {
            digest,
            size: content.len() as u64,
            executable: true,
        };
        let link = Node::Symlink {
            target: SymlinkTarget::new(b"file")?,
        };
        let entries = vec![(Name::new(b"f")?, node), (Name::new(b"l")?, link)];
        let mut directory = Directory::from_entries(entries)?;
        for _ in 0..3 {
            ingest.put_directory(&directory)?;
            let both = [b"a", b"b"].map(|name| Ok((Name::new(name)?, directory.node())));
            let both: Result<Vec<_>, crate::castore::NameError> = both.into_iter().collect();
            directory = Directory::from_entries(both?)?;
        }
        ingest.put_directory(&directory)?;
        let root = Root {
            name: Name::new(b"r")?,
            node: directory.node(),
        };
        ingest.put_root(&root, None)?;
        ingest.commit()?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let options = FsOptions::default().without_notifications(ROOT_TIMEOUT, MOST_DIRECTORIES);
        Ok(Self {
            shown: Arc::new(GuestView {
                shows: String::new(),
                store: Arc::new(store),
                options,
                runtime: runtime.handle().clone(),
                span: tracing::Span::none(),
                counters: RequestCounters::default(),
                replies: ReplyCounters::default(),
            }),
            _runtime: runtime,
        })
    }

    /// Acts on `input`; panics if an invariant is broken.
    pub fn attack(&self, input: &[u8]) {
        let Some((kind, input)) = input.split_first() else {
            return;
        };
        let Ok(record) = GuestRecord::own() else {
            return;
        };
        let guest = Arc::new(Guest::new(self.shown.clone(), record));
        if kind & 1 == 0 {
            arbitrary_memory(&guest, *kind, input);
        } else {
            arbitrary_requests(&guest, *kind, input);
        }
        // In any case, the next session works.
        let mut driver = GuestDriver::new(&guest, false);
        assert_eq!(driver.errno(&init()), Some(0));
        assert_eq!(driver.errno(&request(1, 1, b"r\0")), Some(0));
    }
}

fn arbitrary_memory(guest: &Arc<Guest>, kind: u8, input: &[u8]) {
    let Some((places, image)) = input.split_at_checked(8) else {
        return;
    };
    let word = |at: usize| u64::from(u16::from_le_bytes([places[at], places[at + 1]]));
    let memory = memory();
    let most = image.len().min(LOW.1);
    let _ = memory.write_slice(&image[..most], GuestAddress(LOW.0));
    let Some(ring) = ring(guest, GuestMemoryAtomic::new(memory)) else {
        return;
    };
    ring.set_event_idx(kind & 2 != 0);
    ring.set_entries(ENTRIES);
    if ring
        .set_places(word(0) << 4, word(2) << 1, word(4) << 2)
        .is_err()
    {
        return;
    }
    ring.set_base(word(6) as u16);
    ring.set_enabled(true);
    start(&ring);
    queue_worker::serve(&ring, guest);
    match kind & 8 {
        0 => drop(ring.stop()),
        _ => ring.poison(),
    }
}

fn arbitrary_requests(guest: &Arc<Guest>, kind: u8, mut input: &[u8]) {
    let mut driver = GuestDriver::new(guest, kind & 2 != 0);
    if kind & 4 == 0 {
        driver.errno(&init());
    }
    // Opcode, which node, room for the reply in 64 bytes, length of the body; then the body.
    while let Some((&[opcode, node, room, length], rest)) = input.split_first_chunk::<4>() {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(length)));
        input = rest;
        let node = match node {
            // Ids that look valid: small slots, and places in them.
            0..128 => u64::from(node & 7) | u64::from(node >> 3) << 32,
            128..255 => driver.nodes[usize::from(node) % driver.nodes.len()],
            255 => u64::MAX,
        };
        driver.make(
            &request(u32::from(opcode), node, body),
            u32::from(room) * 64,
        );
    }
}

fn ring(guest: &Guest, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> Option<Ring> {
    let inflight = guest.record().inflight().queue(0);
    Ring::new(memory, ENTRIES, inflight, QueueEvents::new().ok()?).ok()
}

/// Starts a queue, with a kick file that accepts any write.
fn start(ring: &Ring) {
    let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
    ring.set_kick(kick.ok().map(std::fs::File::from));
}

fn memory() -> GuestMemoryMmap {
    let buffers = [LOW, HIGH].map(|(start, length)| (GuestAddress(start), length));
    GuestMemoryMmap::from_ranges(&buffers).expect("little memory")
}

/// A driver that follows the protocol.
struct GuestDriver<'a> {
    guest: &'a Arc<Guest>,
    ring: Ring,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    next: u16,
    /// Node ids that it received.
    nodes: Vec<u64>,
}

impl<'a> GuestDriver<'a> {
    fn new(guest: &'a Arc<Guest>, event_idx: bool) -> Self {
        let memory = GuestMemoryAtomic::new(memory());
        let ring = ring(guest, memory.clone()).expect("a descriptor to spare");
        ring.set_event_idx(event_idx);
        ring.set_entries(ENTRIES);
        ring.set_places(TABLE, AVAILABLE, USED)
            .expect("addresses that are aligned");
        ring.set_base(0);
        ring.set_enabled(true);
        start(&ring);
        Self {
            guest,
            ring,
            memory,
            next: 0,
            nodes: vec![1],
        }
    }

    /// The errno of the reply to `request`, if there is one.
    fn errno(&mut self, request: &[u8]) -> Option<i32> {
        let reply = self.make(request, 4096)?;
        Some(-i32::from_ne_bytes(reply[4..8].try_into().ok()?))
    }

    fn make(&mut self, request: &[u8], room: u32) -> Option<Vec<u8>> {
        use vm_memory::GuestAddressSpace;
        let memory = self.memory.memory();
        let descriptor = |address: u64, length: u32, flags: u16, next: u16| {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend([flags.to_le_bytes(), next.to_le_bytes()].concat());
            bytes
        };
        let (next, write) = (1, 2);
        let chain = match room {
            0 => descriptor(REQUEST, request.len() as u32, 0, 0),
            _ => [
                descriptor(REQUEST, request.len() as u32, next, 1),
                descriptor(REPLY, room, write, 0),
            ]
            .concat(),
        };
        let slot = AVAILABLE + 4 + u64::from(self.next % ENTRIES) * 2;
        let used = USED + 4 + u64::from(self.next % ENTRIES) * 8;
        self.next = self.next.wrapping_add(1);
        let writes = [
            (REQUEST, request),
            (TABLE, &chain),
            (slot, &[0, 0]),
            (AVAILABLE + 2, &self.next.to_le_bytes()),
        ];
        for (address, bytes) in writes {
            memory
                .write_slice(bytes, GuestAddress(address))
                .expect("inside of memory");
        }
        queue_worker::serve(&self.ring, self.guest);
        let given_back: u16 = memory.read_obj(GuestAddress(USED + 2)).expect("inside");
        assert_eq!(given_back, self.next, "the request was not given back");
        let [_, length]: [u32; 2] = memory.read_obj(GuestAddress(used)).expect("inside");
        assert!(length <= room, "{length} bytes written into {room}");
        if length == 0 {
            return None;
        }
        let mut reply = vec![0; length as usize];
        memory
            .read_slice(&mut reply, GuestAddress(REPLY))
            .expect("inside");
        let reports = u32::from_ne_bytes(reply[..4].try_into().expect("four bytes"));
        assert_eq!(reports, length, "the reply has another length");
        assert_eq!(reply[8..16], request[8..16], "the reply to another request");
        if let Some(node) = reply.get(16..24) {
            let node = u64::from_ne_bytes(node.try_into().expect("eight bytes"));
            self.nodes.push(node);
        }
        Some(reply)
    }
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(0x5eed_u64.to_ne_bytes());
    bytes.extend(node.to_ne_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn init() -> Vec<u8> {
    let words = [7u32, 41, 0, u32::MAX, 0];
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    request(26, 0, &body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_input_of_a_guest_causes_a_panic() {
        let target = FuzzTarget::default();
        proptest!(ProptestConfig::with_cases(2000), |(
            kind: u8,
            input in proptest::collection::vec(any::<u8>(), 0..600),
        )| {
            target.attack(&[&[kind], &input[..]].concat());
        });
    }
}
