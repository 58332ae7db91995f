//! The owner of what is created in a store.
//!
//! The superuser imports into stores of other users, such as that of a service with a user of its own. What it
//! creates there gets the owner of the store's directory: else that user's processes could neither append to a
//! pack, nor lock it, nor collect garbage.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FileType, Gid, Uid, fchown, fstat};

use super::dir::{StoreDirectory, is_at};

impl StoreDirectory {
    /// The owner of the store's directory, if that is another user and this process may be able to give files
    /// away.
    fn other_owner(&self) -> Option<(Uid, Gid)> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let found = fs::metadata(self.path()).ok()?;
        (found.uid() != 0).then(|| (Uid::from_raw(found.uid()), Gid::from_raw(found.gid())))
    }

    /// Gives `made`, a file or directory that this process has created at `path`, to the owner of the store's
    /// directory.
    ///
    /// Only what is the superuser's own and in no other place is given away: the store's owner could have put a
    /// link there. A process without the privilege leaves it as it is.
    pub(super) fn give_to_owner(&self, made: &impl AsFd, path: &Path) {
        let Some((uid, gid)) = self.other_owner() else {
            return;
        };
        let ours = || -> io::Result<bool> {
            let found = fstat(made)?;
            let in_one_place = match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => true,
                FileType::RegularFile => found.st_nlink == 1,
                _ => false,
            };
            Ok(found.st_uid == 0 && in_one_place && is_at(made, path)?)
        };
        if ours().unwrap_or(false)
            && let Err(error) = fchown(made, Some(uid), Some(gid))
        {
            tracing::debug!(%error, path = %path.display(), "cannot give a file to the store's owner");
        }
    }

    /// Gives the file or directory at `path`, which this process has created, to the owner of the store's directory.
    pub(super) fn give_path_to_owner(&self, path: &Path) -> io::Result<()> {
        if self.other_owner().is_some() {
            let flags = rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::NOFOLLOW
                | rustix::fs::OFlags::NONBLOCK
                | rustix::fs::OFlags::CLOEXEC;
            let made = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
            self.give_to_owner(&made, path);
        }
        Ok(())
    }

    /// Creates a directory of the store unless it exists.
    pub(super) fn make_dir(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.give_path_to_owner(path),
        }
    }
}
