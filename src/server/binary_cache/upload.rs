//! Additions of `nix copy --to`: a NAR first, compressed or not, and then its narinfo.
//!
//! A NAR is kept in a file without a name until all of it came, so that a slow client holds no thread and
//! no memory; then it is unpacked into the store, by few at a time. It waits there for its narinfo, for a
//! day, over restarts if the store is a local one. The narinfo makes it a root, once what it has of the
//! NAR is what came.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Incoming;
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::ServedBinaryCache;
use super::incoming::{BufferedBody, IncomingBody, blocking, decoded};
use super::resource::CacheResource;
use crate::castore::{Name, Node, NodeRef};
use crate::compression::Compression;
use crate::import::{self, ImportProgress, ImportSource};
use crate::nix::{
    ContentMethod, MAX_NARINFO_BYTES, NarHash, NarinfoFile, NixHash, StorePathHash, encode_base32,
};
use crate::server::authorize::ClientRights;
use crate::server::capacity::ConnectionState;
use crate::server::client_root_changes::{ClientRootChange, check_form};
use crate::server::limits::FRAME;
use crate::server::limits::ServerLimits;
use crate::server::respond::{ask, status};
use crate::server::turns::ConnectionTurns;
use crate::server::upload::{DroppedOffThread, LOOK, check_room};
use crate::store::{Blocking, Error, LocalStore, Store, WaitingNar};

/// NARs that wait in memory, where the store keeps none.
const IN_MEMORY: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Bytes of a listing that a client makes, which is of no use: it is made here anew.
const LISTING: u64 = 256 << 20;

/// NARs that wait for their narinfos.
#[derive(Clone)]
pub(super) struct WaitingNars {
    local: Option<LocalStore>,
    in_memory: Arc<Mutex<LruCache<[u8; 32], WaitingNar>>>,
}

impl WaitingNars {
    /// Those of a store, which may be a local one.
    pub(super) fn new(local: Option<LocalStore>) -> Self {
        Self {
            local,
            in_memory: Arc::new(Mutex::new(LruCache::new(IN_MEMORY))),
        }
    }

    /// Where an upload is kept until it is whole.
    fn buffer_file(&self) -> PathBuf {
        let local = self.local.as_ref();
        local.map_or_else(std::env::temp_dir, |local| local.dir().to_owned())
    }

    fn get(&self, file: &[u8; 32]) -> Result<Option<WaitingNar>, Error> {
        match &self.local {
            Some(local) => local.waiting_nar(file),
            None => Ok(self.in_memory.lock().get(file).cloned()),
        }
    }

    fn put(&self, file: [u8; 32], waiting: WaitingNar) -> Result<(), Error> {
        match &self.local {
            Some(local) => local.put_waiting_nar(&file, &waiting),
            None => {
                self.in_memory.lock().put(file, waiting);
                Ok(())
            }
        }
    }
}

impl ServedBinaryCache {
    /// Takes what is put to `resource`.
    pub(super) async fn put(
        &self,
        resource: Option<CacheResource>,
        encoding: &[u8],
        body: Incoming,
        rights: ClientRights,
        connection: &ConnectionState,
    ) -> Result<(), Status> {
        self.may_add(rights)?;
        let limits = &self.served.limits;
        // Answered late rather than refused: a client gives up at the first refusal.
        let _slot = connection.uploads.clone().hold(1).await;
        let _room = connection.requests.clone().hold(FRAME).await;
        match resource {
            Some(CacheResource::UploadedNar { file, compression }) => {
                if !matches!(encoding, b"" | b"identity") {
                    return Err(Status::invalid_argument(
                        "a NAR is sent without a Content-Encoding",
                    ));
                }
                let body = IncomingBody::long(body, limits, connection);
                let buffered = body.buffer_file(&self.waiting.buffer_file()).await?;
                self.take_nar(file, compression, buffered, &connection.turns)
                    .await
            }
            Some(CacheResource::Narinfo(hash)) => {
                let _room = connection
                    .requests
                    .clone()
                    .hold(2 * MAX_NARINFO_BYTES)
                    .await;
                let body = IncomingBody::short(body, limits, connection);
                let text = body.whole(MAX_NARINFO_BYTES).await?;
                let text = decoded(text, encoding, MAX_NARINFO_BYTES)?;
                let narinfo = NarinfoFile::parse(&text)
                    .map_err(|error| Status::invalid_argument(format!("the narinfo: {error}")))?;
                let turns = &connection.turns;
                self.take_narinfo(hash, narinfo, rights, turns).await
            }
            Some(CacheResource::Listing(_)) => {
                let body = IncomingBody::long(body, limits, connection);
                body.discard(LISTING).await
            }
            Some(CacheResource::CacheInfo | CacheResource::Nar { .. }) => {
                Err(Status::unimplemented("this file is made by the server"))
            }
            None => Err(Status::not_found(
                "this binary cache takes NARs (nar/<SHA-256>.nar…), narinfos and nothing else",
            )),
        }
    }

    fn may_add(&self, rights: ClientRights) -> Result<(), Status> {
        if !self.served.writable {
            return Err(Status::permission_denied(
                "this binary cache is read-only; `castore-fs serve --writable` takes additions",
            ));
        }
        match rights.add {
            true => Ok(()),
            false => Err(Status::permission_denied(
                "no right to add: show a token whose line in the server's token file has the word `add`",
            )),
        }
    }

    /// Whether the NAR that is the file with the SHA-256 `file` need not be sent again.
    pub(super) async fn has_nar(&self, file: [u8; 32]) -> Result<bool, Status> {
        let waiting = self.waiting.clone();
        blocking(move || {
            let failed = |error: Error| status(&error);
            let Some(nar) = waiting.get(&file).map_err(failed)? else {
                return Ok(false);
            };
            // It waits for a day from now on.
            if waiting.local.is_some() {
                waiting.put(file, nar).map_err(failed)?;
            }
            Ok(true)
        })
        .await
    }

    async fn take_nar(
        &self,
        file: [u8; 32],
        compression: Option<Compression>,
        buffered: BufferedBody,
        turns: &ConnectionTurns,
    ) -> Result<(), Status> {
        let (came, file_size) = (buffered.sha256(), buffered.size);
        if came != file {
            return Err(Status::invalid_argument(format!(
                "what came has the SHA-256 {}, not that of its name",
                encode_base32(&came)
            )));
        }
        let turn = turns.to_unpack().await;
        let (store, limits) = (self.served.store.clone(), self.served.limits.clone());
        let (waiting, nars) = (self.waiting.clone(), self.served.nars.clone());
        blocking(move || {
            // The thread has the turn, even if the client goes away.
            let _turn = turn;
            let (node, nar) = unpack(&*store, buffered, compression, &limits)?;
            nars.remember(&node, nar);
            let nar = WaitingNar {
                file_size,
                nar,
                node,
            };
            waiting.put(file, nar).map_err(|error| status(&error))
        })
        .await
    }

    /// Checks that every path that `narinfo` refers to is stored: a client that finds one path of a binary
    /// cache takes for granted that its closure is there.
    async fn check_references(&self, narinfo: &NarinfoFile) -> Result<(), Status> {
        let others = narinfo.references.iter();
        let others = others.filter(|path| **path != narinfo.path).cloned();
        let looked_up = others.map(|path| {
            let store = self.served.store.clone();
            async move {
                let found = store.root(path.to_string().as_bytes()).await?;
                Ok(found.is_none().then_some(path))
            }
        });
        let absent = ask(futures_util::future::try_join_all(looked_up)).await?;
        match absent.into_iter().flatten().next() {
            None => Ok(()),
            Some(absent) => Err(Status::failed_precondition(format!(
                "it refers to {absent}, which is not in this store: upload that path first"
            ))),
        }
    }

    async fn take_narinfo(
        &self,
        hash: StorePathHash,
        mut narinfo: NarinfoFile,
        rights: ClientRights,
        turns: &ConnectionTurns,
    ) -> Result<(), Status> {
        let refused = |why: String| Err(Status::invalid_argument(why));
        if narinfo.path.hash() != hash {
            return refused(format!("the narinfo is that of {}", narinfo.path));
        }
        let at = CacheResource::at(&format!("/{}", narinfo.url));
        let Some(CacheResource::UploadedNar { file, .. }) = at else {
            return refused(format!(
                "its URL {:?} is not nar/<SHA-256 of the file>.nar…",
                narinfo.url
            ));
        };
        let waiting = self.waiting.clone();
        let nar = blocking(move || waiting.get(&file).map_err(|error| status(&error))).await?;
        let Some(nar) = nar else {
            return Err(Status::failed_precondition(format!(
                "the NAR {} did not come, or not within the last day: send it again",
                narinfo.url
            )));
        };
        if let Some(stated) = narinfo
            .file_hash
            .filter(|stated| *stated != NixHash::Sha256(file))
        {
            return refused(format!("its FileHash is {stated}, and its URL has another"));
        }
        if let Some(stated) = narinfo.file_size.filter(|stated| *stated != nar.file_size) {
            let came = nar.file_size;
            return refused(format!("its FileSize is {stated}, and {came} bytes came"));
        }
        if narinfo.nar != nar.nar {
            return refused(format!(
                "its NAR has {} bytes and the hash {}, and {} bytes with the hash {} came",
                narinfo.nar.size,
                NixHash::Sha256(narinfo.nar.sha256),
                nar.nar.size,
                NixHash::Sha256(nar.nar.sha256)
            ));
        }
        self.check_references(&narinfo).await?;
        let others = narinfo.references.iter();
        let others = others.filter(|path| **path != narinfo.path);
        let required = others.filter_map(|path| Name::new(path.to_string().as_bytes()).ok());
        let required: Vec<Name> = required.collect();
        let served = self.served.clone();
        let begun = turns.work(move || {
            let store = Blocking::new(served.store.clone(), tokio::runtime::Handle::current());
            check_address(&store, &mut narinfo, &nar.node)?;
            check_room(&served.limits)?;
            let info = narinfo.path_info(nar.node.clone());
            check_form(&info)?;
            let root = narinfo.path.root(nar.node);
            let ingest = served.store.ingest().map_err(|error| status(&error))?;
            Ok((DroppedOffThread::new(ingest), root, Some(Box::new(info))))
        });
        let (ingest, root, info) = begun.await?;
        let wanted = match rights.replace {
            true => ClientRootChange::Replace(root, info),
            false => ClientRootChange::Add(root, info),
        };
        let added = self.served.commit(ingest, vec![wanted], required, turns);
        let added = added.await;
        added.map(drop)
    }
}

/// Unpacks a NAR into `store`.
fn unpack(
    store: &dyn Store,
    buffered: BufferedBody,
    compression: Option<Compression>,
    limits: &ServerLimits,
) -> Result<(Node, NarHash), Status> {
    let failed = |error: Error| status(&error);
    let ingest = store.ingest().map_err(failed)?;
    let mut nar = HashingReader {
        input: buffered.unpack(compression)?,
        size: 0,
        looked: 0,
        hasher: Sha256::new(),
        limits,
        failure: None,
    };
    let (options, progress) = (import::ImportOptions::default(), ImportProgress::new());
    let added = import::add(
        &*ingest,
        ImportSource::PlainNar(&mut nar),
        &options,
        &progress,
    );
    let node = match added {
        Ok(node) => node,
        Err(import::ImportError::Store(error)) => return Err(failed(error)),
        Err(error) => {
            let refused = || Status::invalid_argument(format!("the NAR: {error}"));
            return Err(nar.failure.take().unwrap_or_else(refused));
        }
    };
    let rest = io::copy(&mut (&mut nar).take(1), &mut io::sink());
    match rest {
        Ok(0) => {}
        Ok(_) => return Err(Status::invalid_argument("something follows the NAR")),
        Err(error) => return Err(Status::invalid_argument(format!("the NAR: {error}"))),
    }
    let hash = NarHash {
        size: nar.size,
        sha256: nar.hasher.finalize().into(),
    };
    ingest.commit().map_err(failed)?;
    Ok((node, hash))
}

/// Hashes and counts a NAR as it is read, and looks after the disk.
struct HashingReader<'a, R> {
    input: R,
    size: u64,
    looked: u64,
    hasher: Sha256,
    limits: &'a ServerLimits,
    /// Why it was interrupted.
    failure: Option<Status>,
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.size += read as u64;
        let most = self.limits.upload;
        let failure = match self.size > most {
            true => Some(Status::resource_exhausted(format!(
                "a NAR has at most {most} bytes here"
            ))),
            false if self.size - self.looked >= LOOK => {
                self.looked = self.size;
                check_room(self.limits).err()
            }
            false => None,
        };
        match failure {
            None => Ok(read),
            Some(failure) => {
                let error = io::Error::other(failure.message().to_owned());
                self.failure = Some(failure);
                Err(error)
            }
        }
    }
}

/// Checks that a content address, if it gives the path, has the hash of the contents. One that does not
/// give the path alone is left out.
fn check_address(store: &Blocking, narinfo: &mut NarinfoFile, node: &Node) -> Result<(), Status> {
    let Some(address) = narinfo.content_address else {
        return Ok(());
    };
    if !narinfo.address_gives_path() {
        narinfo.content_address = None;
        return match narinfo.implies_references() {
            true => Ok(()),
            false => Err(Status::invalid_argument(format!(
                "its content address {address} does not give its path"
            ))),
        };
    }
    let hash = match (address.method, node.borrow()) {
        (ContentMethod::Recursive, _) => Some(narinfo.nar.sha256),
        (_, NodeRef::File { digest, size, .. }) => {
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; FRAME];
            let mut offset = 0;
            while offset < size {
                let read = store.read(&digest, size, offset, &mut buffer);
                let read = read.map_err(|error| status(&error))?.unwrap_or(0);
                if read == 0 {
                    return Err(Status::internal("a file that came is not there"));
                }
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            Some(hasher.finalize().into())
        }
        _ => None,
    };
    match hash.map(NixHash::Sha256) {
        Some(hash) if hash == address.hash => Ok(()),
        _ => Err(Status::invalid_argument(format!(
            "its content address {address} is not that of its contents"
        ))),
    }
}
