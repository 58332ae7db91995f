//! Hand-over: one process ends, another takes over its mount.
//!
//! The kernel keeps a mount alive as long as the connection's descriptor stays open in some process. The
//! process that holds it, and the memory file with the node table ([`InodeTable`]), can pass both to a
//! new process. That one skips INIT, which is long done, takes over the table, and makes the kernel
//! send again the requests that the dead process had read and not answered. Readers see a pause.
//!
//! The descriptor must be the one that was mounted, or a duplicate: one made by
//! `FUSE_DEV_IOC_CLONE` has requests of its own, which end with it.
//!
//! The files that the kernel holds open for a mount with passthrough belong to the connection too,
//! and the hand-over state lists them (`fs::passthrough`).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::device;
use super::mountpoint::{self, ImageServer, MountMaker, Mountpoint};
use super::view::MountView;
use crate::castore::Digest;
use crate::fs::{InodeTable, InodeTableError};

/// Why a mount of the previous process cannot be taken over.
#[derive(Debug, Error)]
pub enum TakeOverError {
    /// The node table.
    #[error(transparent)]
    InodeTable(#[from] InodeTableError),
    /// The data about the mount are unreadable.
    #[error("the hand-over state of the mount is unreadable: {0}")]
    About(String),
    /// The kernel does not send requests again.
    #[error("the kernel does not repeat requests (Linux 6.9 is needed): {0}")]
    Resend(#[source] io::Error),
    /// A system call failed.
    #[error("cannot serve the mount: {0}")]
    System(#[from] io::Error),
}

/// The data about the mount for the next process.
#[derive(Debug, Serialize, Deserialize)]
struct MountDescription {
    path: Vec<u8>,
    id: Option<u64>,
    made_by: MountMaker,
    tag: String,
    /// If the mount shows an image.
    #[serde(default)]
    image: Option<ImageServer>,
}

impl MountDescription {
    fn read(inode_table: &InodeTable) -> Result<Self, TakeOverError> {
        let about = inode_table.about().map_err(InodeTableError::from)?;
        serde_json::from_slice(&about).map_err(|error| TakeOverError::About(error.to_string()))
    }

    fn mountpoint(&self, device: &OwnedFd) -> Mountpoint {
        let path = PathBuf::from(OsString::from_vec(self.path.clone()));
        mountpoint::known(device, path, self.id, self.made_by, self.image)
    }
}

/// A mount that another process handed over.
pub struct PreviousState {
    pub(super) device: OwnedFd,
    pub(super) inode_table: Arc<InodeTable>,
    /// Its number among the trees of the mount.
    pub(super) number: u64,
    about: MountDescription,
}

impl PreviousState {
    /// Reads the state of the previous process: the connection's descriptor and the node table's.
    pub fn read(device: OwnedFd, table: OwnedFd) -> Result<Self, TakeOverError> {
        let inode_table = InodeTable::open(table)?;
        Ok(Self {
            device,
            about: MountDescription::read(&inode_table)?,
            inode_table: Arc::new(inode_table),
            number: 0,
        })
    }

    /// The same, of the tree of this number ([`MountHolder::hold`]).
    pub fn with_number(self, number: u64) -> Self {
        Self { number, ..self }
    }

    /// Whether it is gone, with its last user.
    pub fn has_ended(&self) -> bool {
        !device::is_mounted(&self.device)
    }

    /// The mount of `device`, whose node table is `table`.
    pub fn mount_of(device: &OwnedFd, table: OwnedFd) -> Result<Mountpoint, TakeOverError> {
        Ok(MountDescription::read(&InodeTable::open(table)?)?.mountpoint(device))
    }

    /// Digest and size of the directory that the mount shows whose node table is `table`, if its tag
    /// was `tag`.
    pub fn mount_root_of(
        table: OwnedFd,
        tag: &str,
    ) -> Result<Option<(Digest, u64)>, TakeOverError> {
        let inode_table = InodeTable::open(table)?;
        match MountDescription::read(&inode_table)?.tag == tag {
            true => Ok(inode_table.mount_root()?),
            false => Ok(None),
        }
    }

    /// What [`MountOptions::tag`](super::MountOptions) was.
    pub fn tag(&self) -> &str {
        &self.about.tag
    }

    /// What the mount shows.
    pub fn view(&self) -> MountView {
        match self.about.image {
            Some(_) => MountView::Image,
            None => MountView::Fuse,
        }
    }

    /// The mount.
    pub fn mountpoint(&self) -> Mountpoint {
        self.about.mountpoint(&self.device)
    }
}

/// The descriptors that the next process needs.
#[derive(Clone)]
pub struct MountDescriptors {
    device: Arc<OwnedFd>,
    inode_table: Arc<InodeTable>,
}

impl MountDescriptors {
    pub(super) fn new(device: Arc<OwnedFd>, inode_table: Arc<InodeTable>) -> Self {
        Self {
            device,
            inode_table,
        }
    }

    /// The connection.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The node table.
    pub fn table(&self) -> BorrowedFd<'_> {
        self.inode_table.memory()
    }
}

/// What holds the descriptors of a mount for the next process, where the mount follows a name as an image: each
/// tree has descriptors of its own.
pub trait MountHolder: Send + Sync + fmt::Debug {
    /// Holds the descriptors of the tree of this number, which is about to be mounted. (The first one of a
    /// mount has the number 0, and the caller of the mount holds it.)
    fn hold(&self, number: u64, descriptors: &MountDescriptors);

    /// Drops what is held of the tree of this number: it has no user any more.
    fn forget(&self, number: u64);
}

/// Stores in `inode_table` what [`PreviousState::read`] finds.
pub(super) fn describe(
    inode_table: &InodeTable,
    mountpoint: &Mountpoint,
    tag: &str,
) -> io::Result<()> {
    let path: &Path = mountpoint.path();
    let about = MountDescription {
        path: path.as_os_str().as_bytes().to_vec(),
        id: mountpoint.id(),
        made_by: mountpoint.made_by(),
        tag: tag.to_owned(),
        image: mountpoint.image(),
    };
    inode_table.set_about(&serde_json::to_vec(&about)?)
}
