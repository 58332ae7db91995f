//! A mount of an image that follows the name of a root.
//!
//! An image is the image of one tree. Once the name stands for another, that tree's image is mounted beneath
//! what is mounted, at the same mount point, and what is on top is detached: a look-up by path leads to the
//! one or the other tree at any moment. What is open, working directories, bind mounts, overlays and other
//! mount namespaces to which mounts do not propagate stay in the former tree, which is served until its last
//! user has finished.
//!
//! Nothing is detached that is not of this mount: one that another mount covers, or that has mounts below it,
//! stays until those are gone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::image::{NoImageReason, UnservedImage};
use super::trees::ServedTrees;
use super::{FuseSession, MountOptions};
use crate::castore::Digest;
use crate::fs::{FsOptions, MountRoot};
use crate::store::Blocking;
use crate::transport::fuse::followed_name::{FollowedName, PATIENCE, RETRY};
use crate::transport::fuse::generic_options::GenericOptions;
use crate::transport::fuse::mount_table::{MountTable, mount_of};
use crate::tree::ImageFileError;

/// Former trees that a mount serves, at most: each has a connection and threads of its own.
const MOST_FORMER: usize = 16;

/// Where what is shown is mounted.
struct MountPlace {
    path: PathBuf,
    /// The root of the mount.
    root: OwnedFd,
    /// `MOUNT_ATTR_*` that it has now.
    attributes: u32,
}

/// Why another tree is not shown.
enum Refusal {
    /// It may be shown later.
    Later(String),
    /// It cannot be an image.
    Never(String),
    /// The name stands for something else by now, or nothing is shown any more.
    Over,
}

/// Starts the thread that follows the name that `options` have, and lets go of former trees. There is one for a
/// mount.
pub(super) fn start(
    trees: &Arc<ServedTrees>,
    options: &FsOptions,
    mount: &MountOptions,
) -> io::Result<()> {
    if options.follow.is_none() && trees.former() == 0 || !trees.begin_watch() {
        return Ok(());
    }
    let (trees, options, mount) = (trees.clone(), options.clone(), mount.clone());
    let span = FuseSession::span(&mount);
    let watch = move || {
        let _in_span = span.enter();
        watch(&trees, &options, &mount);
    };
    std::thread::Builder::new()
        .name("root-watch".into())
        .spawn(watch)?;
    Ok(())
}

fn watch(trees: &ServedTrees, options: &FsOptions, mount: &MountOptions) {
    let shown = trees.shown();
    let fs = &shown.serving.fs;
    let store = Blocking::new(fs.store().clone(), fs.runtime().clone());
    drop(shown);
    let target = options.follow.clone();
    let mut name = target.map(|target| FollowedName::new(target, store.clone()));
    while !trees.have_ended() {
        trees.reap();
        let Some(name) = name.as_mut().filter(|_| !*trees.closed()) else {
            std::thread::sleep(PATIENCE);
            continue;
        };
        let shown = trees.shown().serving.fs.shown_directory();
        let next = match name.next(shown.map(|(digest, _)| digest)) {
            Ok(Some(next)) => next,
            Ok(None) => continue,
            Err(error) => {
                name.postpone(error.to_string());
                std::thread::sleep(RETRY);
                continue;
            }
        };
        match show(trees, options, mount, &store, name, next) {
            Ok(()) => name.shown(next.0),
            Err(Refusal::Later(why)) => {
                name.postpone(why);
                std::thread::sleep(RETRY);
            }
            Err(Refusal::Never(why)) => name.refuse(next.0, why),
            Err(Refusal::Over) => {}
        }
    }
    trees.reap();
}

/// Mounts the image of the directory `digest` of `size`, which `name` stands for, in the place of what is shown.
fn show(
    trees: &ServedTrees,
    options: &FsOptions,
    mount: &MountOptions,
    store: &Blocking,
    name: &mut FollowedName,
    (digest, size): (Digest, u64),
) -> Result<(), Refusal> {
    if trees.former() >= MOST_FORMER {
        return Err(Refusal::Later(format!(
            "{MOST_FORMER} trees that it showed before are in use: end a program that uses one, or mount it \
             again"
        )));
    }
    // Before the work of a layout.
    place(trees)?;
    let options = FsOptions {
        mount_root: MountRoot::Directory { digest, size },
        follow: None,
        ..options.clone()
    };
    let (runtime, former) = (store.runtime().clone(), trees.shown());
    let prepared = UnservedImage::prepare(store.store().clone(), &options, mount, runtime, None);
    let prepared = prepared.map_err(|error| match error {
        ImageFileError::TooLarge(why) => Refusal::Never(why),
        error => Refusal::Later(error.to_string()),
    })?;
    let served = prepared.serve(mount, Some(&former.serving));
    let served = served.map_err(Refusal::Later)?;
    // It is held in the stores now: what had no name any more may have been collected before.
    if !name.stands_for(digest) {
        served.abandon();
        return Err(Refusal::Over);
    }
    let closed = trees.closed();
    if *closed {
        served.abandon();
        return Err(Refusal::Over);
    }
    let place = match place(trees) {
        Ok(place) => place,
        Err(refusal) => {
            served.abandon();
            return Err(refusal);
        }
    };
    let path = trees.shown().mountpoint.path().to_owned();
    trees
        .switch(|number, holder| {
            if let Some(holder) = holder {
                served.hold(holder, number, &path, mount);
            }
            served.attach(mount, path, &place.root, place.attributes, number)
        })
        .map_err(|reason| match reason {
            NoImageReason::Because(why) => {
                let place = place.path.display();
                Refusal::Later(format!("it cannot be mounted on {place}: {why}"))
            }
            NoImageReason::Mount(error) => Refusal::Later(error.to_string()),
        })
}

/// Where what is shown is mounted, if another mount can take its place.
fn place(trees: &ServedTrees) -> Result<MountPlace, Refusal> {
    let later = |error: io::Error| Refusal::Later(error.to_string());
    let identity = trees.shown().mountpoint.identity();
    let identity = identity.ok_or(Refusal::Over)?;
    let table = MountTable::read().map_err(later)?;
    // Another program has unmounted it.
    let entry = identity.find(&table).ok_or(Refusal::Over)?;
    if let [obstacle, ..] = table.obstacles(entry)[..] {
        return Err(Refusal::Later(format!(
            "the {} mount on {} is on it or below it, and would be lost: unmount that",
            obstacle.fs_type,
            obstacle.path.display()
        )));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(&entry.path, flags, Mode::empty());
    let root = root.map_err(|errno| later(errno.into()))?;
    if mount_of(&root) != Some(identity.id) {
        let path = entry.path.display();
        return Err(Refusal::Later(format!("another mount is on {path}")));
    }
    Ok(MountPlace {
        path: entry.path.clone(),
        root,
        attributes: GenericOptions::attributes_of(entry).bits(),
    })
}
