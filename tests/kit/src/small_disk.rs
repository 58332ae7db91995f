//! Disks that are soon full.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::skip::skip;

/// Something mounted, which goes with its guard.
pub struct Disk(pub PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Mounts a disk in memory; reports why and returns nothing where that is not allowed.
pub fn small_disk(at: &Path, bytes: u64) -> Option<Disk> {
    let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
    match mount("none", at, "tmpfs", MountFlags::empty(), options.as_c_str()) {
        Ok(()) => Some(Disk(at.to_owned())),
        Err(error) => {
            skip(&format!(
                "a tmpfs cannot be mounted here ({error}); run as the superuser"
            ));
            None
        }
    }
}
