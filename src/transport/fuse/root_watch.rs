//! Notifying the kernel when what the mount root shows changes: the store's roots, or the tree that a name
//! stands for.
//!
//! The kernel caches the names of roots and their listing for ever. This thread waits for the store
//! to report a change, from any process, and makes the kernel drop what is stale. It is a thread of
//! its own because the kernel may hold a directory's lock, for which a notification waits, while it
//! waits for an answer.

use std::io;
use std::sync::Arc;

use super::followed_name::{FollowedName, PATIENCE, RETRY};
use super::mount_table::{DeviceNumber, MountTable};
use super::mountpoint::Mountpoint;
use super::notifier::Notifier;
use super::serving::ServingMount;
use crate::fs::{CastoreFs, NodeId, RootChanges};
use crate::store::{Blocking, Error};

/// Starts the thread, if the mount shows roots, or follows one. `taken_over`: from another process, whose last
/// notifications may be lost.
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
            notify_again(&serving.fs, &notifier);
        }
        follow(&serving, &notifier, device);
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

/// Shows what the followed name stands for, whenever that changes.
fn follow(serving: &ServingMount, notifier: &Notifier, device: Option<DeviceNumber>) {
    let fs = &serving.fs;
    let Some(target) = fs.followed_target().cloned() else {
        return;
    };
    let store = Blocking::new(fs.store().clone(), fs.runtime().clone());
    let mut name = FollowedName::new(target, store);
    while !serving.has_ended() {
        let shown = fs.shown_directory().map(|(digest, _)| digest);
        let mut switched = false;
        match name.next(shown) {
            Ok(None) => {}
            Ok(Some((digest, size))) => {
                if let Some(why) = mount_inside(device) {
                    name.postpone(why);
                    continue;
                }
                // Before the last look at the name: what had one until now may be collected.
                fs.hold_next(digest, size);
                if name.stands_for(digest) {
                    match fs.show(digest, size) {
                        Ok(changes) => {
                            notify_kernel(notifier, &changes);
                            name.shown(digest);
                            switched = true;
                        }
                        Err(error) => {
                            name.postpone(error.to_string());
                            std::thread::sleep(RETRY);
                        }
                    }
                }
            }
            Err(error) => {
                name.postpone(error.to_string());
                std::thread::sleep(RETRY);
            }
        }
        // What the kernel drops, it forgets a moment later.
        fs.release_unused(switched);
    }
}

/// A mount below the mount root of the file system `device`, in words that say why the mount root stays: the
/// kernel detaches mounts below names that it drops.
fn mount_inside(device: Option<DeviceNumber>) -> Option<String> {
    let table = MountTable::read().ok()?;
    let inside = table.below_names_of(device?)?;
    Some(format!(
        "the {} mount on {} is below it, and would be lost: unmount that",
        inside.fs_type,
        inside.path.display()
    ))
}

/// Notifies the kernel of the last change again. What it has of it already stays.
fn notify_again(fs: &CastoreFs, notifier: &Notifier) {
    match fs.changes_before_take_over() {
        Ok(changes) => {
            for name in &changes.stale {
                notifier.expire_entry(NodeId::ROOT, name.as_bytes());
            }
            if changes.listing {
                notifier.inval_inode(NodeId::ROOT);
            }
        }
        Err(error) => tracing::warn!(
            %error,
            "cannot read which names the previous process changed in the mount root: the kernel may show old \
             ones until it drops them"
        ),
    }
}
