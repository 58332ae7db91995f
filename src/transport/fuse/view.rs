//! What a mount shows to the kernel: a FUSE file system, or an image that EROFS reads.

use serde::{Deserialize, Serialize};

use crate::fs::{Options, Owner, Reads, Top};

use super::session::MountOptions;

/// What a mount is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
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
    Auto,
    /// FUSE.
    #[default]
    Fuse,
    /// An image, or no mount.
    Image,
}

impl WantedView {
    /// Whether a mount of `view` is what is wanted.
    pub fn allows(self, view: View) -> bool {
        match self {
            Self::Auto => true,
            Self::Fuse => view == View::Fuse,
            Self::Image => view == View::Image,
        }
    }
}

/// What of `options` and `mount` only a FUSE mount can do.
pub(super) fn only_fuse_can(options: &Options, mount: &MountOptions) -> Option<&'static str> {
    let is_directory = matches!(options.top, Top::Directory { .. });
    let reasons = [
        (!is_directory, "it shows the store's roots (no root is set)"),
        (
            !mount.allow_other,
            "it is for one user only (allow-other = false)",
        ),
        (
            options.owner != Owner { uid: 0, gid: 0 },
            "its owner is not 0:0 (uid, gid)",
        ),
        (options.xattr, "it has extended attributes (xattr = true)"),
        (
            options.reads == Reads::Passthrough,
            "the kernel reads the store's files (reads = \"passthrough\")",
        ),
        (options.images.is_some(), "it has .images (images = true)"),
        (
            options.warm_up.is_some(),
            "it learns what is read first (warmup = \"learn\")",
        ),
        (
            mount.device.is_some(),
            "it is on a descriptor of /dev/fuse that another program has opened",
        ),
        (
            mount.nursery.is_none(),
            "there is no helper process to mount it",
        ),
    ];
    let found = reasons.into_iter().find(|(holds, _)| *holds);
    found.map(|(_, reason)| reason)
}
