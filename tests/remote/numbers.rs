//! The cost of work with an upstream: round trips, calls and time, for a castore-fs server, one of
//! the common protocol's and an object store, through a link of 10 and of 100 ms there and back and
//! 20 MB/s.
//!
//! Calls are asserted, since they cost round trips and do not depend on a clock.
//! The table is printed:
//!
//!     cargo test --test remote -- --nocapture numbers              # 10 ms, small
//!     CASTORE_FS_NUMBERS=full cargo test --release --test remote -- --nocapture numbers

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use castore_fs::castore::{Digest, Node, Root};
use castore_fs::store::{Blocking, GrpcStore, MemoryStore, ObjectStore, Store};
use castore_fs::tree::copy::{CopyProgress, copy};

use super::peer::Peer;
use super::{memory, name, noise, put_directory, put_file, put_root, put_tree};
use kit::http::HttpDir;
use kit::link::{Link, Terms};
use kit::mounted::{Mounted, can_mount};
use kit::server::Server;

const BYTES_PER_SECOND: u64 = 20_000_000;
/// The tree that is archived: files in each directory, and bytes in each.
const FILES: u64 = 10;
const FILE: usize = 8 << 10;
const RANDOM_READS: u64 = 40;

/// What there is to read.
struct Data {
    store: MemoryStore,
    find: Root,
    /// Directories in `find`, each with a file.
    places: usize,
    tar: Root,
    /// Directories in `tar`.
    directories: u64,
    large: (Digest, u64),
    small: (Digest, u64),
}

/// `width` directories in each of three levels, `directories` full of files, and a blob of `large`
/// bytes.
fn data(width: u64, directories: u64, large: usize) -> Data {
    let store = memory();
    let find = put_root(&store, "find", |ingest| put_tree(ingest, 1, width, 3));
    let tar = put_root(&store, "tar", |ingest| {
        let directories = (0..directories).map(|directory| {
            let files = (0..FILES).map(|file| {
                let content = noise(directory * 1000 + file + 1_000_000, FILE);
                (name(&format!("file{file}")), put_file(ingest, &content))
            });
            let directory_name = name(&format!("directory{directory:04}"));
            (directory_name, put_directory(ingest, files.collect()))
        });
        let directories = directories.collect();
        put_directory(ingest, directories)
    });
    let (large, small) = (noise(5, large), noise(6, 4000));
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &large);
    put_file(ingest.as_ref(), &small);
    let claim = |blob: &[u8]| (Digest::of(blob), blob.len() as u64);
    let (large, small) = (claim(&large), claim(&small));
    ingest.commit().unwrap();
    Data {
        store,
        find,
        places: (0..=3).map(|level| width.pow(level) as usize).sum(),
        tar,
        directories,
        large,
        small,
    }
}

/// A client of one kind of server, which counts its calls.
type Client = (Arc<dyn Store>, Box<dyn Fn() -> u64>);

/// A kind of server, and how a client of it with an empty cache is made, through a link.
struct Kind {
    name: &'static str,
    server: SocketAddr,
    client: Box<dyn Fn(SocketAddr) -> Client>,
    /// Calls at most: for `find`, `tar`, the first byte, a random read, a small file.
    calls: [u64; 5],
}

fn grpc(query: &'static str) -> Box<dyn Fn(SocketAddr) -> Client> {
    Box::new(move |address| {
        let store = GrpcStore::open(&format!("grpc+http://{address}?{query}")).unwrap();
        let calls = store.clone();
        (Arc::new(store), Box::new(move || calls.calls()))
    })
}

/// Prints a line of the table.
struct Table {
    kind: &'static str,
    round_trip: Duration,
}

impl Table {
    fn line(&self, work: &str, took: Duration, calls: u64, note: &str) {
        let trips = took.as_secs_f64() / self.round_trip.as_secs_f64();
        println!(
            "| {} | {} | {work} | {:.0} ms | {trips:.1} | {calls} | {note} |",
            self.kind,
            self.round_trip.as_millis(),
            took.as_secs_f64() * 1000.0
        );
    }
}

#[test]
fn numbers() {
    if !can_mount() {
        return;
    }
    let full = std::env::var("CASTORE_FS_NUMBERS").is_ok_and(|value| value == "full");
    let data = match full {
        true => data(17, 5000, 256 << 20),
        false => data(9, 100, 16 << 20),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ours = Server::read_only(Arc::new(data.store.clone()));
    let peer = Peer {
        store: data.store.clone(),
        ..Peer::default()
    };
    let peer = peer.serve(false);
    let dir = tempfile::tempdir().unwrap();
    let bucket = HttpDir::serve(dir.path());
    {
        let to = format!("objectstore+file://{}", dir.path().display());
        let to = Blocking::new(
            Arc::new(ObjectStore::open(&to).unwrap()),
            runtime.handle().clone(),
        );
        let from = Blocking::new(Arc::new(data.store.clone()), runtime.handle().clone());
        let large = Root {
            name: name("large"),
            node: Node::File {
                digest: data.large.0,
                size: data.large.1,
                executable: false,
            },
        };
        let small = Root {
            name: name("small"),
            node: Node::File {
                digest: data.small.0,
                size: data.small.1,
                executable: false,
            },
        };
        let roots = [data.find.clone(), data.tar.clone(), large, small];
        copy(&from, &to, &roots, &CopyProgress::default()).unwrap();
    }
    let address = |url: &str| url.trim_start_matches("grpc+http://").parse().unwrap();
    let files = data.directories * FILES;
    let kinds = [
        Kind {
            name: "ours",
            server: address(&ours.url),
            client: grpc(""),
            calls: [10, files / 20, 1, 1, 1],
        },
        Kind {
            name: "the field's, verify=chunks",
            server: address(&peer.url),
            client: grpc("verify=chunks"),
            calls: [10, files + 10, 3, 2, 1],
        },
        Kind {
            name: "object store",
            server: bucket.address,
            client: Box::new(|address| {
                let store = ObjectStore::open(&format!("objectstore+http://{address}")).unwrap();
                let calls = store.clone();
                (Arc::new(store), Box::new(move || calls.calls()))
            }),
            calls: [1, files + 10, 4, 2, 1],
        },
    ];
    println!(
        "| server | RTT, ms | work | time | in round trips | calls | |\n|---|---|---|---|---|---|---|"
    );
    let distances: &[u64] = if full { &[10, 100] } else { &[10] };
    for &milliseconds in distances {
        for kind in &kinds {
            let round_trip = Duration::from_millis(milliseconds);
            measure(kind, round_trip, &data, &runtime);
        }
    }
}

fn measure(kind: &Kind, round_trip: Duration, data: &Data, runtime: &tokio::runtime::Runtime) {
    let terms = Terms {
        round_trip,
        bytes_per_second: Some(BYTES_PER_SECOND),
    };
    let link = Link::to(kind.server, terms);
    let table = Table {
        kind: kind.name,
        round_trip,
    };
    let [find, tar, first, random, small] = kind.calls;
    let connected = || {
        let (store, calls) = (kind.client)(link.address());
        // Connecting, and finding out what the server is, is no part of what is measured.
        assert!(runtime.block_on(store.root(b"missing")).unwrap().is_none());
        std::thread::sleep(3 * round_trip);
        (store, calls)
    };

    let (store, calls) = connected();
    let mount = Mounted::mount_root(store, &data.find.node);
    let (before, started) = (calls(), Instant::now());
    let found = Command::new("find").arg(mount.path()).output().unwrap();
    table.line(
        &format!("`find`, {} directories", data.places),
        started.elapsed(),
        calls() - before,
        "",
    );
    assert_eq!(
        found.stdout.split(|byte| *byte == b'\n').count(),
        2 * data.places + 1
    );
    assert!(calls() - before <= find, "{} calls", calls() - before);
    drop(mount);

    let (store, calls) = connected();
    let mount = Mounted::mount_root(store, &data.tar.node);
    let (before, started) = (calls(), Instant::now());
    let archived = archive(mount.path());
    let took = started.elapsed();
    let files = data.directories * FILES;
    let bytes = files * FILE as u64;
    assert!(archived > bytes);
    let filled = bytes as f64 / took.as_secs_f64() / BYTES_PER_SECOND as f64 * 100.0;
    let note = format!("{filled:.0} % of the link");
    let what = format!("`tar`, {files} files, {} MB", bytes / 1_000_000);
    table.line(&what, took, calls() - before, &note);
    assert!(calls() - before <= tar, "{} calls", calls() - before);
    drop(mount);

    let read = |store: &Arc<dyn Store>, (digest, size): (Digest, u64), at: u64, length: usize| {
        let read = runtime.block_on(store.read(&digest, size, at, length));
        assert_eq!(read.unwrap().unwrap().len(), length);
    };
    let (store, calls) = connected();
    let (before, started) = (calls(), Instant::now());
    read(&store, data.large, data.large.1 / 3, 1);
    let what = format!("first byte of {} MiB", data.large.1 >> 20);
    table.line(&what, started.elapsed(), calls() - before, "");
    assert!(calls() - before <= first, "{} calls", calls() - before);

    let (before, started) = (calls(), Instant::now());
    for index in 0..RANDOM_READS {
        let at = (index * 2_654_435_761) % (data.large.1 - 4096);
        read(&store, data.large, at, 4096);
    }
    let took = started.elapsed() / RANDOM_READS as u32;
    let note = format!("each of {RANDOM_READS}; calls of all");
    table.line("random read of 4 KiB", took, calls() - before, &note);
    let made = calls() - before;
    assert!(made <= random * RANDOM_READS + 2, "{made} calls");

    let (before, started) = (calls(), Instant::now());
    read(&store, data.small, 0, data.small.1 as usize);
    table.line("small file", started.elapsed(), calls() - before, "");
    assert!(calls() - before <= small, "{} calls", calls() - before);
}

/// The bytes that `tar` makes of the tree at `path`.
fn archive(path: &std::path::Path) -> u64 {
    let mut tar = Command::new("tar")
        .args(["-cf", "-", "-C"])
        .arg(path)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut archive = tar.stdout.take().unwrap();
    let bytes = std::io::copy(&mut archive, &mut std::io::sink()).unwrap();
    assert!(tar.wait().unwrap().success());
    bytes
}
