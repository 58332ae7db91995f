//! What a request costs, in instructions: a guard against slowing down that needs no clock.
//!
//! Each test runs itself once more under callgrind, which counts the instructions of a fixed
//! workload exactly, whatever else the machine does: once with N requests and once with 2 N. The
//! difference is what N requests cost, without what it takes to start and to set up. The limits
//! stand about a quarter above what was counted when they were written (beside each, in the
//! unoptimized profile that tests are built in); a change that needs more should know why.

#[path = "kit/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "kit/skip.rs"]
mod skip;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use castore_fs::castore::Node;
use castore_fs::fs::{CastoreFs, Options, Top, Uncounted, Waiting};
use castore_fs::store::LocalStore;
use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use model::{directory, file};
use vm_memory::ByteValued;

/// Tells the second run how many requests to make.
const COUNT: &str = "CASTORE_FS_TEST_REQUESTS";
/// Requests in the shorter run.
const FEW: u64 = 2000;
/// Files in the directory that requests are about.
const FILES: usize = 1000;

/// A file system without a kernel: replies go nowhere.
struct Bench {
    server: Server<Arc<CastoreFs>>,
    reply: Vec<u8>,
    nowhere: File,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(&folder.path().join("store")).unwrap());
        let tree = directory((0..FILES).map(|number| {
            let content = format!("{number:04}").repeat(1024);
            (format!("file-{number:04}"), file(content))
        }));
        let Node::Directory { digest, size } = tree.put_root(&*store, "tree") else {
            unreachable!("a directory was put");
        };
        let options = Options {
            top: Top::Directory { digest, size },
            ..Options::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let waiting = Waiting::new(runtime.handle().clone(), Arc::new(Uncounted));
        let fs = Arc::new(CastoreFs::new(store, options, waiting, None));
        Self {
            server: Server::new(fs),
            reply: vec![0; (1 << 20) + 4096],
            nowhere: File::options().write(true).open("/dev/null").unwrap(),
            _folder: folder,
        }
    }

    fn request(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> usize {
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode: opcode as u32,
            unique: 2,
            nodeid: node,
            ..InHeader::default()
        };
        let mut request = [0u8; 256];
        let length = header.len as usize;
        request[..size_of::<InHeader>()].copy_from_slice(header.as_slice());
        request[size_of::<InHeader>()..length].copy_from_slice(body);
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(&mut request[..length])).unwrap();
        let writer = FuseDevWriter::<()>::new(self.nowhere.as_raw_fd(), &mut self.reply).unwrap();
        self.server
            .handle_message(reader, Writer::FuseDev(writer), None, None)
            .unwrap()
    }

    fn lookup(&mut self, name: &str) {
        let answered = self.request(Opcode::Lookup, 1, format!("{name}\0").as_bytes());
        assert!(answered > 100, "an entry, not an error");
    }
}

/// `struct fuse_read_in`.
fn read_in(offset: u64, size: u32) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size.to_ne_bytes());
    body
}

/// In the first run: fails unless a request of `work` costs at most `limit` instructions. In the
/// second: does the work.
fn costs_at_most(limit: u64, test: &str, work: impl Fn(&mut Bench, u64)) {
    if let Ok(count) = std::env::var(COUNT) {
        let mut bench = Bench::new();
        // Everything that the first request of its kind sets up.
        work(&mut bench, FILES as u64);
        return work(&mut bench, count.parse().unwrap());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip::skip("valgrind is not installed (Debian package valgrind)");
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
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let collected = said
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
    // 2026-11: 32,522
    costs_at_most(41_000, "looking_up_a_name_that_is_there", |bench, count| {
        for number in 0..count {
            bench.lookup(&format!("file-{:04}", number as usize % FILES));
        }
    });
}

#[test]
fn looking_up_a_name_that_is_not_there() {
    // 2026-11: 23,063
    costs_at_most(
        29_000,
        "looking_up_a_name_that_is_not_there",
        |bench, count| {
            for number in 0..count {
                bench.lookup(&format!("none-{:04}", number as usize % FILES));
            }
        },
    );
}

#[test]
fn reading_a_file_of_4_kib() {
    // 2026-11: 41,629 most of it BLAKE3 without AVX-512, which valgrind does not know.
    costs_at_most(52_000, "reading_a_file_of_4_kib", |bench, count| {
        for number in 0..count {
            let node = number % FILES as u64 + 2;
            let answered = bench.request(Opcode::Read, node, &read_in(0, 4096));
            assert_eq!(answered, 16 + 4096);
        }
    });
}

#[test]
fn listing_an_entry_with_its_attributes() {
    // 2026-11: 14,849 an entry
    costs_at_most(
        18_500,
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
