//! Connections that outlive the process.
//!
//! Nix opens a connection when a build begins and uses it again when the build has ended. If it is gone by then, the
//! build fails. So a connection that has been quiet for a moment is handed over to a holder (systemd's descriptor store),
//! and the next process continues it.
//!
//! The state of a connection between two operations is the version of the protocol. It is noted on the socket
//! itself, which both processes have: as its receive timeout, which has no effect on a socket that does not
//! block. There is none while an operation runs: what was read of its request died with the process, and the client
//! would wait for ever; such a connection is closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};

use crate::nix::daemon_protocol::Version;

/// What keeps descriptors over the end of the process.
pub trait ConnectionHolder: Send + Sync {
    /// Keeps `descriptor` under `name` from now on.
    fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Drops what is kept under `name`.
    fn forget(&self, name: &str);
}

/// The connections of a listener over the end of the process.
#[derive(Clone, Default)]
pub struct HandOver(Option<Arc<HandOverInner>>);

struct HandOverInner {
    holder: Box<dyn ConnectionHolder>,
    previous: Mutex<Vec<(String, OwnedFd)>>,
    /// Names are unique over processes: they begin with the time of this one's start.
    start: u128,
    next: AtomicU64,
    /// Whether the next process is to go on.
    leaves: AtomicBool,
}

impl std::fmt::Debug for HandOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandOver")
    }
}

impl HandOver {
    /// By `holder`; `previous` are the connections of the previous process.
    pub fn new(holder: Box<dyn ConnectionHolder>, previous: Vec<(String, OwnedFd)>) -> Self {
        let start = SystemTime::UNIX_EPOCH.elapsed();
        Self(Some(Arc::new(HandOverInner {
            holder,
            previous: Mutex::new(previous),
            start: start.map_or(0, |start| start.as_nanos()),
            next: AtomicU64::new(0),
            leaves: AtomicBool::new(false),
        })))
    }

    /// From now on connections that end do so for the next process, which continues them.
    pub fn hand_over(&self) {
        if let Some(inner) = &self.0 {
            inner.leaves.store(true, Ordering::Relaxed);
        }
    }

    /// The connections of the previous process that can go on, with their versions.
    pub(super) fn previous(&self) -> Vec<(OwnedFd, Version, HandedOverConnection)> {
        let Some(inner) = &self.0 else {
            return Vec::new();
        };
        let previous = std::mem::take(&mut *inner.previous.lock());
        let previous = previous.into_iter().filter_map(|(name, socket)| {
            let mut connection = self.keep_later();
            connection.name = Some(name);
            let version = noted(socket.as_fd())?;
            Some((socket, version, connection))
        });
        previous.collect()
    }

    /// A new connection, which is not kept yet.
    pub(super) fn keep_later(&self) -> HandedOverConnection {
        HandedOverConnection {
            by: self.clone(),
            name: None,
        }
    }
}

/// A connection that may be kept; dropped, it is not any more, unless the next process is to go on with it.
pub(super) struct HandedOverConnection {
    by: HandOver,
    name: Option<String>,
}

impl HandedOverConnection {
    /// Whether there is something left to do for it to be kept.
    pub(super) fn is_wanted(&self) -> bool {
        self.by.0.is_some() && self.name.is_none()
    }

    /// Whether the next process is to go on with it.
    pub(super) fn is_handed_over(&self) -> bool {
        let inner = self.by.0.as_ref();
        inner.is_some_and(|inner| inner.leaves.load(Ordering::Relaxed))
    }

    /// Has it kept.
    pub(super) fn keep(&mut self, socket: BorrowedFd<'_>) {
        let Some(inner) = self.by.0.as_ref().filter(|_| self.name.is_none()) else {
            return;
        };
        let number = inner.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:x}-{number}", inner.start);
        match inner.holder.hold(&name, socket) {
            Ok(()) => self.name = Some(name),
            Err(error) => {
                tracing::warn!("a connection of Nix is not kept for the next process: {error}")
            }
        }
    }
}

impl Drop for HandedOverConnection {
    fn drop(&mut self) {
        if !self.is_handed_over()
            && let (Some(inner), Some(name)) = (&self.by.0, &self.name)
        {
            inner.holder.forget(name);
        }
    }
}

/// Notes that the connection waits for an operation, in this version.
pub(super) fn note(socket: BorrowedFd<'_>, version: Version) {
    let seconds = Duration::from_secs(version.word());
    // If this fails, the connection ends with the process.
    let _ = set_socket_timeout(socket, Timeout::Recv, Some(seconds));
}

/// Notes that an operation runs.
pub(super) fn note_busy(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(set_socket_timeout(socket, Timeout::Recv, None)?)
}

/// The version of a connection that waits for an operation.
fn noted(socket: BorrowedFd<'_>) -> Option<Version> {
    let seconds = socket_timeout(socket, Timeout::Recv).ok()??.as_secs();
    let version = Version::from_word(seconds)?;
    (version >= Version::FIRST && version <= Version::LATEST).then_some(version)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_state_of_a_connection_is_on_its_socket() {
        let (socket, _other) = UnixStream::pair().unwrap();
        assert_eq!(noted(socket.as_fd()), None);
        note(socket.as_fd(), Version::LATEST);
        let again = socket.try_clone().unwrap();
        assert_eq!(noted(again.as_fd()), Some(Version::LATEST));
        note_busy(again.as_fd()).unwrap();
        assert_eq!(noted(socket.as_fd()), None);
    }
}
