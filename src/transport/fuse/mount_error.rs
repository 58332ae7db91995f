//! Why there is no mount.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why there is no mount.
#[derive(Debug, Error)]
pub enum MountError {
    /// The mount point does not exist.
    #[error("{} does not exist; make that directory first", .0.display())]
    NoMountpoint(PathBuf),
    /// It is not a directory.
    #[error("{} is not a directory; mount on a directory", .0.display())]
    NotADirectory(PathBuf),
    /// It is `/`.
    #[error(
        "cannot mount on /: it would hide every file of this machine; mount on a directory below"
    )]
    RootDirectory,
    /// It is at or above a file that this program needs.
    #[error(
        "cannot mount on {}: it would hide {what} ({}), and requests would wait for themselves; mount \
         elsewhere",
        mountpoint.display(),
        path.display()
    )]
    HidesOwnFile {
        /// The mount point.
        mountpoint: PathBuf,
        /// The purpose of the file.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// Another castore-fs is mounted there.
    #[error(
        "castore-fs is mounted on {} already; unmount that first, or mount elsewhere",
        .0.display()
    )]
    AlreadyMounted(PathBuf),
    /// There is no mount of castore-fs to change.
    #[error("castore-fs is not mounted on {}", .0.display())]
    NothingMounted(PathBuf),
    /// A mount without a server is in the way, and cannot be unmounted.
    #[error("{} holds a mount without a server: {why}; remove it with umount --lazy", mountpoint.display())]
    DeadMount {
        /// The mount point.
        mountpoint: PathBuf,
        /// Why it cannot be unmounted.
        why: String,
    },
    /// There is no FUSE.
    #[error(
        "cannot open /dev/fuse: {0}; load the kernel module fuse, or give this container the device"
    )]
    NoDevice(io::Error),
    /// The helper is not installed, and an ordinary user has no other way.
    #[error(
        "only the superuser can mount without the helper fusermount3, which is not installed (package fuse3)"
    )]
    NoHelper,
    /// The helper refused, with this output.
    #[error("fusermount3 did not mount on {}: {reported}", mountpoint.display())]
    Helper {
        /// The mount point.
        mountpoint: PathBuf,
        /// Its output.
        reported: String,
    },
    /// The given descriptor is something else.
    #[error("the descriptor that was given for {} is not of /dev/fuse", .0.display())]
    NotADevice(PathBuf),
    /// The given descriptor is not mounted, and this process may not do it.
    #[error(
        "the descriptor that was given for {} is not mounted yet, which takes CAP_SYS_ADMIN: mount \
         it before it is passed on (type fuse.castore-fs, options \
         fd=N,rootmode=40555,user_id=N,group_id=N), or give this process the capability",
        .0.display()
    )]
    NotMounted(PathBuf),
    /// An image was asked for, and cannot be mounted.
    #[error(
        "cannot mount on {} as an image: {why}; leave out view = \"image\" to have a FUSE mount",
        mountpoint.display()
    )]
    NoImageView {
        /// Where.
        mountpoint: PathBuf,
        /// Why not.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", mountpoint.display())]
    System {
        /// The action: a verb.
        action: &'static str,
        /// The mount point.
        mountpoint: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}
