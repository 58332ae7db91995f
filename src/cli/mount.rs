//! `castore-fs mount`.

use std::ffi::OsStr;
use std::num::ParseIntError;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::castore::Printable;
use crate::fs::{FsOptions, MountRoot, NodeOwner, ReadPath, RootListing, WarmUpOptions};
use crate::profile::{ProfileKey, Profiles};
use crate::store::{Blocking, Cache};
use crate::transport::fuse::{
    ForkServer, FuseSession, GenericOptions, MountOptions, MountWatch, ProtectedFiles,
    UnmountOutcome, WantedView,
};
use crate::tree::Target;
use clap::{Args, ValueEnum};
use parking_lot::Mutex;

use super::background;
use super::failure::{CommandFailure, failure, print_error};
use super::import::ImportArguments;
use super::interrupt::{STATUS, on_interrupt};
use super::running_import::RunningImport;
use super::store::{CacheArguments, CommandStore, StoreArguments, default_dir};
use super::supervisor::Supervisor;
use super::units::time;

/// How long a mount that is being made may take after an interrupt, before the process ends without it.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How often to try again to unmount, even if the mount table does not change.
const MOUNT_TABLE_INTERVAL: Duration = Duration::from_secs(5);

/// Mount a store, and serve it until it is unmounted
///
/// Shows the store's roots by name, or with --root one tree. Reports when the mount is up and stays
/// in the foreground; Ctrl-C, SIGTERM, SIGHUP or umount end it. A mount that is busy then is
/// detached from the tree and served until its last user has finished; a second Ctrl-C ends it at
/// once. Under nohup SIGHUP is ignored.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs mount --import ./tree /mnt
  castore-fs mount --root tree /mnt
  castore-fs mount --store local:/srv/castore --allow-other /mnt
  castore-fs mount --store grpc+https://cache.example --cache /var/cache/tree --cache-size 20GiB /mnt")]
pub(super) struct MountCommand {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    cache: CacheArguments,
    /// Import this directory or file first, under its own name
    #[arg(long, value_name = "PATH", conflicts_with = "cache")]
    import: Option<PathBuf>,
    /// Show this directory as the mount root: NAME[/PATH] or the digest of a Directory
    #[arg(long, value_name = "NAME|DIGEST")]
    root: Option<PathBuf>,
    /// Show another tree once the name of --root stands for one: the default
    ///
    /// What is open stays in the tree before. A digest stands for one tree for ever.
    #[arg(long, overrides_with = "no_follow", requires = "root")]
    follow: bool,
    /// Show the tree that the name of --root stands for now, as long as it is mounted
    #[arg(long)]
    no_follow: bool,
    #[command(flatten)]
    listing: ListRootArgument,
    /// Allow access for other users: the default for a mount by the superuser
    ///
    /// A mount of another user is for that user alone by default, and access for others needs
    /// user_allow_other in /etc/fuse.conf.
    #[arg(long, overrides_with = "no_allow_other")]
    allow_other: bool,
    /// Allow access for this user only, not even for the superuser
    #[arg(long)]
    no_allow_other: bool,
    /// Options of mount(8) that do not depend on the file system: noexec,nosymfollow,sync,…
    ///
    /// ro, nosuid, nodev and noatime are the default.
    #[arg(short, long, value_name = "LIST", value_delimiter = ',')]
    options: Vec<String>,
    /// The owner of everything: user id
    #[arg(long, value_name = "U", default_value_t = 0, value_parser = owner_id)]
    uid: u32,
    /// The owner of everything: group id
    #[arg(long, value_name = "G", default_value_t = 0, value_parser = owner_id)]
    gid: u32,
    /// Workers that read requests; by default one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Whether to keep processors from sleeping while a program sends one request after the other,
    /// as `find` does in a cold tree; by default if there are two to eight
    ///
    /// Twice as fast if nothing else runs, at the price of the power of processors that spin
    /// meanwhile. Needs /dev/cpu_dma_latency, which belongs to the superuser.
    #[arg(long, value_name = "BOOL")]
    latency_guard: Option<bool>,
    /// Support extended attributes: digests, as user.castore.digest and under the names of tvix and
    /// snix
    ///
    /// The kernel caches none of them, and requests some whenever a file is listed: `ls -l` takes
    /// several times as long.
    #[arg(long)]
    xattr: bool,
    /// Show trees as disk images too: .images/NAME.erofs and .images/HEX.erofs, by a root's name or
    /// digest
    #[arg(long)]
    images: bool,
    /// For how long a read of an image in .images is repeated while its endpoint fails
    ///
    /// After that it is an I/O error, of which a virtual machine that maps the image dies.
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "images", value_parser = time)]
    image_patience: Duration,
    /// What the kernel mounts
    ///
    /// An image is one tree (--root), and is mounted by the kernel's EROFS: a walk over it takes nearly no
    /// requests.
    #[arg(long, value_enum, default_value_t = ViewMode::Auto)]
    view: ViewMode,
    /// How files are read
    #[arg(long, value_enum, default_value_t = ReadMode::PageCache)]
    reads: ReadMode,
    /// Whether to record the files that are read first below a root, and to prefetch them in that
    /// order when the root is mounted again
    #[arg(long, value_enum, default_value_t = ProfileUse::Off)]
    warmup: ProfileUse,
    /// The directory for access profiles
    ///
    /// Without it, profiles in $XDG_DATA_HOME/castore-fs, by default ~/.local/share/castore-fs; for
    /// the superuser /var/lib/castore-fs.
    #[arg(long, value_name = "PATH")]
    profiles: Option<PathBuf>,
    /// The mount point: a directory, or /dev/fd/N for a descriptor of /dev/fuse that was passed on
    ///
    /// With a descriptor, the program that has opened it has also mounted it, or leaves that to
    /// this process, which otherwise needs no privilege.
    mountpoint: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReadMode {
    /// Through the mount's page cache, every byte verified; best for many small files
    PageCache,
    /// The kernel reads large files from the store's disk itself, unverified; best for large files.
    /// Needs Linux 6.9 and CAP_SYS_ADMIN, else page-cache is used
    Passthrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ViewMode {
    /// FUSE
    Fuse,
    /// An image where that is possible, else FUSE, with the reason
    Auto,
    /// An image, or nothing. Needs Linux 6.12.80 with EROFS, and CAP_SYS_ADMIN
    Image,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListingChoice {
    /// All of them
    All,
    /// An empty directory, for the lower layer of an overlay
    Empty,
    /// An error, EPERM
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileUse {
    /// Neither
    Off,
    /// Both
    #[value(name = "learn")]
    Record,
}

/// What listing the roots gives.
#[derive(Debug, Args)]
pub(super) struct ListRootArgument {
    /// What listing the roots gives; lookups by name find them in any case
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true)]
    #[arg(
        default_value = "all",
        default_missing_value = "all",
        overrides_with = "no_list_root"
    )]
    list_root: ListingChoice,
    /// Allow only lookups of roots by name: short for --list-root=empty
    #[arg(long, overrides_with = "list_root")]
    no_list_root: bool,
}

impl ListRootArgument {
    pub(super) fn listing(&self) -> RootListing {
        match self.list_root {
            _ if self.no_list_root => RootListing::Nothing,
            ListingChoice::All => RootListing::All,
            ListingChoice::Empty => RootListing::Nothing,
            ListingChoice::Refused => RootListing::Refused,
        }
    }
}

impl MountCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let generic = self.generic()?;
        if background::is_background() {
            background::become_background()?;
        }
        // Before there are threads.
        let fork_server = Arc::new(ForkServer::start()?);
        let opened = match &self.import {
            Some(_) => self.store.open_or_make()?,
            None => self.store.open_cached(&self.cache)?,
        };
        let imported = self.import(&opened)?;
        let mount_root = mount_root(&opened.store, self.root.as_deref(), self.listing.listing())?;
        let owner = NodeOwner {
            uid: self.uid,
            gid: self.gid,
        };
        let options = FsOptions::new(mount_root, owner)
            .with_follow(self.followed()?)
            .with_xattr(self.xattr)
            .with_reads(match self.reads {
                ReadMode::PageCache => ReadPath::PageCache,
                ReadMode::Passthrough => ReadPath::Passthrough,
            })
            .with_warm_up(self.warm_up(&opened)?)
            .with_images(self.images.then(Arc::default), self.image_patience);
        let defaults = MountOptions::default();
        let mount = MountOptions {
            allow_other: self.is_for_others(),
            threads: self.threads.map_or(defaults.threads, usize::from),
            latency_guard: self.latency_guard.unwrap_or(defaults.latency_guard),
            device: opened_device(&self.mountpoint)?.map(Arc::new),
            view: match self.view {
                ViewMode::Fuse => WantedView::Fuse,
                ViewMode::Auto => WantedView::Auto,
                ViewMode::Image => WantedView::Image,
            },
            fork_server: Some(fork_server),
            generic,
            protected_files: self.protected_files(&opened)?,
            ..defaults
        };
        let store = opened.store.store().clone();
        let runtime = opened.runtime.handle().clone();
        let interruptible = Arc::new(InterruptibleMount::default());
        let interrupted = interruptible.clone();
        on_interrupt(&opened.runtime, move || interrupted.interrupt())?;
        let session = FuseSession::mount(store, &self.mountpoint, options, &mount, runtime)?;
        let session = Arc::new(session);
        interruptible.mounted(&session);
        let supervisor = Supervisor::connect()?;
        if background::is_background() {
            if let Err(error) = background::report_ready() {
                unmount(&session);
                return Err(error.into());
            }
        } else {
            self.report_mounted(&session, &opened, imported);
        }
        // As a unit of Type=notify.
        supervisor.send_request("READY=1");
        session.wait();
        session.remember();
        // The threads below, and what handles an interrupt, still refer to the session: it is not dropped.
        session.end_use();
        opened.caches.iter().for_each(Cache::flush);
        // Threads may still wait for a store, and use the runtime: they end with the process.
        std::mem::forget(opened.runtime);
        Ok(())
    }

    /// Whether other users have access to the mount.
    fn is_for_others(&self) -> bool {
        self.allow_other || !self.no_allow_other && rustix::process::geteuid().is_root()
    }

    fn follows(&self) -> bool {
        self.follow || !self.no_follow
    }

    /// What the mount root follows.
    fn followed(&self) -> Result<Option<Target>, CommandFailure> {
        let root = self.root.as_deref().filter(|_| self.follows());
        Ok(root.map(Target::try_from).transpose()?)
    }

    fn generic(&self) -> Result<GenericOptions, CommandFailure> {
        let options = self.options.iter().filter(|option| !option.is_empty());
        let options: Vec<String> = options.cloned().collect();
        GenericOptions::of(&options).map_err(|error| CommandFailure::Usage(error.to_string()))
    }

    /// Whether this mount has another value of the option `key` of fstab than `other`.
    pub(super) fn differs(&self, other: &Self, key: &str) -> bool {
        match key {
            "config" => self.store.configuration_file() != other.store.configuration_file(),
            "follow" | "no-follow" => self.follows() != other.follows(),
            "gid" => self.gid != other.gid,
            "list-root" | "no-list-root" => self.listing.listing() != other.listing.listing(),
            "profiles" => self.profiles != other.profiles,
            "reads" => self.reads != other.reads,
            "root" => self.root != other.root,
            "threads" => self.threads != other.threads,
            "uid" => self.uid != other.uid,
            "view" => self.view != other.view,
            "warmup" => self.warmup != other.warmup,
            "xattr" => self.xattr != other.xattr,
            _ => false,
        }
    }

    /// Whether `directory` is its mount point.
    pub(super) fn is_on(&self, directory: &Path) -> bool {
        self.mountpoint == directory
    }

    /// Whether it is of the store `url`.
    pub(super) fn is_of(&self, url: &OsStr) -> bool {
        self.store.is(url)
    }

    fn report_mounted(
        &self,
        session: &FuseSession,
        opened: &CommandStore,
        imported: Option<String>,
    ) {
        let place = session.path().display();
        if let Some(why) = session.why_no_image() {
            print_error(&format!("a FUSE mount and no image, because {why}"));
        }
        match imported {
            Some(name) if self.root.is_none() => {
                print_error(&format!(
                    "{} is on {place}: see {place}/{name}",
                    opened.store.url()
                ));
            }
            _ => print_error(&format!("{} is on {place}", opened.store.url())),
        }
    }

    /// The files that the mount must not hide.
    fn protected_files(&self, opened: &CommandStore) -> Result<ProtectedFiles, CommandFailure> {
        let mut files = ProtectedFiles::default();
        files.extend(opened.described.plan.used_files());
        if let Some(file) = self.store.configuration() {
            files.add("its configuration file", file);
        }
        if self.warmup == ProfileUse::Record {
            files.add("its profiles", self.profiles_dir()?);
        }
        Ok(files)
    }

    fn warm_up(&self, opened: &CommandStore) -> Result<Option<WarmUpOptions>, CommandFailure> {
        if self.warmup == ProfileUse::Off {
            return Ok(None);
        }
        let dir = self.profiles_dir()?;
        let root = self.root.as_deref().map(Path::as_os_str);
        Ok(Some(WarmUpOptions::new(
            Arc::new(Profiles::new(dir)),
            root.and_then(|root| ProfileKey::new(root.as_bytes())),
            opened.described.plan.room_ahead(),
        )))
    }

    fn profiles_dir(&self) -> Result<PathBuf, CommandFailure> {
        match &self.profiles {
            // The helper of mount(8) changes to another directory; the mount outlives its own.
            Some(dir) => Ok(std::path::absolute(dir)?),
            None => {
                let dir = default_dir().map_err(|_| {
                    failure("neither XDG_DATA_HOME nor HOME is set: give --profiles PATH")
                })?;
                Ok(dir.join("profiles"))
            }
        }
    }

    /// Imports what `--import` names; gives the root's name.
    fn import(&self, opened: &CommandStore) -> Result<Option<String>, CommandFailure> {
        let Some(path) = &self.import else {
            return Ok(None);
        };
        // Until the mount is up signals are not handled: an interrupt ends the process, and the
        // store undoes the import.
        let imported =
            ImportArguments::default().import(&opened.store, path, &RunningImport::default())?;
        Ok(Some(imported.root.name.to_string()))
    }
}

/// The descriptor of a mount point of the form `/dev/fd/N`.
fn opened_device(mountpoint: &Path) -> Result<Option<OwnedFd>, CommandFailure> {
    let Ok(number) = mountpoint.strip_prefix("/dev/fd") else {
        return Ok(None);
    };
    let number = number
        .to_str()
        .and_then(|number| number.parse::<RawFd>().ok());
    let number = number.filter(|number| *number > 2).ok_or_else(|| {
        let place = mountpoint.display();
        failure(format!("{place} names no descriptor that was passed on"))
    })?;
    // SAFETY: only to copy it, in this expression; if it is not open, that is an error and no more.
    let passed = unsafe { BorrowedFd::borrow_raw(number) };
    let copied = rustix::io::fcntl_dupfd_cloexec(passed, 3).and_then(|copy| {
        // It is not passed on to programs that this one starts.
        rustix::io::fcntl_setfd(passed, rustix::io::FdFlags::CLOEXEC)?;
        Ok(copy)
    });
    match copied {
        Ok(copy) => Ok(Some(copy)),
        Err(error) => Err(failure(format!(
            "descriptor {number} was not passed on: {error}"
        ))),
    }
}

/// The mount root: the tree `root`, or else the store's roots.
pub(super) fn mount_root(
    store: &Blocking,
    root: Option<&Path>,
    list: RootListing,
) -> Result<MountRoot, CommandFailure> {
    let Some(root) = root else {
        return Ok(MountRoot::Roots { list });
    };
    let found = Target::try_from(root).and_then(|target| target.resolve_mount_root(store));
    let (digest, size) = found.map_err(|error| match CommandFailure::from(error) {
        CommandFailure::Message(why) => failure(format!("--root {}: {why}", Printable::path(root))),
        other => other,
    })?;
    Ok(MountRoot::Directory { digest, size })
}

/// A mount that the first interrupt ends, also while it is being made.
#[derive(Default)]
struct InterruptibleMount(Mutex<MountPhase>);

/// How far a mount is.
#[derive(Default)]
enum MountPhase {
    /// It is being made.
    #[default]
    Starting,
    /// It is being made, and is unmounted once it is there.
    Interrupted,
    /// It is there.
    Mounted(Arc<FuseSession>),
}

impl InterruptibleMount {
    fn interrupt(self: &Arc<Self>) {
        let mut phase = self.0.lock();
        if let MountPhase::Mounted(session) = &*phase {
            return unmount_in_thread(session.clone());
        }
        *phase = MountPhase::Interrupted;
        // The mount may be made at this moment; an end of the process would leave it behind.
        let this = self.clone();
        in_thread(move || {
            std::thread::sleep(START_PATIENCE);
            if matches!(*this.0.lock(), MountPhase::Interrupted) {
                std::process::exit(STATUS);
            }
        });
    }

    /// Notes that `session` is mounted; unmounts it if an interrupt came before.
    fn mounted(&self, session: &Arc<FuseSession>) {
        let before = std::mem::replace(&mut *self.0.lock(), MountPhase::Mounted(session.clone()));
        if let MountPhase::Interrupted = before {
            unmount_in_thread(session.clone());
        }
    }
}

fn unmount_in_thread(session: Arc<FuseSession>) {
    in_thread(move || unmount(&session));
}

/// Ends a mount in a thread of its own: that may take long, and another interrupt must be noticed.
fn in_thread(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("unmount".into());
    if let Err(error) = thread.spawn(work) {
        print_error(&format!("cannot unmount: {error}"));
    }
}

/// The id of an owner.
pub(super) fn owner_id(text: &str) -> Result<u32, String> {
    let id = text
        .parse()
        .map_err(|error: ParseIntError| error.to_string())?;
    NodeOwner::check_id(id)
}

/// Unmounts; waits while other mounts prevent that.
fn unmount(session: &FuseSession) {
    let print_error = |message: &str| match background::is_background() {
        true => tracing::warn!("{message}"),
        false => print_error(message),
    };
    let mut reported = false;
    loop {
        // Before the table is read, so that no change is missed.
        let watch = MountWatch::new();
        let place = session.current_path();
        let place = place.display();
        match session.unmount() {
            Ok(UnmountOutcome::Cleanly) => return,
            Ok(UnmountOutcome::InUse(users)) => {
                return print_error(&format!(
                    "{place} is unmounted, and served for as long as it is used, by {users}; \
                     interrupt again to end it at once"
                ));
            }
            Ok(UnmountOutcome::Blocked(obstacles)) => {
                if !std::mem::replace(&mut reported, true) {
                    print_error(&format!(
                        "{place} cannot be unmounted before {obstacles}; it is served until then; \
                         interrupt again to end it at once"
                    ));
                }
                let waited = watch.and_then(|watch| watch.wait(MOUNT_TABLE_INTERVAL));
                if waited.is_err() {
                    std::thread::sleep(MOUNT_TABLE_INTERVAL);
                }
            }
            Ok(UnmountOutcome::NotOurs) => {
                print_error(&format!(
                    "{place} was mounted by another program, which has to unmount it; no process \
                     serves it now"
                ));
                std::process::exit(0);
            }
            Err(error) => return print_error(&format!("cannot unmount {place}: {error}")),
        }
    }
}
