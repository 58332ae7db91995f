//! The options of a file system, and the one place that puts them together.

use std::sync::Arc;
use std::time::Duration;

use super::{
    FOREVER, ImageClosures, MountRoot, NodeOwner, ReadPath, RootListing, RootNames,
    UnreachableLookup, WarmUpOptions,
};
use crate::castore::Digest;
use crate::tree::Target;

/// Bytes of Directories that are cached unless the mount sets another limit.
pub const DEFAULT_DIRECTORY_LIMIT: usize = 512 << 20;

/// How a mount presents its store.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// What the mount root shows.
    pub mount_root: MountRoot,
    /// What the directory in the mount root was found by, if the mount root follows that: the transport
    /// shows another directory once this stands for one.
    pub follow: Option<Target>,
    /// The owner of every node.
    pub owner: NodeOwner,
    /// How bytes come to their readers.
    pub reads: ReadPath,
    /// Whether extended attributes are supported at all. The kernel does not cache them, so that
    /// `ls -l` would cost a round trip a file.
    pub xattr: bool,
    /// How long the kernel may cache the name of a root: for ever if the transport can notify the
    /// kernel of changes.
    pub root_timeout: Duration,
    /// Which names of roots the store is asked for.
    pub root_names: RootNames,
    /// What a lookup of a root returns while the store cannot be reached.
    pub when_unreachable: UnreachableLookup,
    /// Bytes of Directories to cache in memory, at most.
    pub directory_limit: usize,
    /// Directories that the kernel may know at once; the next lookup gets ENOMEM. This machine's
    /// kernel forgets when memory is short; a guest's may not.
    pub most_directories: usize,
    /// Requests that take longer are logged with a breakdown of their time; none is logged without
    /// this.
    pub slow_requests: Option<Duration>,
    /// Record what is read first, and prefetch what was recorded; neither without this.
    pub warm_up: Option<WarmUpOptions>,
    /// Show trees as disk images in `.images`, and these images of several roots; no images without
    /// this.
    pub images: Option<Arc<ImageClosures>>,
    /// For how long a read of an image is repeated whose endpoint fails; only once if this is zero.
    pub image_patience: Duration,
    /// Whether EROFS mounts an image of `images`: the kernel then reports what it opens and closes.
    pub image_view: bool,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            mount_root: MountRoot::Roots {
                list: RootListing::All,
            },
            follow: None,
            owner: NodeOwner::default(),
            reads: ReadPath::default(),
            xattr: false,
            root_timeout: FOREVER,
            root_names: RootNames::default(),
            when_unreachable: UnreachableLookup::default(),
            directory_limit: DEFAULT_DIRECTORY_LIMIT,
            most_directories: usize::MAX,
            slow_requests: None,
            warm_up: None,
            images: None,
            image_patience: Duration::ZERO,
            image_view: false,
        }
    }
}

impl FsOptions {
    /// Shows `mount_root`, whose nodes belong to `owner`; everything else is off, or unlimited. Every
    /// front end makes its options from these: the commands, the mounts and the devices of a service.
    pub fn new(mount_root: MountRoot, owner: NodeOwner) -> Self {
        Self {
            mount_root,
            owner,
            ..Self::default()
        }
    }

    /// The mount root follows `target`, by which its directory was found; nothing is followed for none, and
    /// for a digest.
    pub fn with_follow(self, target: Option<Target>) -> Self {
        Self {
            follow: target.filter(|target| target.root_name().is_some()),
            ..self
        }
    }

    /// With extended attributes, or without.
    pub fn with_xattr(self, xattr: bool) -> Self {
        Self { xattr, ..self }
    }

    /// Bytes come to their readers by `reads`.
    pub fn with_reads(self, reads: ReadPath) -> Self {
        Self { reads, ..self }
    }

    /// The store is asked only for roots named by `root_names`; while it cannot be reached, the lookup of
    /// a root returns `when_unreachable`.
    pub fn with_root_lookups(
        self,
        root_names: RootNames,
        when_unreachable: UnreachableLookup,
    ) -> Self {
        Self {
            root_names,
            when_unreachable,
            ..self
        }
    }

    /// At most `bytes` of Directories are cached in memory.
    pub fn with_directory_limit(self, bytes: u64) -> Self {
        Self {
            directory_limit: usize::try_from(bytes).unwrap_or(usize::MAX),
            ..self
        }
    }

    /// Requests that take longer than `slow_requests` are logged.
    pub fn with_slow_requests(self, slow_requests: Option<Duration>) -> Self {
        Self {
            slow_requests,
            ..self
        }
    }

    /// With warm-up, or without.
    pub fn with_warm_up(self, warm_up: Option<WarmUpOptions>) -> Self {
        Self { warm_up, ..self }
    }

    /// With `images` in `.images`, or without; a read of one is repeated for `patience`.
    pub fn with_images(self, images: Option<Arc<ImageClosures>>, patience: Duration) -> Self {
        Self {
            images,
            image_patience: patience,
            ..self
        }
    }

    /// The same tree for a file system that only has its image, which EROFS mounts.
    pub fn with_image_view(self) -> Self {
        Self {
            images: Some(Arc::default()),
            image_view: true,
            ..self
        }
    }

    /// Over a transport that cannot notify its kernel of changes: the name of a root is cached for
    /// `root_timeout` at most, and the kernel may know `most_directories` at once.
    pub fn without_notifications(self, root_timeout: Duration, most_directories: usize) -> Self {
        Self {
            root_timeout: self.root_timeout.min(root_timeout),
            most_directories: self.most_directories.min(most_directories),
            ..self
        }
    }

    /// Whether the mount root of one file system means one directory after the other. An image stays
    /// the image of its tree.
    pub(super) fn follows_in_place(&self) -> bool {
        let is_directory = matches!(self.mount_root, MountRoot::Directory { .. });
        self.follow.is_some() && is_directory && !self.image_view
    }

    /// The digest and size of the directory in slot 0.
    pub(super) fn mount_root_directory(&self) -> (Digest, u64) {
        match &self.mount_root {
            MountRoot::Directory { digest, size } if !self.follows_in_place() => (*digest, *size),
            // Never read: lookups and listings of this mount root ask the store for its roots, or look in the
            // version that is shown.
            MountRoot::Directory { .. } | MountRoot::Roots { .. } => (Digest::of(b""), 0),
        }
    }
}
