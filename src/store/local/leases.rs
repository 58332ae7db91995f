//! Leases: what processes use in the store is never collected, and evicted last from a cache.
//!
//! A process that shows a store's trees (a mount, a guest's device) keeps a file in `leases/` that
//! lists the nodes in use, and holds a lock on it as long as it lives. A collection by any process
//! reads them all. So what a mount shows stays readable although its root was removed.
//!
//! **When the process has ended**, a mount may still exist: systemd holds it, and another process
//! will take it over. The file names the kernel's FUSE connection, and counts as long as that
//! exists; the next process writes a file of its own. A guest has no such mark, and if the kernel's
//! list of connections (fusectl) is not mounted a mount may not be seen: then the file counts for
//! an hour after a collection first found its process gone. Nothing in `leases/` outlives the
//! machine's boot.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::LocalStore;
use super::dir::{StoreDirectory, is_at, try_lock};
use crate::castore::{Digest, Node};
use crate::clock::unix_seconds;
use crate::store::Error;

/// Seconds for which a guest's lease counts after its process has ended.
const SUCCESSION: u64 = 60 * 60;
/// Bytes of a lease that are read, at most: a million nodes.
const LONGEST: u64 = 128 << 20;
/// Where the kernel lists its FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// Its type in statfs(2), if it is mounted (`FUSE_CTL_SUPER_MAGIC` in the kernel's
/// fs/fuse/control.c).
const CONNECTIONS_MAGIC: u64 = 0x6573_5543;

/// What one mount or guest uses of one store. Dropping it releases everything, unless the mount
/// still exists for another process to take over.
#[derive(Debug)]
pub struct InUseLease {
    dir: Arc<StoreDirectory>,
    connection: Option<u64>,
    state: Mutex<LeaseState>,
}

#[derive(Debug)]
struct LeaseState {
    file: File,
    path: PathBuf,
    held: HashMap<Digest, Node>,
    /// Obsolete lines in the file.
    stale: usize,
}

impl LocalStore {
    /// Begins the lease of a mount or guest: `connection` is the number of the mount's FUSE
    /// connection. Nothing if this process may not write to the store; what it shows can then be
    /// collected.
    pub fn lease(&self, connection: Option<u64>) -> Option<InUseLease> {
        let dir = &self.0.dir;
        match create(dir, connection) {
            Ok((file, path)) => Some(InUseLease {
                dir: dir.clone(),
                connection,
                state: Mutex::new(LeaseState {
                    file,
                    path,
                    held: HashMap::new(),
                    stale: 0,
                }),
            }),
            Err(error) => {
                tracing::debug!(
                    %error,
                    "what is in use of {} cannot be noted there, and may be collected",
                    dir.url()
                );
                None
            }
        }
    }

    /// Drops the previous process's lease for the mount with this FUSE connection: this process has
    /// its own now.
    pub fn succeed_lease(&self, connection: u64) {
        let Ok(leases) = list(&self.0.dir) else {
            return;
        };
        for path in leases {
            let same = |lease: &ParsedLease| lease.connection == Some(connection);
            if let Ok(LeaseFile::Abandoned(lease)) = look(&path)
                && same(&lease)
            {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

impl InUseLease {
    /// Holds a node and everything below it. Returns whether it was not held before.
    pub fn hold(&self, node: &Node) -> bool {
        let Some(digest) = node.digest() else {
            return false;
        };
        let mut state = self.state.lock();
        if state.held.contains_key(&digest) {
            return false;
        }
        if let Err(error) = (&state.file).write_all(line(node).as_bytes()) {
            tracing::warn!(%error, "{digest} is in use and can be collected");
        }
        state.held.insert(digest, node.clone());
        true
    }

    /// Holds a node no longer.
    pub fn release(&self, node: &Node) {
        let Some(digest) = node.digest() else { return };
        let mut state = self.state.lock();
        if state.held.remove(&digest).is_none() {
            return;
        }
        let _ = (&state.file).write_all(format!("release {}\n", digest.to_hex()).as_bytes());
        state.stale += 2;
        if state.stale > 1000 && state.stale > 2 * state.held.len() {
            // If that fails, the file just grows.
            let _ = self.rewrite(&mut state);
        }
    }

    /// Writes another file, without obsolete lines.
    fn rewrite(&self, state: &mut LeaseState) -> io::Result<()> {
        let (file, path) = create(&self.dir, self.connection)?;
        let lines: String = state.held.values().map(line).collect();
        (&file).write_all(lines.as_bytes())?;
        let old = std::mem::replace(&mut state.path, path);
        state.file = file;
        state.stale = 0;
        fs::remove_file(old)
    }

    /// Releases everything, without a hand-over.
    pub fn end(self) {
        let _ = fs::remove_file(&self.state.lock().path);
    }
}

impl Drop for InUseLease {
    fn drop(&mut self) {
        // A guest's is kept for the next process; `end` removes it.
        let is_over = |number| is_connected(number) != Some(true);
        if self.connection.is_some_and(is_over) {
            let _ = fs::remove_file(&self.state.get_mut().path);
        }
    }
}

fn line(node: &Node) -> String {
    match node {
        Node::Directory { digest, size } => format!("directory {} {size}\n", digest.to_hex()),
        Node::File { digest, size, .. } => format!("file {} {size}\n", digest.to_hex()),
        Node::Symlink { .. } => String::new(),
    }
}

fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

fn head(connection: Option<u64>) -> io::Result<String> {
    let boot = boot_id()?;
    Ok(match connection {
        Some(number) => format!("boot {boot}\nconnection {number}\n"),
        None => format!("boot {boot}\n"),
    })
}

/// Makes a file that no other process has, and locks it.
fn create(dir: &StoreDirectory, connection: Option<u64>) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let head = head(connection)?;
    dir.make_dir(&dir.leases())?;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir
            .leases()
            .join(format!("{}-{number}", std::process::id()));
        let mut options = File::options();
        let made = options.read(true).append(true).create_new(true).open(&path);
        let file = match made {
            Ok(file) => file,
            // Of a dead process with this process id.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        // Before it is locked, the file looks like a dead process's.
        if try_lock(&file)? && is_at(&file, &path)? {
            dir.give_to_owner(&file, &path);
            (&file).write_all(head.as_bytes())?;
            return Ok((file, path));
        }
    }
}

/// The content of a file.
#[derive(Debug, Default)]
struct ParsedLease {
    boot: String,
    connection: Option<u64>,
    /// When a collection first found the process gone, in seconds since 1970.
    dead: Option<u64>,
    nodes: HashMap<Digest, Node>,
}

impl ParsedLease {
    fn read(file: &File) -> io::Result<Self> {
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let mut parsed = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (kind, first) = (words.next().unwrap_or_default(), words.next());
            let Some(first) = first else { continue };
            let digest = || first.parse::<Digest>().ok();
            let size = words.next().and_then(|size| size.parse().ok());
            match kind {
                "boot" => parsed.boot = first.to_owned(),
                "connection" => parsed.connection = first.parse().ok(),
                "dead" => parsed.dead = parsed.dead.or(first.parse().ok()),
                "directory" => {
                    if let (Some(digest), Some(size)) = (digest(), size) {
                        let node = Node::Directory { digest, size };
                        parsed.nodes.insert(digest, node);
                    }
                }
                "file" => {
                    if let (Some(digest), Some(size)) = (digest(), size) {
                        let node = Node::File {
                            digest,
                            size,
                            executable: false,
                        };
                        parsed.nodes.insert(digest, node);
                    }
                }
                "release" => {
                    if let Some(digest) = digest() {
                        parsed.nodes.remove(&digest);
                    }
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// A file in `leases/`.
enum LeaseFile {
    /// Its process lives.
    Held(ParsedLease),
    /// Its process has gone.
    Abandoned(ParsedLease),
}

fn look(path: &Path) -> io::Result<LeaseFile> {
    let file = File::open(path)?;
    let is_free = try_lock(&file)?;
    let parsed = ParsedLease::read(&file)?;
    Ok(match is_free {
        true => LeaseFile::Abandoned(parsed),
        false => LeaseFile::Held(parsed),
    })
}

fn list(dir: &StoreDirectory) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir.leases()) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Everything in use. Files that hold nothing any more are removed.
pub(super) fn in_use(dir: &StoreDirectory) -> Result<Vec<Node>, Error> {
    let path = dir.leases();
    let boot = boot_id().map_err(dir.io("read the boot id for", &path))?;
    loop {
        let leases = list(dir).map_err(dir.io("list", &path))?;
        if let Some(nodes) = read_all(dir, &leases, &boot)? {
            return Ok(nodes);
        }
    }
}

/// The nodes in these files; nothing if one of them has been replaced meanwhile.
fn read_all(
    dir: &StoreDirectory,
    leases: &[PathBuf],
    boot: &str,
) -> Result<Option<Vec<Node>>, Error> {
    let mut nodes = HashMap::new();
    for path in leases {
        let parsed = match look(path) {
            Ok(LeaseFile::Held(parsed)) => parsed,
            Ok(LeaseFile::Abandoned(parsed)) if is_over(&parsed, boot, path) => {
                let _ = fs::remove_file(path);
                continue;
            }
            Ok(LeaseFile::Abandoned(parsed)) => parsed,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            // Its content is unknown, so nothing may be collected.
            Err(error) => return Err(dir.io("read", path)(error)),
        };
        nodes.extend(parsed.nodes);
    }
    Ok(Some(nodes.into_values().collect()))
}

/// Whether the lease of a dead process has expired.
fn is_over(lease: &ParsedLease, boot: &str, path: &Path) -> bool {
    if lease.boot != boot {
        return true;
    }
    if let Some(is_connected) = lease.connection.and_then(is_connected) {
        return !is_connected;
    }
    if let Some(dead) = lease.dead {
        return dead.saturating_add(SUCCESSION) < unix_seconds();
    }
    let noted = File::options().append(true).open(path);
    let noted = noted.and_then(|mut file| writeln!(file, "dead {}", unix_seconds()));
    if let Err(error) = noted {
        tracing::debug!(%error, "{} counts until the next boot", path.display());
    }
    false
}

/// Whether a FUSE connection exists; nothing if that is not visible from here.
fn is_connected(number: u64) -> Option<bool> {
    let device = format!(" 0:{number} ");
    let is_mounted = |mounts: &str| {
        let mounts = fs::read_to_string(mounts).unwrap_or_default();
        mounts.lines().any(|line| line.contains(&device))
    };
    if is_mounted("/proc/self/mountinfo") {
        return Some(true);
    }
    // Mounts that are detached from the tree and still in use are only in the kernel's own list.
    let found = rustix::fs::statfs(CONNECTIONS).ok()?;
    if found.f_type as u64 != CONNECTIONS_MAGIC {
        return None;
    }
    let connection = Path::new(CONNECTIONS).join(number.to_string());
    connection.try_exists().ok()
}
