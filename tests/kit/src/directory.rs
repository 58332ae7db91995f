//! A directory for stores whose last work may end after the test.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

/// Removed when it is dropped, with what a store writes there meanwhile: `TempDir` gives up at a directory that
/// is not empty any more.
pub struct StoresDirectory(TempDir);

impl Default for StoresDirectory {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl StoresDirectory {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for StoresDirectory {
    fn drop(&mut self) {
        for _ in 0..500 {
            match std::fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}
