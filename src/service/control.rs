//! The control socket: requests to the running service.
//!
//! A client sends one line with a JSON object (`{"ask": "status"}`) and gets one line back. The
//! commands of this program also send `"version"` and `"protocol"`; a service with another version
//! of the protocol refuses and names both. The reply is `{"status": …}`, `{"done": …}` or
//! `{"error": "…"}`. A prefetch reports its progress, a line at a time, before its last one; it
//! ends early if the client disconnects. Only processes that may write to the socket's file can
//! connect; it is made for the service's own user.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::runtime::Handle;

use super::profiles::{self, ProfileDone, ProfileRequest, WriteRecordings};
use super::socket_file::SocketFileGuard;
use super::sockets::{
    ServedSocket, ServiceSocketError, StatusSource, bind_path, complain_of_accept,
};
use super::status::{CacheRoots, PrefetchStatus, ServiceStatus};
use crate::castore::Name;
use crate::profile::Profiles;
use crate::store::{Cache, GcResult, Prefetch, Store};
use crate::stores::OpenStores;
use crate::tree::closure::closure;

/// Bytes of a request, at most: a profile of 8 MiB in base64, and a little more.
const LONGEST_REQUEST: u64 = 12 << 20;
/// How long a client may take for its request, and the service for its status.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a prefetch reports its progress.
const PROGRESS: Duration = Duration::from_millis(200);

/// The version of the protocol; grows when requests or replies change so that another version would
/// misunderstand them.
const PROTOCOL: u32 = 2;

/// A request with its sender's version.
#[derive(Serialize, Deserialize)]
struct VersionedRequest<R> {
    #[serde(flatten)]
    request: R,
    /// The version of the command; nothing from other clients.
    #[serde(default)]
    version: Option<String>,
    /// As [`PROTOCOL`]; nothing from other clients.
    #[serde(default)]
    protocol: Option<u32>,
}

/// The requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// The status.
    Status,
    /// Fetch everything below some roots into a cache.
    Prefetch(CachedRoots),
    /// Pin some roots in a cache.
    Pin(CachedRoots),
    /// Unpin them.
    Unpin(CachedRoots),
    /// Remove everything from a cache that is not pinned.
    DropCache {
        /// The cache, by its name in the configuration. Can be left out if there is only one.
        store: Option<String>,
    },
    /// How much of its roots each cache has.
    CacheRoots,
    /// About profiles.
    Profile(ProfileRequest),
}

/// Roots of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedRoots {
    /// The cache, by its name in the configuration. Can be left out if there is only one.
    pub store: Option<String>,
    /// The names of the roots.
    pub roots: Vec<String>,
    /// With every Nix store path that they refer to.
    #[serde(default)]
    pub closure: bool,
}

/// The result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlResult {
    /// Everything below the roots is in the cache.
    Fetched(PrefetchStatus),
    /// The roots that are pinned now.
    Pinned(Vec<String>),
    /// What was removed.
    Dropped(GcResult),
    /// How much of its roots each cache has, by the cache's name.
    CacheRoots(BTreeMap<String, CacheRoots>),
    /// The result for profiles.
    Profile(ProfileDone),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ControlReply {
    Status(Box<ServiceStatus>),
    Progress(PrefetchStatus),
    Done(ControlResult),
    Error(String),
}

/// The stores that are open now.
pub(super) type Stores = Arc<dyn Fn() -> OpenStores + Send + Sync>;

/// Running prefetches, for the status.
#[derive(Clone, Default)]
pub(super) struct Prefetches(Arc<Mutex<Vec<Arc<RunningPrefetch>>>>);

struct RunningPrefetch {
    store: String,
    roots: Vec<String>,
    progress: Arc<Prefetch>,
}

/// Removes a prefetch from the list when it ends; its remaining tasks stop.
struct PrefetchListEntry {
    list: Prefetches,
    running: Arc<RunningPrefetch>,
}

impl RunningPrefetch {
    fn status(&self) -> PrefetchStatus {
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        PrefetchStatus {
            store: self.store.clone(),
            roots: self.roots.clone(),
            directories: load(&self.progress.directories),
            blobs: load(&self.progress.blobs),
            bytes: load(&self.progress.bytes),
            total_blobs: load(&self.progress.total_blobs),
            total_bytes: load(&self.progress.total_bytes),
        }
    }
}

impl Prefetches {
    /// The progress of each.
    pub(super) fn status(&self) -> Vec<PrefetchStatus> {
        let running = self.0.lock().clone();
        running.iter().map(|running| running.status()).collect()
    }

    fn add(&self, running: Arc<RunningPrefetch>) -> PrefetchListEntry {
        self.0.lock().push(running.clone());
        let list = self.clone();
        PrefetchListEntry { list, running }
    }
}

impl Drop for PrefetchListEntry {
    fn drop(&mut self) {
        self.running.progress.stop.store(true, Ordering::Relaxed);
        let mut list = self.list.0.lock();
        list.retain(|other| !Arc::ptr_eq(other, &self.running));
    }
}

/// The state of the control socket.
#[derive(Clone)]
pub(super) struct ControlState {
    /// The status.
    pub ask: StatusSource,
    /// Its stores.
    pub stores: Stores,
    /// Its running prefetches.
    pub prefetches: Prefetches,
    /// The access profiles.
    pub profiles: Arc<Profiles>,
    /// Makes the mounts write their recordings.
    pub remember: WriteRecordings,
}

/// A control socket that is not served yet. Its file is removed on drop.
pub(super) struct ControlSocket {
    listener: UnixListener,
    file: SocketFileGuard,
    path: PathBuf,
}

/// Listens on the control socket at `path`. Fails if another service does.
pub(super) fn listen(path: &Path) -> Result<ControlSocket, ServiceSocketError> {
    let listen = || {
        let listener = bind_path(path)?;
        let file = SocketFileGuard::at(Some(path));
        listener.set_nonblocking(true)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let path = path.to_owned();
        Ok(ControlSocket {
            listener,
            file,
            path,
        })
    };
    listen().map_err(|source| listen_error(path, source))
}

fn listen_error(path: &Path, source: io::Error) -> ServiceSocketError {
    ServiceSocketError::Listen {
        address: path.display().to_string(),
        source,
    }
}

/// Serves a control socket.
pub(super) fn serve(
    listening: ControlSocket,
    control: ControlState,
    runtime: &Handle,
) -> Result<ServedSocket, ServiceSocketError> {
    let ControlSocket {
        listener,
        file,
        path,
    } = listening;
    let _inside = runtime.enter();
    let listener = tokio::net::UnixListener::from_std(listener)
        .map_err(|source| listen_error(&path, source))?;
    let serve = async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = control.clone();
                    tokio::spawn(async move { control.answer(stream).await }.boxed());
                }
                Err(error) => complain_of_accept(&error).await,
            }
        }
    };
    Ok(ServedSocket::new(runtime.spawn(serve.boxed()), file))
}

impl ControlState {
    async fn answer(self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut read = BufReader::new(read.take(LONGEST_REQUEST));
        let asked = match tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await {
            Ok(Ok(_)) => parse(&line),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => return,
        };
        let reply = match asked {
            Ok(request) => self.obey(request, &mut write).await,
            Err(error) => Err(error),
        };
        // A client that does not wait for its answer is not an error.
        let _ = send_reply(&mut write, &reply.unwrap_or_else(ControlReply::Error)).await;
    }

    async fn obey(
        &self,
        request: ControlRequest,
        write: &mut OwnedWriteHalf,
    ) -> Result<ControlReply, String> {
        match request {
            ControlRequest::Status => {
                let ask = self.ask.clone();
                let status = tokio::task::spawn_blocking(move || ask()).await;
                let status = status.map_err(|error| error.to_string())?;
                Ok(ControlReply::Status(Box::new(status)))
            }
            ControlRequest::Prefetch(wanted) => self.prefetch(wanted, write).await,
            ControlRequest::Pin(wanted) => self.pin(wanted, Cache::pin).await,
            ControlRequest::Unpin(wanted) => self.pin(wanted, Cache::unpin).await,
            ControlRequest::DropCache { store } => {
                let (_, _, cache) = self.cache(store.as_deref())?;
                let dropped = blocking(move || cache.drop_cache()).await?;
                Ok(ControlReply::Done(ControlResult::Dropped(dropped)))
            }
            ControlRequest::CacheRoots => {
                let stores = (self.stores)();
                let roots = blocking(move || {
                    let caches = stores.into_iter();
                    let caches = caches.filter_map(|(name, opened)| Some((name, opened.cache?)));
                    let of = |(name, cache): (String, Cache)| {
                        let (shares, omitted) = cache.shares()?;
                        Ok((name, CacheRoots { shares, omitted }))
                    };
                    caches.map(of).collect()
                });
                Ok(ControlReply::Done(ControlResult::CacheRoots(roots.await?)))
            }
            ControlRequest::Profile(request) => {
                let (profiles, remember) = (self.profiles.clone(), self.remember.clone());
                let obey = move || {
                    remember();
                    profiles::obey(&profiles, request)
                };
                let done = tokio::task::spawn_blocking(obey).await;
                let done = done.map_err(|error| error.to_string())?;
                Ok(ControlReply::Done(ControlResult::Profile(done?)))
            }
        }
    }

    async fn pin(
        &self,
        wanted: CachedRoots,
        set: fn(&Cache, &Name) -> Result<bool, crate::store::Error>,
    ) -> Result<ControlReply, String> {
        let (_, opened, cache) = self.cache(wanted.store.as_deref())?;
        let names = names(&wanted, &opened).await?;
        let pins = blocking(move || {
            for name in &names {
                set(&cache, name)?;
            }
            Ok(cache.pins())
        });
        let pins = pins.await?.iter().map(Name::to_string).collect();
        Ok(ControlReply::Done(ControlResult::Pinned(pins)))
    }

    async fn prefetch(
        &self,
        wanted: CachedRoots,
        write: &mut OwnedWriteHalf,
    ) -> Result<ControlReply, String> {
        let (store, opened, cache) = self.cache(wanted.store.as_deref())?;
        let names = names(&wanted, &opened).await?;
        let running = Arc::new(RunningPrefetch {
            store,
            roots: wanted.roots,
            progress: Arc::default(),
        });
        let listed = self.prefetches.add(running.clone());
        let work = cache.prefetch(&names, &running.progress);
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => {
                    outcome.map_err(|error| error.to_string())?;
                    drop(listed);
                    return Ok(ControlReply::Done(ControlResult::Fetched(running.status())));
                }
                () = tokio::time::sleep(PROGRESS) => {
                    let sent = send_reply(write, &ControlReply::Progress(running.status())).await;
                    sent.map_err(|error| format!("client disconnected: {error}"))?;
                }
            }
        }
    }

    /// The cache of that name, or the only one: its name, the store that it is, and the cache.
    fn cache(&self, named: Option<&str>) -> Result<(String, Arc<dyn Store>, Cache), String> {
        let caches: Vec<(String, Arc<dyn Store>, Cache)> = (self.stores)()
            .into_iter()
            .filter_map(|(name, opened)| Some((name, opened.store, opened.cache?)))
            .collect();
        let names = caches.iter().map(|(name, _, _)| name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        if caches.is_empty() {
            return Err("no store of this service is a cache".to_owned());
        }
        let mut matching = caches
            .into_iter()
            .filter(|(name, _, _)| named.is_none_or(|named| named == name));
        match (matching.next(), matching.next(), named) {
            (Some(cache), None, _) => Ok(cache),
            (None, _, Some(named)) => Err(format!(
                "there is no cache named {named:?}; there is {names}"
            )),
            _ => Err(format!("there are several caches ({names}): say which")),
        }
    }
}

/// The request that a client sent, unless it speaks another version.
fn parse(line: &str) -> Result<ControlRequest, String> {
    #[derive(Deserialize)]
    struct ClientVersion {
        version: Option<String>,
        protocol: Option<u32>,
    }
    if let Ok(client) = serde_json::from_str::<ClientVersion>(line)
        && let Some(protocol) = client.protocol.filter(|protocol| *protocol != PROTOCOL)
    {
        let version = client.version.unwrap_or_default();
        return Err(format!(
            "this service is castore-fs {} (control protocol {PROTOCOL}), the command is \
             {version} (control protocol {protocol}): use the same version; after an upgrade, restart \
             the service",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let asked = serde_json::from_str::<VersionedRequest<ControlRequest>>(line);
    let asked = asked.map_err(|error| format!("invalid request: {error}"))?;
    Ok(asked.request)
}

/// The names of the wanted roots, and of what they refer to in `store` if that is wanted too.
async fn names(wanted: &CachedRoots, store: &Arc<dyn Store>) -> Result<Vec<Name>, String> {
    if wanted.roots.is_empty() {
        return Err("name a root".to_owned());
    }
    let names = wanted
        .roots
        .iter()
        .map(|root| Name::new(root.as_bytes()).map_err(|error| format!("{root:?}: {error}")));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    if !wanted.closure {
        return Ok(names);
    }
    let closure = closure(store.as_ref(), &names).await;
    let roots = closure.map_err(|error| error.to_string())?.into_iter();
    Ok(roots.map(|root| root.name).collect())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::store::Error> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

async fn send_reply(write: &mut OwnedWriteHalf, reply: &ControlReply) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(reply)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

/// Requests the status from the service whose control socket is `socket`.
pub fn ask_status(socket: &Path) -> Result<ServiceStatus, ServiceSocketError> {
    match exchange(socket, &ControlRequest::Status, Some(PATIENCE), |_| {})? {
        ControlReply::Status(status) => Ok(*status),
        other => Err(unexpected(socket, &other)),
    }
}

/// Sends `request` to the service whose control socket is `socket`; `progress` receives the
/// progress of a prefetch.
pub fn send_request(
    socket: &Path,
    request: &ControlRequest,
    progress: impl FnMut(&PrefetchStatus),
) -> Result<ControlResult, ServiceSocketError> {
    match exchange(socket, request, None, progress)? {
        ControlReply::Done(done) => Ok(done),
        other => Err(unexpected(socket, &other)),
    }
}

fn unexpected(socket: &Path, reply: &ControlReply) -> ServiceSocketError {
    ServiceSocketError::Answer {
        socket: socket.to_owned(),
        what: match reply {
            ControlReply::Error(what) => what.clone(),
            _ => "a reply to another request".to_owned(),
        },
    }
}

fn exchange(
    socket: &Path,
    request: &ControlRequest,
    patience: Option<Duration>,
    mut progress: impl FnMut(&PrefetchStatus),
) -> Result<ControlReply, ServiceSocketError> {
    let failed = |source| ServiceSocketError::NoService {
        socket: socket.to_owned(),
        source,
    };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(patience).map_err(failed)?;
    let asked = VersionedRequest {
        request,
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        protocol: Some(PROTOCOL),
    };
    let mut asked = serde_json::to_vec(&asked).map_err(|error| failed(error.into()))?;
    asked.push(b'\n');
    stream.write_all(&asked).map_err(failed)?;
    for line in io::BufReader::new(stream).lines() {
        match serde_json::from_str(&line.map_err(failed)?) {
            Ok(ControlReply::Progress(status)) => progress(&status),
            Ok(reply) => return Ok(reply),
            Err(error) => {
                return Err(ServiceSocketError::Answer {
                    socket: socket.to_owned(),
                    what: format!(
                        "an answer that castore-fs {} does not understand ({error}): use the same \
                         version as the service; after an upgrade, restart it",
                        env!("CARGO_PKG_VERSION")
                    ),
                });
            }
        }
    }
    Err(failed(io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_of_the_protocol_is_refused_by_name_and_other_clients_are_not() {
        assert_eq!(parse(r#"{"ask": "status"}"#), Ok(ControlRequest::Status));
        let request = ControlRequest::DropCache { store: None };
        let mut asked = VersionedRequest {
            request: &request,
            version: Some("0.1.0".to_owned()),
            protocol: Some(PROTOCOL),
        };
        let line = serde_json::to_string(&asked).unwrap();
        assert_eq!(parse(&line), Ok(request.clone()));
        asked.version = Some("9.8.7".to_owned());
        asked.protocol = Some(PROTOCOL + 1);
        // A newer one may ask what this one does not know.
        let line = serde_json::to_string(&asked).unwrap();
        for line in [line.replace("drop-cache", "something new"), line] {
            let error = parse(&line).unwrap_err();
            let own = env!("CARGO_PKG_VERSION");
            assert!(error.contains("9.8.7") && error.contains(own), "{error}");
            assert!(error.contains("use the same version"), "{error}");
        }
        assert!(parse("{}").unwrap_err().contains("invalid request"));
    }
}
