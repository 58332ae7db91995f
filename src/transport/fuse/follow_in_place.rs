//! A FUSE mount that shows another tree once the name of its root stands for one, in the same place.

use super::followed_name::{FollowedName, RETRY};
use super::mount_table::{DeviceNumber, MountTable};
use super::notifier::Notifier;
use super::serving::ServingMount;
use crate::fs::{CastoreFs, NodeId};
use crate::store::Blocking;

/// Shows what the followed name stands for, whenever that changes.
pub(super) fn follow(serving: &ServingMount, notifier: &Notifier, device: Option<DeviceNumber>) {
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
                            notifier.inval_changes(&changes);
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
pub(super) fn notify_again(fs: &CastoreFs, notifier: &Notifier) {
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
