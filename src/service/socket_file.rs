//! The file of a socket, for its removal.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file of a socket that was just bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file at `path`, if it exists.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Removes it, unless it has been replaced: that file is another process's.
    pub(super) fn remove(&self) {
        if Self::at(&self.path).as_ref() == Some(self) {
            let removed = fs::remove_file(&self.path);
            if let Err(error) = removed {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
            }
        }
    }
}

/// A socket's file that is removed when this is dropped; or none.
#[derive(Debug)]
pub(super) struct SocketFileGuard(Option<SocketFile>);

impl SocketFileGuard {
    /// Of the file at `path`, if there is one.
    pub(super) fn at(path: Option<&Path>) -> Self {
        Self(path.and_then(SocketFile::at))
    }
}

impl Drop for SocketFileGuard {
    fn drop(&mut self) {
        self.0.iter().for_each(SocketFile::remove);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_itself_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert_eq!(SocketFile::at(&path), None);
        let first = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let file = SocketFile::at(&path).unwrap();
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        let second = std::os::unix::net::UnixListener::bind(&path).unwrap();
        file.remove();
        assert!(path.exists(), "it is another process's");
        SocketFile::at(&path).unwrap().remove();
        assert!(!path.exists());
        file.remove();
        drop((first, second));
    }
}
