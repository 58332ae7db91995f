//! What a request allocates: nothing, once what it is about is known.
//!
//! Every allocation of this program is counted, by thread. Each test makes its requests once, which
//! fills caches and finds the buffers that a worker keeps, and then again, counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use kit::requests::{FILES, LARGE, LARGE_BYTES, Requests, read_in};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations that this thread makes in `work`.
fn counted(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

/// Fails if the second round of `requests` allocates.
fn allocates_nothing(requests: impl Fn(&mut Requests)) {
    let mut made = Requests::new();
    assert!(counted(|| requests(&mut made)) > 0, "nothing is counted");
    let allocations = counted(|| requests(&mut made));
    assert_eq!(allocations, 0, "allocations");
}

/// `file-0000` and so on, without allocating.
fn name(number: usize) -> [u8; 9] {
    let mut name = *b"file-0000";
    let digits = [number / 1000, number / 100, number / 10, number];
    for (place, digit) in name[5..].iter_mut().zip(digits) {
        *place = b'0' + (digit % 10) as u8;
    }
    name
}

#[test]
fn looking_up_names_and_forgetting_them_allocates_nothing() {
    allocates_nothing(|requests| {
        for number in 0..FILES {
            let node = requests.look_up(&name(number));
            assert_ne!(node, 0);
            // One lookup stays: forgetting everything frees memory, which a later lookup needs
            // again.
            requests.look_up(&name(number));
            let forgotten = requests.request(Opcode::Forget, node, &1u64.to_ne_bytes());
            assert_eq!(forgotten, 0);
        }
    });
}

#[test]
fn looking_up_what_is_not_there_allocates_nothing() {
    allocates_nothing(|requests| {
        assert_eq!(requests.look_up(b"not-there"), 0);
    });
}

#[test]
fn attributes_allocate_nothing() {
    allocates_nothing(|requests| {
        for node in 1..FILES as u64 + 2 {
            assert_eq!(requests.request(Opcode::Getattr, node, &[0; 16]), 16 + 104);
        }
    });
}

#[test]
fn reading_files_in_packs_allocates_nothing() {
    allocates_nothing(|requests| {
        for number in 0..FILES as u64 {
            let read = requests.request(Opcode::Read, number + 2, &read_in(0, 4096));
            assert_eq!(read, 16 + 4096);
        }
    });
}

#[test]
fn reading_here_and_there_in_a_large_file_allocates_nothing() {
    allocates_nothing(|requests| {
        for at in (0..LARGE_BYTES - (1 << 20)).step_by(100_000) {
            let few = requests.request(Opcode::Read, LARGE, &read_in(at, 4096));
            let many = requests.request(Opcode::Read, LARGE, &read_in(at, 1 << 20));
            assert_eq!((few, many), (16 + 4096, 16 + (1 << 20)));
        }
    });
}

#[test]
fn listing_with_attributes_allocates_nothing() {
    allocates_nothing(|requests| {
        let size = 4096;
        for offset in (0..FILES as u64).step_by(20) {
            let listed = requests.request(Opcode::Readdirplus, 1, &read_in(offset, size));
            assert!(listed > 3000, "{listed}");
            let listed = requests.request(Opcode::Readdir, 1, &read_in(offset, size));
            assert!(listed > 600, "{listed}");
        }
    });
}

#[test]
fn noting_what_is_touched_first_allocates_nothing() {
    let mut requests = Requests::recording();
    let mut read = |at: u64| {
        let read = requests.request(Opcode::Read, LARGE, &read_in(at, 4096));
        assert_eq!(read, 16 + 4096);
    };
    assert!(counted(|| read(0)) > 0, "nothing is counted");
    // The first reads of other extents.
    let allocations = counted(|| (1..4).for_each(|extent| read(extent << 20)));
    assert_eq!(allocations, 0, "allocations");
}
