//! What an export has under a hidden name beside its target until it is whole.
//!
//! It is removed when the export fails, when the process is to end at once ([`discard_unfinished`]), and,
//! if the process was killed, by the next export to the same target: an export holds a lock (flock(2)) on
//! what it makes, so what has none was left behind.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, RawDir, flock, fstat, openat, unlink,
};
use rustix::io::Errno;

use super::removal::remove_tree;
use crate::castore::Printable;

/// What is between the target's name and the numbers that make a hidden name unique.
const MARK: &[u8] = b".castore-fs-";
/// Bytes of the target's name in a hidden one: what else is in it takes no more than 40 of 255.
const START: usize = 200;
/// A buffer for names, in bytes.
const LISTING: usize = 32 << 10;
/// How often a directory is removed again, into which a thread has just written.
const TRIES: u32 = 100;
const TRY_INTERVAL: Duration = Duration::from_millis(20);

/// The hidden names of this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A hidden name, and the file or directory that has it. Removed when this is dropped.
#[derive(Debug)]
pub(super) struct UnfinishedTarget {
    path: PathBuf,
}

impl UnfinishedTarget {
    /// Makes something by `make` under a name that nothing has, in `dir`, for a target called `name`;
    /// what earlier processes have left there of that target is removed. An error comes with the path.
    pub(super) fn make(
        dir: &Path,
        name: &OsStr,
        make: impl Fn(&Path) -> Result<OwnedFd, Errno>,
    ) -> Result<(Self, OwnedFd), (PathBuf, Errno)> {
        remove_abandoned(dir, name);
        for attempt in 0u32.. {
            let end = format!("{}-{attempt}", std::process::id());
            let hidden = [start(name).as_slice(), end.as_bytes()].concat();
            let path = dir.join(OsStr::from_bytes(&hidden));
            let fd = match make(&path) {
                Ok(fd) => fd,
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err((path, errno)),
            };
            UNFINISHED.lock().push(path.clone());
            let made = Self { path };
            // Between the two, another export may have taken it for one that was left behind.
            let is_locked = flock(&fd, FlockOperation::NonBlockingLockExclusive);
            let is_there = fstat(&fd).is_ok_and(|found| found.st_nlink > 0);
            if is_there && is_locked != Err(Errno::WOULDBLOCK) {
                return Ok((made, fd));
            }
        }
        unreachable!("some name is free")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The name is no more: what had it has another one.
    pub(super) fn forget(self) {
        forget(&self.path);
        std::mem::forget(self);
    }
}

impl Drop for UnfinishedTarget {
    fn drop(&mut self) {
        if let Err(error) = remove_whole(&self.path) {
            tracing::warn!(path = %Printable::path(&self.path), %error, "cannot remove the unfinished export");
        }
        forget(&self.path);
    }
}

/// Removes the unfinished files of exports of this process. They must have been interrupted before.
pub fn discard_unfinished() {
    let all = UNFINISHED.lock().clone();
    for path in all {
        // The process ends, and what is left is removed by the next export.
        let _ = remove_whole(&path);
    }
}

fn forget(path: &Path) {
    let mut all = UNFINISHED.lock();
    if let Some(at) = all.iter().position(|one| one == path) {
        all.swap_remove(at);
    }
}

/// Removes a file or a directory, in which other threads may write or remove meanwhile.
fn remove_whole(path: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        match remove(path) {
            Ok(()) if path.symlink_metadata().is_err() => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(error),
            _ => std::thread::sleep(TRY_INTERVAL),
        }
    }
    remove(path)
}

/// Removes a file or a directory; that there is none is no error.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => remove_tree(path),
        Ok(_) => unlink(path).map_err(io::Error::from),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// What the hidden names for the target `name` start with.
fn start(name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    let name = name.get(..START).unwrap_or(name);
    [b".", name, MARK].concat()
}

/// Whether `name` starts with `start`, and numbers follow.
fn is_hidden_name(name: &[u8], start: &[u8]) -> bool {
    let Some(numbers) = name.strip_prefix(start) else {
        return false;
    };
    let mut numbers = numbers.split(|&byte| byte == b'-');
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    numbers.clone().count() == 2 && numbers.all(is_number)
}

/// Removes what exports to `name` in `dir` have left whose processes are gone. What cannot be looked
/// at or removed stays: that is no reason not to export.
fn remove_abandoned(dir: &Path, name: &OsStr) {
    let start = start(name);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(listed) = openat(CWD, dir, flags, Mode::empty()) else {
        return;
    };
    let mut buffer = vec![MaybeUninit::uninit(); LISTING];
    let mut entries = RawDir::new(&listed, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if !is_hidden_name(name.to_bytes(), &start) || !is_abandoned(&listed, name) {
            continue;
        }
        let path = dir.join(OsStr::from_bytes(name.to_bytes()));
        let shown = Printable::path(&path);
        match remove(&path) {
            Ok(()) => {
                tracing::warn!(path = %shown, "removed what an export left that was killed");
            }
            Err(error) => {
                tracing::warn!(path = %shown, %error, "cannot remove what an export left that was killed");
            }
        }
    }
}

/// Whether `name` is a file or directory of this user on which no process holds a lock.
fn is_abandoned(dir: impl AsFd, name: &std::ffi::CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = openat(dir, name, flags, Mode::empty()) else {
        return false;
    };
    let is_ours = fstat(&fd).is_ok_and(|found| {
        let kind = FileType::from_raw_mode(found.st_mode);
        matches!(kind, FileType::Directory | FileType::RegularFile)
            && found.st_uid == rustix::process::geteuid().as_raw()
    });
    is_ours && flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn make(dir: &Path) -> (UnfinishedTarget, OwnedFd) {
        let make = |path: &Path| {
            rustix::fs::mkdir(path, Mode::RWXU)?;
            openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
        };
        UnfinishedTarget::make(dir, OsStr::new("copy"), make).unwrap()
    }

    #[test]
    fn what_has_no_lock_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at(".copy.castore-fs-1-0/copy/deep")).unwrap();
        fs::write(at(".copy.castore-fs-1-0/copy/file"), "x").unwrap();
        fs::write(at(".copy.castore-fs-2-13"), "an archive").unwrap();
        let others = [
            ".copy.castore-fs-1",
            ".copy.castore-fs-1-x",
            ".copy.castore-fs-1-2-3",
            ".copies.castore-fs-1-0",
            "copy.castore-fs-1-0",
        ];
        for other in others {
            fs::write(at(other), "x").unwrap();
        }
        std::os::unix::fs::symlink("elsewhere", at(".copy.castore-fs-3-0")).unwrap();
        let (first, first_fd) = make(dir.path());
        let (second, _second_fd) = make(dir.path());
        assert!(first.path().exists() && second.path() != first.path());
        assert!(!at(".copy.castore-fs-1-0").exists() && !at(".copy.castore-fs-2-13").exists());
        assert!(others.iter().all(|other| at(other).exists()));
        assert!(at(".copy.castore-fs-3-0").symlink_metadata().is_ok());
        // One that is renamed is not removed under its old name.
        let path = first.path().to_owned();
        first.forget();
        drop(first_fd);
        assert!(path.exists());
        drop(second);
        remove_abandoned(dir.path(), OsStr::new("copy"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }
}
