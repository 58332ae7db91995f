//! One service for each state directory.
//!
//! Two processes on one state directory would overwrite each other's profiles and fill the same caches.
//! So the service holds a lock (flock(2)) on the directory of profiles in it, from before it mounts
//! anything to its end, however that comes. (The state directory itself can be a store's, and stores
//! lock theirs.)

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// Holds a state directory until it is dropped.
#[derive(Debug)]
pub(super) struct StateClaim {
    _locked: Option<OwnedFd>,
}

impl StateClaim {
    /// Claims the state directory whose profiles are in `profiles`, which is made if it does not
    /// exist. An error of the kind `WouldBlock` means that another process has it. If the directory
    /// cannot be made or locked (on a read-only or remote file system) it is not claimed.
    pub(super) fn take(profiles: &Path) -> io::Result<Self> {
        // If this fails, so will opening it.
        let _ = fs::create_dir_all(profiles);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let locked = rustix::fs::open(profiles, flags, Mode::empty()).and_then(|directory| {
            flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            Ok(directory)
        });
        match locked {
            Ok(directory) => Ok(Self {
                _locked: Some(directory),
            }),
            Err(Errno::WOULDBLOCK) => Err(Errno::WOULDBLOCK.into()),
            Err(error) => {
                let path = profiles.display();
                tracing::debug!(%path, %error, "the state directory is not locked");
                Ok(Self { _locked: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_claim_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it");
        let claim = StateClaim::take(&path).unwrap();
        let second = StateClaim::take(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(claim);
        StateClaim::take(&path).unwrap();
        // Without a directory there is nothing to share.
        StateClaim::take(Path::new("/dev/null/x")).unwrap();
    }
}
