//! Removing a tree of files, however deep it is.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::descent::{Descent, DescentError};

/// Directories that are open at once.
const WINDOW: usize = 16;
/// A buffer for names, in bytes.
const LISTING: usize = 32 << 10;

/// Removes the directory at `path` and everything below it; symbolic links are not followed. What
/// cannot be removed does not prevent the rest; the first error is returned.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut removal = TreeRemoval {
        error: None,
        buffer: vec![MaybeUninit::uninit(); LISTING],
    };
    let top = open(CWD, path)?;
    let mut descent = Descent::new(WINDOW);
    // For each directory that the removal is in, its name, and its remaining subdirectories.
    let mut levels = vec![(CString::default(), removal.clear(top.as_fd())?)];
    descent.enter(top)?;
    while let (Some((_, rest)), Some(innermost)) = (levels.last_mut(), descent.innermost()) {
        if let Some(name) = rest.pop() {
            match open(innermost.as_fd(), &name) {
                Ok(below) => {
                    let rest = removal.clear(below.as_fd())?;
                    descent.enter(below)?;
                    levels.push((name, rest));
                }
                Err(error) => removal.note(error),
            }
            continue;
        }
        let departed = levels.pop();
        let departed_dir = descent.leave(|fd, _| fd).map_err(|error| match error {
            DescentError::Io(error) => error,
            DescentError::Moved => io::Error::other(error),
        })?;
        drop(departed_dir);
        if let (Some((name, _)), Some(above)) = (departed, descent.innermost()) {
            let removed = unlinkat(above, &name, AtFlags::REMOVEDIR);
            removal.note_unless_gone(removed);
        }
    }
    let removed = unlinkat(CWD, path, AtFlags::REMOVEDIR);
    removal.note_unless_gone(removed);
    removal.error.map_or(Ok(()), Err)
}

struct TreeRemoval {
    /// The first one.
    error: Option<io::Error>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl TreeRemoval {
    /// Removes everything in a directory but its subdirectories; returns their names.
    fn clear(&mut self, dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
        let mut directories = Vec::new();
        let mut others = Vec::new();
        let mut listing = RawDir::new(dir, &mut self.buffer);
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(dir, name),
                kind => kind,
            };
            match kind {
                FileType::Directory => directories.push(name.to_owned()),
                _ => others.push(name.to_owned()),
            }
        }
        for name in others {
            let removed = unlinkat(dir, &name, AtFlags::empty());
            self.note_unless_gone(removed);
        }
        Ok(directories)
    }

    fn note_unless_gone(&mut self, removed: Result<(), Errno>) {
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => self.note(error.into()),
        }
    }

    fn note(&mut self, error: io::Error) {
        self.error.get_or_insert(error);
    }
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// What `name` is, on file systems whose listings do not have the kind.
fn kind_of(dir: BorrowedFd<'_>, name: &CStr) -> FileType {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or(FileType::Unknown, |stat| {
        FileType::from_raw_mode(stat.st_mode)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_deep_tree_is_removed_and_the_targets_of_its_links_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = open(CWD, &tree).unwrap();
        for _ in 0..3000 {
            for name in ["down", "a", "z"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            rustix::fs::symlinkat(&outside, &at, "link").unwrap();
            at = open(at.as_fd(), "down").unwrap();
        }
        symlink(&outside, tree.join("top-link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        assert!(remove_tree(&tree).is_err());
    }
}
