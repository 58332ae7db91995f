//! One or more binary caches as the upstream of a cache.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use super::absent::AbsentNames;
use super::address::CacheAddress;
use super::client::CacheClient;
use super::closure::{ClosureMode, FetchAhead, Prefetcher};
use super::info::{CacheInfo, MAX_INFO_BYTES};
use super::unpack::{ChunkReader, address_fits_contents, compression, unpack};
use crate::castore::{Digest, Directory, GroupTable, Node, NodeRef, Root};
use crate::clock::unix_millis;
use crate::nix::{MAX_NARINFO_BYTES, NarinfoFile, NixHash, PathInfo, StorePath};
use crate::store::single_flight::SingleFlight;
use crate::store::{
    Answer, BackingFile, CachedRoot, CallFailure, CallMeter, Error, FailureKind, Health, Ingest,
    LocalStore, Store, StoreUsage, ValidPath, network,
};

/// NARs that are downloaded and unpacked at once.
const UNPACKING: usize = 16;
/// Chunks of a NAR that wait to be unpacked.
const CHUNKS_AHEAD: usize = 16;
/// Paths whose narinfo stays in memory.
const KNOWN_PATHS: usize = 4096;
/// Recently fetched paths that stay in memory: prefetched ones are looked up next.
const FETCHED_PATHS: usize = 4096;
/// Paths that are downloaded again, one after the other, to find missing contents.
const MOST_SEARCHED: usize = 8;
/// Bytes of a content-addressed file that are hashed at once.
const HASHED_AT_ONCE: usize = 1 << 20;

/// Binary caches, and the local store that their contents are unpacked into. Clones share
/// everything.
///
/// Answers lookups of names that are store paths; has no list of them. The
/// [`Cache`](crate::store::Cache) in front looks for contents in the local store first: a digest
/// that is requested here is not there, so the paths that could have it are downloaded again.
#[derive(Clone, Debug)]
pub struct BinaryCaches(Arc<UpstreamInner>);

#[derive(Debug)]
pub(super) struct UpstreamInner {
    url: String,
    caches: Vec<CacheClient>,
    local: LocalStore,
    runtime: Handle,
    /// The requests to all of them.
    meter: Arc<CallMeter>,
    closure: ClosureMode,
    /// The caches by their priority, once that is known.
    order: tokio::sync::Mutex<Vec<CachePriority>>,
    absent: AbsentNames,
    known: Mutex<LruCache<StorePath, Arc<KnownPath>>>,
    fetched: Mutex<LruCache<StorePath, FetchedPath>>,
    fetching: SingleFlight<StorePath, SharedLookup<Root>>,
    asking: SingleFlight<StorePath, SharedLookup<Arc<KnownPath>>>,
    unpacking: Semaphore,
    prefetcher: Prefetcher,
}

/// An answer for all waiting readers.
type SharedLookup<T> = Result<Option<T>, Error>;

/// The narinfo of a path, and which cache it is from.
#[derive(Debug)]
pub(super) struct KnownPath {
    cache: usize,
    pub(super) narinfo: NarinfoFile,
    /// Whether a trusted key has signed it; if not, its contents are its proof.
    signed: bool,
}

/// A path whose contents were fetched.
#[derive(Clone, Debug)]
struct FetchedPath {
    root: Root,
    path_info: PathInfo,
}

/// A cache and its priority.
#[derive(Clone, Copy, Debug)]
struct CachePriority {
    priority: u32,
    cache: usize,
}

impl BinaryCaches {
    /// The caches at `addresses`, unpacked into `local`. `absent` is the file of names that no cache
    /// has.
    pub fn new(
        addresses: Vec<CacheAddress>,
        local: LocalStore,
        closure: ClosureMode,
        absent: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let shown: Vec<&str> = addresses.iter().map(|address| &address.shown[..]).collect();
        let url = shown.join(" ");
        let failed = |why: String| Error::NotOpened {
            url: url.clone(),
            why,
        };
        let meter = Arc::<CallMeter>::default();
        let caches: Result<Vec<CacheClient>, String> = (addresses.into_iter())
            .map(|address| CacheClient::new(address, meter.clone()))
            .collect();
        let caches = caches.map_err(failed)?;
        for cache in &caches {
            cache.address.check_trust().map_err(|why| Error::Url {
                url: cache.address.shown.clone(),
                why,
            })?;
        }
        let runtime = network::handle().map_err(|source| Error::Io {
            store: url.clone(),
            action: "start threads for",
            path: PathBuf::new(),
            source: Arc::new(source),
        })?;
        Ok(Self(Arc::new(UpstreamInner {
            caches,
            meter,
            local,
            runtime: runtime.clone(),
            closure,
            order: tokio::sync::Mutex::default(),
            absent: AbsentNames::open(absent),
            known: remembering(KNOWN_PATHS),
            fetched: remembering(FETCHED_PATHS),
            fetching: SingleFlight::default(),
            asking: SingleFlight::default(),
            unpacking: Semaphore::new(UNPACKING),
            prefetcher: Prefetcher::default(),
            url,
        })))
    }

    /// Requests made to the caches so far.
    pub fn requests(&self) -> u64 {
        (self.0.caches.iter())
            .map(|cache| cache.calls.attempts())
            .sum()
    }

    /// The narinfo of the path `name`; nothing if no cache has it.
    pub async fn narinfo(&self, name: &[u8]) -> Result<Option<NarinfoFile>, Error> {
        let Ok(path) = StorePath::from_base_name(name) else {
            return Ok(None);
        };
        let known = self.0.known(path).await?;
        Ok(known.map(|known| known.narinfo.clone()))
    }
}

impl UpstreamInner {
    /// The local store for contents.
    pub(super) fn local(&self) -> &LocalStore {
        &self.local
    }

    /// Prefetches the references of `narinfo`, and theirs. Returns at once.
    fn prefetch(self: &Arc<Self>, narinfo: &NarinfoFile, mode: ClosureMode) {
        for ahead in self.prefetcher.take(narinfo) {
            let inner = self.clone();
            self.runtime.spawn(
                async move {
                    inner.fetch_ahead(&ahead, mode).await;
                }
                .boxed(),
            );
        }
    }

    async fn fetch_ahead(self: &Arc<Self>, ahead: &FetchAhead, mode: ClosureMode) {
        let path = &ahead.path;
        if self.has(path).await {
            return;
        }
        let asked = {
            let _permit = self.prefetcher.narinfos.acquire().await;
            self.known(path.clone()).await
        };
        let Ok(Some(known)) = asked else {
            // The reader that looks it up gets the error.
            return;
        };
        match mode {
            ClosureMode::Fetch => {
                // Its own references are requested meanwhile, not after its arrival.
                self.prefetch(&known.narinfo, mode);
                let _permit = self.prefetcher.nars.acquire().await;
                let fetched = self.fetch(path.clone()).await;
                if let Err(error) = fetched.and_then(|_| self.remember(path)) {
                    tracing::debug!("cannot fetch {path} ahead: {error}");
                }
            }
            ClosureMode::Narinfos => self.prefetch(&known.narinfo, mode),
            ClosureMode::Off => {}
        }
    }

    /// Whether the contents of `path` are in the local store, as far as a lookup there shows.
    async fn has(&self, path: &StorePath) -> bool {
        if matches!(self.unpacked_root(path), Ok(Some(_))) {
            return true;
        }
        let name = path.to_string();
        let cached = self.local().cached_root(name.as_bytes());
        match cached.ok().flatten() {
            Some(root) => self.local().is_whole(&root.node).unwrap_or(false),
            None => matches!(self.local().root(name.as_bytes()).await, Ok(Some(_))),
        }
    }

    /// The caches, by their priority, and why one of them is left out.
    async fn order(&self) -> (Vec<usize>, Option<Error>) {
        let mut order = self.order.lock().await;
        let mut failure = None;
        for (index, cache) in self.caches.iter().enumerate() {
            if order.iter().any(|order| order.cache == index) {
                continue;
            }
            let info = cache.small("nix-cache-info", MAX_INFO_BYTES).await;
            let info = info.and_then(|found| {
                CacheInfo::parse(&found.unwrap_or_default()).map_err(CallFailure::refused)
            });
            match info {
                Ok(info) => order.push(CachePriority {
                    priority: cache.address.priority.unwrap_or(info.priority),
                    cache: index,
                }),
                Err(error) => {
                    failure = Some(error.of(&cache.address.shown, "reading nix-cache-info"));
                }
            }
        }
        order.sort_by_key(|order| order.priority);
        (order.iter().map(|order| order.cache).collect(), failure)
    }

    /// The narinfo of `path`, from memory or from the first cache that has it.
    pub(super) async fn known(
        self: &Arc<Self>,
        path: StorePath,
    ) -> Result<Option<Arc<KnownPath>>, Error> {
        if let Some(known) = self.known.lock().get(&path) {
            return Ok(Some(known.clone()));
        }
        if self.absent.contains(&path.to_string()) {
            return Ok(None);
        }
        let landed = self.asking.join(path.clone(), &self.runtime, || {
            let inner = self.clone();
            async move { inner.ask(&path).await }
        });
        self.landed(landed.await)
    }

    async fn ask(&self, path: &StorePath) -> Result<Option<Arc<KnownPath>>, Error> {
        let (order, mut failure) = self.order().await;
        let reported = self.local.valid_path(path.to_string().as_bytes())?;
        for index in order {
            let cache = &self.caches[index];
            let asked = self.ask_one(index, path).await;
            match asked.and_then(|known| same_as_reported(known, reported.as_ref())) {
                Ok(Some(known)) => {
                    let known = Arc::new(known);
                    self.absent.remove(&path.to_string());
                    self.known.lock().put(path.clone(), known.clone());
                    return Ok(Some(known));
                }
                Ok(None) => {}
                Err(error) => {
                    let error = error.of(&cache.address.shown, format!("the narinfo of {path}"));
                    tracing::debug!("{error}");
                    failure.get_or_insert(error);
                }
            }
        }
        match (failure, reported) {
            (Some(failure), _) => Err(failure),
            (None, Some(_)) => Err(Error::Remote {
                store: self.url.clone(),
                request: format!("the narinfo of {path}"),
                why: "no binary cache has the path any more, which was reported to Nix as valid"
                    .to_owned(),
            }),
            (None, None) => {
                self.absent.insert(&path.to_string());
                Ok(None)
            }
        }
    }

    async fn ask_one(
        &self,
        index: usize,
        path: &StorePath,
    ) -> Result<Option<KnownPath>, CallFailure> {
        let cache = &self.caches[index];
        let file = format!("{}.narinfo", path.hash());
        let Some(text) = cache.small(&file, MAX_NARINFO_BYTES).await? else {
            return Ok(None);
        };
        let narinfo = NarinfoFile::parse(&text)
            .map_err(|error| CallFailure::refused(format!("it is not a narinfo: {error}")))?;
        // Another name with this hash is another path, which the cache does not claim to have.
        if narinfo.path != *path {
            return Ok(None);
        }
        compression(&narinfo)?;
        let keys = &cache.address.trusted_public_keys;
        let signed = !cache.address.require_signatures || narinfo.is_signed_by(keys);
        if !signed && !narinfo.address_gives_path() {
            return Err(CallFailure::refused(
                "it has no signature by a trusted key (trusted-public-keys)".to_owned(),
            ));
        }
        Ok(Some(KnownPath {
            cache: index,
            narinfo,
            signed,
        }))
    }

    /// The contents of `path`, unpacked into the local store.
    pub(super) async fn fetch(self: &Arc<Self>, path: StorePath) -> Result<Option<Root>, Error> {
        let landed = self.fetching.join(path.clone(), &self.runtime, || {
            let inner = self.clone();
            async move { inner.download(path).await }
        });
        self.landed(landed.await)
    }

    async fn download(self: Arc<Self>, path: StorePath) -> Result<Option<Root>, Error> {
        let Some(known) = self.known(path.clone()).await? else {
            return Ok(None);
        };
        let cache = &self.caches[known.cache];
        let failed = |failure: CallFailure| {
            // The next lookup requests it again, perhaps from another cache.
            self.known.lock().pop(&path);
            failure.of(&cache.address.shown, format!("fetching {path}"))
        };
        let began = Instant::now();
        let node = self.clone().unpack(known.clone()).await.map_err(failed)?;
        if !known.signed && !self.proves_itself(&known.narinfo, &node) {
            let why = "its contents do not have the hash of its content address, and no trusted \
                       key has signed it";
            return Err(failed(CallFailure::refused(why.to_owned())));
        }
        tracing::debug!(
            "{}: fetched {path}, {} bytes in {:?}",
            cache.address.shown,
            known.narinfo.nar.size,
            began.elapsed()
        );
        if self.closure != ClosureMode::Off {
            self.prefetch(&known.narinfo, self.closure);
        }
        let path_info = known.narinfo.path_info(node.clone());
        let root = path.root(node);
        let fetched = FetchedPath {
            root: root.clone(),
            path_info,
        };
        self.fetched.lock().put(path, fetched);
        Ok(Some(root))
    }

    /// The root of `path`, if all of it is still here.
    pub(super) fn unpacked_root(&self, path: &StorePath) -> Result<Option<Root>, Error> {
        let root = self
            .fetched
            .lock()
            .get(path)
            .map(|fetched| fetched.root.clone());
        match root {
            Some(root) if self.local.is_whole(&root.node)? => Ok(Some(root)),
            _ => Ok(None),
        }
    }

    /// Makes a prefetched path outlive restarts, as a cache keeps roots that were looked up.
    pub(super) fn remember(&self, path: &StorePath) -> Result<(), Error> {
        let Some(fetched) = self.fetched.lock().peek(path).cloned() else {
            return Ok(());
        };
        let name = Bytes::from(path.to_string());
        if self.local.cached_root(&name)?.is_some() {
            return Ok(());
        }
        let now = unix_millis();
        let cached = CachedRoot {
            asked: now,
            used: now,
            pinned: false,
            root: Some(fetched.root),
            path_info: Some(Box::new(fetched.path_info)),
        };
        self.local.set_cached_roots(&[(name, Some(cached))])
    }

    /// Downloads and unpacks one NAR.
    async fn unpack(self: Arc<Self>, known: Arc<KnownPath>) -> Result<Node, CallFailure> {
        let _permit = self.unpacking.acquire().await;
        let (out, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (inner, asked) = (self.clone(), known.clone());
        // Compressed data can be a little larger than the original.
        let size = known.narinfo.nar.size;
        let limit = size.saturating_add(size / 16).saturating_add(1 << 20);
        self.runtime.spawn(
            async move {
                let cache = &inner.caches[asked.cache];
                cache.stream(&asked.narinfo.url, limit, out).await;
            }
            .boxed(),
        );
        let local = self.local.clone();
        let work = move || unpack(&local, &known.narinfo, ChunkReader::new(chunks));
        let unpacked = tokio::task::spawn_blocking(work).await;
        unpacked
            .unwrap_or_else(|error| Err(CallFailure::Failed(FailureKind::Other, error.to_string())))
    }

    /// Whether the contents match the path's content address.
    fn proves_itself(&self, narinfo: &NarinfoFile, node: &Node) -> bool {
        address_fits_contents(narinfo, || {
            let NodeRef::File { digest, size, .. } = node.borrow() else {
                return None;
            };
            sha256_of(&self.local, &digest, size)
        })
    }

    fn landed<T>(&self, landed: Option<SharedLookup<T>>) -> Result<Option<T>, Error> {
        match landed {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(error),
            None => Err(Error::Remote {
                store: self.url.clone(),
                request: "fetching a path".to_owned(),
                why: "the fetch was interrupted".to_owned(),
            }),
        }
    }

    /// Downloads paths again until `found` is true: contents that were here are missing, and which
    /// path they belong to is not recorded. The most recently used come first.
    async fn search(
        self: &Arc<Self>,
        found: impl Fn(&LocalStore) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut roots: Vec<_> = (self.local.cached_roots()?.into_values())
            .filter_map(|cached| Some((cached.used, cached.root?)))
            .collect();
        roots.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        let mut searched = 0;
        // Of a path that may have nothing to do with what is searched for.
        let mut failed = None;
        for (_, root) in roots {
            let Ok(path) = StorePath::from_base_name(root.name.as_bytes()) else {
                continue;
            };
            if searched == MOST_SEARCHED || self.local.is_whole(&root.node)? {
                continue;
            }
            searched += 1;
            match self.fetch(path).await {
                Ok(_) if found(&self.local)? => return Ok(true),
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(false), Err)
    }
}

/// Fails if `known` has other contents or references than the path was reported to Nix with: the next
/// cache may have the same.
fn same_as_reported(
    known: Option<KnownPath>,
    reported: Option<&ValidPath>,
) -> Result<Option<KnownPath>, CallFailure> {
    if let (Some(KnownPath { narinfo, .. }), Some(ValidPath { info, .. })) = (&known, reported)
        && (narinfo.nar != info.nar || narinfo.references != info.references)
    {
        return Err(CallFailure::refused(format!(
            "it has another NarHash or other references than the path was reported to Nix with, as valid, \
             which is {}",
            NixHash::Sha256(info.nar.sha256)
        )));
    }
    Ok(known)
}

/// An LRU cache of `most` values.
fn remembering<V>(most: usize) -> Mutex<LruCache<StorePath, V>> {
    let most = NonZeroUsize::new(most).expect("the capacity is not zero");
    Mutex::new(LruCache::new(most))
}

/// The SHA-256 of a blob in `store`; nothing if it cannot be read.
fn sha256_of(store: &LocalStore, digest: &Digest, size: u64) -> Option<[u8; 32]> {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; HASHED_AT_ONCE];
    let mut offset = 0;
    while offset < size {
        match store.read_now(digest, size, offset, &mut buffer) {
            Ok(Answer::Found(read)) if read > 0 => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            _ => return None,
        }
    }
    Some(hasher.finalize().into())
}

#[async_trait]
impl Store for BinaryCaches {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn directory_now(&self, _: &Digest) -> Result<Answer<Directory>, Error> {
        Ok(Answer::Wait)
    }

    fn read_now(&self, _: &Digest, _: u64, _: u64, _: &mut [u8]) -> Result<Answer<usize>, Error> {
        Ok(Answer::Wait)
    }

    /// Contents come by the path, so there is nothing to prefetch.
    fn will_need(&self, _: &[(Digest, u64)]) {}

    fn forget(&self, _: &Digest, _: u64, _: u64, _: u64) {}

    /// Names that are not store paths, or that no cache has, are absent at once.
    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(match StorePath::from_base_name(name) {
            Err(_) => Answer::Absent,
            Ok(path) => match self.0.unpacked_root(&path)? {
                Some(root) => Answer::Found(root),
                None if self.0.absent.contains(&path.to_string()) => Answer::Absent,
                None => Answer::Wait,
            },
        })
    }

    fn backing_file(&self, _: &Digest, _: u64) -> Result<Option<BackingFile>, Error> {
        Ok(None)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        let inner = &self.0;
        let there = |local: &LocalStore| {
            let found = local.directory_now(digest)?;
            Ok(matches!(found, Answer::Found(_)))
        };
        match inner.search(there).await? {
            true => inner.local.directory(digest).await,
            false => Ok(None),
        }
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let inner = &self.0;
        match inner.search(|local| local.has_blob_now(digest)).await? {
            true => inner.local.read(digest, size, offset, length).await,
            false => Ok(None),
        }
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        match StorePath::from_base_name(name) {
            Ok(path) => match self.0.unpacked_root(&path)? {
                Some(root) => Ok(Some(root)),
                None => self.0.fetch(path).await,
            },
            Err(_) => Ok(None),
        }
    }

    /// A binary cache has no list of its paths.
    async fn roots(&self) -> Result<Vec<Root>, Error> {
        Err(Error::Refused {
            store: self.0.url.clone(),
            what: "listing the roots".to_owned(),
            why: "a Nix binary cache cannot list its paths; look them up by name".to_owned(),
        })
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let Ok(path) = StorePath::from_base_name(name) else {
            return Ok(None);
        };
        let info_of = |path| {
            let mut fetched = self.0.fetched.lock();
            fetched.get(path).map(|fetched| fetched.path_info.clone())
        };
        if let Some(info) = info_of(&path) {
            return Ok(Some(info));
        }
        // The local store has the path info of a path that was fetched before. This one is new.
        let fetched = self.0.fetch(path.clone()).await?;
        Ok(fetched.and_then(|_| info_of(&path)))
    }

    /// A path is complete or absent.
    async fn incomplete_root(&self, _: &[u8]) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        Ok(None)
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.0.local.has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.0.local.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.0.local.blob_size(digest).await
    }

    /// A binary cache has no chunks.
    async fn chunks(&self, _: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        Ok(None)
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.0.local.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        Ok(None)
    }

    fn embedded(&self) -> Vec<LocalStore> {
        vec![self.0.local.clone()]
    }

    fn health(&self) -> Health {
        let is_stopped = (self.0.caches.iter()).all(|cache| cache.calls.is_stopped());
        Health {
            endpoint: Some(self.0.meter.health(is_stopped)),
            ..Health::default()
        }
    }

    fn roots_version(&self) -> Result<u64, Error> {
        Ok(0)
    }

    /// A store path never changes.
    fn wait_for_roots(&self, _: u64, timeout: Duration) -> Result<u64, Error> {
        std::thread::sleep(timeout);
        Ok(0)
    }

    /// Nothing lists a binary cache.
    fn keep_listings_fresh(&self, _: Duration) {}

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Err(Error::ReadOnly {
            store: self.0.url.clone(),
            why: "it is a Nix binary cache, which is only read; add to another store".to_owned(),
        })
    }
}
