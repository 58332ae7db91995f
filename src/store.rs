//! Stores: the [`Store`] trait and its implementations.
//!
//! **Verified or not at all.** Everything that a store returns has been checked against the
//! requested digest: Directories as a whole, blobs by the group. The layers above never hash.
//!
//! **Now, or wait.** The file system answers most requests from memory or the local disk, and a hop
//! through an async runtime would double the cost of such an answer. So every method exists twice:
//! `…_now` answers in place or returns [`Answer::Wait`], and the async method of the same name
//! fetches. A store that can always answer in place implements the second kind by the first
//! (`in_place`).
//!
//! **Every store implements every method.** No method of [`Store`] and [`Ingest`] has a default: a
//! store that wraps others would silently lose a method that it does not forward.
//!
//! **Absent is not broken.** "This store does not have it" is `None` or [`Answer::Absent`];
//! [`Error`] means that there is no answer.

pub(crate) mod advice;
mod authorities;
mod blocking;
mod bounded;
mod cache;
mod call_meter;
mod chunked;
mod circuit_breaker;
pub(crate) mod combined;
mod concurrency;
pub(crate) mod credential;
mod endpoint_calls;
mod error;
mod extents;
mod failure;
mod failure_kind;
mod filter;
mod grpc;
mod health;
mod in_flight;
mod in_place;
mod join;
mod last_listing;
mod latency;
mod local;
mod memory;
mod mirrors;
mod missing;
pub(crate) mod network;
mod object;
mod pace;
mod read_ahead;
mod redb_file;
mod root_change;
mod root_list;
mod root_versions;
mod shown_url;
pub(crate) mod single_flight;
mod staged_directories;
mod upstream;

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::castore::{Digest, Directory, GroupTable, Name, Root};
use crate::nix::PathInfo;

pub use blocking::Blocking;
pub(crate) use bounded::Bounded;
pub(crate) use cache::WithoutCache;
pub use cache::{Cache, CacheOptions, CacheStatus, CachedShare, Prefetch};
pub(crate) use call_meter::CallMeter;
pub use combined::CombinedStore;
pub(crate) use endpoint_calls::{Attempts, EndpointCalls, RetryPolicy, in_time};
pub use error::{Damage, Error, Object};
pub(crate) use failure::{CallFailure, FailureKind};
pub use filter::{FilteredStore, RootPattern, names_in};
pub use grpc::GrpcStore;
pub use health::{EndpointHealth, EndpointState, Health, MemberHealth, MemberState};
pub use join::JoinedStore;
pub(crate) use local::OUR_NAMES as LOCAL_STORE_NAMES;
pub(crate) use local::url as local_url;
pub use local::url::{local_dir, open_local};
pub(crate) use local::{CachedRoot, NamesVersion};
pub use local::{
    ChunkPlace, GcOptions, GcProgress, GcReport, GcResult, InUseLease, LocalStore, RebuiltIndex,
    RepairOutcome, RootRecord, SparedObjects, StoredChunk, ValidPath, WaitingNar,
};
pub use memory::MemoryStore;
pub use mirrors::{MemberOrder, Mirrors};
pub use object::{BucketGcOptions, BucketGcReport, BucketObjects, ObjectStore};
pub(crate) use pace::AnswerPace;
pub(crate) use read_ahead::ReadAhead;
pub use redb_file::RedbFile;
pub use root_change::RootCondition;
pub(crate) use root_change::check_free;
pub(crate) use shown_url::shown_parameter;
pub use shown_url::{shown_url, with_shown_urls};

/// The answer of a store that does not wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Found.
    Found(T),
    /// This store does not have it.
    Absent,
    /// Not known without a request: use the async method.
    Wait,
}

impl<T> From<Option<T>> for Answer<T> {
    /// An answer that is final either way.
    fn from(found: Option<T>) -> Self {
        found.map_or(Answer::Absent, Answer::Found)
    }
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Blobs, each once.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Directories, each once.
    pub directories: u64,
}

/// A blob that is, whole and uncompressed, a file of its own: the kernel can read it itself.
#[derive(Clone, Debug)]
pub struct BackingFile {
    /// Open for reading.
    pub file: Arc<OwnedFd>,
}

/// Bytes from the start of a blob that is announced ([`Store::will_need`]) which a store fetches.
pub(crate) const ANNOUNCED_HEAD: u64 = 1 << 20;

/// A store of blobs, Directories and roots.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// The store's URL for logs and errors, without secrets.
    fn url(&self) -> &str;

    /// The Directory `digest` names.
    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error>;

    /// Reads from the blob `digest`, which is `size` bytes long, at `offset`, filling `buffer`
    /// unless the blob ends first; gives the number of bytes read. The bytes are verified.
    ///
    /// A blob of another size than `size` is an error: the node has a wrong size.
    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error>;

    /// Announces blobs, with their sizes, that will soon be read, in this order: an upstream
    /// fetches them together meanwhile, of each the first MiB. Returns at once.
    fn will_need(&self, blobs: &[(Digest, u64)]);

    /// Frees what memory has of the `length` bytes at `offset` of the blob `digest` of `size` bytes: the caller
    /// keeps them, or has no more use for them. An upstream fetches them again when they are read.
    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64);

    /// The root node `name`.
    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error>;

    /// The file that holds the blob `digest` of `size` bytes and nothing else, if there is one.
    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error>;

    /// As [`directory_now`](Self::directory_now), waiting where that is needed.
    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error>;

    /// As [`read_now`](Self::read_now), waiting where that is needed: up to `length` bytes.
    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error>;

    /// As [`root_now`](Self::root_now), waiting where that is needed.
    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error>;

    /// Every root node, in the byte order of their names.
    async fn roots(&self) -> Result<Vec<Root>, Error>;

    /// As [`roots`](Self::roots), with no name missing: an error where a part of the store cannot be
    /// reached, for which `roots` returns what it remembers. A name that is not returned does not exist.
    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        self.roots().await
    }

    /// The path info of the Nix store path whose base name is `name`.
    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error>;

    /// The root `name`, and its path info, if it was announced ([`Ingest::put_incomplete_root`])
    /// and its content has not arrived yet. Such a root is in no list, and [`root`](Self::root)
    /// does not return it.
    async fn incomplete_root(&self, name: &[u8])
    -> Result<Option<(Root, Option<PathInfo>)>, Error>;

    /// Whether the Directory `digest` and everything below it are stored, as far as the store knows;
    /// an object that was found damaged is not. For a bucket, and a server without castore-fs services,
    /// the Directory stands for what is below it: their writers put it last.
    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error>;

    /// Whether the blob `digest` is stored.
    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error>;

    /// The size in bytes of the blob `digest`, if it is stored: for callers with a digest and no
    /// node.
    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error>;

    /// The chunks of the blob `digest`, in order, digests and sizes, if such a list is stored with
    /// it, or its server has one. Nothing is cut for it.
    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error>;

    /// The table that verifies the parts of the blob `digest` of `size` bytes, if it is stored: for
    /// servers. A store without such tables reads the whole blob for it.
    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error>;

    /// How much is stored; nothing if the store does not know.
    fn usage(&self) -> Result<Option<StoreUsage>, Error>;

    /// The store's health, as far as it is known without a request.
    fn health(&self) -> Health;

    /// The stores on this machine's disks that it reads from: objects in use have to be held there.
    fn embedded(&self) -> Vec<LocalStore>;

    /// A number that changes whenever a root was added, changed or removed, by any process. Cheap:
    /// the file system calls it before it answers from cached roots.
    fn roots_version(&self) -> Result<u64, Error>;

    /// Blocks until [`roots_version`](Self::roots_version) is no longer `seen`, or `timeout` has
    /// passed; returns the version of that moment.
    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error>;

    /// Requests listings of the roots again before they are older than `max_age`, where the server
    /// does not report changes: [`roots_version`](Self::roots_version) changes by then if the listing
    /// did. The smallest value of all callers counts; the default is a minute.
    fn keep_listings_fresh(&self, max_age: Duration);

    /// Starts an addition. Blocks while it works: call it from a thread that may.
    fn ingest(&self) -> Result<Box<dyn Ingest>, Error>;
}

/// One addition to a store: blobs, then Directories, then roots.
///
/// Nothing is visible, and nothing is guaranteed to be on disk, until [`commit`](Self::commit);
/// dropped before, it leaves nothing. Methods block; several threads may call them at once.
pub trait Ingest: Send + Sync {
    /// Whether the store, or this addition, already has the blob.
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error>;

    /// Which of `digests` neither the store nor this addition has, by index, in order.
    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error>;

    /// Adds blobs that are in memory. Blobs that exist already cost nothing. The order of the calls
    /// is the order in which a store lays them out.
    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error>;

    /// Starts a blob too large to hold in memory.
    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error>;

    /// Adds a Directory, after everything it refers to.
    fn put_directory(&self, directory: &Directory) -> Result<(), Error>;

    /// Removes the root `name`, if it exists, when this is committed.
    fn remove_root(&self, name: &Name) -> Result<(), Error>;

    /// Fails with [`Error::Refused`] if the store accepts no root `name`, as far as that is known
    /// before anything is sent.
    fn check_root_name(&self, name: &Name) -> Result<(), Error>;

    /// Adds a root, replacing any of that name, when this is committed.
    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error>;

    /// Adds a root when this is committed, unless another node has its name by then: the commit then
    /// fails with [`Error::NameTaken`] and adds nothing. If the same node is there, the path infos are
    /// united. Embedded stores decide this within the commit, whatever processes add at once; a bucket
    /// does where the service has conditional writes.
    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error>;

    /// Adds a root whose content may not be stored yet, when this is committed. It is visible only as
    /// [`Store::incomplete_root`] until some addition has brought the rest; after a day without, it
    /// is dropped. It replaces no root whose content is stored. Only embedded stores accept such
    /// roots, others fail with [`Error::Refused`].
    fn put_incomplete_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error>;

    /// Makes the commit fail with [`Error::Refused`], and change nothing, unless `condition` holds then. Local
    /// stores check it, within the commit; others do not.
    fn only_if(&self, condition: RootCondition) {
        let _ = condition;
    }

    /// Lets garbage collections run until the next call, for an addition that waits for its source.
    /// Objects that the store had before may be gone: the commit checks what is below its roots.
    fn release(&self);

    /// Makes everything durable, then visible.
    fn commit(self: Box<Self>) -> Result<AddedTotals, Error>;
}

/// A blob that is being written.
pub trait BlobWriter: Send {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// Ends the blob; returns its digest and size. Dropped before, it leaves nothing.
    fn finish(self: Box<Self>) -> Result<(Digest, u64), Error>;
}

/// What an [`Ingest`] added that was not there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AddedTotals {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Directories.
    pub directories: u64,
}
