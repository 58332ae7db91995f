//! virtiofs from the guest's side: a front end in this process drives real rings over a real
//! socket. Real guests are in `tests/system/virtiofs`.

mod front_end;
mod fuse;
mod hand_over;
mod process;
mod service;
mod warm_up;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use castore_fs::castore::{Digest, Node};
use castore_fs::fs::{FsOptions, MountRoot, RootListing};
use castore_fs::store::{MemoryStore, Store};
use castore_fs::transport::virtiofs::{
    DeviceOptions, DeviceTag, EndpointStatus, ROOT_TIMEOUT, Socket, SocketAccess, VirtiofsEndpoint,
};
use front_end::{Descriptor, EVENT_IDX, FrontEnd, INDIRECT, MEMORY, NEXT, TABLE, WRITE};
use kit::double::{Double, Fate};
use kit::model::{Model, directory, file};
use tokio::runtime::Runtime;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

const ROOT: u64 = 1;
/// Room for a reply without bulk.
const ROOM: u32 = 4096;

/// A store that is served.
struct Served {
    endpoint: VirtiofsEndpoint,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Served {
    fn new(store: Arc<dyn Store>, mount_root: MountRoot) -> Self {
        let options = FsOptions {
            mount_root,
            ..FsOptions::default()
        };
        Self::with(store, options)
    }

    fn with(store: Arc<dyn Store>, options: FsOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listening = Socket::bind(&socket, SocketAccess::default()).unwrap();
        let device = DeviceOptions {
            tag: Some(DeviceTag::new("castore").unwrap()),
            request_queues: 2,
            ..DeviceOptions::default()
        };
        let runtime = RUNTIME.handle().clone();
        let endpoint = VirtiofsEndpoint::serve(store, listening, options, device, runtime).unwrap();
        Self {
            endpoint,
            socket,
            _dir: dir,
        }
    }

    fn tree(model: &Model) -> Self {
        let store = Arc::new(MemoryStore::new());
        let node = model.put_root(&*store, "root");
        Self::new(store, mount_root_of(&node))
    }

    fn connect(&self) -> FrontEnd {
        FrontEnd::connect(&self.socket, 2, EVENT_IDX | INDIRECT)
    }

    fn mounted(&self) -> FrontEnd {
        let mut guest = self.connect();
        guest.init();
        guest
    }

    /// Waits until the state is the expected one.
    #[track_caller]
    fn until(&self, what: &str, wanted: impl Fn(&EndpointStatus) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !wanted(&self.endpoint.status()) {
            let now = self.endpoint.status();
            assert!(Instant::now() < deadline, "{what}: {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn mount_root_of(node: &Node) -> MountRoot {
    match node {
        Node::Directory { digest, size } => MountRoot::Directory {
            digest: *digest,
            size: *size,
        },
        other => panic!("{other:?} is no directory"),
    }
}

impl FrontEnd {
    fn init(&mut self) {
        let reply = self.request(1, &fuse::init(), ROOM);
        assert_eq!(fuse::body(&reply).unwrap().len(), 64);
    }

    #[track_caller]
    fn look_up(&mut self, parent: u64, name: &str) -> fuse::Entry {
        fuse::entry(&self.request(1, &fuse::lookup(parent, name.as_bytes()), ROOM))
    }

    /// A whole file, in pieces of 32 KiB by turns over both request queues.
    #[track_caller]
    fn content(&mut self, node: u64, size: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (turn, offset) in (0..size).step_by(32 << 10).enumerate() {
            let reply = self.request(1 + turn % 2, &fuse::read(node, offset, 32 << 10), 33 << 10);
            bytes.extend(fuse::body(&reply).unwrap());
        }
        bytes
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 3 % 251) as u8).collect()
}

#[test]
fn a_tree_is_looked_up_listed_and_read_over_the_rings() {
    let bytes = pattern(200_001);
    let names = (0..40).map(|n| (format!("name-{n:02}"), file(vec![n; 10])));
    let served = Served::tree(&directory([
        ("large", file(bytes.clone())),
        ("inside", directory(names)),
    ]));
    for features in [0, EVENT_IDX, INDIRECT | EVENT_IDX] {
        let mut guest = FrontEnd::connect(&served.socket, 2, features);
        guest.init();
        let large = guest.look_up(ROOT, "large");
        assert_eq!(large.size, bytes.len() as u64);
        assert!(
            large.seconds > 1 << 40,
            "what cannot change is cached for ever"
        );
        assert!(guest.content(large.node, large.size) == bytes);
        let missing = guest.request(1, &fuse::lookup(ROOT, b"missing"), ROOM);
        assert_eq!(fuse::entry(&missing).node, 0);
        let inside = guest.look_up(ROOT, "inside");
        let listed = guest.request(2, &fuse::read_directory(inside.node, 0, 30 << 10), 31 << 10);
        let listed = fuse::body(&listed).unwrap();
        let listed = String::from_utf8_lossy(listed);
        assert!((0..40).all(|n| listed.contains(&format!("name-{n:02}"))));
    }
}

#[test]
fn equal_files_have_nodes_of_their_own_and_long_names_are_called_that() {
    let served = Served::tree(&directory([("a", file("same")), ("b", file("same"))]));
    let mut guest = served.mounted();
    assert_ne!(guest.look_up(ROOT, "a").node, guest.look_up(ROOT, "b").node);
    let long = [b'n'; 256];
    let names = |bytes: &[u8]| [bytes, b"\0"].concat();
    let modes = [0u8; 8];
    // A guest's kernel does not look every name up before it asks for more.
    for (opcode, body) in [
        (fuse::LOOKUP, names(&long)),
        (fuse::MKDIR, [&modes[..], &names(&long)].concat()),
        (fuse::UNLINK, names(&long)),
        (
            fuse::RENAME,
            [&ROOT.to_ne_bytes()[..], &names(b"a"), &names(&long)].concat(),
        ),
    ] {
        let reply = guest.request(1, &fuse::request(opcode, ROOT, &body), ROOM);
        assert_eq!(fuse::body(&reply), Err(libc::ENAMETOOLONG), "{opcode}");
    }
    let reply = guest.request(1, &fuse::request(fuse::UNLINK, ROOT, &names(b"a")), ROOM);
    assert_eq!(fuse::body(&reply), Err(libc::EROFS));
}

#[test]
fn roots_are_cached_for_a_while_only_and_their_listing_shows_that_it_changed() {
    let store = Arc::new(MemoryStore::new());
    directory([("file", file("1"))]).put_root(&*store, "first");
    let served = Served::new(
        store.clone(),
        MountRoot::Roots {
            list: RootListing::All,
        },
    );
    let mut guest = served.mounted();
    let first = guest.look_up(ROOT, "first");
    assert_eq!(first.seconds, ROOT_TIMEOUT.as_secs());
    assert!(guest.look_up(first.node, "file").seconds > 1 << 40);
    let changed = |guest: &mut FrontEnd| {
        let reply = guest.request(1, &fuse::get_attributes(ROOT), ROOM);
        // Seconds without a request, and the mount root's mtime.
        let body = fuse::body(&reply).unwrap();
        assert_eq!(fuse::word(body, 0), 0);
        u32::from_ne_bytes(body[16 + 52..16 + 56].try_into().unwrap())
    };
    let before = changed(&mut guest);
    assert_eq!(changed(&mut guest), before);
    let reply = guest.request(1, &fuse::lookup(ROOT, b"second"), ROOM);
    assert_eq!(
        fuse::body(&reply),
        Err(libc::ENOENT),
        "a name that may come is not cached"
    );
    directory([("file", file("2"))]).put_root(&*store, "second");
    assert_ne!(changed(&mut guest), before);
    guest.look_up(ROOT, "second");
}

#[test]
fn chains_through_an_indirect_table_are_followed_once() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.mounted();
    let (at, to, table) = (0x7_0000, 0x7_1000, 0x7_2000);
    let request = fuse::lookup(ROOT, b"file");
    guest.write(at, &request);
    // The request in two parts, the reply in two.
    let chain = [
        Descriptor(at, 40, NEXT, 1),
        Descriptor(at + 40, request.len() as u32 - 40, NEXT, 2),
        Descriptor(to, 16, NEXT | WRITE, 3),
        Descriptor(to + 16, 1000, WRITE, 0),
    ];
    guest.write_table(table, &chain);
    let head = guest.queues[1].head();
    guest.offer(1, head, &[Descriptor(table, 64, TABLE, 0)]);
    let (_, length) = guest.receive(1);
    assert_eq!(length, 16 + 128);
    assert_eq!(fuse::entry(&guest.read(to, length as usize)).size, 7);
    // A table inside a table is none.
    guest.write_table(0x7_3000, &[Descriptor(table, 64, TABLE, 0)]);
    let head = guest.queues[1].head();
    guest.offer(1, head, &[Descriptor(0x7_3000, 16, TABLE, 0)]);
    assert_eq!(guest.receive(1), (head, 0));
}

/// Each is given back unanswered, or answered with an error; and the next request is served.
#[test]
fn a_malformed_chain_fails_alone() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.mounted();
    let good = fuse::lookup(ROOT, b"file");
    let (at, to) = (0x7_0000, 0x7_1000);
    let outside = MEMORY as u64 + 0x1000;
    let length = good.len() as u32;
    guest.write(at, &good);
    // What is wrong, and a chain that is, whose second descriptor is `next`.
    let chains = |next: u16| {
        let reply = Descriptor(to, ROOM, WRITE, 0);
        let request = Descriptor(at, length, NEXT, next);
        let one = |address, length, flags, next| vec![Descriptor(address, length, flags, next)];
        [
            ("no header", vec![Descriptor(at, 39, NEXT, next), reply]),
            (
                "outside of memory",
                vec![Descriptor(outside, 60, NEXT, next), reply],
            ),
            ("across the end of memory", one(MEMORY as u64 - 8, 60, 0, 0)),
            ("an address that overflows", one(u64::MAX - 8, 60, 0, 0)),
            (
                "a chain that bites its tail",
                one(at, 1, NEXT, next.wrapping_sub(1)),
            ),
            ("a next beyond the table", one(at, length, NEXT, 60_000)),
            (
                "what is read after what is written",
                vec![
                    Descriptor(to, 100, NEXT | WRITE, next),
                    Descriptor(at, length, 0, 0),
                ],
            ),
            ("more bytes than any request has", one(at, 1 << 20, 0, 0)),
            ("all the bytes that there can be", one(at, u32::MAX, 0, 0)),
            ("an indirect table that is none", one(at, 17, TABLE, 0)),
            ("an empty indirect table", one(at, 0, TABLE, 0)),
            (
                "room outside of memory",
                vec![request, Descriptor(outside, ROOM, WRITE, 0)],
            ),
            (
                "room for half a header",
                vec![request, Descriptor(to, 8, WRITE, 0)],
            ),
            ("no room at all", one(at, length, 0, 0)),
        ]
    };
    for index in 0..chains(0).len() {
        let head = guest.queues[1].head();
        let (what, chain) = &chains(head + 1)[index];
        guest.offer(1, head, chain);
        assert_eq!(guest.receive(1), (head, 0), "{what}");
        assert_eq!(guest.look_up(ROOT, "file").size, 7, "after {what}");
    }
    let lying = |length: u32| {
        let mut lying = good.clone();
        lying[..4].copy_from_slice(&length.to_ne_bytes());
        lying
    };
    let answered = [
        (
            "a header with too large a length",
            lying(length + 1),
            libc::EIO,
        ),
        ("a header with too small a length", lying(3), libc::EIO),
        (
            "a header with the largest length",
            lying(u32::MAX),
            libc::EIO,
        ),
        (
            "an unknown opcode",
            fuse::request(4000, ROOT, &[]),
            libc::ENOSYS,
        ),
        (
            "a body that is too short",
            fuse::request(fuse::READ, ROOT, &[0; 7]),
            libc::EIO,
        ),
        (
            "a name without an end",
            fuse::request(fuse::LOOKUP, ROOT, b"file"),
            libc::EIO,
        ),
        (
            "a node that was never looked up",
            fuse::read(1 << 40, 0, 10),
            libc::ESTALE,
        ),
        (
            "a node beyond all",
            fuse::read(u64::MAX, 0, 10),
            libc::ESTALE,
        ),
        (
            "a listing without room",
            fuse::read_directory(ROOT, 0, u32::MAX),
            libc::ENOMEM,
        ),
    ];
    for (what, request, errno) in answered {
        let reply = guest.request(1, &request, ROOM);
        assert_eq!(fuse::body(&reply), Err(errno), "{what}");
        assert_eq!(guest.look_up(ROOT, "file").size, 7, "after {what}");
    }
    served.until("the guest is still there", |status| {
        status.guests.len() == 1
    });
}

/// A ring index beyond the ring's contents must not make the worker spin.
#[test]
fn an_inconsistent_ring_is_not_served_until_it_is_set_up_again() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.mounted();
    let index = guest.queues[1].available() + 2;
    guest.write(index, &0x7000u16.to_le_bytes());
    let before = processor_time();
    guest.kick(1);
    std::thread::sleep(Duration::from_millis(300));
    let spent = processor_time() - before;
    assert!(spent < Duration::from_millis(200), "it spins: {spent:?}");
    // The other queue is served meanwhile.
    let reply = guest.request(2, &fuse::lookup(ROOT, b"file"), ROOM);
    assert_eq!(fuse::entry(&reply).size, 7);
    guest.restart(1);
    assert_eq!(guest.look_up(ROOT, "file").size, 7);
}

/// A store with the tree `model`, whose blobs can be made remote, and one of which makes it panic.
fn gated(model: &Model) -> (Arc<Double>, Node) {
    let inner = MemoryStore::new();
    let node = model.put_root(&inner, "root");
    let store = Double::local_store("gated:", inner).with(&Digest::of(b"panics"), Fate::Panics);
    (Arc::new(store), node)
}

fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[test]
fn requests_that_wait_keep_no_other_from_being_served() {
    let (store, node) = gated(&directory([
        ("far", file(pattern(1000))),
        ("near", file("near")),
    ]));
    let served = Served::new(store.clone(), mount_root_of(&node));
    let mut guest = served.mounted();
    let (upstream, local_store) = (guest.look_up(ROOT, "far"), guest.look_up(ROOT, "near"));
    let nothing = guest.request(1, &fuse::read(local_store.node, 0, 10), ROOM);
    assert_eq!(fuse::body(&nothing).unwrap(), b"near");
    store.close();
    // Eight wait, on one queue, and the ninth is answered.
    let waiting: Vec<u16> = (0..8)
        .map(|_| guest.send(1, &fuse::read(upstream.node, 0, 100), ROOM))
        .collect();
    store.until_waiting(8);
    let head = guest.send(1, &fuse::get_attributes(ROOT), ROOM);
    let (answered, length) = guest.receive(1);
    assert_eq!(answered, head);
    fuse::body(&guest.reply(1, head, length)).unwrap();
    store.open();
    let mut answered: Vec<u16> = waiting.iter().map(|_| guest.receive(1).0).collect();
    answered.sort_unstable();
    assert_eq!(answered, waiting);
    assert_eq!(guest.look_up(ROOT, "near").size, 4);
    let traffic = served.endpoint.status().traffic;
    assert_eq!(
        (traffic.requests.of("READ"), traffic.waits.of("READ")),
        (9, 8)
    );
    assert_eq!(traffic.waits.total(), 8);
    assert_eq!(traffic.read_bytes, 8 * 100 + 4);
    assert_eq!(traffic.errors, [].into());
}

/// The guest resets during a wait for an upstream: its memory has another use now.
#[test]
fn a_queue_that_stops_answers_what_waits_and_nothing_is_written_later() {
    let (store, node) = gated(&directory([("far", file(pattern(1000)))]));
    let served = Served::new(store.clone(), mount_root_of(&node));
    let mut guest = served.mounted();
    let upstream = guest.look_up(ROOT, "far");
    store.close();
    let head = guest.send(1, &fuse::read(upstream.node, 0, 1000), ROOM);
    store.until_waiting(1);
    let start = Instant::now();
    let stopped_at = guest.vhost.get_vring_base(1).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(9),
        "{:?}",
        start.elapsed()
    );
    // The VM, if it had only been paused, would continue from here: with an answer, and none
    // missing.
    let (answered, length) = guest.receive(1);
    assert_eq!(answered, head);
    assert_eq!(fuse::body(&guest.reply(1, head, length)), Err(libc::EIO));
    let place = guest.queues[1].reply(head);
    guest.write(place, &[0xee; 2000]);
    store.open();
    store.until_waiting(0);
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        guest.read(place, 2000) == [0xee; 2000],
        "a late reply was written"
    );
    guest.start(1, stopped_at as u16);
    assert_eq!(guest.look_up(ROOT, "far").size, 1000);
    let reply = guest.request(1, &fuse::read(upstream.node, 0, 1000), ROOM);
    assert!(fuse::body(&reply).unwrap() == pattern(1000));
}

/// A VM that is paused and continued: its requests meanwhile have had no kick.
#[test]
fn requests_in_a_queue_when_it_starts_are_served_without_a_kick() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.mounted();
    let at = guest.vhost.get_vring_base(1).unwrap();
    let head = guest.send(1, &fuse::lookup(ROOT, b"file"), ROOM);
    guest.queues[1].forget_kicks();
    guest.start(1, at as u16);
    assert_eq!(guest.receive(1).0, head);
}

#[test]
fn a_request_before_init_or_after_destroy_gets_eio() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.connect();
    let lookup = fuse::lookup(ROOT, b"file");
    assert_eq!(fuse::body(&guest.request(1, &lookup, ROOM)), Err(libc::EIO));
    guest.init();
    fuse::entry(&guest.request(1, &lookup, ROOM));
    let destroyed = guest.request(1, &fuse::request(fuse::DESTROY, 0, &[]), ROOM);
    assert_eq!(fuse::body(&destroyed), Ok(&[][..]));
    assert_eq!(fuse::body(&guest.request(1, &lookup, ROOM)), Err(libc::EIO));
    // Another INIT, and node ids of before mean nothing.
    guest.init();
    fuse::entry(&guest.request(1, &lookup, ROOM));
    assert_eq!(served.endpoint.status().traffic.errors, [("EIO", 2)].into());
}

#[test]
fn forgetting_on_the_high_priority_queue_frees_nodes() {
    let tree = directory((0..10).map(|n| (format!("{n}"), directory([("file", file("1"))]))));
    let served = Served::tree(&tree);
    let mut guest = served.mounted();
    let known = |count| {
        move |status: &EndpointStatus| {
            status.guests.len() == 1 && status.guests[0].nodes.directories == count
        }
    };
    let nodes: Vec<u64> = (0..10)
        .map(|n| guest.look_up(ROOT, &n.to_string()).node)
        .collect();
    served.until("the top and ten", known(11));
    for node in nodes {
        guest.send(0, &fuse::forget(node, 1), 0);
        assert_eq!(guest.receive(0).1, 0, "FORGET has no reply");
    }
    served.until("the top", known(1));
    // Nonsense is taken with a shrug.
    guest.send(0, &fuse::forget(ROOT, u64::MAX), 0);
    guest.send(0, &fuse::forget(0xffff_ffff, 3), 0);
    guest.receive(0);
    guest.receive(0);
    assert_eq!(guest.look_up(ROOT, "0").node, guest.look_up(ROOT, "0").node);
}

#[test]
fn a_panic_in_a_store_is_one_requests_eio() {
    let (store, node) = gated(&directory([
        ("panics", file("panics")),
        ("fine", file("ok")),
    ]));
    let served = Served::new(store, mount_root_of(&node));
    let mut guest = served.mounted();
    let panics = guest.look_up(ROOT, "panics");
    for _ in 0..3 {
        let reply = guest.request(1, &fuse::read(panics.node, 0, 100), ROOM);
        assert_eq!(fuse::body(&reply), Err(libc::EIO));
    }
    let fine = guest.look_up(ROOT, "fine");
    assert_eq!(guest.content(fine.node, 2), b"ok");
}

/// A guest that never forgets: it gets ENOMEM, here after two directories beside the top.
#[test]
fn a_guest_knows_no_more_directories_than_it_may() {
    let store = Arc::new(MemoryStore::new());
    let inside = directory([("file", file("content"))]);
    let tree = directory((0..5).map(|n| (format!("{n}"), inside.clone())));
    let node = tree.put_root(&*store, "root");
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        most_directories: 3,
        ..FsOptions::default()
    };
    let served = Served::with(store, options);
    let mut guest = served.mounted();
    let nodes: Vec<u64> = (0..2)
        .map(|n| guest.look_up(ROOT, &n.to_string()).node)
        .collect();
    let third = guest.request(1, &fuse::lookup(ROOT, b"3"), ROOM);
    assert_eq!(fuse::body(&third), Err(libc::ENOMEM));
    // What is listed and cannot be known is listed all the same.
    let listed = guest.request(1, &fuse::read_directory(ROOT, 0, ROOM), ROOM + 100);
    let listed = fuse::body(&listed).unwrap();
    let length = (2 + 5) * (128 + 24 + 8);
    assert_eq!(listed.len(), length);
    assert_eq!(guest.look_up(nodes[1], "file").size, 7);
    // Looked up twice: by name, and by the listing.
    guest.send(0, &fuse::forget(nodes[0], 2), 0);
    guest.receive(0);
    guest.look_up(ROOT, "3");
}

/// Also what a front end does that crashes: no goodbye, and the next one is at the door.
#[test]
fn front_ends_come_and_go_and_leave_nothing() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let visit = |visits: u64| {
        let mut guest = served.mounted();
        guest.look_up(ROOT, "file");
        // Requests without a waiter.
        guest.send(1, &fuse::lookup(ROOT, b"file"), ROOM);
        drop(guest);
        served.until("gone", |status| {
            status.guests.is_empty() && status.connections == visits
        });
    };
    visit(1);
    // Ending threads close their descriptors in their own time.
    let settle = |most: usize| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while descriptors() > most && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        descriptors()
    };
    std::thread::sleep(Duration::from_millis(500));
    let before = descriptors();
    (2..30).for_each(visit);
    // Other tests of this process have theirs; 28 visits that leave one each stand out.
    let after = settle(before + 5);
    assert!(after < before + 25, "{before} descriptors became {after}");
}

fn descriptors() -> usize {
    let own = |link: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(link.ok()?.path()).ok()?;
        let target = target.to_str()?.to_owned();
        target.contains("eventfd").then_some(target)
    };
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(own)
        .count()
}

#[test]
fn nonsense_on_the_socket_costs_a_connection() {
    use std::io::{Read, Write};
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.mounted();
    for nonsense in [
        vec![0xff; 500],
        vec![0; 12],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
        stream.write_all(&nonsense).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0; 100]);
    }
    served.until("only the guest", |status| status.guests.len() == 1);
    assert_eq!(guest.look_up(ROOT, "file").size, 7);
}

#[test]
fn two_guests_have_a_view_each_and_one_store() {
    let served = Served::tree(&directory([(
        "inside",
        directory([("file", file("content"))]),
    )]));
    let (mut one, mut other) = (served.mounted(), served.mounted());
    let inside = one.look_up(ROOT, "inside");
    // The other has not looked it up.
    let reply = other.request(1, &fuse::lookup(inside.node, b"file"), ROOM);
    assert_eq!(fuse::body(&reply), Err(libc::ESTALE));
    other.look_up(ROOT, "inside");
    drop(one);
    served.until("one is left", |status| status.guests.len() == 1);
    assert_eq!(other.look_up(inside.node, "file").size, 7);
}

#[test]
fn front_ends_can_read_the_tag() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.connect();
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = guest.vhost.get_config(0, 40, flags, &[0; 40]).unwrap();
    assert_eq!(&config[..8], b"castore\0");
    assert_eq!(&config[36..], 2u32.to_le_bytes());
    assert!(DeviceTag::new("").is_err() && DeviceTag::new(&"x".repeat(37)).is_err());
    DeviceTag::new(&"x".repeat(36)).unwrap();
}

#[test]
fn an_endpoint_that_ends_answers_eio() {
    let served = Served::tree(&directory([("file", file("content"))]));
    let mut guest = served.mounted();
    let Served {
        endpoint,
        socket,
        _dir,
    } = served;
    drop(endpoint);
    let lookup = fuse::lookup(ROOT, b"file");
    assert_eq!(fuse::body(&guest.request(1, &lookup, ROOM)), Err(libc::EIO));
    // Connections are no longer accepted; the accepting thread notices in a moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        assert!(Instant::now() < deadline, "connections are still taken");
        std::thread::sleep(Duration::from_millis(10));
    }
}
