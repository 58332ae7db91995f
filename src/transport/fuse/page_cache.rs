//! FUSE_NOTIFY_STORE: contents into the kernel's page cache without being asked.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuse_backend_rs::abi::fuse_abi::OutHeader;
use vm_memory::ByteValued;

use super::session::Shared;
use crate::fs::{NodeId, PageCache};

/// `FUSE_NOTIFY_STORE` of the kernel's `fuse.h`.
const NOTIFY_STORE: i32 = 4;

/// `struct fuse_notify_store_out` of the kernel's `fuse.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct StoreOut {
    node: u64,
    offset: u64,
    size: u32,
    padding: u32,
}

// SAFETY: plain integers without padding between them.
unsafe impl ByteValued for StoreOut {}

/// The page cache behind a mount's device.
struct KernelPages<'a>(&'a OwnedFd);

impl PageCache for KernelPages<'_> {
    fn store(&self, node: NodeId, contents: &[u8]) -> io::Result<()> {
        let store = StoreOut {
            node: node.into(),
            size: contents.len() as u32,
            ..StoreOut::default()
        };
        let header = OutHeader {
            len: (size_of::<OutHeader>() + size_of::<StoreOut>() + contents.len()) as u32,
            error: NOTIFY_STORE,
            unique: 0,
        };
        let message = [
            IoSlice::new(header.as_slice()),
            IoSlice::new(store.as_slice()),
            IoSlice::new(contents),
        ];
        rustix::io::writev(self.0, &message)?;
        Ok(())
    }
}

/// Starts the thread that walks ahead.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = shared.clone();
    let walk = move || {
        let ended = || shared.ended.load(Ordering::Relaxed);
        shared.fs().walk_ahead(&KernelPages(&shared.device), ended);
    };
    std::thread::Builder::new()
        .name("walk-ahead".into())
        .spawn(walk)?;
    Ok(())
}
