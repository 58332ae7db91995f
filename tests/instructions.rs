//! What a request costs, in instructions: a guard against slowing down that needs no clock.
//!
//! Each test runs itself once more under callgrind, which counts the instructions of a fixed
//! workload exactly, whatever else the machine does: once with N requests and once with 2 N. The
//! difference is what N requests cost, without what it takes to start and to set up. The limits
//! stand about a quarter above what was counted when they were written (beside each, in the
//! unoptimized profile of tests); a change that needs more should have a reason.

use std::process::Command;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use kit::requests::{FILES, Requests, read_in};

/// Passes the number of requests to the second run.
const COUNT: &str = "CASTORE_FS_TEST_REQUESTS";
/// Requests in the shorter run.
const FEW: u64 = 2000;
/// In the first run: fails unless a request of `work` costs at most `limit` instructions. In the
/// second: does the work.
fn costs_at_most(limit: u64, test: &str, work: impl Fn(&mut Requests, u64)) {
    costs_at_most_of(Requests::new, limit, test, work);
}

/// The same of requests that `made` makes.
fn costs_at_most_of(
    made: fn() -> Requests,
    limit: u64,
    test: &str,
    work: impl Fn(&mut Requests, u64),
) {
    if let Ok(count) = std::env::var(COUNT) {
        let mut bench = made();
        // Everything that the first request of its kind sets up.
        work(&mut bench, FILES as u64);
        return work(&mut bench, count.parse().unwrap());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return kit::skip::skip("valgrind is not installed (Debian package valgrind)");
    }
    let (few, many) = (instructions(test, FEW), instructions(test, 2 * FEW));
    let each = many.saturating_sub(few) / FEW;
    println!("{test}: {each} instructions a request");
    assert!(each <= limit, "{each} instructions a request, not {limit}");
    assert!(each > 10, "{each}: the work was not done");
}

fn instructions(test: &str, count: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1"])
        .env(COUNT, count.to_string())
        .output()
        .unwrap();
    let reported = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{reported}");
    let collected = reported
        .lines()
        .find_map(|line| line.split("Collected : ").nth(1));
    collected
        .expect("callgrind counted")
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn looking_up_a_name_that_is_there() {
    // 2026-11: 21,515
    costs_at_most(27_000, "looking_up_a_name_that_is_there", |bench, count| {
        for number in 0..count {
            bench.look_up(format!("file-{:04}", number as usize % FILES).as_bytes());
        }
    });
}

#[test]
fn looking_up_a_name_that_is_not_there() {
    // 2026-11: 16,671; 13,277 before requests could be parked (fs/waiting.rs). Counted by callgrind: 7,504
    // are the search for the name, 2,524 the table of nodes, and 1,634 for putting the request's state on
    // its thread and taking it back, in six accesses to a thread-local value that an optimizing compiler
    // makes one of; 500 for making and dropping that state and for the name `.images`.
    costs_at_most(
        18_400,
        "looking_up_a_name_that_is_not_there",
        |bench, count| {
            for number in 0..count {
                bench.look_up(format!("none-{:04}", number as usize % FILES).as_bytes());
            }
        },
    );
}

#[test]
fn reading_a_file_of_4_kib() {
    // 2026-11: 33,595 most of it BLAKE3 without AVX-512, which valgrind does not support.
    costs_at_most(42_000, "reading_a_file_of_4_kib", |bench, count| {
        for number in 0..count {
            let node = number % FILES as u64 + 2;
            let answered = bench.request(Opcode::Read, node, &read_in(0, 4096));
            assert_eq!(answered, 16 + 4096);
        }
    });
}

#[test]
fn reading_a_file_of_4_kib_where_first_touches_are_noted() {
    let test = "reading_a_file_of_4_kib_where_first_touches_are_noted";
    costs_at_most_of(Requests::recording, 42_000, test, |bench, count| {
        for number in 0..count {
            let node = number % FILES as u64 + 2;
            let answered = bench.request(Opcode::Read, node, &read_in(0, 4096));
            assert_eq!(answered, 16 + 4096);
        }
    });
}

#[test]
fn listing_an_entry_with_its_attributes() {
    // 2026-11: 12,398 an entry
    costs_at_most(
        15_500,
        "listing_an_entry_with_its_attributes",
        |bench, count| {
            let per_reply = 20;
            for number in 0..count / per_reply {
                let offset = 2 + number * per_reply % (FILES as u64 - per_reply);
                // The size of 20 entries with their attributes and names of 9 bytes.
                let size = per_reply as u32 * (128 + 24 + 16);
                let answered = bench.request(Opcode::Readdirplus, 1, &read_in(offset, size));
                assert_eq!(answered as u32, 16 + size);
            }
        },
    );
}
