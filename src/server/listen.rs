//! The listeners of a server.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{AddressFamily, sockopt};
use thiserror::Error;

use crate::store::shown_url;

/// The first descriptor that systemd passes on.
const LISTEN_FDS_START: i32 = 3;

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// An address that cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The text is not an address.
    #[error("{:?} is not an address to listen on: write HOST:PORT, unix:PATH or systemd", shown_url(.0))]
    Address(String),
    /// A system call failed.
    #[error("cannot listen on {}: {source}", shown_url(address))]
    Bind {
        /// The address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// `systemd`, and systemd passed on no socket.
    #[error(
        "systemd passed on no socket: start the service by its .socket unit, or name an address"
    )]
    NoSockets,
}

impl Listener {
    /// Binds `address`: `HOST:PORT`, `unix:PATH` (or a path that starts with `/`), or `systemd` for
    /// every socket that systemd passed on.
    pub fn bind(address: &str) -> Result<Vec<Self>, ListenError> {
        let bind_error = |source| ListenError::Bind {
            address: address.to_owned(),
            source,
        };
        if address == "systemd" {
            return passed_descriptors();
        }
        if let Some(path) = unix_path(address) {
            return Ok(vec![Self::Unix(bind_unix(path).map_err(bind_error)?)]);
        }
        if !address.contains(':') {
            return Err(ListenError::Address(address.to_owned()));
        }
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(bind_error)?.collect();
        addresses
            .into_iter()
            .map(|address| {
                TcpListener::bind(address)
                    .map(Self::Tcp)
                    .map_err(bind_error)
            })
            .collect()
    }

    /// As [`bind`](Self::bind); a unix socket gets the permissions `mode`. One that systemd passed on keeps those
    /// of its unit (`SocketMode=`).
    pub fn bind_with_mode(address: &str, mode: u32) -> Result<Vec<Self>, ListenError> {
        let listeners = Self::bind(address)?;
        if let Some(path) = unix_path(address) {
            let set = std::fs::set_permissions(path, Permissions::from_mode(mode));
            set.map_err(|source| ListenError::Bind {
                address: address.to_owned(),
                source,
            })?;
        }
        Ok(listeners)
    }
}

/// The path of the unix socket that `address` names.
fn unix_path(address: &str) -> Option<&Path> {
    let path = address.strip_prefix("unix:");
    let path = path.or(address.starts_with('/').then_some(address));
    path.map(Path::new)
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("a TCP socket"),
            },
            Self::Unix(listener) => match listener.local_addr() {
                Ok(address) => match address.as_pathname() {
                    Some(path) => write!(f, "unix:{}", path.display()),
                    None => f.write_str("a unix socket without a name"),
                },
                Err(_) => f.write_str("a unix socket"),
            },
        }
    }
}

/// Binds a unix socket, replacing one whose server is gone; one that answers is not touched.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = path.symlink_metadata()?.file_type().is_socket();
            let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            if !is_socket {
                let why =
                    "a file that is no socket has this path: remove it, or choose another path";
                return Err(io::Error::new(error.kind(), why));
            }
            if !UnixStream::connect(path).is_err_and(refused) {
                let why = "another server listens on it: stop that server, or choose another path";
                return Err(io::Error::new(error.kind(), why));
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// The sockets that systemd passed on (sd_listen_fds(3)).
fn passed_descriptors() -> Result<Vec<Listener>, ListenError> {
    let variable = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u32>().ok())
    };
    let (Some(pid), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Err(ListenError::NoSockets);
    };
    if pid != std::process::id() || !(1..=1024).contains(&count) {
        return Err(ListenError::NoSockets);
    }
    (LISTEN_FDS_START..LISTEN_FDS_START + count as i32)
        .map(|number| {
            // SAFETY: by LISTEN_FDS this descriptor is open; the copy outlives the borrow.
            let passed = unsafe { BorrowedFd::borrow_raw(number) };
            let socket = passed.try_clone_to_owned();
            socket
                .and_then(from_socket)
                .map_err(|source| ListenError::Bind {
                    address: format!("descriptor {number} from systemd"),
                    source,
                })
        })
        .collect()
}

fn from_socket(socket: OwnedFd) -> io::Result<Listener> {
    if !sockopt::socket_acceptconn(socket.as_fd())? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a socket that listens for streams",
        ));
    }
    if sockopt::socket_domain(socket.as_fd())? == AddressFamily::UNIX {
        Ok(Listener::Unix(socket.into()))
    } else {
        Ok(Listener::Tcp(socket.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let address = format!("unix:{}", path.display());
        let first = Listener::bind_with_mode(&address, 0o640).unwrap();
        assert_eq!(first[0].to_string(), address);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let refused = || Listener::bind(&address).unwrap_err().to_string();
        assert!(refused().contains("another server"), "{}", refused());
        drop(first);
        Listener::bind(&address).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "no socket").unwrap();
        assert!(refused().contains("no socket"), "{}", refused());
        assert!(path.exists());
    }

    #[test]
    fn an_invalid_address_is_named() {
        assert!(matches!(
            Listener::bind("nonsense"),
            Err(ListenError::Address(_))
        ));
        assert!(matches!(
            Listener::bind("systemd"),
            Err(ListenError::NoSockets)
        ));
    }
}
