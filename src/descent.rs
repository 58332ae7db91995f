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
    levels: Vec<DescentLevel<F>>,
    /// How many of them are open, at most: the last ones.
    window: usize,
}

#[derive(Debug)]
enum DescentLevel<F> {
    Open(F),
    Closed(InodeIdentity),
}

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InodeIdentity(u64, u64);

impl InodeIdentity {
    fn of(dir: impl AsFd) -> io::Result<Self> {
        let stat = fstat(dir)?;
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
    pub fn innermost(&self) -> Option<&F> {
        match self.levels.last() {
            Some(DescentLevel::Open(dir)) => Some(dir),
            Some(DescentLevel::Closed(_)) | None => None,
        }
    }

    /// Descends into `dir`, which is in the directory that the walk is in.
    pub fn enter(&mut self, dir: F) -> io::Result<()> {
        if let Some(upstream) = self.levels.len().checked_sub(self.window)
            && let Some(level) = self.levels.get_mut(upstream)
            && let DescentLevel::Open(dir) = level
        {
            *level = DescentLevel::Closed(InodeIdentity::of(dir)?);
        }
        self.levels.push(DescentLevel::Open(dir));
        Ok(())
    }

    /// Goes back up; returns the directory that was left. If the one above was closed, `again`
    /// makes it of its new descriptor and the directory that was left.
    pub fn leave(
        &mut self,
        again: impl FnOnce(OwnedFd, &F) -> F,
    ) -> Result<Option<F>, DescentError> {
        let Some(DescentLevel::Open(departed)) = self.levels.pop() else {
            return Ok(None);
        };
        if let Some(above) = self.levels.last_mut()
            && let DescentLevel::Closed(identity) = above
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(&departed, "..", flags, Mode::empty()).map_err(io::Error::from)?;
            if InodeIdentity::of(&fd)? != *identity {
                return Err(DescentError::Moved);
            }
            *above = DescentLevel::Open(again(fd, &departed));
        }
        Ok(Some(departed))
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
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..40 {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        let mut descent = Descent::new(4);
        descent
            .enter(open(rustix::fs::CWD, dir.path().to_str().unwrap()))
            .unwrap();
        for _ in 0..40 {
            let next = open(descent.innermost().unwrap(), "d");
            descent.enter(next).unwrap();
        }
        let open_levels = |descent: &Descent<OwnedFd>| {
            let open = descent.levels.iter();
            open.filter(|level| matches!(level, DescentLevel::Open(_)))
                .count()
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
        let innermost_identity = InodeIdentity::of(descent.innermost().unwrap()).unwrap();
        assert_eq!(
            innermost_identity,
            InodeIdentity::of(open(rustix::fs::CWD, dir.path().to_str().unwrap())).unwrap()
        );
    }

    #[test]
    fn a_directory_that_was_moved_ends_the_walk() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        let mut descent = Descent::new(2);
        descent
            .enter(open(rustix::fs::CWD, dir.path().to_str().unwrap()))
            .unwrap();
        for name in ["a", "b", "c"] {
            let next = open(descent.innermost().unwrap(), name);
            descent.enter(next).unwrap();
        }
        fs::rename(dir.path().join("a/b"), dir.path().join("elsewhere")).unwrap();
        descent.leave(|fd, _| fd).unwrap();
        let error = descent.leave(|fd, _| fd).unwrap_err();
        assert!(matches!(error, DescentError::Moved), "{error}");
    }
}
