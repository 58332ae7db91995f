//! Readiness notifications to the supervisor: systemd, by the protocol of sd_notify(3).
//!
//! The connection is made before privileges are given up, because the sandbox prohibits it.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::failure::{CommandFailure, failure};

/// The process that started this one and expects notifications, if there is one.
pub(super) struct Supervisor(Option<UnixDatagram>);

impl Supervisor {
    /// Connects to the socket that `NOTIFY_SOCKET` names.
    pub(super) fn connect() -> Result<Self, CommandFailure> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self(None));
        };
        let connected = address(&name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            Ok(Self(Some(socket)))
        });
        connected.map_err(|error| {
            let name = name.display();
            failure(format!("cannot connect to NOTIFY_SOCKET ({name}): {error}"))
        })
    }

    /// Sends `state`, such as `READY=1`.
    pub(super) fn send_request(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(state, %error, "cannot notify the supervisor");
        }
    }
}

/// A path, or with `@` in front an abstract name.
fn address(name: &OsString) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}
