//! The small sockets of the service, and metrics over HTTP: the part of HTTP/1.1 that a scraper
//! needs, `GET /metrics`, one request a connection.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::metrics;
use super::socket_file::SocketFileGuard;
use super::status::ServiceStatus;

/// Bytes of a request, at most.
const LONGEST_REQUEST: u64 = 16 << 10;
/// Connections that are answered at once; the oldest is closed for the next.
const MOST_SCRAPERS: usize = 64;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the status of the service.
pub type StatusSource = Arc<dyn Fn() -> ServiceStatus + Send + Sync>;

/// A socket that cannot be made or used.
#[derive(Debug, Error)]
pub enum ServiceSocketError {
    /// It cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// No service answers.
    #[error("no service answers on {}: {source}; {}", socket.display(), how_to_ask(source))]
    NoService {
        /// The control socket.
        socket: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The answer is invalid.
    #[error("the service on {} answered: {what}", socket.display())]
    Answer {
        /// The control socket.
        socket: PathBuf,
        /// The answer.
        what: String,
    },
}

/// Advice for a control socket that cannot be connected to.
fn how_to_ask(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "only the user that it runs as may connect: try sudo",
        io::ErrorKind::NotFound => {
            "is castore-fs daemon running, and is this its control.socket (--socket PATH, or --config FILE)?"
        }
        _ => "is castore-fs daemon running?",
    }
}

/// A socket that is served until this is dropped.
pub struct ServedSocket {
    task: JoinHandle<()>,
    /// The file that is removed on drop.
    file: SocketFileGuard,
}

impl ServedSocket {
    /// The socket of `file`, served by `task`.
    pub(super) fn new(task: JoinHandle<()>, file: SocketFileGuard) -> Self {
        Self { task, file }
    }
}

impl Drop for ServedSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves metrics at `address`: `HOST:PORT` or `unix:/PATH`.
pub(super) fn metrics(
    address: &str,
    ask: StatusSource,
    runtime: &Handle,
) -> Result<ServedSocket, ServiceSocketError> {
    let socket = listen_for_metrics(address)?;
    let mut serving = metrics_on(socket, ask, runtime)?;
    let path = address.strip_prefix("unix:").map(Path::new);
    serving.file = SocketFileGuard::at(path);
    Ok(serving)
}

/// Listens at `address`, for [`metrics_on`], possibly in another process.
pub fn listen_for_metrics(address: &str) -> Result<OwnedFd, ServiceSocketError> {
    let listen = || {
        Ok(match address.strip_prefix("unix:") {
            Some(path) => bind_path(Path::new(path))?.into(),
            None => std::net::TcpListener::bind(address)?.into(),
        })
    };
    listen().map_err(|source| ServiceSocketError::Listen {
        address: address.to_owned(),
        source,
    })
}

/// Serves metrics on a socket that listens.
pub fn metrics_on(
    socket: OwnedFd,
    ask: StatusSource,
    runtime: &Handle,
) -> Result<ServedSocket, ServiceSocketError> {
    let _inside = runtime.enter();
    let listener = || -> io::Result<MetricsListener> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(match rustix::net::sockopt::socket_domain(&socket)? {
            rustix::net::AddressFamily::UNIX => {
                MetricsListener::Unix(UnixListener::from_std(socket.into())?)
            }
            _ => MetricsListener::Tcp(TcpListener::from_std(socket.into())?),
        })
    };
    let listener = listener().map_err(|source| ServiceSocketError::Listen {
        address: "the socket for metrics".to_owned(),
        source,
    })?;
    let serve = async move {
        let mut running: VecDeque<JoinHandle<()>> = VecDeque::new();
        loop {
            let accepted = match &listener {
                MetricsListener::Unix(listener) => (listener.accept().await)
                    .map(|(stream, _)| tokio::spawn(answer_http(stream, ask.clone()).boxed())),
                MetricsListener::Tcp(listener) => (listener.accept().await)
                    .map(|(stream, _)| tokio::spawn(answer_http(stream, ask.clone()).boxed())),
            };
            match accepted {
                Ok(answering) => running.push_back(answering),
                Err(error) => complain_of_accept(&error).await,
            }
            running.retain(|answering| !answering.is_finished());
            // The oldest sends nothing, or is not read.
            if running.len() > MOST_SCRAPERS
                && let Some(oldest) = running.pop_front()
            {
                oldest.abort();
            }
        }
    };
    Ok(ServedSocket::new(
        runtime.spawn(serve.boxed()),
        SocketFileGuard::at(None),
    ))
}

enum MetricsListener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

pub(super) async fn complain_of_accept(error: &io::Error) {
    tracing::warn!(%error, "cannot take a connection");
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Listens at `path`, replacing a socket that a dead process left.
pub(super) fn bind_path(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if path
        .symlink_metadata()
        .is_ok_and(|found| found.file_type().is_socket())
    {
        if is_listened_on(path)? {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there; stop that, or give this one another socket",
            ));
        }
        fs::remove_file(path)?;
    }
    std::os::unix::net::UnixListener::bind(path)
}

/// Whether a process listens on the socket at `path`. One that accepts no connections counts too.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(_) => Ok(false),
    }
}

async fn answer_http(stream: impl AsyncRead + AsyncWrite + Unpin, ask: StatusSource) {
    let answer = async move {
        let (read, mut write) = tokio::io::split(stream);
        let mut lines = BufReader::new(read.take(LONGEST_REQUEST)).lines();
        let first = lines.next_line().await.ok().flatten().unwrap_or_default();
        // The head has to be read before an answer: closing on unread bytes resets the connection.
        let mut is_whole = false;
        while !is_whole && let Ok(line) = lines.next_line().await {
            let more = lines.get_ref().get_ref().limit() > 0;
            is_whole = match line {
                Some(line) => line.is_empty(),
                None if more => true,
                None => break,
            };
        }
        let mut words = first.split(' ');
        let (status, body) = match (words.next(), words.next()) {
            _ if !is_whole => (
                "431 Request Header Fields Too Large",
                format!("the head of a request has at most {LONGEST_REQUEST} bytes\n"),
            ),
            (Some("GET"), Some("/metrics")) => {
                match tokio::task::spawn_blocking(move || metrics::render(&ask())).await {
                    Ok(body) => ("200 OK", body),
                    Err(error) => ("500 Internal Server Error", error.to_string()),
                }
            }
            (Some("GET"), Some(_)) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
            _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = write.write_all(head.as_bytes()).await;
        let _ = write.write_all(body.as_bytes()).await;
        let _ = write.shutdown().await;
    };
    let _ = tokio::time::timeout(PATIENCE, answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_socket_that_is_not_permitted_or_not_there_comes_with_advice() {
        let shown = |kind: io::ErrorKind| {
            let error = ServiceSocketError::NoService {
                socket: "/run/castore-fs/control.sock".into(),
                source: kind.into(),
            };
            error.to_string()
        };
        let denied = shown(io::ErrorKind::PermissionDenied);
        assert!(
            denied.contains("only the user that it runs as may connect: try sudo"),
            "{denied}"
        );
        let absent = shown(io::ErrorKind::NotFound);
        assert!(absent.contains("is castore-fs daemon running"), "{absent}");
    }
}
