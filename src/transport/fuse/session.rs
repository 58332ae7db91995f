//! A mount: made, taken over, and unmounted.

mod follow;
mod image;
mod trees;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::backing::FuseDevice;
use super::device;
use super::fork_server::ForkServer;
use super::generic_options::GenericOptions;
use super::hand_over::{self, MountDescriptors, MountHolder, PreviousState, TakeOverError};
use super::heartbeat::{HeartbeatMonitor, StuckWorker};
use super::mount_error::MountError;
use super::mountpoint::{self, Mountpoint, UnmountOutcome};
use super::notifier;
use super::protected_files::ProtectedFiles;
use super::serving::ServingMount;
use super::view::{MountView, WantedView};
use super::worker_pool::WorkerPool;
use super::workers;
use super::{page_cache, root_watch, warm_up};
use crate::castore::Digest;
use crate::fs::{
    CastoreFs, FsOptions, ImageCount, InodeTable, MountRoot, NodeCount, OpenCount, Passthrough,
    ReadPath, WaitingRequests, WarmUpCount,
};
use crate::store::Store;
use crate::transport::requests::RequestCounts;
use crate::transport::traffic::Traffic;
use image::NoImageReason;
use trees::{ServedTree, ServedTrees};

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
    pub latency_guard: bool,
    /// The mount's name in the log.
    pub name: Option<String>,
    /// The store's name in the log.
    pub store_name: Option<String>,
    /// Keep the hand-over state for the next process ([`FuseSession::hand_over_state`]), with this tag.
    pub tag: Option<String>,
    /// A descriptor of `/dev/fuse` that another program has opened, and perhaps mounted.
    pub device: Option<Arc<OwnedFd>>,
    /// FUSE or an image.
    pub view: WantedView,
    /// Starts the notifiers: see [`ForkServer`] for the behaviour without.
    pub fork_server: Option<Arc<ForkServer>>,
    /// Flags of the mount.
    pub generic: GenericOptions,
    /// Files and directories that the mount must not hide.
    pub protected_files: ProtectedFiles,
    /// Holds the descriptors of the mount as it shows one tree after the other.
    pub holder: Option<Arc<dyn MountHolder>>,
    /// The highest number of a tree that the holder has of the mount, in use or not: the next tree has a
    /// higher one.
    pub last_number: u64,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            allow_other: false,
            threads: cores.clamp(2, 16),
            read_ahead_kib: 1024,
            latency_guard: (2..=FEW_CORES).contains(&cores),
            name: None,
            store_name: None,
            tag: None,
            device: None,
            view: WantedView::default(),
            fork_server: None,
            generic: GenericOptions::default(),
            protected_files: ProtectedFiles::default(),
            holder: None,
            last_number: 0,
        }
    }
}

/// A mount that is being served.
pub struct FuseSession {
    /// Where it was mounted.
    path: PathBuf,
    trees: Arc<ServedTrees>,
    /// Whether another process takes the mount over.
    handed_over: AtomicBool,
    /// Why it is no image, where that would have been wanted.
    no_image: Option<String>,
}

impl FuseSession {
    /// Mounts `store` on `path` and starts to serve it. The mount answers when this returns.
    /// Requests that have to wait do so on `runtime`. It is unmounted when it is dropped.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use castore_fs::fs::FsOptions;
    /// use castore_fs::transport::fuse::{FuseSession, MountOptions};
    ///
    /// let runtime = tokio::runtime::Runtime::new()?;
    /// let session = FuseSession::mount(
    ///     castore_fs::stores::open("local:/var/lib/castore-fs")?,
    ///     Path::new("/mnt"),
    ///     FsOptions::default(),
    ///     &MountOptions::default(),
    ///     runtime.handle().clone(),
    /// )?;
    /// for root in std::fs::read_dir(session.path())? {
    ///     println!("{}", root?.path().display());
    /// }
    /// session.unmount()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mount(
        store: Arc<dyn Store>,
        path: &Path,
        options: FsOptions,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        if mount.view == WantedView::Fuse {
            return Self::mount_fuse(store, path, options, mount, runtime);
        }
        let why = match Self::mount_image(store.clone(), path, &options, mount, runtime.clone()) {
            Ok(session) => {
                if let Err(error) = follow::start(&session.trees, &options, mount) {
                    tracing::warn!(%error, "the mount does not follow its root");
                }
                return Ok(session);
            }
            Err(NoImageReason::Mount(error)) => return Err(error),
            Err(NoImageReason::Because(why)) => why,
        };
        if mount.view == WantedView::Image {
            return Err(MountError::NoImageView {
                mountpoint: path.to_owned(),
                why,
            });
        }
        // Only one tree can be an image: a mount of the store's roots lacks nothing.
        let is_tree = matches!(options.mount_root, MountRoot::Directory { .. });
        let mut session = Self::mount_fuse(store, path, options, mount, runtime)?;
        session.no_image = is_tree.then_some(why);
        Ok(session)
    }

    fn mount_fuse(
        store: Arc<dyn Store>,
        path: &Path,
        options: FsOptions,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let source = store.url().to_owned();
        let worker_pool = Arc::new(WorkerPool::new(mount.latency_guard));
        let waiting = WaitingRequests::new(runtime);
        let request = mountpoint::MountRequest {
            source: &source,
            allow_other: mount.allow_other,
            generic: &mount.generic,
            protected_files: &mount.protected_files,
            fork_server: mount.fork_server.as_deref(),
        };
        let (device, mountpoint) = match &mount.device {
            Some(device) => {
                let mountpoint = mountpoint::from_device(device, path, &request)?;
                (device.clone(), mountpoint)
            }
            None => {
                let (device, mountpoint) = mountpoint::mount(path, &request)?;
                (Arc::new(device), mountpoint)
            }
        };
        let has_opens = options.reads == ReadPath::Passthrough;
        let tag = mount.tag.as_deref();
        let inode_table = tag.and_then(|tag| new_inode_table(&mountpoint, tag, has_opens));
        let passthrough = has_opens
            .then(|| Passthrough::new(Box::new(FuseDevice(device.clone())), inode_table.clone()));
        let fs =
            CastoreFs::with_inode_table(store, options, waiting, passthrough, inode_table.clone());
        fs.hold_in_use(mountpoint.connection(&device));
        if inode_table.is_none()
            && let Some(fork_server) = &mount.fork_server
        {
            fork_server.expect_no_next_process(&device);
        }
        let session = Self::new(device, mountpoint, fs, worker_pool, inode_table, (0, mount));
        session
            .start(mount)
            .inspect_err(|_| drop(session.shown().mountpoint.detach()))?;
        Ok(session)
    }

    /// Takes over a mount that another process handed over, of the same `store` and with the same
    /// `options`. Its users see only the pause.
    pub fn take_over(
        previous_state: PreviousState,
        store: Arc<dyn Store>,
        options: FsOptions,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, TakeOverError> {
        let worker_pool = Arc::new(WorkerPool::new(mount.latency_guard));
        let waiting = WaitingRequests::new(runtime);
        let mountpoint = previous_state
            .mountpoint()
            .with_fork_server(mount.fork_server.clone());
        let view = previous_state.view();
        let PreviousState {
            device,
            inode_table,
            number,
            ..
        } = previous_state;
        // What is shown now; the name is looked at later.
        let options = match (&options.follow, inode_table.mount_root()?) {
            (Some(_), Some((digest, size))) => FsOptions {
                mount_root: MountRoot::Directory { digest, size },
                ..options
            },
            _ => options,
        };
        let configured = options.clone();
        let options = match view {
            MountView::Image => options.with_image_view(),
            MountView::Fuse => options,
        };
        let device = Arc::new(device);
        let backing = Box::new(FuseDevice(device.clone()));
        let follows = options.follow.is_some() && view == MountView::Fuse;
        let fs = CastoreFs::take_over(store, options, waiting, Some(backing), inode_table.clone())?;
        if follows && !fs.follows() {
            let path = mountpoint.path().display();
            tracing::warn!(
                %path,
                "the mount keeps its tree, since it was made without `follow`: unmount it and mount it again \
                 to follow its root"
            );
        }
        fs.hold_in_use(mountpoint.connection(&device));
        let session = Self::new(
            device,
            mountpoint,
            fs,
            worker_pool,
            Some(inode_table),
            (number, mount),
        );
        // Until it is known to work, a failure must not end the mount: the caller decides.
        session.handed_over.store(true, Ordering::Relaxed);
        // Before any worker reads: requests that a worker of this process has read would be sent
        // again as well.
        let ServedTree {
            serving,
            mountpoint,
            ..
        } = &*session.shown();
        notifier::resend(&serving.device).map_err(TakeOverError::Resend)?;
        workers::start(serving, mount.threads)?;
        match view {
            MountView::Image => {
                page_cache::start_for_image(serving)?;
                follow::start(&session.trees, &configured, mount)?;
            }
            MountView::Fuse => {
                page_cache::start(serving)?;
                root_watch::start(serving, mountpoint, true)?;
                warm_up::start(serving)?;
            }
        }
        session.handed_over.store(false, Ordering::Relaxed);
        Ok(session)
    }

    fn new(
        device: Arc<OwnedFd>,
        mountpoint: Mountpoint,
        fs: CastoreFs,
        worker_pool: Arc<WorkerPool>,
        inode_table: Option<Arc<InodeTable>>,
        (number, mount): (u64, &MountOptions),
    ) -> Self {
        let span = Self::span(mount);
        let default_permissions = mountpoint.has_default_permissions();
        let fork_server = mount.fork_server.clone();
        let serving = ServingMount::new(
            device,
            fs,
            worker_pool,
            span,
            fork_server,
            default_permissions,
        );
        let tree = ServedTree {
            number,
            serving: Arc::new(serving),
            mountpoint,
            inode_table,
        };
        Self::of(tree, mount)
    }

    fn of(tree: ServedTree, mount: &MountOptions) -> Self {
        Self {
            path: tree.mountpoint.path().to_owned(),
            trees: Arc::new(ServedTrees::new(
                tree,
                mount.holder.clone(),
                mount.last_number,
            )),
            handed_over: AtomicBool::new(false),
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
            mountpoint: self.path.clone(),
            source,
        };
        let ServedTree {
            serving,
            mountpoint,
            ..
        } = &*self.shown();
        workers::start(serving, mount.threads).map_err(failed)?;
        serving
            .wait_for_init()
            .map_err(|why| failed(io::Error::other(why)))?;
        mountpoint::set_read_ahead(mountpoint.bdi(), mount.read_ahead_kib);
        page_cache::start(serving).map_err(failed)?;
        root_watch::start(serving, mountpoint, false).map_err(failed)?;
        warm_up::start(serving).map_err(failed)
    }

    /// What is shown at this moment.
    fn shown(&self) -> Arc<ServedTree> {
        self.trees.shown()
    }

    /// Serves a tree that the mount showed in the previous process and that is still in use. `options` and `mount` are those of the mount.
    pub fn take_over_former(
        &self,
        previous_state: PreviousState,
        store: Arc<dyn Store>,
        options: FsOptions,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<(), TakeOverError> {
        if previous_state.view() != MountView::Image {
            return Err(TakeOverError::About("it is no image".to_owned()));
        }
        let Some((digest, size)) = previous_state.inode_table.mount_root()? else {
            return Err(TakeOverError::About("no directory was shown".to_owned()));
        };
        let of_former = FsOptions {
            mount_root: MountRoot::Directory { digest, size },
            follow: None,
            ..options.clone()
        };
        let former = Self::take_over(previous_state, store, of_former, mount, runtime)?;
        // It is not unmounted with this value.
        former.handed_over.store(true, Ordering::Relaxed);
        self.trees.add_former(former.shown());
        // Beside one that follows its root already, there is no other.
        let follow = options.follow.filter(|_| self.view() == MountView::Image);
        let options = FsOptions { follow, ..options };
        follow::start(&self.trees, &options, mount)?;
        Ok(())
    }

    /// Its original mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its present mount point, which is another if it or a directory above it was moved.
    pub fn current_path(&self) -> PathBuf {
        self.shown().mountpoint.current_path()
    }

    /// Requests so far.
    pub fn requests(&self) -> RequestCounts {
        self.shown().serving.counters.now()
    }

    /// What the requests so far amount to.
    pub fn traffic(&self) -> Traffic {
        let serving = &self.shown().serving;
        Traffic::of(&serving.counters, &serving.answerer.replies)
    }

    /// What the kernel sees: FUSE or an image.
    pub fn view(&self) -> MountView {
        match self.shown().mountpoint.image() {
            Some(_) => MountView::Image,
            None => MountView::Fuse,
        }
    }

    /// Why it is no image, in words that follow "because", if [`WantedView::Auto`] was wanted.
    pub fn why_no_image(&self) -> Option<&str> {
        self.no_image.as_deref()
    }

    /// How files are read, as far as kernel and privilege allow.
    pub fn reads(&self) -> ReadPath {
        match self.shown().serving.fs.passthrough() {
            Some(passthrough) if passthrough.is_enabled() => ReadPath::Passthrough,
            _ => ReadPath::PageCache,
        }
    }

    /// The open files, if the kernel sends OPEN.
    pub fn open_files(&self) -> Option<OpenCount> {
        let shown = self.shown();
        let passthrough = shown.serving.fs.passthrough()?;
        passthrough.is_enabled().then(|| passthrough.count())
    }

    /// Nodes that the kernel knows.
    pub fn nodes(&self) -> NodeCount {
        self.shown().serving.fs.count()
    }

    /// The images that were looked up, if the mount shows any, the latest first.
    pub fn images(&self) -> Vec<ImageCount> {
        let trees = self.trees.all();
        let counts = trees.iter().map(|tree| tree.serving.fs.image_counts());
        counts.flatten().collect()
    }

    /// The digest of the tree that is shown, if the mount shows one.
    pub fn shown_digest(&self) -> Option<Digest> {
        let (digest, _) = self.shown().serving.fs.shown_directory()?;
        Some(digest)
    }

    /// Whether the mount is gone, with its last user.
    pub fn has_ended(&self) -> bool {
        self.trees.have_ended()
    }

    /// Releases what it holds in its stores, once it has ended: this process may live on, or end without
    /// dropping it.
    pub fn end_use(&self) {
        self.trees
            .all()
            .iter()
            .for_each(|tree| tree.serving.fs.end_use());
    }

    /// Whether the mount exists, at any mount point.
    pub fn is_mounted(&self) -> bool {
        self.trees.is_mounted()
    }

    /// The store that is shown.
    pub fn store(&self) -> Arc<dyn Store> {
        self.shown().serving.fs.store().clone()
    }

    /// The numbers of the trees that are served ([`MountHolder`]), that of what is shown first.
    pub fn tree_numbers(&self) -> Vec<u64> {
        self.trees.all().iter().map(|tree| tree.number).collect()
    }

    /// The hand-over state, if the mount was made with one.
    pub fn hand_over_state(&self) -> Option<MountDescriptors> {
        self.shown().descriptors()
    }

    /// From now on another process serves the mount: it stays when this session is dropped.
    pub fn hand_over(&self) {
        self.trees.close();
        self.remember();
        self.handed_over.store(true, Ordering::Relaxed);
    }

    /// The warm-up counters, if the mount has warm-up.
    pub fn warm_up_count(&self) -> Option<WarmUpCount> {
        self.shown().serving.fs.warm_up_count()
    }

    /// Writes what was recorded so far, if the mount has warm-up ([`FsOptions::warm_up`]).
    pub fn remember(&self) {
        self.shown().serving.fs.remember();
    }

    /// Whether the workers have been stuck for `bound`, by `heartbeat`.
    pub fn check(&self, heartbeat: &mut HeartbeatMonitor, bound: Duration) -> Option<StuckWorker> {
        if self.has_ended() {
            return None;
        }
        let taken = self.requests().0.values().sum();
        let serving = &self.shown().serving;
        let pending = device::has_request(&serving.device);
        heartbeat.look(
            &serving.worker_pool.beats,
            pending,
            taken,
            Instant::now(),
            bound,
        )
    }

    /// Unmounts it where it is now; a busy mount is detached. To be repeated if other mounts are on
    /// it or below ([`UnmountOutcome::Blocked`]).
    pub fn unmount(&self) -> io::Result<UnmountOutcome> {
        self.trees.close();
        // While the kernel still knows its nodes.
        self.remember();
        self.trees.unmount()
    }

    /// Waits until the mount is gone and its last user has finished. Requests that still wait for a
    /// store are not waited for: their programs are gone.
    pub fn wait(&self) {
        while !self.has_ended() {
            let shown = self.shown();
            let worker_pool = &shown.serving.worker_pool;
            worker_pool.wait(END_INTERVAL, || self.has_ended());
        }
    }
}

impl Drop for FuseSession {
    /// A mount without workers would hang every program that accesses it, so it ends with the
    /// session.
    fn drop(&mut self) {
        if self.handed_over.load(Ordering::Relaxed) {
            return;
        }
        let mountpoint = self.path().display();
        match self.unmount() {
            Ok(UnmountOutcome::Blocked(obstacles)) => {
                tracing::error!(%mountpoint, %obstacles, "cannot unmount below other mounts");
            }
            // Threads that wait for a store may keep the file system.
            Ok(UnmountOutcome::Cleanly) => self.end_use(),
            Ok(_) => {}
            Err(error) => tracing::error!(%mountpoint, %error, "cannot unmount"),
        }
    }
}

/// A table that the next process can take over. Without one the mount works, and ends with this
/// process.
fn new_inode_table(mountpoint: &Mountpoint, tag: &str, has_opens: bool) -> Option<Arc<InodeTable>> {
    let inode_table = match has_opens {
        true => InodeTable::create_with_open_files(),
        false => InodeTable::create(),
    };
    let inode_table = inode_table.and_then(|inode_table| {
        hand_over::describe(&inode_table, mountpoint, tag)?;
        Ok(inode_table)
    });
    let mountpoint = Some(mountpoint.path().display().to_string());
    inode_table
        .inspect_err(|error| warn_of_no_next_process(&mountpoint, error))
        .ok()
        .map(Arc::new)
}

fn warn_of_no_next_process(mount: &Option<String>, error: &io::Error) {
    tracing::warn!(mount, %error, "no other process can take this mount over");
}
