//! Notifying the kernel when the store's roots change.
//!
//! The kernel caches the names of roots and their listing for ever. This thread waits for the store
//! to report a change, from any process, and makes the kernel drop what is stale. It is a thread of
//! its own because the kernel may hold a directory's lock, for which a notification waits, while it
//! waits for an answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::notifier::Notifier;
use super::serving::ServingMount;
use crate::fs::{CastoreFs, NodeId, RootChanges};
use crate::store::Error;

/// How long to wait for the store at once: the mount's end is noticed in between.
const PATIENCE: Duration = Duration::from_millis(500);
/// The pause after a failure of the store.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread, if the mount shows roots.
pub(super) fn start(serving: &Arc<ServingMount>) -> io::Result<()> {
    if !serving.fs.shows_roots() {
        return Ok(());
    }
    let notifier = serving.notifier()?;
    let serving = serving.clone();
    let watch = move || watch(&serving, &notifier);
    std::thread::Builder::new()
        .name("root-watch".into())
        .spawn(watch)?;
    Ok(())
}

fn watch(serving: &ServingMount, notifier: &Notifier) {
    let fs = &serving.fs;
    let mut seen = None;
    while !serving.has_ended() {
        match next_change(fs, seen) {
            Ok((version, changes)) => {
                let changed = seen != Some(version);
                seen = Some(version);
                notify_kernel(notifier, &changes);
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

/// Waits for a version of the store's roots other than `seen`; returns the version and the changes.
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

fn notify_kernel(notifier: &Notifier, changes: &RootChanges) {
    for name in &changes.stale {
        notifier.inval_entry(NodeId::ROOT, name.as_bytes());
    }
    if changes.listing {
        notifier.inval_inode(NodeId::ROOT);
    }
}
