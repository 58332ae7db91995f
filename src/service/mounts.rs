//! The mounts of the service: made, taken over, or unmounted.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Handle;

pub use self::running::Mounts;
use super::config;
use super::systemd::{self, KeptPair};
use crate::castore::Node;
use crate::fs::{
    ImageClosures, Options, Owner, Reads, RootListing, RootNames, Top, WarmUp, WhenUnreachable,
};
use crate::profile::{Profiles, Subject};
use crate::store::{Blocking, Store};
use crate::stores::Plan;
use crate::transport::fuse::{
    self, GenericOptions, Inherited, MountError, MountOptions, Mountpoint, Nursery, OwnFiles,
    Session, WantedView,
};
use crate::tree::{self, Preference, Target};

/// Why a mount does not exist.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its directory cannot be made.
    #[error("cannot make the directory {}: {source}", path.display())]
    Folder {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Its `root` does not exist.
    #[error("cannot show {root:?}: {source}")]
    Root {
        /// The `root` of the configuration.
        root: String,
        /// The error.
        source: Box<tree::Error>,
    },
    /// Its `root` is not a directory.
    #[error("{0:?} is not a directory, and only a directory can be a mount root")]
    NoDirectory(String),
    /// systemd passed on no descriptor of that name, or it has served a mount before.
    #[error(
        "no descriptor of /dev/fuse named {0:?} was passed on, or it has served its mount: a new one \
         comes with a restart (OpenFile= in systemd.service(5))"
    )]
    NoDevice(String),
    /// It cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A mount of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its section in the configuration.
    pub config: config::Mount,
    /// The name of the store.
    pub store: String,
    /// The description of the store.
    pub plan: Plan,
}

/// What all mounts of the service share.
#[derive(Clone)]
pub struct Host {
    /// Where requests wait.
    pub runtime: Handle,
    /// Starts the processes that notify the kernel.
    pub nursery: Arc<Nursery>,
    /// Requests that take longer are logged.
    pub slow_requests: Option<Duration>,
    /// Descriptors of `/dev/fuse` that the service was started with, by name. Each serves one mount.
    pub devices: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    /// The access profiles.
    pub profiles: Arc<Profiles>,
    /// Images of several roots.
    pub images: Arc<ImageClosures>,
    /// Files and directories that no mount may hide.
    pub own_files: OwnFiles,
}

/// A mount that is served.
pub struct Served {
    /// Its configuration.
    pub wanted: Wanted,
    /// The mount.
    pub session: Arc<Session>,
    /// Whether another process made it.
    pub adopted: bool,
}

impl Host {
    /// The warm-up options of a mount or device that shows `root` of a store made by `plan`.
    pub fn warm_up(
        &self,
        warmup: config::Warmup,
        root: Option<&str>,
        plan: &Plan,
    ) -> Option<WarmUp> {
        let learns = warmup == config::Warmup::Learn;
        learns.then(|| {
            WarmUp::new(
                self.profiles.clone(),
                root.and_then(|root| Subject::new(root.as_bytes())),
                plan.room_ahead(),
            )
        })
    }
}

impl Wanted {
    /// Takes over the mount `name` that the previous process left, or makes it again. Returns also
    /// sessions of the previous process that are detached from the tree and still in use.
    pub fn start(
        self,
        name: &str,
        store: Arc<dyn Store>,
        left: Option<KeptPair>,
        host: &Host,
    ) -> Result<(Served, Option<Arc<Session>>), StartError> {
        let runtime = &host.runtime;
        let (top, gone) = self.top(&store, left.as_ref(), host)?;
        let options = self.options(top, host);
        let mut mount = self.mount_options(name, host);
        let mut outside = None;
        if let Some(left) = left {
            match self.adopt(store.clone(), &options, &mount, left, runtime) {
                Ok(session) if session.is_mounted() => {
                    tracing::info!(
                        MOUNT = name, STORE = self.store, path = %self.config.path.display(),
                        "taking over a mount of the previous process"
                    );
                    let served = Served {
                        wanted: self,
                        session: Arc::new(session),
                        adopted: true,
                    };
                    return Ok((served, None));
                }
                Ok(session) if session.has_ended() => systemd::forget(name),
                Ok(session) => {
                    systemd::forget(name);
                    outside = Some(Arc::new(session));
                }
                Err(why) => {
                    tracing::warn!(
                        MOUNT = name,
                        STORE = self.store,
                        why,
                        "cannot take over the mount of the previous process; mounting again, \
                         and what is open on it ends"
                    );
                    systemd::forget(name);
                    detach(name, &self.config.path, || {
                        fuse::detach(&self.config.path, Some(&host.nursery))
                    });
                }
            }
        }
        if let Some(gone) = gone {
            return Err(gone);
        }
        mount.device = self.device(host)?;
        let session = self.mount(store, options, &mount, runtime)?;
        if let Some(kept) = session.kept() {
            systemd::keep(name, kept.device, kept.table);
        }
        if let Some(why) = session.why_no_image() {
            tracing::info!(
                MOUNT = name, STORE = self.store, path = %self.config.path.display(),
                "a FUSE mount and no image, because {why}"
            );
        }
        tracing::info!(
            MOUNT = name, STORE = self.store, path = %self.config.path.display(), "mounted"
        );
        let served = Served {
            wanted: self,
            session: Arc::new(session),
            adopted: false,
        };
        Ok((served, outside))
    }

    fn adopt(
        &self,
        store: Arc<dyn Store>,
        options: &Options,
        mount: &MountOptions,
        left: KeptPair,
        runtime: &Handle,
    ) -> Result<Session, String> {
        let (Some(device), Some(table)) = (left.device, left.table) else {
            return Err("only one of its two descriptors was kept".to_owned());
        };
        let inherited = Inherited::read(device, table).map_err(|error| error.to_string())?;
        let left = inherited.mountpoint();
        let left = left.with_nursery(mount.nursery.clone());
        let is_same = mount.tag.as_deref() == Some(inherited.tag());
        let adopted = match is_same && mount.view.allows(inherited.view()) {
            true => Session::adopt(inherited, store, options.clone(), mount, runtime.clone())
                .map_err(|error| error.to_string()),
            false => {
                // What the mount has asked and no process will answer fails with this descriptor.
                drop(inherited);
                Err("the configuration of the mount has changed".to_owned())
            }
        };
        adopted.inspect_err(|_| detach("", left.path(), || left.detach()))
    }

    /// The descriptor that the configuration names; it can be used once.
    fn device(&self, host: &Host) -> Result<Option<Arc<OwnedFd>>, StartError> {
        let Some(config::Device(name)) = &self.config.device else {
            return Ok(None);
        };
        let device = host.devices.lock().remove(name);
        let device = device.ok_or_else(|| StartError::NoDevice(name.clone()))?;
        Ok(Some(Arc::new(device)))
    }

    fn mount(
        &self,
        store: Arc<dyn Store>,
        options: Options,
        mount: &MountOptions,
        runtime: &Handle,
    ) -> Result<Session, StartError> {
        let path = &self.config.path;
        // With a descriptor, the program that mounted it has found the directory.
        if mount.device.is_none() {
            mount.own_files.check(path)?;
            make_folder(path)?;
        }
        let runtime = runtime.clone();
        Ok(Session::mount(store, path, options, mount, runtime)?)
    }

    /// What is shown. If `root` is not found any more, a mount that the previous process `left` goes on
    /// with what it shows, which is in use and so is still there; the failure is returned too, since
    /// nothing else can be mounted.
    fn top(
        &self,
        store: &Arc<dyn Store>,
        left: Option<&KeptPair>,
        host: &Host,
    ) -> Result<(Top, Option<StartError>), StartError> {
        let blocking = Blocking::new(store.clone(), host.runtime.clone());
        let root = self.config.root.as_deref();
        let error = match find_top(root, self.config.list_root.listing(), &blocking) {
            Ok(top) => return Ok((top, None)),
            Err(error) => error,
        };
        let table = left.and_then(|left| left.table.as_ref()?.try_clone().ok());
        let shown = table.and_then(|table| Inherited::top_of(table, &self.tag()).ok());
        match shown.flatten() {
            Some((digest, size)) => {
                let (path, why) = (self.config.path.display(), error.to_string());
                tracing::warn!(%path, why, "the mount stays as it is: what it shows has no name now");
                Ok((Top::Directory { digest, size }, Some(error)))
            }
            None => Err(error),
        }
    }

    fn options(&self, top: Top, host: &Host) -> Options {
        Options {
            top,
            owner: Owner {
                uid: self.config.uid,
                gid: self.config.gid,
            },
            reads: match self.config.reads {
                config::Reads::PageCache => Reads::PageCache,
                config::Reads::Passthrough => Reads::Passthrough,
            },
            root_names: match self.config.names {
                config::Names::Any => RootNames::Any,
                config::Names::StorePaths => RootNames::StorePaths,
                config::Names::ValidPaths => RootNames::ValidPaths,
            },
            when_unreachable: match self.config.when_unreachable {
                config::WhenUnreachable::Error => WhenUnreachable::Error,
                config::WhenUnreachable::Absent => WhenUnreachable::Absent,
            },
            xattr: self.config.xattr,
            directory_limit: usize::try_from(self.config.directory_memory.0).unwrap_or(usize::MAX),
            slow_requests: host.slow_requests,
            warm_up: host.warm_up(self.config.warmup, self.config.root.as_deref(), &self.plan),
            images: self.config.images.then(|| host.images.clone()),
            image_patience: self.config.image_patience.0,
            ..Options::default()
        }
    }

    fn mount_options(&self, name: &str, host: &Host) -> MountOptions {
        let defaults = MountOptions::default();
        let read_ahead_kib = u32::try_from(self.config.read_ahead.0 >> 10);
        MountOptions {
            allow_other: self.config.allow_other,
            threads: self.config.threads.map_or(defaults.threads, usize::from),
            read_ahead_kib: read_ahead_kib.unwrap_or(u32::MAX),
            stay_awake: self.config.stay_awake.unwrap_or(defaults.stay_awake),
            name: Some(name.to_owned()),
            store_name: Some(self.store.clone()),
            tag: Some(self.tag()),
            device: None,
            view: match self.config.view {
                config::View::Auto => WantedView::Auto,
                config::View::Fuse => WantedView::Fuse,
                config::View::Image => WantedView::Image,
            },
            nursery: Some(host.nursery.clone()),
            // Checked with the configuration.
            generic: GenericOptions::of(&self.config.mount_options).unwrap_or_default(),
            own_files: host.own_files.clone(),
        }
    }

    /// All configuration that the kernel may have seen: a mount of the previous process is taken
    /// over only if it had the same. A fixed directory is compared by its digest.
    fn tag(&self) -> String {
        let config::Mount {
            path,
            root,
            list_root,
            allow_other,
            uid,
            gid,
            xattr,
            reads,
            images,
            mount_options,
            ..
        } = &self.config;
        let store = self.plan.identity();
        let reads = match reads {
            // For compatibility with versions that handed over no other mounts.
            config::Reads::PageCache => "",
            config::Reads::Passthrough => ", passthrough",
        };
        // As above.
        let images = if *images { ", images" } else { "" };
        let flags = match mount_options.is_empty() {
            true => String::new(),
            false => format!(", {mount_options:?}"),
        };
        // As the versions said it that knew two of them.
        let list_root = match list_root {
            config::ListRoot::All => "true",
            config::ListRoot::Refused => "false",
            config::ListRoot::Empty => "empty",
        };
        format!(
            "{store} on {path:?}: root {root:?}, list {list_root}, others {allow_other}, \
             owner {uid}:{gid}, xattr {xattr}{reads}{images}{flags}"
        )
    }
}

/// Ends a mount of the previous process that is no longer configured.
pub fn end_left(name: &str, left: KeptPair, nursery: &Arc<Nursery>) {
    tracing::info!(
        MOUNT = name,
        "a mount of the previous process is no longer configured"
    );
    systemd::forget(name);
    if let (Some(device), Some(table)) = (left.device, left.table)
        && let Ok(inherited) = Inherited::read(device, table)
    {
        let mount = inherited.mountpoint();
        let mount = mount.with_nursery(Some(nursery.clone()));
        drop(inherited);
        detach(name, mount.path(), || mount.detach());
    }
}

/// The mounts of the previous process, by name.
pub fn left_mounts(
    left: &BTreeMap<String, KeptPair>,
    nursery: &Arc<Nursery>,
) -> Vec<(String, Mountpoint)> {
    let mount = |(name, left): (&String, &KeptPair)| {
        let table = left.table.as_ref()?.try_clone().ok()?;
        let mount = Inherited::mount_of(left.device.as_ref()?, table).ok()?;
        Some((name.clone(), mount.with_nursery(Some(nursery.clone()))))
    };
    left.iter().filter_map(mount).collect()
}

/// Ends mounts of the previous process that no process will serve.
pub fn end_unserved(left: Vec<(String, Mountpoint)>) {
    for (name, mount) in left {
        systemd::forget(&name);
        detach(&name, mount.path(), || mount.detach());
    }
}

/// Unmounts, by `detach`, a mount that no process serves, and logs the result.
fn detach(name: &str, path: &Path, detach: impl FnOnce() -> io::Result<bool>) {
    let path = path.display();
    match detach() {
        Ok(true) => tracing::warn!(MOUNT = name, %path, "unmounted a mount that no process serves"),
        Ok(false) => {}
        Err(error) => tracing::error!(MOUNT = name, %path, %error, "cannot unmount"),
    }
}

/// Makes the mount point's directory. An existing one is not accessed: there may be a mount without
/// a server.
fn make_folder(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Folder {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(failed),
    }
}

/// The mount root: the directory that `root` names, else the store's roots.
pub fn find_top(
    root: Option<&str>,
    list: RootListing,
    store: &Blocking,
) -> Result<Top, StartError> {
    let Some(root) = root else {
        return Ok(Top::Roots { list });
    };
    let failed = |source: tree::Error| StartError::Root {
        root: root.to_owned(),
        source: source.into(),
    };
    let target = Target::parse(root.as_bytes()).map_err(failed)?;
    let found = target
        .resolve(store, Preference::Directory)
        .map_err(failed)?;
    match found.node {
        Node::Directory { digest, size } => Ok(Top::Directory { digest, size }),
        Node::File { .. } | Node::Symlink { .. } => Err(StartError::NoDirectory(root.to_owned())),
    }
}
