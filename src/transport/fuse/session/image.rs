//! A mount whose kernel side is EROFS.
//!
//! The image is a file on a FUSE mount of its own, which is attached nowhere: only EROFS has it open,
//! and with the last user of EROFS it is gone. Everything else is as for a FUSE mount: workers, the
//! hand-over state, and how the end is noticed.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tokio::runtime::Handle;

use super::trees::ServedTree;
use super::{FuseSession, MountOptions, WantedView};
use crate::fs::{
    CastoreFs, FsOptions, InodeTable, MountRoot, NodeOwner, PreparedImage, ReadPath,
    WaitingRequests,
};
use crate::store::Store;
use crate::transport::fuse::erofs_kernel::{self, KernelVersion};
use crate::transport::fuse::hand_over::{self, MountDescriptors, MountHolder};
use crate::transport::fuse::mount_error::MountError;
use crate::transport::fuse::mount_table::{DeviceNumber, IMAGE_SOURCE};
use crate::transport::fuse::mounter::{self, MountJob, MountStep, MounterRefusal};
use crate::transport::fuse::mountpoint::{self, ImageServer, MountRequest, Mountpoint};
use crate::transport::fuse::page_cache;
use crate::transport::fuse::serving::ServingMount;
use crate::transport::fuse::worker_pool::WorkerPool;
use crate::transport::fuse::workers;
use crate::tree::ImageFileError;

/// How long Directories from an upstream may take before a FUSE mount is made instead, where that is
/// allowed: it needs only those that are looked at.
const PATIENCE: Duration = Duration::from_secs(1);
/// The largest READ, in bytes.
const MAX_READ: u32 = 1 << 20;

/// Why there is no image.
pub(super) enum NoImageReason {
    /// In words that follow "because".
    Because(String),
    /// There can be no other mount either.
    Mount(MountError),
}

impl From<MountError> for NoImageReason {
    fn from(error: MountError) -> Self {
        Self::Mount(error)
    }
}

impl FuseSession {
    /// Mounts `store` on `path` as an image.
    pub(super) fn mount_image(
        store: Arc<dyn Store>,
        path: &Path,
        options: &FsOptions,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, NoImageReason> {
        if let Some(reason) = only_fuse_can(options, mount) {
            return Err(NoImageReason::Because(reason.to_owned()));
        }
        let Some(fork_server) = &mount.fork_server else {
            return Err(NoImageReason::Because(
                "there is no helper process".to_owned(),
            ));
        };
        match (erofs_kernel::fault(KernelVersion::current()), mount.view) {
            (Some(fault), WantedView::Image) => {
                tracing::warn!(path = %path.display(), "{fault}: use view = \"fuse\", or another kernel");
            }
            (Some(fault), _) => return Err(NoImageReason::Because(fault)),
            (None, _) => {}
        }
        let source = store.url().to_owned();
        let patience = (mount.view == WantedView::Auto).then_some(PATIENCE);
        let prepared = UnservedImage::prepare(store, options, mount, runtime, patience);
        let prepared = prepared.map_err(|error| NoImageReason::Because(error.to_string()))?;

        let path = mountpoint::resolve(path)?;
        mountpoint::remove_dead_mount(&path, Some(fork_server))?;
        let request = MountRequest {
            source: &source,
            allow_other: mount.allow_other,
            generic: &mount.generic,
            protected_files: &mount.protected_files,
            fork_server: Some(fork_server),
        };
        let target = mountpoint::open_target(&path, &request)?;
        let served = prepared.serve(mount, None);
        let served = served.map_err(NoImageReason::Because)?;
        let attributes = mount.generic.attributes().bits();
        let tree = served.attach(mount, path, &target, attributes, 0)?;
        Ok(Self::of(tree, mount))
    }
}

/// An image whose layout is made.
pub(super) struct UnservedImage {
    fs: CastoreFs,
    image: PreparedImage,
    inode_table: Option<Arc<InodeTable>>,
    worker_pool: Arc<WorkerPool>,
}

/// An image on a hidden FUSE mount that is served.
pub(super) struct ServedImage {
    serving: Arc<ServingMount>,
    hidden: HiddenMount,
    image: PreparedImage,
    inode_table: Option<Arc<InodeTable>>,
}

/// What of a [`DetachedMount`] is not the device.
struct HiddenMount {
    directory: OwnedFd,
    bdi: DeviceNumber,
}

impl UnservedImage {
    /// Makes the layout of the directory in the mount root of `options`. What has to be waited for takes no
    /// longer than `patience`.
    pub(super) fn prepare(
        store: Arc<dyn Store>,
        options: &FsOptions,
        mount: &MountOptions,
        runtime: Handle,
        patience: Option<Duration>,
    ) -> Result<Self, ImageFileError> {
        let worker_pool = Arc::new(WorkerPool::new(mount.latency_guard));
        let waiting = WaitingRequests::new(runtime);
        let inode_table = new_inode_table(mount);
        let options = options.clone().with_image_view();
        let fs = CastoreFs::with_inode_table(store, options, waiting, None, inode_table.clone());
        let image = fs.prepare_image(patience)?;
        Ok(Self {
            fs,
            image,
            inode_table,
            worker_pool,
        })
    }

    /// Serves it, and holds what it shows in the stores. Its requests are counted with those of `former`, which
    /// the mount showed before. Reports why it cannot be served.
    pub(super) fn serve(
        self,
        mount: &MountOptions,
        former: Option<&ServingMount>,
    ) -> Result<ServedImage, String> {
        let Self {
            fs,
            image,
            inode_table,
            worker_pool,
        } = self;
        let hidden = DetachedMount::new(fs.store().url())?;
        let device = Arc::new(hidden.device);
        fs.hold_in_use(Some(hidden.bdi.minor.into()));
        if inode_table.is_none()
            && let Some(fork_server) = &mount.fork_server
        {
            fork_server.expect_no_next_process(&device);
        }
        let span = FuseSession::span(mount);
        let fork_server = mount.fork_server.clone();
        let serving = ServingMount::new(device, fs, worker_pool, span, fork_server, true);
        let serving = match former {
            Some(former) => serving.with_counters_of(former),
            None => serving,
        };
        let serving = Arc::new(serving);
        workers::start(&serving, mount.threads).map_err(|error| error.to_string())?;
        serving.wait_for_init()?;
        Ok(ServedImage {
            serving,
            hidden: HiddenMount {
                directory: hidden.directory,
                bdi: hidden.bdi,
            },
            image,
            inode_table,
        })
    }
}

impl ServedImage {
    /// Ends it: it is not mounted.
    pub(super) fn abandon(self) {
        self.serving.fs.end_use();
    }

    /// Has `holder` hold what the next process needs, as the tree of this `number`, which is to be mounted on
    /// `path`.
    pub(super) fn hold(
        &self,
        holder: &dyn MountHolder,
        number: u64,
        path: &Path,
        mount: &MountOptions,
    ) {
        let Some(inode_table) = &self.inode_table else {
            return;
        };
        let next = Mountpoint::of_next_image(path.to_owned(), self.hidden.bdi.minor);
        if describe(inode_table, &next, mount) {
            let device = self.serving.device.clone();
            holder.hold(number, &MountDescriptors::new(device, inode_table.clone()));
        }
    }

    /// Mounts it on the directory `target`, which is at `path`, with `attributes`, as the tree of this `number`
    /// of the mount. All but the first are mounted in the place of the mount whose root the target is.
    pub(super) fn attach(
        self,
        mount: &MountOptions,
        path: PathBuf,
        target: &OwnedFd,
        attributes: u32,
        number: u64,
    ) -> Result<ServedTree, NoImageReason> {
        let Self {
            serving,
            hidden,
            image,
            inode_table,
        } = self;
        let Some(fork_server) = &mount.fork_server else {
            return Err(NoImageReason::Because(
                "there is no helper process".to_owned(),
            ));
        };
        let prefix = format!("{IMAGE_SOURCE}{}:", hidden.bdi.minor);
        let job = MountJob {
            image: image.path,
            source: mounter::as_source(&prefix, serving.fs.store().url()),
            metadata: image.metadata_bytes,
            read_ahead_kib: mount.read_ahead_kib,
            attributes,
            flags: mount.generic.file_system_flags(),
            values: mount.generic.file_system_values(),
            propagation: mount
                .generic
                .propagation()
                .iter()
                .map(|one| one.bits())
                .collect(),
            in_place_of_target: number > 0,
        };
        // Before EROFS reads.
        mountpoint::set_read_ahead(Some(hidden.bdi), mount.read_ahead_kib);
        let identity = mounter::mount(|| fork_server.mounter(), job, hidden.directory, target);
        let identity = identity.map_err(|refusal| match refusal.step {
            MountStep::Propagate => NoImageReason::Mount(MountError::System {
                action: "change the propagation of",
                mountpoint: path.clone(),
                source: refusal.error(),
            }),
            _ => NoImageReason::Because(why(&refusal)),
        });
        let identity = identity.inspect_err(|_| serving.fs.end_use())?;
        let server = ImageServer {
            connection: hidden.bdi.minor,
            device: identity.device,
        };
        let mountpoint = Mountpoint::of_image(path, identity, server)
            .with_fork_server(Some(fork_server.clone()));
        let had_inode_table = inode_table.is_some();
        let inode_table =
            inode_table.filter(|inode_table| describe(inode_table, &mountpoint, mount));
        if had_inode_table && inode_table.is_none() {
            fork_server.expect_no_next_process(&serving.device);
        }
        if let Err(error) = page_cache::start_for_image(&serving) {
            tracing::warn!(%error, "the kernel keeps what is read of the image twice");
        }
        Ok(ServedTree {
            number,
            serving,
            mountpoint,
            inode_table,
        })
    }
}

fn new_inode_table(mount: &MountOptions) -> Option<Arc<InodeTable>> {
    mount.tag.as_ref()?;
    let inode_table = InodeTable::create();
    let warn = |error: &_| super::warn_of_no_next_process(&mount.name, error);
    inode_table.inspect_err(warn).ok().map(Arc::new)
}

/// Whether the inode table has what the next process must know.
fn describe(inode_table: &InodeTable, mountpoint: &Mountpoint, mount: &MountOptions) -> bool {
    let tag = mount.tag.as_deref().unwrap_or_default();
    let described = hand_over::describe(inode_table, mountpoint, tag);
    let warn = |error: &_| super::warn_of_no_next_process(&mount.name, error);
    described.inspect_err(warn).is_ok()
}

/// A FUSE mount that is attached nowhere.
struct DetachedMount {
    device: OwnedFd,
    directory: OwnedFd,
    /// The device of its file system, whose minor number is the number of the connection.
    bdi: DeviceNumber,
}

impl DetachedMount {
    /// Makes one. Nothing of it is read before it is served. Reports why it cannot be made.
    fn new(source: &str) -> Result<Self, String> {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let device = device.map_err(|errno| format!("/dev/fuse cannot be opened: {errno}"))?;
        Self::mount(device, source).map_err(|errno| match errno {
            Errno::PERM => "it needs CAP_SYS_ADMIN".to_owned(),
            Errno::NOSYS => "the kernel is older than 5.2".to_owned(),
            errno => format!("the FUSE mount that serves it cannot be made: {errno}"),
        })
    }

    fn mount(device: OwnedFd, source: &str) -> Result<Self, Errno> {
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let values = [
            ("source", source.to_owned()),
            ("subtype", "castore-fs".to_owned()),
            ("fd", device.as_raw_fd().to_string()),
            ("rootmode", "40555".to_owned()),
            ("user_id", "0".to_owned()),
            ("group_id", "0".to_owned()),
            ("max_read", MAX_READ.to_string()),
        ];
        for (key, value) in values {
            rustix::mount::fsconfig_set_string(&context, key, value)?;
        }
        for flag in ["ro", "default_permissions", "allow_other"] {
            rustix::mount::fsconfig_set_flag(&context, flag)?;
        }
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let directory =
            rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = rustix::fs::statx(&directory, "", flags, StatxFlags::empty())?;
        Ok(Self {
            device,
            directory,
            bdi: DeviceNumber {
                major: found.stx_dev_major,
                minor: found.stx_dev_minor,
            },
        })
    }
}

/// Why a helper could not mount the image.
fn why(refusal: &MounterRefusal) -> String {
    let error = refusal.error();
    let errno = Errno::from_raw_os_error(refusal.errno);
    let words = match refusal.words.as_str() {
        "" => String::new(),
        words => format!(" ({words})"),
    };
    match (refusal.step, errno) {
        (MountStep::FindErofs, Errno::NODEV) => {
            "the kernel has no EROFS: load the module erofs".to_owned()
        }
        (MountStep::Read, Errno::NOTBLK) => {
            "the kernel mounts no EROFS file system from a file: Linux 6.12 with \
             CONFIG_EROFS_FS_BACKED_BY_FILE is needed"
                .to_owned()
        }
        (_, Errno::PERM) => "it needs CAP_SYS_ADMIN".to_owned(),
        (MountStep::Open, _) => format!("the image cannot be opened: {error}"),
        (MountStep::Help, _) => format!("the process that mounts it failed: {error}"),
        (MountStep::Attach, _) => format!("it cannot be attached: {error}{words}"),
        _ => format!("EROFS does not mount it: {error}{words}"),
    }
}

/// What of `options` and `mount` only a FUSE mount can do.
fn only_fuse_can(options: &FsOptions, mount: &MountOptions) -> Option<&'static str> {
    let is_directory = matches!(options.mount_root, MountRoot::Directory { .. });
    let reasons = [
        (!is_directory, "it shows the store's roots (no root is set)"),
        (
            !mount.allow_other,
            "it is for one user only (allow-other = false)",
        ),
        (
            options.owner != NodeOwner { uid: 0, gid: 0 },
            "its owner is not 0:0 (uid, gid)",
        ),
        (options.xattr, "it has extended attributes (xattr = true)"),
        (
            options.reads == ReadPath::Passthrough,
            "the kernel reads the store's files (reads = \"passthrough\")",
        ),
        (options.images.is_some(), "it has .images (images = true)"),
        (
            options.warm_up.is_some(),
            "it records what is read first (warmup = \"learn\")",
        ),
        (
            mount.device.is_some(),
            "it is on a descriptor of /dev/fuse that another program has opened",
        ),
        (
            mount.fork_server.is_none(),
            "there is no helper process to mount it",
        ),
    ];
    let found = reasons.into_iter().find(|(holds, _)| *holds);
    found.map(|(_, reason)| reason)
}
