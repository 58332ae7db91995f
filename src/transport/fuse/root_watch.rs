//! Telling the kernel when the store's root nodes change.
//!
//! The kernel keeps the names of root nodes and their listing for ever. This thread waits for the
//! store to report a change, whoever made it, and has the kernel drop what is no longer so. It
//! is a thread of its own because the kernel may hold a directory's lock, for which a
//! notification waits, while it waits for an answer from us.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::notices::Notices;
use super::serving::Serving;
use crate::fs::{CastoreFs, NodeId, RootChanges};
use crate::store::Error;

/// How long to wait for the store in one go: the mount's end is noticed in between.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long to leave a store alone that cannot tell.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread, if the mount shows root nodes.
pub fn start(serving: &Arc<Serving>) -> io::Result<()> {
    if !serving.fs.shows_roots() {
        return Ok(());
    }
    let notices = serving.notices()?;
    let serving = serving.clone();
    let watch = move || watch(&serving, &notices);
    std::thread::Builder::new()
        .name("root-watch".into())
        .spawn(watch)?;
    Ok(())
}

fn watch(serving: &Serving, notices: &Notices) {
    let fs = &serving.fs;
    let mut seen = None;
    while !serving.has_ended() {
        match next_change(fs, seen) {
            Ok((version, changes)) => {
                let changed = seen != Some(version);
                seen = Some(version);
                tell_kernel(notices, &changes);
                // What the kernel drops for that, it forgets a moment later.
                fs.release_unused(changed);
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
    if Some(version) == seen && !fs.list_is_due() {
        return Ok((version, RootChanges::default()));
    }
    // Read after the version: what changes in between changes the version again.
    Ok((version, fs.changed_roots()?))
}

fn tell_kernel(notices: &Notices, changes: &RootChanges) {
    for name in &changes.stale {
        notices.inval_entry(NodeId::ROOT, name.as_bytes());
    }
    if changes.listing {
        notices.inval_inode(NodeId::ROOT);
    }
}
