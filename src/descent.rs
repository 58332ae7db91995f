//! Walking a directory tree that may be deeper than the limit of descriptors.
//!
//! A walk by descriptors (no symlink is followed, no path is too long) holds one for each directory
//! that it is inside of, and a process may have 1024 or fewer. A [`Descent`] keeps the directories
//! nearest to the walk open and closes those further up; on the way back it opens them again, as
//! `..` of the directory below, and checks by device and inode that it is the same one. If it is
//! not, a directory was moved meanwhile, and the walk must end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;

/// Why a directory could not be opened again on the way back up.
#[derive(Debug, Error)]
pub enum DescentError {
    /// The directory below is in another one now.
    #[error("a directory was moved meanwhile")]
    Moved,
    /// The system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The directories from the start of a walk down to where it is.
#[derive(Debug)]
pub struct Descent<F> {
    levels: Vec<Level<F>>,
    /// How many of them are open, at most: the last ones.
    window: usize,
}

#[derive(Debug)]
enum Level<F> {
    Open(F),
    Closed(Identity),
}

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(folder: impl AsFd) -> io::Result<Self> {
        let stat = fstat(folder)?;
        Ok(Self(stat.st_dev, stat.st_ino))
    }
}

impl<F: AsFd> Descent<F> {
    /// At no directory, with at most `window` of them open at once, and at least two.
    pub fn new(window: usize) -> Self {
        Self {
            levels: Vec::new(),
            window: window.max(2),
        }
    }

    /// How many directories there are.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The directory that the walk is in.
    pub fn here(&self) -> Option<&F> {
        match self.levels.last() {
            Some(Level::Open(folder)) => Some(folder),
            Some(Level::Closed(_)) | None => None,
        }
    }

    /// Descends into `folder`, which is in the directory that the walk is in.
    pub fn enter(&mut self, folder: F) -> io::Result<()> {
        if let Some(far) = self.levels.len().checked_sub(self.window)
            && let Some(level) = self.levels.get_mut(far)
            && let Level::Open(folder) = level
        {
            *level = Level::Closed(Identity::of(folder)?);
        }
        self.levels.push(Level::Open(folder));
        Ok(())
    }

    /// Goes back up; returns the directory that was left. If the one above was closed, `again`
    /// makes it of its new descriptor and the directory that was left.
    pub fn leave(
        &mut self,
        again: impl FnOnce(OwnedFd, &F) -> F,
    ) -> Result<Option<F>, DescentError> {
        let Some(Level::Open(left)) = self.levels.pop() else {
            return Ok(None);
        };
        if let Some(above) = self.levels.last_mut()
            && let Level::Closed(identity) = above
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(&left, "..", flags, Mode::empty()).map_err(io::Error::from)?;
            if Identity::of(&fd)? != *identity {
                return Err(DescentError::Moved);
            }
            *above = Level::Open(again(fd, &left));
        }
        Ok(Some(left))
    }
}

/// How many files the process may have open.
pub fn open_files_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(at: impl AsFd, name: &str) -> OwnedFd {
        openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_walk_comes_back_through_directories_that_were_closed() {
        let folder = tempfile::tempdir().unwrap();
        let mut path = folder.path().to_owned();
        for _ in 0..40 {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        let mut descent = Descent::new(4);
        descent
            .enter(open(rustix::fs::CWD, folder.path().to_str().unwrap()))
            .unwrap();
        for _ in 0..40 {
            let next = open(descent.here().unwrap(), "d");
            descent.enter(next).unwrap();
        }
        let open_levels = |descent: &Descent<OwnedFd>| {
            let open = descent.levels.iter();
            open.filter(|level| matches!(level, Level::Open(_))).count()
        };
        assert_eq!((descent.depth(), open_levels(&descent)), (41, 4));
        let mut again = 0;
        while descent.depth() > 1 {
            descent
                .leave(|fd, _| {
                    again += 1;
                    fd
                })
                .unwrap()
                .unwrap();
        }
        assert_eq!(again, 37);
        let here = Identity::of(descent.here().unwrap()).unwrap();
        assert_eq!(
            here,
            Identity::of(open(rustix::fs::CWD, folder.path().to_str().unwrap())).unwrap()
        );
    }

    #[test]
    fn a_directory_that_was_moved_ends_the_walk() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
        let mut descent = Descent::new(2);
        descent
            .enter(open(rustix::fs::CWD, folder.path().to_str().unwrap()))
            .unwrap();
        for name in ["a", "b", "c"] {
            let next = open(descent.here().unwrap(), name);
            descent.enter(next).unwrap();
        }
        fs::rename(folder.path().join("a/b"), folder.path().join("elsewhere")).unwrap();
        descent.leave(|fd, _| fd).unwrap();
        let error = descent.leave(|fd, _| fd).unwrap_err();
        assert!(matches!(error, DescentError::Moved), "{error}");
    }
}
