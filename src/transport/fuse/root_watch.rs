//! Telling the kernel when the store's root nodes change.
//!
//! The kernel keeps the names of root nodes and their listing for ever. This thread waits for the
//! store to report a change, whoever made it, and has the kernel drop what is no longer so. It
//! is a thread of its own because the kernel may hold a directory's lock, for which a
//! notification waits, while it waits for an answer from us.

use std::ffi::CString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuse_backend_rs::transport::FuseDevWriter;

use super::device;
use super::session::Shared;
use crate::fs::{CastoreFs, NodeId, RootChanges};
use crate::store::Error;

/// How long to wait for the store in one go: the mount's end is noticed in between.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long to leave a store alone that cannot tell.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread, if the mount shows root nodes.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    if !shared.fs().shows_roots() {
        return Ok(());
    }
    let shared = shared.clone();
    let watch = move || watch(&shared);
    std::thread::Builder::new()
        .name("root-watch".into())
        .spawn(watch)?;
    Ok(())
}

fn watch(shared: &Shared) {
    let fs = shared.fs();
    let mut seen = None;
    while !shared.ended.load(Ordering::Relaxed) {
        match next_change(fs, seen) {
            Ok((version, changes)) => {
                seen = Some(version);
                tell_kernel(shared, &changes);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot watch the store's root nodes; will try again");
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// Waits for the store's root nodes to be other than at version `seen`; gives the version and what
/// changed.
fn next_change(fs: &CastoreFs, seen: Option<u64>) -> Result<(u64, RootChanges), Error> {
    let store = fs.store();
    let version = match seen {
        Some(seen) => store.wait_for_roots(seen, PATIENCE)?,
        None => store.roots_version()?,
    };
    if Some(version) == seen {
        return Ok((version, RootChanges::default()));
    }
    // Read after the version: what changes in between changes the version again.
    Ok((version, fs.changed_roots()?))
}

fn tell_kernel(shared: &Shared, changes: &RootChanges) {
    let root = NodeId::ROOT.into();
    for name in &changes.stale {
        let Ok(name) = CString::new(name.as_bytes()) else {
            continue;
        };
        notify(shared, |writer| {
            shared
                .answerer
                .server()
                .notify_inval_entry(writer, root, &name)
        });
    }
    if changes.listing {
        // Offset and length 0: the listing, which lies in the directory's page cache.
        notify(shared, |writer| {
            shared
                .answerer
                .server()
                .notify_inval_inode(writer, root, 0, 0)
        });
    }
}

/// Sends a notification. Its failure only means that the kernel has nothing to drop.
fn notify(shared: &Shared, send: impl FnOnce(FuseDevWriter<'_>) -> fuse_backend_rs::Result<usize>) {
    let mut buffer = [0; 512];
    if let Ok(writer) = FuseDevWriter::new(device::number(&shared.device), &mut buffer) {
        let _ = send(writer);
    }
}
