//! `castore-fs mount`.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::Node;
use castore_fs::fs::{Options, Owner, Reads, RootListing, Top, WarmUp};
use castore_fs::profile::{Profiles, Subject};
use castore_fs::service::config::Span;
use castore_fs::store::{Blocking, Cache};
use castore_fs::transport::fuse::{
    GenericOptions, MountOptions, MountWatch, Nursery, OwnFiles, Session, Unmounted, WantedView,
};
use castore_fs::tree::{Preference, Target};
use clap::{Args, ValueEnum};

use super::failure::{Failure, failure, say};
use super::import::{Current, How};
use super::interrupt::on_interrupt;
use super::mount_helper;
use super::store::{CacheArguments, Opened, StoreArguments, default_folder};
use super::supervisor::Supervisor;

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
pub(super) struct Mount {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    cache: CacheArguments,
    /// Import this folder or file first, under its own name
    #[arg(long, value_name = "PATH", conflicts_with = "cache")]
    import: Option<PathBuf>,
    /// Show this directory as the mount root: NAME[/PATH] or the digest of a Directory
    #[arg(long, value_name = "NAME|DIGEST")]
    root: Option<PathBuf>,
    #[command(flatten)]
    listing: ListRoot,
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
    #[arg(long, value_name = "U", default_value_t = 0)]
    uid: u32,
    /// The owner of everything: group id
    #[arg(long, value_name = "G", default_value_t = 0)]
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
    stay_awake: Option<bool>,
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
    #[arg(long, value_enum, default_value_t = ViewMode::Fuse)]
    view: ViewMode,
    /// How files are read
    #[arg(long, value_enum, default_value_t = ReadMode::PageCache)]
    reads: ReadMode,
    /// Whether to record the files that are read first below a root, and to prefetch them in that
    /// order when the root is mounted again
    #[arg(long, value_enum, default_value_t = Learning::Off)]
    warmup: Learning,
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
    /// An image, or nothing. Needs Linux 6.12 with EROFS, and CAP_SYS_ADMIN
    Image,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Listing {
    /// All of them
    All,
    /// An empty directory, for the lower layer of an overlay
    Empty,
    /// An error, EPERM
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Learning {
    /// Neither
    Off,
    /// Both
    Learn,
}

/// What listing the roots gives.
#[derive(Debug, Args)]
pub(super) struct ListRoot {
    /// What listing the roots gives; lookups by name find them in any case
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true)]
    #[arg(
        default_value = "all",
        default_missing_value = "all",
        overrides_with = "no_list_root"
    )]
    list_root: Listing,
    /// Allow only lookups of roots by name: short for --list-root=empty
    #[arg(long, overrides_with = "list_root")]
    no_list_root: bool,
}

impl ListRoot {
    pub(super) fn listing(&self) -> RootListing {
        match self.list_root {
            _ if self.no_list_root => RootListing::Nothing,
            Listing::All => RootListing::All,
            Listing::Empty => RootListing::Nothing,
            Listing::Refused => RootListing::Refused,
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    text.parse().map(|Span(time)| time)
}

impl Mount {
    pub(super) fn run(self) -> Result<(), Failure> {
        let generic = self.generic()?;
        if mount_helper::is_background() {
            mount_helper::become_background()?;
        }
        // Before there are threads.
        let nursery = Arc::new(Nursery::start()?);
        let opened = match &self.import {
            Some(_) => self.store.open_or_make()?,
            None => self.store.open_cached(&self.cache)?,
        };
        let imported = self.import(&opened)?;
        let options = Options {
            top: top(&opened.store, self.root.as_deref(), self.listing.listing())?,
            owner: Owner {
                uid: self.uid,
                gid: self.gid,
            },
            reads: match self.reads {
                ReadMode::PageCache => Reads::PageCache,
                ReadMode::Passthrough => Reads::Passthrough,
            },
            xattr: self.xattr,
            warm_up: self.warm_up(&opened)?,
            images: self.images.then(Arc::default),
            image_patience: self.image_patience,
            ..Options::default()
        };
        let defaults = MountOptions::default();
        let mount = MountOptions {
            allow_other: self.is_for_others(),
            threads: self.threads.map_or(defaults.threads, usize::from),
            stay_awake: self.stay_awake.unwrap_or(defaults.stay_awake),
            device: given(&self.mountpoint)?.map(Arc::new),
            view: match self.view {
                ViewMode::Fuse => WantedView::Fuse,
                ViewMode::Auto => WantedView::Auto,
                ViewMode::Image => WantedView::Image,
            },
            nursery: Some(nursery),
            generic,
            own_files: self.own_files(&opened)?,
            ..defaults
        };
        let store = opened.store.store().clone();
        let runtime = opened.runtime.handle().clone();
        let session = Session::mount(store, &self.mountpoint, options, &mount, runtime)?;
        let session = Arc::new(session);
        let ending = session.clone();
        on_interrupt(&opened.runtime, move || {
            let session = ending.clone();
            // It may take long, and another interrupt must be noticed.
            let unmounting = std::thread::Builder::new().name("unmount".into());
            if let Err(error) = unmounting.spawn(move || unmount(&session)) {
                say(&format!("cannot unmount: {error}"));
            }
        })?;
        let supervisor = Supervisor::connect()?;
        if mount_helper::is_background() {
            if let Err(error) = mount_helper::report_ready() {
                unmount(&session);
                return Err(error.into());
            }
        } else {
            self.report_mounted(&session, &opened, imported);
        }
        // As a unit of Type=notify.
        supervisor.tell("READY=1");
        session.wait();
        session.remember();
        opened.caches.iter().for_each(Cache::flush);
        // Threads may still wait for a store, and use the runtime: they end with the process.
        std::mem::forget(opened.runtime);
        Ok(())
    }

    /// Whether other users have access to the mount.
    fn is_for_others(&self) -> bool {
        self.allow_other || !self.no_allow_other && rustix::process::geteuid().is_root()
    }

    fn generic(&self) -> Result<GenericOptions, Failure> {
        let options = self.options.iter().filter(|option| !option.is_empty());
        let options: Vec<String> = options.cloned().collect();
        GenericOptions::of(&options).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// Whether this mount has another value of the option `key` of fstab than `other`.
    pub(super) fn differs(&self, other: &Self, key: &str) -> bool {
        match key {
            "config" => self.store.configuration_file() != other.store.configuration_file(),
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

    fn report_mounted(&self, session: &Session, opened: &Opened, imported: Option<String>) {
        let place = session.path().display();
        if let Some(why) = session.why_no_image() {
            say(&format!("a FUSE mount and no image, because {why}"));
        }
        match imported {
            Some(name) if self.root.is_none() => {
                say(&format!(
                    "{} is on {place}: see {place}/{name}",
                    opened.store.url()
                ));
            }
            _ => say(&format!("{} is on {place}", opened.store.url())),
        }
    }

    /// The files that the mount must not hide.
    fn own_files(&self, opened: &Opened) -> Result<OwnFiles, Failure> {
        let mut files = OwnFiles::default();
        files.extend(opened.described.plan.used_files());
        if let Some(file) = self.store.configuration() {
            files.add("its configuration file", file);
        }
        if self.warmup == Learning::Learn {
            files.add("its profiles", self.profiles_folder()?);
        }
        Ok(files)
    }

    fn warm_up(&self, opened: &Opened) -> Result<Option<WarmUp>, Failure> {
        if self.warmup == Learning::Off {
            return Ok(None);
        }
        let folder = self.profiles_folder()?;
        let root = self.root.as_deref().map(Path::as_os_str);
        Ok(Some(WarmUp::new(
            Arc::new(Profiles::new(folder)),
            root.and_then(|root| Subject::new(root.as_bytes())),
            opened.described.plan.room_ahead(),
        )))
    }

    fn profiles_folder(&self) -> Result<PathBuf, Failure> {
        match &self.profiles {
            // The helper of mount(8) changes to another directory; the mount outlives its own.
            Some(folder) => Ok(std::path::absolute(folder)?),
            None => {
                let folder = default_folder().map_err(|_| {
                    failure("neither XDG_DATA_HOME nor HOME is set: give --profiles PATH")
                })?;
                Ok(folder.join("profiles"))
            }
        }
    }

    /// Imports what `--import` names; gives the root's name.
    fn import(&self, opened: &Opened) -> Result<Option<String>, Failure> {
        let Some(path) = &self.import else {
            return Ok(None);
        };
        // Until the mount is up signals are not handled: an interrupt ends the process, and the
        // store undoes the import.
        let imported = How::default().import(&opened.store, path, &Current::default())?;
        Ok(Some(imported.root.name.to_string()))
    }
}

/// The descriptor of a mount point of the form `/dev/fd/N`.
fn given(mountpoint: &Path) -> Result<Option<OwnedFd>, Failure> {
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
pub(super) fn top(
    store: &Blocking,
    root: Option<&Path>,
    list: RootListing,
) -> Result<Top, Failure> {
    let Some(root) = root else {
        return Ok(Top::Roots { list });
    };
    let target = Target::try_from(root)?;
    let found = target.resolve(store, Preference::Directory)?;
    match found.node {
        Node::Directory { digest, size } => Ok(Top::Directory { digest, size }),
        Node::File { .. } | Node::Symlink { .. } => Err(failure(format!(
            "{} is not a directory, and only a directory can be a mount root; without --root it \
             is shown by its name",
            found.path
        ))),
    }
}

/// Unmounts; waits while other mounts prevent that.
fn unmount(session: &Session) {
    let say = |message: &str| match mount_helper::is_background() {
        true => tracing::warn!("{message}"),
        false => say(message),
    };
    let mut reported = false;
    loop {
        // Before the table is read, so that no change is missed.
        let watch = MountWatch::new();
        let place = session.current_path();
        let place = place.display();
        match session.unmount() {
            Ok(Unmounted::Cleanly) => return,
            Ok(Unmounted::InUse(users)) => {
                return say(&format!(
                    "{place} is unmounted, and served for as long as it is used, by {users}; \
                     interrupt again to end it at once"
                ));
            }
            Ok(Unmounted::Blocked(obstacles)) => {
                if !std::mem::replace(&mut reported, true) {
                    say(&format!(
                        "{place} cannot be unmounted before {obstacles}; it is served until then; \
                         interrupt again to end it at once"
                    ));
                }
                let waited = watch.and_then(|watch| watch.wait(MOUNT_TABLE_INTERVAL));
                if waited.is_err() {
                    std::thread::sleep(MOUNT_TABLE_INTERVAL);
                }
            }
            Ok(Unmounted::NotOurs) => {
                say(&format!(
                    "{place} was mounted by another program, which has to unmount it; no process \
                     serves it now"
                ));
                std::process::exit(0);
            }
            Err(error) => return say(&format!("cannot unmount {place}: {error}")),
        }
    }
}
