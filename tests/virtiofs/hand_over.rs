//! The process that serves a guest dies, and another takes over: the guest sees a pause.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use super::front_end::FrontEnd;
use super::process::{Program, Running};
use super::service::remove_and_collect;
use super::{ROOM, ROOT, fuse, pattern};
use kit::model::{Model, directory, file};

const LARGE: usize = 3 << 20;
const BUFFER_BYTES: u32 = 32 << 10;
/// Requests that are under way on a queue: the front end has room for so many replies.
const UNDER_WAY: usize = 7;

fn tree() -> Model {
    let inside = (0..20).map(|n| {
        let inner = directory([("file", file(format!("content {n}")))]);
        (format!("dir-{n}"), inner)
    });
    directory([
        ("large", file(pattern(LARGE))),
        ("inside", directory(inside)),
    ])
}

/// Requests in flight, by their descriptors, and their offsets.
struct Load {
    node: u64,
    expected: Vec<u8>,
    waiting: [BTreeMap<u16, u64>; 2],
    next: u64,
    answered: usize,
}

impl Load {
    fn new(guest: &mut FrontEnd) -> Self {
        Self {
            node: guest.look_up(ROOT, "large").node,
            expected: pattern(LARGE),
            waiting: Default::default(),
            next: 0,
            answered: 0,
        }
    }

    /// Keeps as many reads in flight as possible.
    fn fill(&mut self, guest: &mut FrontEnd) {
        for queue in 0..2 {
            while self.waiting[queue].len() < UNDER_WAY {
                let offset = self.next;
                self.next = (self.next + u64::from(BUFFER_BYTES)) % LARGE as u64;
                let read = fuse::read(self.node, offset, BUFFER_BYTES);
                let head = guest.send(1 + queue, &read, BUFFER_BYTES + 1024);
                let before = self.waiting[queue].insert(head, offset);
                assert_eq!(before, None, "two requests in one place");
            }
        }
    }

    /// Takes an answer, which has to be right; the room for replies is used in turn, so the oldest
    /// has to be read before the next is requested.
    fn take(&mut self, guest: &mut FrontEnd, queue: usize) {
        let (head, length) = guest.receive(1 + queue);
        let offset = self.waiting[queue].remove(&head);
        let offset = offset.expect("an answer to a request in flight") as usize;
        let reply = guest.reply(1 + queue, head, length);
        let body = fuse::body(&reply).expect("bytes");
        assert!(body == &self.expected[offset..offset + body.len()]);
        assert!(!body.is_empty());
        self.answered += 1;
    }

    fn drain(&mut self, guest: &mut FrontEnd) {
        for queue in 0..2 {
            while !self.waiting[queue].is_empty() {
                self.take(guest, queue);
            }
        }
    }
}

#[test]
fn after_any_kill_another_process_takes_over_and_no_answer_is_lost_or_wrong() {
    let program = Program::of(&tree());
    let running = program.start(&["--queues", "2"]);
    let mut guest = program.guest();
    let inside = guest.look_up(ROOT, "inside");
    let dirs: Vec<u64> = (0..20)
        .map(|n| guest.look_up(inside.node, &format!("dir-{n}")).node)
        .collect();
    let mut load = Load::new(&mut guest);
    let mut chance = 7u64;
    for round in 0..50 {
        let dir = dirs[round % dirs.len()];
        let name = format!("dir-{}", round % dirs.len());
        assert_eq!(guest.look_up(inside.node, &name).node, dir);
        load.fill(&mut guest);
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let answers = chance >> 40 & 7;
        for queue in 0..2 {
            for _ in 0..answers {
                load.take(&mut guest, queue);
            }
        }
        load.fill(&mut guest);
        // On the high-priority queue, too: one that was done twice would lose the node.
        guest.send(0, &fuse::forget(dir, 1), 0);
        std::thread::sleep(Duration::from_micros(chance >> 33 & 0x7ff));
        running.kill_worker();
        load.drain(&mut guest);
        guest.receive(0);
        // The next process knows the ids that the dead one gave out.
        let found = guest.look_up(dir, "file");
        let content = format!("content {}", round % dirs.len());
        assert_eq!(guest.content(found.node, found.size), content.as_bytes());
    }
    assert!(load.answered >= 50 * 2 * UNDER_WAY);
}

/// A virtual machine that is paused or reset while no process serves it.
#[test]
fn a_queue_is_stopped_and_started_across_a_death() {
    let program = Program::of(&tree());
    let running = program.start(&[]);
    let mut guest = program.guest();
    for round in 0..5 {
        let mut load = Load::new(&mut guest);
        load.fill(&mut guest);
        running.kill_worker();
        use vhost::VhostBackend;
        let at = guest.vhost.get_vring_base(1).unwrap();
        guest.start(1, at as u16);
        load.drain(&mut guest);
        if round % 2 == 1 {
            running.kill_worker();
            guest.restart(2);
            guest.look_up(ROOT, "inside");
        }
    }
}

/// So many messages that a new list is begun, and a guest that mounts again.
#[test]
fn a_record_does_not_grow_and_a_new_session_takes_the_old_ones_place() {
    let program = Program::of(&tree());
    let running = program.start(&[]);
    let mut guest = program.guest();
    for _ in 0..40 {
        guest.restart(1);
        guest.init();
    }
    let inside = guest.look_up(ROOT, "inside");
    running.kill_worker();
    guest.look_up(inside.node, "dir-3");
    // Two front ends, each with what is its own.
    let mut other = program.guest();
    running.kill_worker();
    let reply = other.request(1, &fuse::lookup(inside.node, b"dir-3"), ROOM);
    assert_eq!(fuse::body(&reply), Err(libc::ESTALE));
    guest.look_up(inside.node, "dir-4");
    drop(guest);
    other.look_up(ROOT, "inside");
}

/// The guest's own driver takes an entry that cannot be as the end of the device, and fails what it
/// is requested from then on.
#[test]
fn an_end_without_a_take_over_is_an_error_and_no_hang() {
    let program = Program::of(&tree());
    let mut running = program.start(&[]);
    let mut guest = program.guest();
    guest.look_up(ROOT, "inside");
    terminate(&mut running);
    assert!(guest.is_poisoned(1) && guest.is_poisoned(2));
}

fn terminate(running: &mut Running) {
    let id = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn without_its_parent_a_process_serves_on_and_ends_with_its_guests() {
    let program = Program::of(&tree());
    let mut running = program.start(&[]);
    let mut guest = program.guest();
    let worker = running.worker();
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let large = guest.look_up(ROOT, "large");
    assert!(guest.content(large.node, large.size) == pattern(LARGE));
    drop(guest);
    let deadline = Instant::now() + Duration::from_secs(10);
    // Gone, or dead and not yet reaped by its new parent.
    let lives = || {
        let status = std::fs::read_to_string(format!("/proc/{worker}/stat"));
        status.is_ok_and(|status| !status.contains(") Z"))
    };
    while lives() {
        assert!(
            Instant::now() < deadline,
            "it serves no guest, and does not end"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A front end that kills every worker, by removing the memory that it shares.
#[test]
fn a_front_end_that_kills_workers_is_not_served_for_ever() {
    let program = Program::of(&tree());
    let running = program.start(&[]);
    let first = running.worker();
    let mut good = program.guest();
    let mut bad = program.guest();
    bad.look_up(ROOT, "inside");
    bad.truncate_memory();
    bad.kick(1);
    // It is tried a few times; then the connection ends.
    let mut stream = bad.connection();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    // Another on the same socket has seen a pause.
    good.look_up(ROOT, "inside");
    assert_ne!(running.worker(), first, "no worker was killed");
}

#[test]
fn the_next_worker_continues_with_a_root_that_was_removed() {
    let program = Program::of(&tree());
    let running = program.start(&[]);
    let mut guest = program.guest();
    let read = |guest: &mut FrontEnd| {
        let large = guest.look_up(ROOT, "large");
        guest.content(large.node, large.size) == pattern(LARGE)
    };
    assert!(read(&mut guest));
    for _ in 0..3 {
        assert_eq!(remove_and_collect(&program.path("store"), "tree"), 0);
        running.kill_worker();
        assert!(read(&mut guest));
    }
}
