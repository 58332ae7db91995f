//! What a mount shows to the kernel: a FUSE file system, or an image that EROFS reads.

use serde::{Deserialize, Serialize};

/// What a mount is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountView {
    /// FUSE.
    #[default]
    Fuse,
    /// EROFS, whose image is a file on a FUSE mount that is attached nowhere.
    Image,
}

/// What a mount is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedView {
    /// An image where there can be one, else FUSE.
    #[default]
    Auto,
    /// FUSE.
    Fuse,
    /// An image, or no mount.
    Image,
}

impl WantedView {
    /// Whether a mount of `view` is what is wanted.
    pub fn allows(self, view: MountView) -> bool {
        match self {
            Self::Auto => true,
            Self::Fuse => view == MountView::Fuse,
            Self::Image => view == MountView::Image,
        }
    }
}
