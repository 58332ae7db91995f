//! The two ioctls that register backing files with the kernel.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use crate::fs::BackingDevice;

/// `FUSE_DEV_IOC_BACKING_OPEN`: `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// `struct fuse_backing_map` of the kernel's `fuse.h`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// The device of a mount, as the place where backing files are registered.
pub(super) struct FuseDevice(pub Arc<OwnedFd>);

impl BackingDevice for FuseDevice {
    fn register(&self, file: &OwnedFd) -> io::Result<u32> {
        let map = BackingMap {
            fd: file.as_raw_fd(),
            flags: 0,
            padding: 0,
        };
        // SAFETY: the ioctl reads one fuse_backing_map, which `map` is.
        let id = unsafe { libc::ioctl(self.0.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
        u32::try_from(id).map_err(|_| io::Error::last_os_error())
    }

    fn end(&self, id: u32) -> io::Result<()> {
        // SAFETY: the ioctl reads one u32, which `id` is.
        let outcome = unsafe { libc::ioctl(self.0.as_raw_fd(), BACKING_CLOSE as _, &raw const id) };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn probe(&self) -> io::Result<u32> {
        // In memory: this program's own file may be on a file system that cannot back another.
        let file = rustix::fs::memfd_create(c"castore-fs-probe", MemfdFlags::CLOEXEC)?;
        let id = self.register(&file)?;
        self.end(id)?;
        Ok(id)
    }
}
