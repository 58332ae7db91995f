//! The mounts of the service: made, taken over, or unmounted.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Handle;

pub(super) use self::running::RunningMounts;
use super::config;
use super::systemd::{self, PreviousMount, PreviousTree};
use crate::fs::{
    FsOptions, ImageClosures, MountRoot, NodeOwner, ReadPath, RootListing, RootNames,
    UnreachableLookup, WarmUpOptions,
};
use crate::profile::{ProfileKey, Profiles};
use crate::store::{Blocking, Store};
use crate::stores::StorePlan;
use crate::transport::fuse::{
    self, ForkServer, FuseSession, GenericOptions, MountError, MountOptions, Mountpoint,
    PreviousState, ProtectedFiles, WantedView,
};
use crate::tree::{self, Target};

/// Why a mount does not exist.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its directory cannot be made.
    #[error("cannot make the directory {}: {source}", path.display())]
    Dir {
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
        source: Box<tree::TreeError>,
    },
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
pub(super) struct ConfiguredMount {
    /// Its section in the configuration.
    pub config: config::MountConfig,
    /// The name of the store.
    pub store: String,
    /// The description of the store.
    pub plan: StorePlan,
}

/// What all mounts and devices of the service share.
#[derive(Clone)]
pub(super) struct ServiceContext {
    /// Where requests wait.
    pub runtime: Handle,
    /// Starts the processes that notify the kernel.
    pub fork_server: Arc<ForkServer>,
    /// Requests that take longer are logged.
    pub slow_requests: Option<Duration>,
    /// Descriptors of `/dev/fuse` that the service was started with, by name. Each serves one mount.
    pub devices: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    /// The access profiles.
    pub profiles: Arc<Profiles>,
    /// Images of several roots.
    pub images: Arc<ImageClosures>,
    /// Files and directories that no mount may hide.
    pub protected_files: ProtectedFiles,
}

/// A mount that is served.
pub(super) struct ServedMount {
    /// Its configuration.
    pub wanted: ConfiguredMount,
    /// The mount.
    pub session: Arc<FuseSession>,
    /// Whether another process made it.
    pub taken_over: bool,
}

impl ServiceContext {
    /// The warm-up options of a mount or device that shows `root` of a store made by `plan`.
    pub(super) fn warm_up(
        &self,
        warmup: config::Warmup,
        root: Option<&str>,
        plan: &StorePlan,
    ) -> Option<WarmUpOptions> {
        let records = warmup == config::Warmup::Record;
        records.then(|| {
            WarmUpOptions::new(
                self.profiles.clone(),
                root.and_then(|root| ProfileKey::new(root.as_bytes())),
                plan.room_ahead(),
            )
        })
    }
}

impl ConfiguredMount {
    /// Takes over the mount `name` that the previous process handed over, or makes it again. Returns also
    /// sessions of the previous process that are detached from the tree and still in use.
    pub(super) fn start(
        self,
        name: &str,
        store: Arc<dyn Store>,
        previous: Option<PreviousMount>,
        context: &ServiceContext,
    ) -> Result<(ServedMount, Option<Arc<FuseSession>>), StartError> {
        let runtime = &context.runtime;
        let mut former = previous.unwrap_or_default();
        let last_number =
            |former: &PreviousMount| former.last_key_value().map_or(0, |(last, _)| *last);
        let last = last_number(&former);
        let number = shown_number(&former);
        let previous = number.and_then(|number| Some((number, former.remove(&number)?)));
        let shown = previous.as_ref().map(|(_, previous)| previous);
        let (mount_root, gone) = self.mount_root(&store, shown, context)?;
        let options = self.options(mount_root, context);
        let mut mount = self.mount_options(name, context);
        mount.last_number = last;
        let mut outside = None;
        if let Some((number, previous)) = previous {
            let previous = (number, previous);
            match self.take_over(store.clone(), &options, &mount, previous, runtime) {
                Ok(session) if session.is_mounted() => {
                    tracing::info!(
                        MOUNT = name, STORE = self.store, path = %self.config.path.display(),
                        "taking over a mount of the previous process"
                    );
                    self.take_over_former(
                        name, &session, former, &store, &options, &mount, runtime,
                    );
                    let served = ServedMount {
                        wanted: self,
                        session: Arc::new(session),
                        taken_over: true,
                    };
                    return Ok((served, None));
                }
                Ok(session) if session.has_ended() => systemd::forget(name, [number]),
                Ok(session) => {
                    systemd::forget(name, [number]);
                    // It is out of the tree, and shows no other one.
                    session.hand_over();
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
                    systemd::forget(name, [number]);
                    detach(name, &self.config.path, || {
                        fuse::detach(&self.config.path, Some(&context.fork_server))
                    });
                }
            }
        }
        if let Some(gone) = gone {
            return Err(gone);
        }
        mount.device = self.device(context)?;
        renumber_first(name, &mut former, last);
        mount.last_number = last.max(last_number(&former));
        let session = self.mount(store.clone(), options.clone(), &mount, runtime)?;
        self.take_over_former(name, &session, former, &store, &options, &mount, runtime);
        if let Some(hand_over_state) = session.hand_over_state() {
            let (device, table) = (hand_over_state.device(), hand_over_state.table());
            systemd::hold(name, 0, device, table);
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
        let served = ServedMount {
            wanted: self,
            session: Arc::new(session),
            taken_over: false,
        };
        Ok((served, outside))
    }

    /// Takes over the trees that the mount `name` showed before and that are still in use: `former`, by number.
    #[expect(clippy::too_many_arguments, reason = "the arguments of a mount")]
    fn take_over_former(
        &self,
        name: &str,
        session: &FuseSession,
        former: PreviousMount,
        store: &Arc<dyn Store>,
        options: &FsOptions,
        mount: &MountOptions,
        runtime: &Handle,
    ) {
        for (number, former) in former {
            let (Some(device), Some(table)) = (former.device, former.table) else {
                systemd::forget(name, [number]);
                continue;
            };
            let taken_over = PreviousState::read(device, table).and_then(|previous_state| {
                if previous_state.has_ended() {
                    systemd::forget(name, [number]);
                    return Ok(());
                }
                let previous_state = previous_state.with_number(number);
                let (store, options) = (store.clone(), options.clone());
                session.take_over_former(previous_state, store, options, mount, runtime.clone())
            });
            if let Err(error) = taken_over {
                tracing::warn!(
                    MOUNT = name, STORE = self.store, %error,
                    "cannot take over a tree that the mount showed before; what is open of it fails"
                );
                systemd::forget(name, [number]);
            }
        }
    }

    fn take_over(
        &self,
        store: Arc<dyn Store>,
        options: &FsOptions,
        mount: &MountOptions,
        (number, previous): (u64, PreviousTree),
        runtime: &Handle,
    ) -> Result<FuseSession, String> {
        let (Some(device), Some(table)) = (previous.device, previous.table) else {
            return Err("only one of its two descriptors was handed over".to_owned());
        };
        let previous_state =
            PreviousState::read(device, table).map_err(|error| error.to_string())?;
        let previous_state = previous_state.with_number(number);
        let previous = previous_state.mountpoint();
        let previous = previous.with_fork_server(mount.fork_server.clone());
        let is_same = mount.tag.as_deref() == Some(previous_state.tag());
        let taken_over = match is_same && mount.view.allows(previous_state.view()) {
            true => FuseSession::take_over(
                previous_state,
                store,
                options.clone(),
                mount,
                runtime.clone(),
            )
            .map_err(|error| error.to_string()),
            false => {
                // What the mount has asked and no process will answer fails with this descriptor.
                drop(previous_state);
                Err("the configuration of the mount has changed".to_owned())
            }
        };
        taken_over.inspect_err(|_| detach("", previous.path(), || previous.detach()))
    }

    /// The descriptor that the configuration names; it can be used once.
    fn device(&self, context: &ServiceContext) -> Result<Option<Arc<OwnedFd>>, StartError> {
        let Some(config::DeviceName(name)) = &self.config.device else {
            return Ok(None);
        };
        let device = context.devices.lock().remove(name);
        let device = device.ok_or_else(|| StartError::NoDevice(name.clone()))?;
        Ok(Some(Arc::new(device)))
    }

    fn mount(
        &self,
        store: Arc<dyn Store>,
        options: FsOptions,
        mount: &MountOptions,
        runtime: &Handle,
    ) -> Result<FuseSession, StartError> {
        let path = &self.config.path;
        // With a descriptor, the program that mounted it has found the directory.
        if mount.device.is_none() {
            mount.protected_files.check(path)?;
            make_dir(path)?;
        }
        let runtime = runtime.clone();
        Ok(FuseSession::mount(store, path, options, mount, runtime)?)
    }

    /// What is shown. If `root` is not found any more, a mount that the previous process handed over continues
    /// with what it shows, which is in use and so is still there; the failure is returned too, since
    /// nothing else can be mounted.
    fn mount_root(
        &self,
        store: &Arc<dyn Store>,
        previous: Option<&PreviousTree>,
        context: &ServiceContext,
    ) -> Result<(MountRoot, Option<StartError>), StartError> {
        let blocking = Blocking::new(store.clone(), context.runtime.clone());
        let root = self.config.root.as_deref();
        let error = match find_mount_root(root, self.config.list_root.listing(), &blocking) {
            Ok(mount_root) => return Ok((mount_root, None)),
            Err(error) => error,
        };
        let table = previous.and_then(|previous| previous.table.as_ref()?.try_clone().ok());
        let shown = table.and_then(|table| PreviousState::mount_root_of(table, &self.tag()).ok());
        match shown.flatten() {
            Some((digest, size)) => {
                let (path, why) = (self.config.path.display(), error.to_string());
                tracing::warn!(%path, why, "the mount stays as it is: what it shows has no name now");
                Ok((MountRoot::Directory { digest, size }, Some(error)))
            }
            None => Err(error),
        }
    }

    fn options(&self, mount_root: MountRoot, context: &ServiceContext) -> FsOptions {
        let owner = NodeOwner {
            uid: self.config.uid,
            gid: self.config.gid,
        };
        let root_names = match self.config.names {
            config::RequestedNames::Any => RootNames::Any,
            config::RequestedNames::StorePaths => RootNames::StorePaths,
            config::RequestedNames::ValidPaths => RootNames::ValidPaths,
        };
        let when_unreachable = match self.config.when_unreachable {
            config::WhenUnreachableConfig::Error => UnreachableLookup::Error,
            config::WhenUnreachableConfig::Absent => UnreachableLookup::Absent,
        };
        let images = self.config.images.then(|| context.images.clone());
        FsOptions::new(mount_root, owner)
            .with_follow(self.followed())
            .with_xattr(self.config.xattr)
            .with_reads(match self.config.reads {
                config::ReadsConfig::PageCache => ReadPath::PageCache,
                config::ReadsConfig::Passthrough => ReadPath::Passthrough,
            })
            .with_root_lookups(root_names, when_unreachable)
            .with_directory_limit(self.config.directory_memory.0)
            .with_slow_requests(context.slow_requests)
            .with_warm_up(context.warm_up(
                self.config.warmup,
                self.config.root.as_deref(),
                &self.plan,
            ))
            .with_images(images, self.config.image_patience.0)
    }

    /// What the mount root follows.
    fn followed(&self) -> Option<Target> {
        let root = self.config.root.as_ref().filter(|_| self.config.follow)?;
        // Checked with the configuration.
        Target::parse(root.as_bytes()).ok()
    }

    fn mount_options(&self, name: &str, context: &ServiceContext) -> MountOptions {
        let defaults = MountOptions::default();
        let read_ahead_kib = u32::try_from(self.config.read_ahead.0 >> 10);
        MountOptions {
            allow_other: self.config.allow_other,
            threads: self.config.threads.map_or(defaults.threads, usize::from),
            read_ahead_kib: read_ahead_kib.unwrap_or(u32::MAX),
            latency_guard: self.config.latency_guard.unwrap_or(defaults.latency_guard),
            name: Some(name.to_owned()),
            store_name: Some(self.store.clone()),
            tag: Some(self.tag()),
            device: None,
            view: match self.config.view {
                config::ViewConfig::Auto => WantedView::Auto,
                config::ViewConfig::Fuse => WantedView::Fuse,
                config::ViewConfig::Image => WantedView::Image,
            },
            fork_server: Some(context.fork_server.clone()),
            // Checked with the configuration.
            generic: GenericOptions::of(&self.config.mount_options).unwrap_or_default(),
            protected_files: context.protected_files.clone(),
            holder: systemd::HeldMount::of_mount(name),
            last_number: 0,
        }
    }

    /// All configuration that the kernel may have seen: a mount of the previous process is taken
    /// over only if it had the same. A fixed directory is compared by its digest.
    fn tag(&self) -> String {
        let config::MountConfig {
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
            config::ReadsConfig::PageCache => "",
            config::ReadsConfig::Passthrough => ", passthrough",
        };
        // As above.
        let images = if *images { ", images" } else { "" };
        let flags = match mount_options.is_empty() {
            true => String::new(),
            false => format!(", {mount_options:?}"),
        };
        // As the versions wrote it that knew two of them.
        let list_root = match list_root {
            config::ListRootConfig::All => "true",
            config::ListRootConfig::Refused => "false",
            config::ListRootConfig::Empty => "empty",
        };
        format!(
            "{store} on {path:?}: root {root:?}, list {list_root}, others {allow_other}, \
             owner {uid}:{gid}, xattr {xattr}{reads}{images}{flags}"
        )
    }
}

/// Ends a mount of the previous process that is no longer configured.
pub(super) fn end_previous(name: &str, previous: PreviousMount, fork_server: &Arc<ForkServer>) {
    tracing::info!(
        MOUNT = name,
        "a mount of the previous process is no longer configured"
    );
    systemd::forget(name, previous.keys().copied());
    for previous in previous.into_values() {
        if let (Some(device), Some(table)) = (previous.device, previous.table)
            && let Ok(previous_state) = PreviousState::read(device, table)
        {
            let mount = previous_state.mountpoint();
            let mount = mount.with_fork_server(Some(fork_server.clone()));
            drop(previous_state);
            detach(name, mount.path(), || mount.detach());
        }
    }
}

/// The number of the tree that a mount shows of which the previous process handed over `previous`: the last one that
/// is mounted (the one before may be about to be detached). If none is, the last.
fn shown_number(previous: &PreviousMount) -> Option<u64> {
    let is_mounted = |tree: &PreviousTree| mount_of(tree).is_some_and(|mount| mount.is_mounted());
    let mounted = previous.iter().rev().find(|(_, tree)| is_mounted(tree));
    let (number, _) = mounted.or_else(|| previous.last_key_value())?;
    Some(*number)
}

fn mount_of(tree: &PreviousTree) -> Option<Mountpoint> {
    let table = tree.table.as_ref()?.try_clone().ok()?;
    PreviousState::mount_of(tree.device.as_ref()?, table).ok()
}

/// Gives the tree of the number 0 among `former` another one, higher than `last`: 0 is that of a mount that
/// is made.
fn renumber_first(name: &str, former: &mut PreviousMount, last: u64) {
    let Some(first) = former.remove(&0) else {
        return;
    };
    let number = last + 1;
    if let (Some(device), Some(table)) = (&first.device, &first.table) {
        systemd::hold(name, number, device.as_fd(), table.as_fd());
    }
    systemd::forget(name, [0]);
    former.insert(number, first);
}

/// The mounts of the previous process, by name.
pub(super) fn previous_mounts(
    previous: &BTreeMap<String, PreviousMount>,
    fork_server: &Arc<ForkServer>,
) -> Vec<(String, Mountpoint)> {
    let trees = previous
        .iter()
        .flat_map(|(name, trees)| trees.values().map(move |tree| (name, tree)));
    let mount = |(name, tree): (&String, &PreviousTree)| {
        let mount = mount_of(tree)?.with_fork_server(Some(fork_server.clone()));
        Some((name.clone(), mount))
    };
    trees.filter_map(mount).collect()
}

/// Ends mounts of the previous process that no process will serve.
pub(super) fn end_unserved(previous: Vec<(String, Mountpoint)>) {
    for (name, mount) in previous {
        systemd::forget(&name, [0]);
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
fn make_dir(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Dir {
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
pub(super) fn find_mount_root(
    root: Option<&str>,
    list: RootListing,
    store: &Blocking,
) -> Result<MountRoot, StartError> {
    let Some(root) = root else {
        return Ok(MountRoot::Roots { list });
    };
    let failed = |source: tree::TreeError| StartError::Root {
        root: root.to_owned(),
        source: source.into(),
    };
    let target = Target::parse(root.as_bytes()).map_err(failed)?;
    let (digest, size) = target.resolve_mount_root(store).map_err(failed)?;
    Ok(MountRoot::Directory { digest, size })
}
