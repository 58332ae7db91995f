//! A file system without a kernel: requests are made by hand, and replies go nowhere.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use castore_fs::castore::Node;
use castore_fs::fs::{
    CastoreFs, FsOptions, MountRoot, ParkedState, ParkedWait, WaitingRequests, WarmUpOptions,
};
use castore_fs::profile::Profiles;
use castore_fs::store::LocalStore;
use castore_fs::transport::fuse::FuseAnswerer;
use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode};
use vm_memory::ByteValued;

use crate::model::{directory, file};

/// Files in the directory that requests are about.
pub const FILES: usize = 1000;
/// The node of the large file, which is the last of the directory.
pub const LARGE: u64 = FILES as u64 + 2;
/// Bytes of the large file.
pub const LARGE_BYTES: u64 = 4 << 20;

/// Answers requests about a directory of files of 4 KiB (`file-0000` and so on) and a large one.
pub struct Requests {
    answerer: FuseAnswerer,
    reply: Vec<u8>,
    nowhere: OwnedFd,
    _dir: Option<tempfile::TempDir>,
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

impl Requests {
    /// To `fs`, with nodes of its own.
    pub fn to(fs: CastoreFs) -> Self {
        Self {
            answerer: FuseAnswerer::new(Arc::new(fs)),
            reply: vec![0; (1 << 20) + 4096],
            nowhere: File::options()
                .write(true)
                .open("/dev/null")
                .unwrap()
                .into(),
            _dir: None,
        }
    }

    pub fn new() -> Self {
        Self::with(|_| None)
    }

    /// As [`new`](Self::new), in a mount that records what is read first.
    pub fn recording() -> Self {
        Self::with(|dir| {
            let profiles = Arc::new(Profiles::new(dir.join("profiles")));
            Some(WarmUpOptions::new(profiles, None, 0))
        })
    }

    fn with(warm_up: impl FnOnce(&Path) -> Option<WarmUpOptions>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(&dir.path().join("store")).unwrap();
        let small = (0..FILES).map(|number| {
            let content = format!("{number:04}").repeat(1024);
            (format!("file-{number:04}"), file(content))
        });
        let large = ("large".to_owned(), file(vec![7; LARGE_BYTES as usize]));
        let tree = directory(small.chain([large]));
        let Node::Directory { digest, size } = tree.put_root(&store, "tree") else {
            unreachable!("a directory was put");
        };
        let options = FsOptions {
            mount_root: MountRoot::Directory { digest, size },
            warm_up: warm_up(dir.path()),
            ..FsOptions::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let waiting = WaitingRequests::new(runtime.handle().clone());
        let fs = CastoreFs::new(Arc::new(store), options, waiting, None);
        Self {
            _dir: Some(dir),
            ..Self::to(fs)
        }
    }

    /// Makes a request; gives the bytes of its answer, 0 if that is an error or none.
    pub fn request(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> usize {
        let parked = self.ask(&mut ParkedState::default(), opcode, node, body);
        assert!(
            parked.is_none(),
            "a request waited, and all it needed was cached"
        );
        self.answer().len()
    }

    /// Makes a request; gives what it waits for, if it does.
    pub fn ask(
        &mut self,
        paused: &mut ParkedState,
        opcode: Opcode,
        node: u64,
        body: &[u8],
    ) -> Option<ParkedWait> {
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
        self.reply[..4].fill(0);
        let (request, reply) = (&mut request[..length], &mut self.reply);
        let answered = self
            .answerer
            .answer(&self.nowhere, &header, request, reply, paused);
        answered.unwrap()
    }

    /// The last answer, with its header.
    pub fn answer(&self) -> &[u8] {
        let length = u32::from_ne_bytes(self.reply[..4].try_into().unwrap());
        &self.reply[..length as usize]
    }

    /// Looks up a name in the directory; gives the node that the answer names.
    pub fn look_up(&mut self, name: &[u8]) -> u64 {
        let mut body = [0; 64];
        body[..name.len()].copy_from_slice(name);
        let answered = self.request(Opcode::Lookup, 1, &body[..=name.len()]);
        assert!(answered > 100, "an entry, not an error");
        u64::from_ne_bytes(self.reply[16..24].try_into().unwrap())
    }
}

/// `struct fuse_read_in`.
pub fn read_in(offset: u64, size: u32) -> [u8; 40] {
    let mut body = [0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size.to_ne_bytes());
    body
}
