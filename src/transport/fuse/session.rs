//! A mount: made, taken over, and unmounted.

mod image;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::backing::FuseDevice;
use super::crew::Crew;
use super::device;
use super::generic_options::GenericOptions;
use super::handover::{self, AdoptError, Inherited, Kept};
use super::mountpoint::{self, MountError, Mountpoint, Unmounted};
use super::notices::{self, Nursery};
use super::own_files::OwnFiles;
use super::pulse::{Pulse, Stuck};
use super::serving::Serving;
use super::view::{View, WantedView};
use super::{page_cache, root_watch, warm_up};
use crate::fs::{
    CastoreFs, ImageCount, Ledger, NodeCount, OpenCount, Options, Passthrough, Reads, Waiting,
    WarmUpCount,
};
use crate::store::Store;
use crate::transport::requests::{RequestCounts, RequestTimes};
use image::NoImage;

/// How often to check whether a mount has ended. Workers notice by themselves, unless all of them
/// wait.
const END_INTERVAL: Duration = Duration::from_millis(500);
/// Processors that may all spin for one walk; if there are more, only on request.
const FEW_CORES: usize = 8;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Whether users other than the one that mounts have access.
    pub allow_other: bool,
    /// Workers that read requests.
    pub threads: usize,
    /// How far the kernel reads ahead of sequential readers, in KiB.
    pub read_ahead_kib: u32,
    /// Whether processors are kept from sleeping while a program sends one request after the other,
    /// if this process is permitted to.
    pub stay_awake: bool,
    /// The mount's name in the log.
    pub name: Option<String>,
    /// The store's name in the log.
    pub store_name: Option<String>,
    /// Keep the hand-over state for the next process ([`Session::kept`]), with this tag.
    pub tag: Option<String>,
    /// A descriptor of `/dev/fuse` that another program has opened, and perhaps mounted.
    pub device: Option<Arc<OwnedFd>>,
    /// FUSE or an image.
    pub view: WantedView,
    /// Starts the notifiers: see [`Nursery`] for the behaviour without.
    pub nursery: Option<Arc<Nursery>>,
    /// Flags of the mount.
    pub generic: GenericOptions,
    /// Files and directories that the mount must not hide.
    pub own_files: OwnFiles,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            allow_other: false,
            threads: cores.clamp(2, 16),
            read_ahead_kib: 1024,
            stay_awake: (2..=FEW_CORES).contains(&cores),
            name: None,
            store_name: None,
            tag: None,
            device: None,
            view: WantedView::default(),
            nursery: None,
            generic: GenericOptions::default(),
            own_files: OwnFiles::default(),
        }
    }
}

/// A mount that is being served.
pub struct Session {
    serving: Arc<Serving>,
    mountpoint: Mountpoint,
    ledger: Option<Arc<Ledger>>,
    /// Whether another process takes the mount over.
    left: AtomicBool,
    /// Why it is no image, where that would have been wanted.
    no_image: Option<String>,
}

impl Session {
    /// Mounts `store` on `path` and starts to serve it. The mount answers when this returns.
    /// Requests that have to wait do so on `runtime`.
    pub fn mount(
        store: Arc<dyn Store>,
        path: &Path,
        options: Options,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        if mount.view == WantedView::Fuse {
            return Self::mount_fuse(store, path, options, mount, runtime);
        }
        let why = match Self::mount_image(store.clone(), path, &options, mount, runtime.clone()) {
            Ok(session) => return Ok(session),
            Err(NoImage::Mount(error)) => return Err(error),
            Err(NoImage::Because(why)) => why,
        };
        if mount.view == WantedView::Image {
            return Err(MountError::NoImageView {
                mountpoint: path.to_owned(),
                why,
            });
        }
        let mut session = Self::mount_fuse(store, path, options, mount, runtime)?;
        session.no_image = Some(why);
        Ok(session)
    }

    fn mount_fuse(
        store: Arc<dyn Store>,
        path: &Path,
        options: Options,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let source = store.url().to_owned();
        let crew = Arc::new(Crew::new(mount.stay_awake));
        let waiting = Waiting::new(runtime);
        let request = mountpoint::Request {
            source: &source,
            allow_other: mount.allow_other,
            generic: &mount.generic,
            own_files: &mount.own_files,
            nursery: mount.nursery.as_deref(),
        };
        let (device, mountpoint) = match &mount.device {
            Some(device) => {
                let mountpoint = mountpoint::given(device, path, &request)?;
                (device.clone(), mountpoint)
            }
            None => {
                let (device, mountpoint) = mountpoint::mount(path, &request)?;
                (Arc::new(device), mountpoint)
            }
        };
        let has_opens = options.reads == Reads::Passthrough;
        let tag = mount.tag.as_deref();
        let ledger = tag.and_then(|tag| keep(&mountpoint, tag, has_opens));
        let passthrough = has_opens
            .then(|| Passthrough::new(Box::new(FuseDevice(device.clone())), ledger.clone()));
        let fs = CastoreFs::with_ledger(store, options, waiting, passthrough, ledger.clone());
        fs.hold_in_use(mountpoint.connection(&device));
        if ledger.is_none() {
            notices::leave_unkept(mount.nursery.as_deref(), &device);
        }
        let session = Self::new(device, mountpoint, fs, crew, ledger, mount);
        session
            .start(mount)
            .inspect_err(|_| drop(session.mountpoint.detach()))?;
        Ok(session)
    }

    /// Takes over a mount that another process left, of the same `store` and with the same
    /// `options`. Its users see only the pause.
    pub fn adopt(
        inherited: Inherited,
        store: Arc<dyn Store>,
        options: Options,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, AdoptError> {
        let crew = Arc::new(Crew::new(mount.stay_awake));
        let waiting = Waiting::new(runtime);
        let mountpoint = inherited.mountpoint().with_nursery(mount.nursery.clone());
        let view = inherited.view();
        let options = match view {
            View::Image => image::of_image(&options),
            View::Fuse => options,
        };
        let Inherited { device, ledger, .. } = inherited;
        let device = Arc::new(device);
        let backing = Box::new(FuseDevice(device.clone()));
        let fs = CastoreFs::adopt(store, options, waiting, Some(backing), ledger.clone())?;
        fs.hold_in_use(mountpoint.connection(&device));
        let session = Self::new(device, mountpoint, fs, crew, Some(ledger), mount);
        // Until it is known to work, a failure must not end the mount: the caller decides.
        session.leave();
        // Before any worker reads: requests that a worker of this process has read would be sent
        // again as well.
        notices::resend(&session.serving.device).map_err(AdoptError::Resend)?;
        Crew::start(&session.serving, mount.threads)?;
        match view {
            View::Image => page_cache::start_for_image(&session.serving)?,
            View::Fuse => {
                page_cache::start(&session.serving)?;
                root_watch::start(&session.serving)?;
                warm_up::start(&session.serving)?;
            }
        }
        session.left.store(false, Ordering::Relaxed);
        Ok(session)
    }

    fn new(
        device: Arc<OwnedFd>,
        mountpoint: Mountpoint,
        fs: CastoreFs,
        crew: Arc<Crew>,
        ledger: Option<Arc<Ledger>>,
        mount: &MountOptions,
    ) -> Self {
        let span = Self::span(mount);
        let default_permissions = mountpoint.has_default_permissions();
        let nursery = mount.nursery.clone();
        let serving = Serving::new(device, fs, crew, span, nursery, default_permissions);
        Self::of(Arc::new(serving), mountpoint, ledger)
    }

    fn of(serving: Arc<Serving>, mountpoint: Mountpoint, ledger: Option<Arc<Ledger>>) -> Self {
        Self {
            serving,
            mountpoint,
            ledger,
            left: AtomicBool::new(false),
            no_image: None,
        }
    }

    /// Names the mount in what is logged.
    fn span(mount: &MountOptions) -> tracing::Span {
        match &mount.name {
            Some(name) => tracing::error_span!("mount", MOUNT = name, STORE = mount.store_name),
            None => tracing::Span::none(),
        }
    }

    fn start(&self, mount: &MountOptions) -> Result<(), MountError> {
        let failed = |source| MountError::System {
            action: "serve",
            mountpoint: self.mountpoint.path().to_owned(),
            source,
        };
        Crew::start(&self.serving, mount.threads).map_err(failed)?;
        self.serving
            .wait_for_init()
            .map_err(|why| failed(io::Error::other(why)))?;
        mountpoint::set_read_ahead(self.mountpoint.bdi(), mount.read_ahead_kib);
        page_cache::start(&self.serving).map_err(failed)?;
        root_watch::start(&self.serving).map_err(failed)?;
        warm_up::start(&self.serving).map_err(failed)
    }

    /// Its original mount point.
    pub fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Its present mount point, which is another if it or a directory above it was moved.
    pub fn current_path(&self) -> PathBuf {
        self.mountpoint.current_path()
    }

    /// Requests so far.
    pub fn requests(&self) -> RequestCounts {
        self.serving.counters.now()
    }

    /// How long requests took, by kind.
    pub fn request_times(&self) -> BTreeMap<&'static str, RequestTimes> {
        self.serving.counters.times()
    }

    /// What the kernel sees: FUSE or an image.
    pub fn view(&self) -> View {
        match self.mountpoint.image() {
            Some(_) => View::Image,
            None => View::Fuse,
        }
    }

    /// Why it is no image, in words that go on after "because", if [`WantedView::Auto`] was wanted.
    pub fn why_no_image(&self) -> Option<&str> {
        self.no_image.as_deref()
    }

    /// How files are read, as far as kernel and privilege allow.
    pub fn reads(&self) -> Reads {
        match self.serving.fs.passthrough() {
            Some(passthrough) if passthrough.is_enabled() => Reads::Passthrough,
            _ => Reads::PageCache,
        }
    }

    /// The open files, if the kernel sends OPEN.
    pub fn open_files(&self) -> Option<OpenCount> {
        let passthrough = self.serving.fs.passthrough()?;
        passthrough.is_enabled().then(|| passthrough.count())
    }

    /// Nodes that the kernel knows.
    pub fn nodes(&self) -> NodeCount {
        self.serving.fs.count()
    }

    /// The images that were looked up, if the mount shows any, the latest first.
    pub fn images(&self) -> Vec<ImageCount> {
        self.serving.fs.image_counts()
    }

    /// Whether the mount is gone, with its last user.
    pub fn has_ended(&self) -> bool {
        self.serving.has_ended()
    }

    /// Releases what it holds in its stores, once it has ended: this process may live on, or end without
    /// dropping it.
    pub fn end_use(&self) {
        self.serving.fs.end_use();
    }

    /// Whether the mount exists, at any mount point.
    pub fn is_mounted(&self) -> bool {
        !self.has_ended() && self.mountpoint.is_mounted()
    }

    /// The store that is shown.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.serving.fs.store()
    }

    /// The hand-over state, if the mount was made with one.
    pub fn kept(&self) -> Option<Kept<'_>> {
        let ledger = self.ledger.as_ref()?;
        Some(Kept::new(&self.serving.device, ledger))
    }

    /// From now on another process serves the mount: it stays when this session is dropped.
    pub fn leave(&self) {
        self.remember();
        self.left.store(true, Ordering::Relaxed);
    }

    /// The warm-up counters, if the mount has warm-up.
    pub fn warm_up_count(&self) -> Option<WarmUpCount> {
        self.serving.fs.warm_up_count()
    }

    /// Writes what was recorded so far, if the mount has warm-up ([`Options::warm_up`]).
    pub fn remember(&self) {
        self.serving.fs.remember();
    }

    /// Whether the workers have been stuck for `bound`, by `pulse`.
    pub fn check(&self, pulse: &mut Pulse, bound: Duration) -> Option<Stuck> {
        if self.has_ended() {
            return None;
        }
        let taken = self.requests().0.values().sum();
        let pending = device::has_request(&self.serving.device);
        pulse.look(
            &self.serving.crew.stamps,
            pending,
            taken,
            Instant::now(),
            bound,
        )
    }

    /// Unmounts it where it is now; a busy mount is detached. To be repeated if other mounts are on
    /// it or below ([`Unmounted::Blocked`]).
    pub fn unmount(&self) -> io::Result<Unmounted> {
        // While the kernel still knows its nodes.
        self.remember();
        self.mountpoint.unmount(|| self.has_ended())
    }

    /// Waits until the mount is gone and its last user has finished. Requests that still wait for a
    /// store are not waited for: their programs are gone.
    pub fn wait(&self) {
        while !self.has_ended() {
            self.serving.crew.wait(END_INTERVAL, || self.has_ended());
        }
    }
}

impl Drop for Session {
    /// A mount without workers would hang every program that accesses it, so it ends with the
    /// session.
    fn drop(&mut self) {
        if self.left.load(Ordering::Relaxed) {
            return;
        }
        let mountpoint = self.path().display();
        match self.unmount() {
            Ok(Unmounted::Blocked(obstacles)) => {
                tracing::error!(%mountpoint, %obstacles, "cannot unmount below other mounts");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%mountpoint, %error, "cannot unmount"),
        }
    }
}

/// A table that the next process can take over. Without one the mount works, and ends with this
/// process.
fn keep(mountpoint: &Mountpoint, tag: &str, has_opens: bool) -> Option<Arc<Ledger>> {
    let ledger = match has_opens {
        true => Ledger::create_with_open_files(),
        false => Ledger::create(),
    };
    let ledger = ledger.and_then(|ledger| {
        handover::describe(&ledger, mountpoint, tag)?;
        Ok(ledger)
    });
    let mountpoint = Some(mountpoint.path().display().to_string());
    ledger
        .inspect_err(|error| warn_of_no_successor(&mountpoint, error))
        .ok()
        .map(Arc::new)
}

fn warn_of_no_successor(mount: &Option<String>, error: &io::Error) {
    tracing::warn!(mount, %error, "no other process can take this mount over");
}
