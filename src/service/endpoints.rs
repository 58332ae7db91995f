//! Endpoints of the service: sockets that serve a store over gRPC or as a binary cache, and virtiofs
//! devices.

mod running;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::AddressFamily;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use self::running::{Endpoints, NotServed};
use super::config;
use super::mounts::{Host, StartError, find_top};
use super::socket_file::SocketFile;
use super::systemd::{GuestKeeper, NixConnections};
use crate::fs::{self as castore_fs, Owner};
use crate::server::{
    self, AccessError, BinaryCacheOptions, Capacity, HandOver, Limits, ListenError, Listener,
    NixDaemonOptions, load_secret_key,
};
use crate::store::{Blocking, Filter, LocalStore, Store};
use crate::stores::{CannotPromise, Opened, Plan, ValidPaths};
use crate::transport::virtiofs::{
    Access, DeviceOptions, Endpoint, Left, ROOT_TIMEOUT, Socket, SocketError, Tag, TagError,
};

/// How long running calls may take once a listener is stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// Why an endpoint cannot be made.
#[derive(Debug, Error)]
pub enum EndpointError {
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
    Socket(#[from] SocketError),
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
pub struct Listening {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// The file of a socket that this process made.
    file: Option<SocketFile>,
    /// The connections of Nix.
    hand_over: HandOver,
}

/// A virtiofs device that is being served.
pub struct Device {
    /// The running device.
    pub endpoint: Arc<Endpoint>,
    file: Option<SocketFile>,
}

impl Device {
    /// Removes its socket.
    pub fn remove_socket(&self) {
        self.file.iter().for_each(SocketFile::remove);
    }
}

impl Listening {
    /// Serves the store `opened` with `config`, as a part of `capacity`. `passed` are the sockets that
    /// systemd passed on, `left` the connections of Nix that the previous process left.
    #[allow(clippy::too_many_arguments, reason = "each is of another owner")]
    pub fn start(
        name: &str,
        config: &config::Listen,
        opened: &Opened,
        passed: &[(String, OwnedFd)],
        left: Vec<(String, OwnedFd)>,
        capacity: &Capacity,
        runtime: &Handle,
    ) -> Result<Self, EndpointError> {
        let store = opened.store.clone();
        let folder = opened.local.as_ref().map(LocalStore::folder);
        let listeners = bind(config, passed)?;
        let path = config.address.strip_prefix("unix:");
        let file = path.and_then(|path| SocketFile::at(Path::new(path)));
        let (stop, stopped) = oneshot::channel();
        let (tls, tokens) = config.access().load()?;
        let binary_cache = match config.protocol {
            config::Protocol::Grpc | config::Protocol::NixDaemon => None,
            config::Protocol::BinaryCache => Some(BinaryCacheOptions {
                priority: config.priority,
                secret_key: (config.secret_key_file.as_ref())
                    .map(load_secret_key)
                    .transpose()?
                    .map(Arc::new),
                open_to_read: config.read_without_token,
            }),
        };
        let nix_daemon = match config.protocol {
            config::Protocol::NixDaemon => Some(NixDaemonOptions {
                paths: ValidPaths::of(opened)?,
                hand_over: match NixConnections::of_listener(name) {
                    Some(keeper) => HandOver::new(keeper, left),
                    None => HandOver::default(),
                },
            }),
            config::Protocol::Grpc | config::Protocol::BinaryCache => None,
        };
        let hand_over = nix_daemon.as_ref().map(|of_nix| of_nix.hand_over.clone());
        let limits = Limits {
            connections: Limits::connections(config.max_connections),
            keep_free: config.keep_free.0,
            upload: config.max_upload.0,
            // What has to be sent on waits in a temporary file.
            disk: Some(folder.map_or_else(std::env::temp_dir, Path::to_owned)),
            ..match &nix_daemon {
                Some(_) => Limits::of_nix_daemon(),
                None => Limits::default(),
            }
        };
        let options = server::Options {
            writable: config.writable,
            allow_replace: config.allow_replace,
            narinfos_ahead: folder.is_some() && !config.unnamed,
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
        let task = runtime.spawn(serve);
        Ok(Self {
            stop,
            task,
            file,
            hand_over: hand_over.unwrap_or_default(),
        })
    }

    /// Accepts no more calls, and waits a while for those that run.
    pub fn stop(self, runtime: &Handle) {
        // First, so that no command waits for an answer of a stopping service. Nothing depends on
        // it.
        self.file.iter().for_each(SocketFile::remove);
        // Fails if it has ended by itself.
        let _ = self.stop.send(());
        // The timer needs the runtime around it from the start.
        let ended = async { tokio::time::timeout(DRAIN + Duration::from_secs(1), self.task).await };
        let _ = runtime.block_on(ended);
    }

    /// From now on the next process goes on with the connections of Nix.
    pub fn leave(&self) {
        self.hand_over.leave();
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

fn bind(
    config: &config::Listen,
    passed: &[(String, OwnedFd)],
) -> Result<Vec<Listener>, EndpointError> {
    let failed = |source| EndpointError::System {
        address: config.address.clone(),
        source,
    };
    if let Some(name) = config.address.strip_prefix("systemd:") {
        let named = passed.iter().filter(|(passed, _)| passed == name);
        let listeners = named
            .map(|(_, socket)| adopt(socket.try_clone()?))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        return match listeners.is_empty() {
            true => Err(EndpointError::NotPassed(name.to_owned())),
            false => Ok(listeners),
        };
    }
    if let Some(path) = config.address.strip_prefix("unix:") {
        let path = Path::new(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let listeners = Listener::bind(&config.address)?;
        let mode = fs::Permissions::from_mode(config.socket_mode.0);
        fs::set_permissions(path, mode).map_err(failed)?;
        return Ok(listeners);
    }
    Ok(Listener::bind(&config.address)?)
}

fn adopt(socket: OwnedFd) -> io::Result<Listener> {
    match rustix::net::sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => Ok(Listener::Unix(UnixListener::from(socket))),
        _ => Ok(Listener::Tcp(TcpListener::from(socket))),
    }
}

/// Serves `store`, which is made by `plan`, to virtual machines with `config`, and first to the
/// guests that the previous process left under `name`.
pub fn serve_guests(
    name: &str,
    config: &config::Virtiofs,
    store: Arc<dyn Store>,
    plan: &Plan,
    left: Vec<(String, OwnedFd)>,
    host: &Host,
) -> Result<Device, EndpointError> {
    let runtime = &host.runtime;
    let store: Arc<dyn Store> = match &config.roots_from {
        Some(file) => Arc::new(Filter::of_listed(store, file)),
        None => store,
    };
    let blocking = Blocking::new(store.clone(), runtime.clone());
    let options = castore_fs::Options {
        top: find_top(
            config.root.as_deref(),
            config.list_root.listing(),
            &blocking,
        )?,
        owner: Owner {
            uid: config.uid,
            gid: config.gid,
        },
        xattr: config.xattr,
        root_timeout: ROOT_TIMEOUT,
        slow_requests: host.slow_requests,
        warm_up: host.warm_up(config.warmup, config.root.as_deref(), plan),
        ..castore_fs::Options::default()
    };
    let device = DeviceOptions {
        tag: config.tag.as_deref().map(Tag::new).transpose()?,
        request_queues: usize::from(config.queues),
    };
    let failed = |source| EndpointError::System {
        address: config.socket.display().to_string(),
        source,
    };
    if let Some(folder) = config.socket.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let access = Access {
        mode: config.socket_mode.0,
        gid: None,
    };
    let socket = Socket::bind(&config.socket, access)?;
    let file = SocketFile::at(&config.socket);
    let keeper = GuestKeeper::of_device(name);
    let left = match &keeper {
        Some(keeper) => Left::read(left, &**keeper),
        None => Vec::new(),
    };
    let runtime = runtime.clone();
    let endpoint = Endpoint::serve_on(store, socket, options, device, runtime, keeper, left);
    Ok(Device {
        endpoint: Arc::new(endpoint.map_err(failed)?),
        file,
    })
}
