//! The socket that front ends connect to.
//!
//! A process that can connect can read the whole store, so a socket has its mode and group before
//! it is visible: it is bound under a temporary name and then moved into place. That also replaces,
//! in one step, the socket of a process that died.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Bytes of a socket's path, at most: `sun_path` of unix(7), less its final NUL.
const LONGEST_PATH: usize = 107;

/// Why the socket cannot be made.
#[derive(Debug, Error)]
pub enum DeviceSocketError {
    /// Another process listens there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something else.
    #[error("{} exists and is no socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system limits the length of a socket's path.
    #[error(
        "the path of a socket can have {LONGEST_PATH} bytes, and {} has more", .0.display()
    )]
    TooLong(PathBuf),
    /// The descriptor that was passed on is no listening stream socket.
    #[error("the descriptor that was passed on is not a listening socket: {0}")]
    PreviousState(io::Error),
    /// A system call failed.
    #[error("cannot {action} the socket {}: {source}", path.display())]
    System {
        /// The action: a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The permissions of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Its permissions: write permission allows connecting.
    pub mode: u32,
    /// Its group, if not the process's own.
    pub gid: Option<u32>,
}

impl Default for SocketAccess {
    /// Only the process's own user.
    fn default() -> Self {
        Self {
            mode: 0o600,
            gid: None,
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Socket(UnixListener);

impl Socket {
    /// Listens at `path`.
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, DeviceSocketError> {
        let failed = |action| {
            move |source: io::Error| DeviceSocketError::System {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let unfinished = unfinished(path);
        let longest = path.as_os_str().len().max(unfinished.as_os_str().len());
        if longest > LONGEST_PATH {
            return Err(DeviceSocketError::TooLong(path.to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(DeviceSocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(DeviceSocketError::InUse(path.to_owned()));
            }
            _ => {}
        }
        // Left by a process with this process id that died in the middle of this.
        let _ = fs::remove_file(&unfinished);
        let listener = UnixListener::bind(&unfinished).map_err(failed("make"))?;
        let prepare = || {
            if let Some(gid) = access.gid {
                std::os::unix::fs::chown(&unfinished, None, Some(gid))
                    .map_err(failed("set the group of"))?;
            }
            fs::set_permissions(&unfinished, Permissions::from_mode(access.mode))
                .map_err(failed("set the mode of"))?;
            fs::rename(&unfinished, path).map_err(failed("move into place"))
        };
        prepare().inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
        Ok(Self(listener))
    }

    /// Takes over a socket on which another process, such as systemd, has called listen.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, DeviceSocketError> {
        let listens = rustix::net::sockopt::socket_acceptconn(&descriptor);
        match listens {
            Ok(true) => {}
            Ok(false) => {
                return Err(DeviceSocketError::PreviousState(
                    io::ErrorKind::NotConnected.into(),
                ));
            }
            Err(errno) => return Err(DeviceSocketError::PreviousState(errno.into())),
        }
        let listener = UnixListener::from(descriptor);
        // Fails for a socket of another family.
        listener
            .local_addr()
            .map_err(DeviceSocketError::PreviousState)?;
        listener
            .set_nonblocking(false)
            .map_err(DeviceSocketError::PreviousState)?;
        Ok(Self(listener))
    }

    /// Another descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.0.try_clone()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The name under which a socket is made, short because its path's length is limited.
fn unfinished(path: &Path) -> PathBuf {
    let dir = path.parent().unwrap_or(Path::new(""));
    dir.join(format!(".{}.new", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_mode_from_the_start_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let access = SocketAccess {
            mode: 0o660,
            gid: None,
        };
        let first = Socket::bind(&path, access).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let in_use = Socket::bind(&path, access).unwrap_err();
        assert!(matches!(in_use, DeviceSocketError::InUse(_)), "{in_use}");
        drop(first);
        Socket::bind(&path, access).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        let refused = Socket::bind(&path, SocketAccess::default()).unwrap_err();
        assert!(
            matches!(refused, DeviceSocketError::NotASocket(_)),
            "{refused}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"data");
        let long = dir.path().join("x".repeat(200));
        let refused = Socket::bind(&long, SocketAccess::default()).unwrap_err();
        assert!(
            matches!(refused, DeviceSocketError::TooLong(_)),
            "{refused}"
        );
    }

    #[test]
    fn only_a_listening_socket_is_taken_over() {
        let file = tempfile::tempfile().unwrap();
        Socket::from_descriptor(file.into()).unwrap_err();
        let (one, _other) = UnixStream::pair().unwrap();
        Socket::from_descriptor(one.into()).unwrap_err();
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        Socket::from_descriptor(listener.into()).unwrap();
    }
}
