//! `castore-fs virtiofs`.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use castore_fs::fs::{Options, Owner};
use castore_fs::sandbox::Sandbox;
use castore_fs::store::Needs;
use castore_fs::transport::virtiofs::{
    Access, DeviceOptions, Endpoint, MOST_QUEUES, ROOT_TIMEOUT, Socket, Tag,
};
use clap::Args;

use super::failure::{Failure, failure, say};
use super::interrupt::on_interrupt;
use super::mount::top;
use super::store::StoreArguments;
use super::supervisor::Supervisor;

/// Descriptors that the process may have open: the store's, and for each of 16 front ends on a
/// socket those of every queue (9) and of its memory.
const OPEN_FILES: u64 = 1024;
const OPEN_FILES_OF_A_QUEUE: u64 = 16 * 9;

/// Serve a store to virtual machines over virtiofs
///
/// Listens at --socket for QEMU, cloud-hypervisor or crosvm (vhost-user), or on the sockets that
/// systemd passes. The guest mounts it by the tag that its front end gives it: mount -t virtiofs
/// TAG /mnt. Guests come, go, reboot and reconnect; each has its own view, and all share the store.
///
/// Before the first guest is served the process gives up its privileges, all files but the store's,
/// and the system calls that it does not need.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs virtiofs --root tree --socket /run/tree.sock
  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on \\
    -numa node,memdev=mem -chardev socket,id=fs,path=/run/tree.sock \\
    -device vhost-user-fs-pci,chardev=fs,tag=tree,queue-size=1024")]
pub(super) struct Virtiofs {
    #[command(flatten)]
    store: StoreArguments,
    /// Where to listen; several for several guests
    ///
    /// A socket that no process listens on any more is replaced.
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// The sockets' permissions, in octal; who may write may connect
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    socket_mode: u32,
    /// The sockets' group, by name or number
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// The tag, for front ends that ask for it (crosvm); with others it is on their command line
    #[arg(long, value_name = "TAG", value_parser = Tag::new)]
    tag: Option<Tag>,
    /// Request queues that a front end can use, each with a worker of its own
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u8).range(1..=MOST_QUEUES as i64)
    )]
    queues: u8,
    /// Show this directory at the top: NAME[/PATH] or the digest of a Directory
    #[arg(long, value_name = "NAME|DIGEST")]
    root: Option<PathBuf>,
    /// Let roots be looked up by name only; listing them is refused
    #[arg(long)]
    no_list_root: bool,
    /// Who owns everything: user id
    #[arg(long, value_name = "U", default_value_t = 0)]
    uid: u32,
    /// Who owns everything: group id
    #[arg(long, value_name = "G", default_value_t = 0)]
    gid: u32,
    /// Answer extended attributes: digests, as user.castore.digest and under the peers' names
    #[arg(long)]
    xattr: bool,
    /// Keep all privileges
    #[arg(long)]
    no_sandbox: bool,
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("a mode is octal, 000 to 777".to_owned()),
    }
}

impl Virtiofs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let place = self.store.place()?;
        place.must_exist()?;
        let sockets = self.sockets()?;
        let supervisor = Supervisor::connect()?;
        // Before the store and its runtime start threads.
        if !self.no_sandbox {
            self.sandbox(place.needs(), sockets.len())?;
        }
        // The configuration file can no longer be read: what it says is known by now.
        let opened = place.open_or_make()?;
        let url = opened.store.url().to_owned();
        let options = Options {
            top: top(&opened.store, self.root.as_deref(), !self.no_list_root)?,
            owner: Owner {
                uid: self.uid,
                gid: self.gid,
            },
            xattr: self.xattr,
            root_timeout: ROOT_TIMEOUT,
            ..Options::default()
        };
        let device = DeviceOptions {
            tag: self.tag.clone(),
            request_queues: usize::from(self.queues),
        };
        let (stop, stopped) = mpsc::channel();
        on_interrupt(&opened.runtime, move || {
            // Fails only once we have stopped.
            let _ = stop.send(());
        })?;
        let serve = |socket| {
            let store = opened.store.store().clone();
            let runtime = opened.runtime.handle().clone();
            Endpoint::serve(store, socket, options.clone(), device.clone(), runtime)
        };
        let endpoints: Vec<_> = sockets.into_iter().map(serve).collect::<Result<_, _>>()?;
        for path in &self.socket {
            say(&format!("{url} is at {}", path.display()));
        }
        supervisor.tell("READY=1");
        // Only ends if nothing can interrupt us any more.
        let _ = stopped.recv();
        supervisor.tell("STOPPING=1");
        drop(endpoints);
        // Threads may still wait for a store that is far away; the process does not.
        opened.runtime.shutdown_background();
        Ok(())
    }

    /// The sockets that systemd passes, and those to make.
    fn sockets(&self) -> Result<Vec<Socket>, Failure> {
        let mut sockets = Vec::new();
        for descriptor in sd_notify::listen_fds()? {
            // SAFETY: systemd passes the descriptor to us to own, and `listen_fds` names each once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            sockets.push(Socket::inherited(descriptor)?);
        }
        let gid = self.socket_group.as_deref().map(group).transpose()?;
        let access = Access {
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

    fn sandbox(&self, needs: Needs, sockets: usize) -> Result<(), Failure> {
        for folder in &needs.write {
            // What is not there cannot be allowed.
            std::fs::create_dir_all(folder).map_err(|error| {
                failure(format!(
                    "cannot make the folder {}: {error}",
                    folder.display()
                ))
            })?;
        }
        let queues = 1 + u64::from(self.queues);
        let sandbox = Sandbox {
            read: needs.read,
            write: needs.write,
            network: needs.network,
            open_files: OPEN_FILES + sockets as u64 * queues * OPEN_FILES_OF_A_QUEUE,
        };
        let sandboxed = sandbox.enter()?;
        if !sandboxed.files {
            say("this kernel has no Landlock: a guest that takes this process over can read files");
        }
        Ok(())
    }
}

/// The id of a group given by name or number.
fn group(group: &str) -> Result<u32, Failure> {
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
