//! `castore-fs virtiofs`: a parent process that holds the guests' connections ([`parent`]), and a worker that
//! serves them.

mod descriptors;
mod parent;

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::fs::{FsOptions, MountRoot, NodeOwner};
use crate::sandbox;
use crate::service::{
    ServiceStatus, StatusSource, StoreStatus, VirtiofsStatus, listen_for_metrics, metrics_on,
};
use crate::store::Cache;
use crate::stores::{self, StoreNeeds};
use crate::transport::virtiofs::{
    DeviceOptions, DeviceTag, MOST_QUEUES, PreviousGuest, Socket, SocketAccess, VirtiofsEndpoint,
};
use clap::Args;
use parent::{ParentChannel, ReceivedDescriptors};

use super::confine::{AdditionAccess, confine};
use super::failure::{CommandFailure, failure, print_error};
use super::interrupt::on_interrupt;
use super::mode;
use super::mount::{ListRootArgument, mount_root, owner_id};
use super::store::StoreArguments;
use super::supervisor::Supervisor;

/// Descriptors that the process may have open: the store's, and for each of 16 front ends on a
/// socket those of every queue (8, and 2 for the hand-over) and of its memory.
const OPEN_FILES: u64 = 1024;
const OPEN_FILES_OF_A_QUEUE: u64 = 16 * 10;
/// The boot id with which leases of local stores are marked (see `docs/store-format.md`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often a worker whose parent has died checks whether its guests have disconnected.
const ALONE: Duration = Duration::from_millis(500);

/// Serve a store to virtual machines over virtiofs
///
/// Listens at --socket for QEMU, cloud-hypervisor or crosvm (vhost-user), or on the sockets that
/// systemd passes. The guest mounts it by the tag that its front end has: mount -t virtiofs TAG
/// /mnt. Guests come, go, reboot and reconnect; each has its own view, and all share the store.
///
/// Before the first guest is served the worker gives up its privileges, all files but the store's,
/// and the system calls that it does not need. If it dies, another takes over under the running
/// guests.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs virtiofs --root tree --socket /run/tree.sock
  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on \\
    -numa node,memdev=mem -chardev socket,id=fs,path=/run/tree.sock \\
    -device vhost-user-fs-pci,chardev=fs,tag=tree,queue-size=1024")]
pub(super) struct VirtiofsCommand {
    #[command(flatten)]
    store: StoreArguments,
    /// The sockets to listen on; several for several guests
    ///
    /// A socket without a listening process is replaced.
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// The sockets' permissions, in octal: write permission allows connecting
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    socket_mode: u32,
    /// The sockets' group, by name or number
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// The tag, for front ends that read it from the device (crosvm); others have it on their
    /// command line
    #[arg(long, value_name = "TAG", value_parser = DeviceTag::new)]
    tag: Option<DeviceTag>,
    /// Request queues that a front end can use, each with a worker of its own
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u8).range(1..=MOST_QUEUES as i64)
    )]
    queues: u8,
    /// Show this directory as the mount root: NAME[/PATH] or the digest of a Directory
    #[arg(long, value_name = "NAME|DIGEST")]
    root: Option<PathBuf>,
    #[command(flatten)]
    listing: ListRootArgument,
    /// The owner of everything: user id
    #[arg(long, value_name = "U", default_value_t = 0, value_parser = owner_id)]
    uid: u32,
    /// The owner of everything: group id
    #[arg(long, value_name = "G", default_value_t = 0, value_parser = owner_id)]
    gid: u32,
    /// Support extended attributes: digests, as user.castore.digest and under the names of tvix and
    /// snix
    #[arg(long)]
    xattr: bool,
    /// Serve metrics at HOST:PORT or unix:PATH, over HTTP, in the text format of Prometheus
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// Keep all privileges
    #[arg(long)]
    no_sandbox: bool,
}

/// Why a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerEnd {
    Stopped,
    /// Its parent has died.
    Alone,
}

/// Serves the present guests until they disconnect or it is stopped.
fn alone(endpoints: &[Arc<VirtiofsEndpoint>], stopped: &mpsc::Receiver<WorkerEnd>) {
    tracing::warn!("the parent process has died; serving the connected guests only");
    endpoints.iter().for_each(|endpoint| endpoint.hand_over());
    while endpoints.iter().any(|endpoint| endpoint.has_guests()) {
        if stopped.recv_timeout(ALONE) == Ok(WorkerEnd::Stopped) {
            return;
        }
    }
}

impl VirtiofsCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        match ParentChannel::of_worker()? {
            Some((parent, received)) => self.serve(&parent, received),
            None => self.supervise(),
        }
    }

    /// The work of the parent process.
    fn supervise(self) -> Result<(), CommandFailure> {
        let place = self.store.place()?;
        place.must_exist()?;
        let sockets = self.sockets()?;
        let supervisor = Supervisor::connect()?;
        let own = |socket: &Socket| socket.as_fd().try_clone_to_owned();
        let received = ReceivedDescriptors {
            sockets: sockets.iter().map(own).collect::<Result<_, _>>()?,
            metrics: self
                .metrics
                .as_deref()
                .map(listen_for_metrics)
                .transpose()?,
            ..ReceivedDescriptors::default()
        };
        if !self.no_sandbox {
            sandbox::give_up_privileges()?;
        }
        parent::run(received, |url| {
            for path in &self.socket {
                print_error(&format!("{url} is at {}", path.display()));
            }
            supervisor.send_request("READY=1");
        })?;
        supervisor.send_request("STOPPING=1");
        Ok(())
    }

    /// The work of a worker process.
    fn serve(
        self,
        parent: &ParentChannel,
        mut received: ReceivedDescriptors,
    ) -> Result<(), CommandFailure> {
        let started = Instant::now();
        let place = self.store.place()?;
        // Received from the parent, and not from a guest.
        let previous: Vec<Vec<PreviousGuest>> = (0..received.sockets.len())
            .map(|number| {
                let lists = parent::of_socket(&mut received.hand_over_state, number);
                PreviousGuest::read(lists, &*parent.holder(number))
            })
            .collect();
        // Before the store and its runtime start threads.
        if !self.no_sandbox {
            let most = Some(self.open_files(received.sockets.len()));
            confine(with_leases(place.needs()), AdditionAccess::Never, most)?;
        }
        // The configuration file can no longer be read, and need not be.
        let opened = place.open_or_make()?;
        // A worker's arguments are those of the one before.
        let shows = format!("root {:?}", self.root);
        let mount_root = mount_root(&opened.store, self.root.as_deref(), self.listing.listing());
        let mount_root = mount_root.or_else(|error| {
            match PreviousGuest::mount_root(previous.iter().flatten(), &shows) {
                Some((digest, size)) => {
                    if let CommandFailure::Message(why) = error {
                        tracing::warn!(
                            why,
                            "still serving what the guests use: it has no name now"
                        );
                    }
                    Ok(MountRoot::Directory { digest, size })
                }
                None => Err(error),
            }
        })?;
        let owner = NodeOwner {
            uid: self.uid,
            gid: self.gid,
        };
        let options = FsOptions::new(mount_root, owner).with_xattr(self.xattr);
        let device = DeviceOptions {
            tag: self.tag.clone(),
            request_queues: usize::from(self.queues),
            shows,
        };
        let (stop, stopped) = mpsc::channel();
        let interrupted = stop.clone();
        on_interrupt(&opened.runtime, move || {
            // Fails only once this has stopped.
            let _ = interrupted.send(WorkerEnd::Stopped);
        })?;
        let mut endpoints = Vec::new();
        for (number, (socket, previous)) in received.sockets.into_iter().zip(previous).enumerate() {
            let endpoint = VirtiofsEndpoint::serve_on(
                opened.store.store().clone(),
                Socket::from_descriptor(socket)?,
                options.clone(),
                device.clone(),
                opened.runtime.handle().clone(),
                Some(parent.holder(number)),
                previous,
            )?;
            endpoints.push(Arc::new(endpoint));
        }
        let _metrics = match received.metrics {
            Some(socket) => {
                let ask = self.ask(opened.described, &endpoints, started);
                let runtime = opened.runtime.handle();
                Some(metrics_on(socket, ask, runtime)?)
            }
            None => None,
        };
        parent.ready(opened.store.url());
        let waiting = parent.clone();
        std::thread::spawn(move || {
            waiting.wait_for_death();
            let _ = stop.send(WorkerEnd::Alone);
        });
        match stopped.recv() {
            Ok(WorkerEnd::Alone) => alone(&endpoints, &stopped),
            // The channel only ends if no signal can come any more.
            Ok(WorkerEnd::Stopped) | Err(_) => {}
        }
        endpoints.iter().for_each(|endpoint| endpoint.poison());
        opened.caches.iter().for_each(Cache::flush);
        // Threads may still wait for an upstream, and would panic without the runtime; they
        // end with the process.
        std::mem::forget(opened.runtime);
        Ok(())
    }

    /// The source of the status.
    fn ask(
        &self,
        store: stores::OpenedStore,
        endpoints: &[Arc<VirtiofsEndpoint>],
        started: Instant,
    ) -> StatusSource {
        let paths = self.socket.iter().cloned().map(Some);
        let devices: Vec<_> = endpoints
            .iter()
            .cloned()
            .zip(paths.chain(std::iter::repeat(None)))
            .collect();
        Arc::new(move || {
            let devices = devices.iter().enumerate();
            ServiceStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_seconds: started.elapsed().as_secs(),
                stores: [("store".to_owned(), StoreStatus::of(&store))].into(),
                virtiofs: devices
                    .map(|(number, (endpoint, socket))| {
                        let socket = socket.clone().unwrap_or_default();
                        let status = endpoint.status();
                        let status = VirtiofsStatus::of(socket, "store".to_owned(), &status);
                        (number.to_string(), status)
                    })
                    .collect(),
                ..ServiceStatus::default()
            }
        })
    }

    /// The sockets that systemd passes, and those to make.
    fn sockets(&self) -> Result<Vec<Socket>, CommandFailure> {
        let mut sockets = Vec::new();
        for descriptor in sd_notify::listen_fds()? {
            // SAFETY: systemd passes the ownership of the descriptor, and `listen_fds` names each
            // once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            sockets.push(Socket::from_descriptor(descriptor)?);
        }
        let gid = self.socket_group.as_deref().map(group).transpose()?;
        let access = SocketAccess {
            mode: self.socket_mode,
            gid,
        };
        for path in &self.socket {
            sockets.push(Socket::bind(path, access)?);
        }
        match sockets.is_empty() {
            true => Err(failure(
                "there is no socket to listen on: give one with --socket PATH, or start this from a \
                 systemd socket unit",
            )),
            false => Ok(sockets),
        }
    }

    fn open_files(&self, sockets: usize) -> u64 {
        let queues = 1 + u64::from(self.queues);
        OPEN_FILES + sockets as u64 * queues * OPEN_FILES_OF_A_QUEUE
    }
}

/// The id of a group by name or number.
fn group(group: &str) -> Result<u32, CommandFailure> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups = std::fs::read_to_string(Path::new("/etc/group"))
        .map_err(|error| failure(format!("cannot read /etc/group: {error}")))?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let id = (fields.next() == Some(group)).then(|| fields.nth(1))??;
        id.parse().ok()
    });
    found.ok_or_else(|| failure(format!("there is no group {group} in /etc/group")))
}

/// The additional needs for recording in local stores what guests use, where that is allowed.
fn with_leases(mut needs: StoreNeeds) -> StoreNeeds {
    for dir in &needs.dirs {
        let leases = dir.join("leases");
        let is_store = dir.join("index.redb").exists();
        if is_store && (leases.is_dir() || std::fs::create_dir(&leases).is_ok()) {
            needs.write.push(leases);
        }
    }
    needs.read.push(PathBuf::from(BOOT_ID));
    needs
}
