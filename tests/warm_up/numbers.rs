//! What a profile saves: a program that starts from a root in an upstream, cold, without a profile
//! and with one.
//!
//! The program reads files here and there, none next to the other, one after the other, as a boot does;
//! what it reads has to be waited for. The table is printed:
//!
//!     cargo test --test warm_up -- --nocapture numbers               # 10 ms, small
//!     CASTORE_FS_NUMBERS=full cargo test --release --test warm_up -- --nocapture numbers

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use castore_fs::castore::Node;
use castore_fs::fs::{FsOptions, WarmUpOptions};
use castore_fs::profile::Profiles;
use castore_fs::store::{Cache, CacheOptions, GrpcStore, LocalStore, MemoryStore, Store};

use super::profile_key_of;
use kit::link::{Link, Terms};
use kit::model::{directory, file};
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::noise::noise;
use kit::server::Server;

const BYTES_PER_SECOND: u64 = 20_000_000;
/// Files in each directory, of which a start reads some.
const FILES: u64 = 40;
/// What a program does between two files.
const THINKS: Duration = Duration::from_micros(500);

/// The size of file `number`: 1 KiB to 256 KiB, most of them small.
fn size(number: u64) -> usize {
    let larger = u64::from(number.is_multiple_of(17));
    1 << (10 + (number * 7 + number / 5) % 5 + 4 * larger)
}

/// A tree of `directories`, and what a start reads of it, in its order: one file in ten.
fn data(store: &MemoryStore, directories: u64) -> (Node, Vec<PathBuf>) {
    let name = |number: u64| format!("lib/{:03}/file-{:02}", number / FILES, number % FILES);
    let dirs = (0..directories).map(|dir| {
        let files = (0..FILES).map(|at| {
            let number = dir * FILES + at;
            (format!("file-{at:02}"), file(noise(number, size(number))))
        });
        (format!("{dir:03}"), directory(files))
    });
    let node = directory([("lib", directory(dirs))]).put_root(store, "tree");
    let all = directories * FILES;
    // Here and there: multiples of a number that has no divisor in common with theirs.
    let read = (0..all / 10).map(|step| PathBuf::from(name(step * 1009 % all)));
    (node, read.collect())
}

/// Reads `files` below a new mount; gives how long that took, and the calls that were made.
fn run(
    address: &str,
    node: &Node,
    files: &[PathBuf],
    profiles: Option<&Arc<Profiles>>,
    head_start: bool,
) -> (Duration, u64) {
    let upstream = GrpcStore::open(&format!("grpc+http://{address}")).unwrap();
    let local_store = tempfile::tempdir().unwrap();
    let local_store_store = LocalStore::open(&local_store.path().join("near")).unwrap();
    let cache = Cache::new(
        local_store_store,
        Arc::new(upstream.clone()),
        CacheOptions::default(),
    )
    .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Connecting is no part of what is measured.
    assert!(
        runtime
            .block_on(upstream.root(b"missing"))
            .unwrap()
            .is_none()
    );
    let warm_up = profiles.map(|profiles| {
        WarmUpOptions::new(profiles.clone(), Some(profile_key_of("tree")), u64::MAX)
    });
    let options = FsOptions {
        mount_root: mount_root_of(node),
        warm_up,
        ..FsOptions::default()
    };
    let calls = upstream.calls();
    let mount = Mounted::new(Arc::new(cache), options);
    if head_start {
        // As much as a machine needs until the first program runs.
        std::thread::sleep(Duration::from_secs(2));
    }
    let began = Instant::now();
    for path in files {
        fs::read(mount.join(path)).unwrap();
        std::thread::sleep(THINKS);
    }
    let took = began.elapsed();
    drop(mount);
    (took, upstream.calls() - calls)
}

#[test]
fn numbers() {
    if !can_mount() {
        return;
    }
    let full = std::env::var("CASTORE_FS_NUMBERS").is_ok_and(|value| value == "full");
    let (directories, distances): (u64, &[u64]) = match full {
        true => (250, &[10, 100]),
        false => (50, &[10]),
    };
    let store = MemoryStore::new();
    let (node, files) = data(&store, directories);
    let server = Server::read_only(Arc::new(store));
    let target = server
        .url
        .trim_start_matches("grpc+http://")
        .parse()
        .unwrap();
    println!(
        "| RTT, ms | start of {} files | time | calls |\n|---|---|---|---|",
        files.len()
    );
    for &milliseconds in distances {
        let terms = Terms {
            round_trip: Duration::from_millis(milliseconds),
            bytes_per_second: Some(BYTES_PER_SECOND),
        };
        let link = Link::to(target, terms);
        let address = link.address().to_string();
        let dir = tempfile::tempdir().unwrap();
        let profiles = Arc::new(Profiles::new(dir.path().to_owned()));
        let line = |what: &str, (took, calls): (Duration, u64)| {
            println!(
                "| {milliseconds} | {what} | {} ms | {calls} |",
                took.as_millis()
            );
            took
        };
        let off = run(&address, &node, &files, None, false);
        let off = line("cold, `warmup = \"off\"`", off);
        let recording = run(&address, &node, &files, Some(&profiles), false);
        line("cold, recording", recording);
        let at_once = run(&address, &node, &files, Some(&profiles), false);
        let at_once = line("cold, with a profile", at_once);
        let later = run(&address, &node, &files, Some(&profiles), true);
        line("the same, 2 s after the mount", later);
        assert!(at_once < off / 2, "{at_once:?}, and {off:?} without");
    }
}
