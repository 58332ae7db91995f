//! Unmounting a mount where it is now.
//!
//! A mount is found by its id ([`MountIdentity`]), wherever it was moved and whatever the names of
//! its parents are now. umount(2) takes a path, though, and unmounts the mount at that path. So:
//!
//! - A mount that another one covers is not touched, and neither is one with other mounts below it.
//!   umount(2) would unmount the covering one, and `MNT_DETACH` everything below.
//! - A mount with open files is detached: it is out of the tree at once, and gone with its last
//!   user.
//!
//! The file system can be in use beyond that, through bind mounts and in other mount namespaces.
//! Its remaining users are found by [`users`](super::users).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use super::mount_table::{DeviceNumber, MountEntry, MountTable};

/// The identity of a mount, as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountIdentity {
    /// Its id in mountinfo.
    pub id: u64,
    /// The device number of its file system. The id alone could be that of a later mount.
    pub device: DeviceNumber,
}

/// The mounts that prevent an unmount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmountObstacles(Vec<UnmountObstacle>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct UnmountObstacle {
    fs_type: String,
    path: PathBuf,
}

/// The outcome of an unmount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MountState {
    /// It is not in this mount namespace any more.
    Gone,
    /// It was busy: it is out of the tree, and there until its last user has finished.
    Detached,
    /// It is where it was. Once these mounts are gone it can be unmounted.
    Blocked(UnmountObstacles),
}

impl fmt::Display for UnmountObstacles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, UnmountObstacle { fs_type, path }) in self.0.iter().enumerate() {
            let separator = if at > 0 { ", " } else { "" };
            write!(
                formatter,
                "{separator}the mount of type {fs_type} on {}",
                path.display()
            )?;
        }
        Ok(())
    }
}

impl MountIdentity {
    /// Of a line of the table.
    pub(super) fn of(entry: &MountEntry) -> Self {
        Self {
            id: entry.id,
            device: entry.device,
        }
    }

    /// Its line in the table, if it is still there.
    pub(super) fn find(self, table: &MountTable) -> Option<&MountEntry> {
        let entry = table.by_id(self.id)?;
        (entry.device == self.device).then_some(entry)
    }

    /// Where it is mounted now.
    pub(super) fn path(self) -> io::Result<Option<PathBuf>> {
        let table = MountTable::read()?;
        Ok(self.find(&table).map(|entry| entry.path.clone()))
    }

    /// Unmounts it by `umount`, which is umount2(2) or a program that calls it. A busy mount is
    /// detached.
    pub(super) fn unmount(
        self,
        mut umount: impl FnMut(&Path, UnmountFlags) -> io::Result<()>,
    ) -> io::Result<MountState> {
        match self.step(UnmountFlags::NOFOLLOW, &mut umount) {
            // Whether another mount is on it or below is checked again: one may have come
            // meanwhile.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let state =
                    self.step(UnmountFlags::NOFOLLOW | UnmountFlags::DETACH, &mut umount)?;
                Ok(match state {
                    MountState::Gone => MountState::Detached,
                    blocked => blocked,
                })
            }
            outcome => outcome,
        }
    }

    fn step(
        self,
        flags: UnmountFlags,
        umount: &mut impl FnMut(&Path, UnmountFlags) -> io::Result<()>,
    ) -> io::Result<MountState> {
        let table = MountTable::read()?;
        let Some(entry) = self.find(&table) else {
            return Ok(MountState::Gone);
        };
        let obstacles = table.obstacles(entry).into_iter();
        let obstacles: Vec<UnmountObstacle> = obstacles
            .map(|entry| UnmountObstacle {
                fs_type: entry.fs_type.clone(),
                path: entry.path.clone(),
            })
            .collect();
        if !obstacles.is_empty() {
            return Ok(MountState::Blocked(UnmountObstacles(obstacles)));
        }
        umount(&entry.path, flags)?;
        Ok(MountState::Gone)
    }
}
