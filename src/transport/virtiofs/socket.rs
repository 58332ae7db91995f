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
pub enum SocketError {
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
    /// The descriptor that was inherited is no listening stream socket.
    #[error("the inherited descriptor is not a listening socket: {0}")]
    Inherited(io::Error),
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
pub struct Access {
    /// Its permissions: write permission allows connecting.
    pub mode: u32,
    /// Its group, if not the process's own.
    pub gid: Option<u32>,
}

impl Default for Access {
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
    pub fn bind(path: &Path, access: Access) -> Result<Self, SocketError> {
        let failed = |action| {
            move |source: io::Error| SocketError::System {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let unfinished = unfinished(path);
        let longest = path.as_os_str().len().max(unfinished.as_os_str().len());
        if longest > LONGEST_PATH {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse(path.to_owned()));
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
    pub fn inherited(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let listens = rustix::net::sockopt::socket_acceptconn(&descriptor);
        match listens {
            Ok(true) => {}
            Ok(false) => return Err(SocketError::Inherited(io::ErrorKind::NotConnected.into())),
            Err(errno) => return Err(SocketError::Inherited(errno.into())),
        }
        let listener = UnixListener::from(descriptor);
        // Fails for a socket of another family.
        listener.local_addr().map_err(SocketError::Inherited)?;
        listener
            .set_nonblocking(false)
            .map_err(SocketError::Inherited)?;
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
    let folder = path.parent().unwrap_or(Path::new(""));
    folder.join(format!(".{}.new", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_mode_from_the_start_and_replaces_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let access = Access {
            mode: 0o660,
            gid: None,
        };
        let first = Socket::bind(&path, access).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let in_use = Socket::bind(&path, access).unwrap_err();
        assert!(matches!(in_use, SocketError::InUse(_)), "{in_use}");
        drop(first);
        Socket::bind(&path, access).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        let refused = Socket::bind(&path, Access::default()).unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket(_)), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
        let long = folder.path().join("x".repeat(200));
        let refused = Socket::bind(&long, Access::default()).unwrap_err();
        assert!(matches!(refused, SocketError::TooLong(_)), "{refused}");
    }

    #[test]
    fn only_a_listening_socket_is_inherited() {
        let file = tempfile::tempfile().unwrap();
        Socket::inherited(file.into()).unwrap_err();
        let (one, _other) = UnixStream::pair().unwrap();
        Socket::inherited(one.into()).unwrap_err();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        Socket::inherited(listener.into()).unwrap();
    }
}
