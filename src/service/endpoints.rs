//! Endpoints of the service: sockets that serve a store over gRPC or as a binary cache, and virtiofs
//! devices.

mod running;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::net::AddressFamily;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(super) use self::running::{NotServed, RunningEndpoints};
use super::config;
use super::mounts::{ServiceContext, StartError, find_mount_root};
use super::socket_file::SocketFile;
use super::systemd::{GuestDescriptors, NixConnections};
use crate::fs::{FsOptions, MountRoot, NodeOwner};
use crate::server::{
    self, AccessError, BinaryCacheOptions, Capacity, HandOver, ListenError, Listener,
    NixDaemonOptions, ServerLimits, load_secret_key,
};
use crate::store::{Blocking, FilteredStore, LocalStore, Store};
use crate::stores::{CannotPromise, OpenedStore, StorePlan, ValidPaths};
use crate::transport::virtiofs::{
    DeviceOptions, DeviceSocketError, DeviceTag, PreviousGuest, Socket, SocketAccess, TagError,
    VirtiofsEndpoint,
};

/// How long running calls may take once a listener is stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// Why an endpoint cannot be made.
#[derive(Debug, Error)]
pub(super) enum EndpointError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The access of clients.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A store that is not for Nix.
    #[error(transparent)]
    CannotPromise(#[from] CannotPromise),
    /// systemd passed on no socket of that name.
    #[error(
        "systemd passed on no socket named {0:?}: see FileDescriptorName= in systemd.socket(5)"
    )]
    NotPassed(String),
    /// The socket of a device.
    #[error(transparent)]
    Socket(#[from] DeviceSocketError),
    /// The tag of a device.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// What a device shows.
    #[error(transparent)]
    Show(#[from] StartError),
    /// A system call failed.
    #[error("cannot serve on {address}: {source}")]
    System {
        /// The address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// A listener that is being served.
pub(super) struct ServedListener {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// The file of a socket that this process made.
    file: Option<SocketFile>,
    /// The connections of Nix.
    hand_over: HandOver,
}

/// A virtiofs device that is being served.
pub(super) struct ServedDevice {
    /// The running device.
    pub endpoint: Arc<VirtiofsEndpoint>,
    file: Option<SocketFile>,
}

impl ServedDevice {
    /// Removes its socket.
    pub(super) fn remove_socket(&self) {
        self.file.iter().for_each(SocketFile::remove);
    }
}

impl ServedListener {
    /// Serves the store `opened` with `config`, as a part of `capacity`. `passed_descriptors` are the sockets that
    /// systemd passed on, `previous` the connections of Nix that the previous process handed over.
    #[allow(clippy::too_many_arguments, reason = "each is of another owner")]
    pub(super) fn start(
        name: &str,
        config: &config::ListenConfig,
        opened: &OpenedStore,
        passed_descriptors: &[(String, OwnedFd)],
        previous: Vec<(String, OwnedFd)>,
        capacity: &Capacity,
        runtime: &Handle,
    ) -> Result<Self, EndpointError> {
        let store = opened.store.clone();
        let dir = opened.local.as_ref().map(LocalStore::dir);
        let listeners = bind(config, passed_descriptors)?;
        let path = config.address.strip_prefix("unix:");
        let file = path.and_then(|path| SocketFile::at(Path::new(path)));
        let (stop, stopped) = oneshot::channel();
        let (tls, tokens) = config.access().load()?;
        let binary_cache = match config.protocol {
            config::ListenProtocol::Grpc | config::ListenProtocol::NixDaemon => None,
            config::ListenProtocol::BinaryCache => Some(BinaryCacheOptions {
                priority: config.priority,
                secret_key: (config.secret_key_file.as_ref())
                    .map(load_secret_key)
                    .transpose()?
                    .map(Arc::new),
                open_to_read: config.read_without_token,
            }),
        };
        let nix_daemon = match config.protocol {
            config::ListenProtocol::NixDaemon => Some(NixDaemonOptions {
                paths: ValidPaths::of(opened)?,
                hand_over: match NixConnections::of_listener(name) {
                    Some(holder) => HandOver::new(holder, previous),
                    None => HandOver::default(),
                },
            }),
            config::ListenProtocol::Grpc | config::ListenProtocol::BinaryCache => None,
        };
        let hand_over = nix_daemon.as_ref().map(|of_nix| of_nix.hand_over.clone());
        let limits = ServerLimits {
            connections: ServerLimits::connections(config.max_connections),
            keep_free: config.keep_free.0,
            upload: config.max_upload.0,
            // What has to be sent on waits in a temporary file.
            disk: Some(dir.map_or_else(std::env::temp_dir, Path::to_owned)),
            ..match &nix_daemon {
                Some(_) => ServerLimits::of_nix_daemon(),
                None => ServerLimits::default(),
            }
        };
        let options = server::ServerOptions {
            writable: config.writable,
            allow_replace: config.allow_replace,
            narinfos_ahead: dir.is_some() && !config.unnamed,
            local: opened.local.clone(),
            limits,
            capacity: Some(capacity.clone()),
            streams: config.max_calls,
            drain: DRAIN,
            tls,
            tokens,
            binary_cache,
            nix_daemon,
        };
        let (name, address) = (name.to_owned(), config.address.clone());
        let serve = async move {
            let shutdown = async move {
                // An error means that the service has ended, which is a stop as well.
                let _ = stopped.await;
            };
            if let Err(error) = server::serve(store, listeners, options, shutdown).await {
                tracing::error!(LISTEN = name, address, %error, "a listener ended");
            }
        };
        let task = runtime.spawn(serve.boxed());
        Ok(Self {
            stop,
            task,
            file,
            hand_over: hand_over.unwrap_or_default(),
        })
    }

    /// Accepts no more calls, and waits a while for those that run.
    pub(super) fn stop(self, runtime: &Handle) {
        // First, so that no command waits for an answer of a stopping service. Nothing depends on
        // it.
        self.file.iter().for_each(SocketFile::remove);
        // Fails if it has ended by itself.
        let _ = self.stop.send(());
        // The timer needs the runtime around it from the start.
        let ended = async { tokio::time::timeout(DRAIN + Duration::from_secs(1), self.task).await };
        let _ = runtime.block_on(ended);
    }

    /// From now on the next process takes over the connections of Nix.
    pub(super) fn hand_over(&self) {
        self.hand_over.hand_over();
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

fn bind(
    config: &config::ListenConfig,
    passed_descriptors: &[(String, OwnedFd)],
) -> Result<Vec<Listener>, EndpointError> {
    let failed = |source| EndpointError::System {
        address: config.address.clone(),
        source,
    };
    if let Some(name) = config.address.strip_prefix("systemd:") {
        let named = passed_descriptors
            .iter()
            .filter(|(passed_descriptors, _)| passed_descriptors == name);
        let listeners = named
            .map(|(_, socket)| take_over(socket.try_clone()?))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        return match listeners.is_empty() {
            true => Err(EndpointError::NotPassed(name.to_owned())),
            false => Ok(listeners),
        };
    }
    if let Some(path) = config.address.strip_prefix("unix:")
        && let Some(dir) = Path::new(path).parent()
    {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    Ok(Listener::bind_with_mode(
        &config.address,
        config.socket_mode.0,
    )?)
}

fn take_over(socket: OwnedFd) -> io::Result<Listener> {
    match rustix::net::sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => Ok(Listener::Unix(UnixListener::from(socket))),
        _ => Ok(Listener::Tcp(TcpListener::from(socket))),
    }
}

/// Serves `store`, which is made by `plan`, to virtual machines with `config`, and first to the
/// guests that the previous process handed over under `name`.
pub(super) fn serve_guests(
    name: &str,
    config: &config::VirtiofsConfig,
    store: Arc<dyn Store>,
    plan: &StorePlan,
    previous: Vec<(String, OwnedFd)>,
    context: &ServiceContext,
) -> Result<ServedDevice, EndpointError> {
    let runtime = &context.runtime;
    let store: Arc<dyn Store> = match &config.roots_from {
        Some(file) => Arc::new(FilteredStore::of_listed(store, file)),
        None => store,
    };
    let holder = GuestDescriptors::of_device(name);
    let previous = match &holder {
        Some(holder) => PreviousGuest::read(previous, &**holder),
        None => Vec::new(),
    };
    let shows = format!("{}: root {:?}", plan.identity(), config.root);
    let blocking = Blocking::new(store.clone(), runtime.clone());
    let mount_root = find_mount_root(
        config.root.as_deref(),
        config.list_root.listing(),
        &blocking,
    );
    let mount_root =
        mount_root.or_else(|error| match PreviousGuest::mount_root(&previous, &shows) {
            Some((digest, size)) => {
                let why = error.to_string();
                tracing::warn!(
                    why,
                    "the device stays as it is: what its guests use has no name now"
                );
                Ok(MountRoot::Directory { digest, size })
            }
            None => Err(error),
        })?;
    let owner = NodeOwner {
        uid: config.uid,
        gid: config.gid,
    };
    let options = FsOptions::new(mount_root, owner)
        .with_xattr(config.xattr)
        .with_slow_requests(context.slow_requests)
        .with_warm_up(context.warm_up(config.warmup, config.root.as_deref(), plan));
    let device = DeviceOptions {
        tag: config.tag.as_deref().map(DeviceTag::new).transpose()?,
        request_queues: usize::from(config.queues),
        shows,
    };
    let failed = |source| EndpointError::System {
        address: config.socket.display().to_string(),
        source,
    };
    if let Some(dir) = config.socket.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let access = SocketAccess {
        mode: config.socket_mode.0,
        gid: None,
    };
    let socket = Socket::bind(&config.socket, access)?;
    let file = SocketFile::at(&config.socket);
    let runtime = runtime.clone();
    let endpoint =
        VirtiofsEndpoint::serve_on(store, socket, options, device, runtime, holder, previous);
    Ok(ServedDevice {
        endpoint: Arc::new(endpoint.map_err(failed)?),
        file,
    })
}
