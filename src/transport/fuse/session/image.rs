//! A mount whose kernel side is EROFS.
//!
//! The image is a file on a FUSE mount of its own, which is attached nowhere: only EROFS has it open,
//! and with the last user of EROFS it is gone. Everything else is as for a FUSE mount: workers, the
//! hand-over state, and how the end is noticed.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tokio::runtime::Handle;

use super::{MountOptions, Session, WantedView};
use crate::fs::{CastoreFs, Ledger, Options, Waiting};
use crate::store::Store;
use crate::transport::fuse::crew::Crew;
use crate::transport::fuse::mount_table::{DeviceNumber, IMAGE_SOURCE};
use crate::transport::fuse::mounter::{self, MountJob, Refusal, Step};
use crate::transport::fuse::mountpoint::{self, ImageServer, MountError, Mountpoint, Request};
use crate::transport::fuse::serving::Serving;
use crate::transport::fuse::{handover, notices, page_cache, view};

/// How long Directories that are far away may take before a FUSE mount is made instead, where that is
/// allowed: it needs only those that are looked at.
const PATIENCE: Duration = Duration::from_secs(1);
/// The largest READ, in bytes.
const MAX_READ: u32 = 1 << 20;

/// Why there is no image.
pub(super) enum NoImage {
    /// In words that go on after "because".
    Because(String),
    /// There can be no other mount either.
    Mount(MountError),
}

impl From<MountError> for NoImage {
    fn from(error: MountError) -> Self {
        Self::Mount(error)
    }
}

impl Session {
    /// Mounts `store` on `path` as an image.
    pub(super) fn mount_image(
        store: Arc<dyn Store>,
        path: &Path,
        options: &Options,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, NoImage> {
        if let Some(reason) = view::only_fuse_can(options, mount) {
            return Err(NoImage::Because(reason.to_owned()));
        }
        let Some(nursery) = &mount.nursery else {
            return Err(NoImage::Because("there is no helper process".to_owned()));
        };
        let crew = Arc::new(Crew::new(mount.stay_awake));
        let waiting = Waiting::new(runtime);
        let source = store.url().to_owned();
        let ledger = new_ledger(mount);
        let options = of_image(options);
        let fs = CastoreFs::with_ledger(store, options, waiting, None, ledger.clone());
        let patience = (mount.view == WantedView::Auto).then_some(PATIENCE);
        let image = fs
            .prepare_image(patience)
            .map_err(|error| NoImage::Because(error.to_string()))?;

        let path = mountpoint::resolve(path)?;
        mountpoint::take_away_dead(&path, Some(nursery))?;
        let request = Request {
            source: &source,
            allow_other: mount.allow_other,
            generic: &mount.generic,
            own_files: &mount.own_files,
            nursery: Some(nursery),
        };
        let target = mountpoint::open_target(&path, &request)?;
        let hidden = Hidden::new(&source).map_err(NoImage::Because)?;
        let device = Arc::new(hidden.device);
        fs.hold_in_use(Some(hidden.bdi.minor.into()));
        if ledger.is_none() {
            notices::leave_unkept(Some(nursery), &device);
        }
        let span = Self::span(mount);
        let serving = Serving::new(device, fs, crew, span, Some(nursery.clone()), true);
        let serving = Arc::new(serving);
        let failed = |why: String| NoImage::Because(why);
        Crew::start(&serving, mount.threads).map_err(|error| failed(error.to_string()))?;
        serving.wait_for_init().map_err(failed)?;

        let prefix = format!("{IMAGE_SOURCE}{}:", hidden.bdi.minor);
        let job = MountJob {
            image: image.path,
            source: mounter::as_source(&prefix, &source),
            metadata: image.metadata_bytes,
            read_ahead_kib: mount.read_ahead_kib,
            attributes: mount.generic.attributes().bits(),
            flags: mount.generic.file_system_flags(),
            values: mount.generic.file_system_values(),
            propagation: mount
                .generic
                .propagation()
                .iter()
                .map(|one| one.bits())
                .collect(),
        };
        // Before EROFS reads.
        mountpoint::set_read_ahead(Some(hidden.bdi), mount.read_ahead_kib);
        let identity = mounter::mount(nursery, job, hidden.directory, &target);
        let identity = identity.map_err(|refusal| match refusal.step {
            Step::Propagate => NoImage::Mount(MountError::System {
                action: "change the propagation of",
                mountpoint: path.clone(),
                source: refusal.error(),
            }),
            _ => NoImage::Because(why(&refusal)),
        })?;
        let server = ImageServer {
            connection: hidden.bdi.minor,
            device: identity.device,
        };
        let mountpoint =
            Mountpoint::of_image(path, identity, server).with_nursery(Some(nursery.clone()));
        let ledger = ledger.filter(|ledger| describe(ledger, &mountpoint, mount));
        if ledger.is_none() {
            notices::leave_unkept(Some(nursery), &serving.device);
        }
        if let Err(error) = page_cache::start_for_image(&serving) {
            tracing::warn!(%error, "the kernel keeps what is read of the image twice");
        }
        Ok(Self::of(serving, mountpoint, ledger))
    }
}

/// The options of the file system that has the image.
pub(super) fn of_image(options: &Options) -> Options {
    Options {
        images: Some(Arc::default()),
        image_view: true,
        ..options.clone()
    }
}

fn new_ledger(mount: &MountOptions) -> Option<Arc<Ledger>> {
    mount.tag.as_ref()?;
    let ledger = Ledger::create();
    let warn = |error: &_| super::warn_of_no_successor(&mount.name, error);
    ledger.inspect_err(warn).ok().map(Arc::new)
}

/// Whether the ledger has what a successor must know.
fn describe(ledger: &Ledger, mountpoint: &Mountpoint, mount: &MountOptions) -> bool {
    let tag = mount.tag.as_deref().unwrap_or_default();
    let described = handover::describe(ledger, mountpoint, tag);
    let warn = |error: &_| super::warn_of_no_successor(&mount.name, error);
    described.inspect_err(warn).is_ok()
}

/// A FUSE mount that is attached nowhere.
struct Hidden {
    device: OwnedFd,
    directory: OwnedFd,
    /// The device of its file system, whose minor number is the number of the connection.
    bdi: DeviceNumber,
}

impl Hidden {
    /// Makes one. Nothing of it is read before it is served. Says why it cannot be made.
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
fn why(refusal: &Refusal) -> String {
    let error = refusal.error();
    let errno = Errno::from_raw_os_error(refusal.errno);
    let words = match refusal.words.as_str() {
        "" => String::new(),
        words => format!(" ({words})"),
    };
    match (refusal.step, errno) {
        (Step::FindErofs, Errno::NODEV) => {
            "the kernel has no EROFS: load the module erofs".to_owned()
        }
        (Step::Read, Errno::NOTBLK) => {
            "the kernel mounts no EROFS file system from a file: Linux 6.12 with \
             CONFIG_EROFS_FS_BACKED_BY_FILE is needed"
                .to_owned()
        }
        (_, Errno::PERM) => "it needs CAP_SYS_ADMIN".to_owned(),
        (Step::Open, _) => format!("the image cannot be opened: {error}"),
        (Step::Help, _) => format!("the process that mounts it failed: {error}"),
        (Step::Attach, _) => format!("it cannot be attached: {error}{words}"),
        _ => format!("EROFS does not mount it: {error}{words}"),
    }
}
