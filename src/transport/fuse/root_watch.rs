//! Notifying the kernel when the roots of a store change that a mount shows.
//!
//! The kernel caches the names of roots and their listing for ever. This thread waits for the store
//! to report a change, from any process, and makes the kernel drop what is stale. It is a thread of
//! its own because the kernel may hold a directory's lock, for which a notification waits, while it
//! waits for an answer.

use std::io;
use std::sync::Arc;

use super::follow_in_place;
use super::followed_name::{PATIENCE, RETRY};
use super::mountpoint::Mountpoint;
use super::notifier::Notifier;
use super::serving::ServingMount;
use crate::fs::{CastoreFs, RootChanges};
use crate::store::Error;

/// Starts the thread, if the mount shows roots, or follows one ([`follow_in_place`]). `taken_over`: from another
/// process, whose last notifications may be lost.
pub(super) fn start(
    serving: &Arc<ServingMount>,
    mountpoint: &Mountpoint,
    taken_over: bool,
) -> io::Result<()> {
    let fs = &serving.fs;
    if !fs.shows_roots() && fs.followed_target().is_none() {
        return Ok(());
    }
    let notifier = serving.notifier()?;
    let (serving, device) = (serving.clone(), mountpoint.bdi());
    let watch = move || {
        if serving.fs.shows_roots() {
            return watch(&serving, &notifier);
        }
        let _in_span = serving.span.enter();
        if taken_over {
            follow_in_place::notify_again(&serving.fs, &notifier);
        }
        follow_in_place::follow(&serving, &notifier, device);
    };
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
                notifier.inval_changes(&changes);
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
