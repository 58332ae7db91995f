//! A store that stands in for another: it forwards every call, unless a fault is switched on: wrong
//! bytes, lost objects, delays, hangs or errors.
//!
//! Like every store it verifies what it returns, so that wrong bytes appear as an error; except for
//! the faults that it does not notice itself, which its callers have to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, DirectoryError, GroupTable, Root};
use castore_fs::nix::PathInfo;
use castore_fs::store::{
    Answer, BackingFile, Damage, Error, Health, Ingest, LocalStore, MemoryStore, Object, Store,
    StoreUsage,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

/// How long a double that hangs waits before it gives up by itself.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// What becomes of every question that waits for its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    #[default]
    None,
    /// Every answer is an error of the store's own.
    Fails,
    /// Every answer is a failed connection.
    Unreachable,
    /// The same, after this long.
    UnreachableAfter(Duration),
    /// No answer comes while this lasts, until the deadline.
    Hangs,
    /// Answers come after this long.
    Slow(Duration),
    /// Objects are others than those of their digests.
    SendsCorruptBytes,
    /// Blobs are shorter than they are.
    Truncates,
}

/// What becomes of a question for one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Missing,
    Damaged,
    TimesOut,
    Panics,
}

/// The store.
#[derive(Debug)]
pub struct Double {
    pub inner: RwLock<Arc<dyn Store>>,
    pub url: &'static str,
    /// Nothing is available in place: every `…_now` returns [`Answer::Wait`].
    pub upstream: bool,
    pub trouble: watch::Sender<Trouble>,
    pub fates: HashMap<Digest, Fate>,
    /// Flips a bit in every part of a blob that holds this offset, and does not notice.
    pub flip_at: Option<u64>,
    /// Returns another Directory than the requested one, and does not notice.
    pub swap_directories: Option<Directory>,
    /// Returns a byte less than requested, and does not notice.
    pub cut_short: bool,
    /// Waiters for changed roots are not woken.
    pub silent: bool,
    /// It lists no roots, as a Nix binary cache.
    pub unlisted: bool,
    /// Requests that had to wait, since the number was last read.
    pub asked: AtomicU64,
    /// Questions for Directories and blobs, by either way.
    pub objects: AtomicU64,
    /// Reads of blobs that had to be waited for, and their bytes.
    pub reads: AtomicU64,
    pub bytes: AtomicU64,
    /// Which blobs, in order.
    pub read: Mutex<Vec<Digest>>,
    /// Questions that wait for their answer.
    pub waiting: AtomicU64,
    /// Whether reads of blobs go through, and how many stand before it.
    pub gate: watch::Sender<bool>,
    pub at_gate: watch::Sender<usize>,
}

impl Default for Double {
    /// Empty, and an upstream.
    fn default() -> Self {
        Self::upstream("double:", MemoryStore::new())
    }
}

impl Double {
    /// Answers in place what `inner` does.
    pub fn local_store(url: &'static str, inner: impl Store + 'static) -> Self {
        Self {
            inner: RwLock::new(Arc::new(inner)),
            url,
            upstream: false,
            trouble: watch::Sender::default(),
            fates: HashMap::new(),
            flip_at: None,
            swap_directories: None,
            cut_short: false,
            silent: false,
            unlisted: false,
            asked: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            read: Mutex::default(),
            waiting: AtomicU64::new(0),
            gate: watch::Sender::new(true),
            at_gate: watch::Sender::new(0),
        }
    }

    /// Answers nothing in place.
    pub fn upstream(url: &'static str, inner: impl Store + 'static) -> Self {
        let upstream = true;
        Self {
            upstream,
            ..Self::local_store(url, inner)
        }
    }

    pub fn with(mut self, digest: &Digest, fate: Fate) -> Self {
        self.fates.insert(*digest, fate);
        self
    }

    pub fn without(self, digest: &Digest) -> Self {
        self.with(digest, Fate::Missing)
    }

    pub fn damaging(self, digest: &Digest) -> Self {
        self.with(digest, Fate::Damaged)
    }

    /// What it stands in for.
    pub fn inner(&self) -> Arc<dyn Store> {
        self.inner.read().clone()
    }

    /// Stands in for `inner` from now on.
    pub fn becomes(&self, inner: impl Store + 'static) {
        *self.inner.write() = Arc::new(inner);
    }

    /// Is in this trouble from now on.
    pub fn trouble(&self, trouble: Trouble) {
        self.trouble.send_replace(trouble);
    }

    /// Questions that had to wait, since this was last called.
    pub fn asked(&self) -> u64 {
        self.asked.swap(0, Ordering::Relaxed)
    }

    /// Reads of blobs wait from now on.
    pub fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Wakes the waiting requests.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Waits until so many reads wait.
    #[track_caller]
    pub fn until_waiting(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while *self.at_gate.borrow() != count {
            let now = *self.at_gate.borrow();
            assert!(
                Instant::now() < deadline,
                "{now} reads wait instead of {count}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn damaged(&self, object: Object, digest: &Digest, damage: Damage) -> Error {
        Error::Damaged {
            store: self.url.to_owned(),
            object,
            digest: *digest,
            damage: Box::new(damage),
        }
    }

    /// The error for an `object` that does not match `digest`.
    fn another(&self, object: Object, digest: &Digest) -> Error {
        let (expected, actual) = (*digest, Digest::of(b"other bytes"));
        let damage = match object {
            Object::Directory => DirectoryError::WrongDigest { expected, actual }.into(),
            Object::Blob => Damage::WrongBytes { offset: 0 },
        };
        self.damaged(object, digest, damage)
    }

    fn times_out(&self) -> Error {
        Error::Timeout {
            store: self.url.to_owned(),
            after: DEADLINE,
        }
    }

    /// Whether `object` is here; an error if something is to become of it.
    fn fate(&self, object: Object, digest: &Digest) -> Result<bool, Error> {
        self.objects.fetch_add(1, Ordering::Relaxed);
        match self.fates.get(digest) {
            None => Ok(true),
            Some(Fate::Missing) => Ok(false),
            Some(Fate::Damaged) => Err(self.another(object, digest)),
            Some(Fate::TimesOut) => Err(self.times_out()),
            Some(Fate::Panics) => panic!("a bug, for the sake of the test"),
        }
    }

    /// Runs before every answer that is waited for; returns the fault.
    async fn before(&self) -> Result<Trouble, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let trouble = self.hang_and_dawdle().await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        match trouble {
            Trouble::Hangs => Err(self.times_out()),
            Trouble::Fails => Err(Error::Format {
                store: self.url.to_owned(),
                why: "the disk is on fire".to_owned(),
            }),
            Trouble::Unreachable | Trouble::UnreachableAfter(_) => Err(Error::Remote {
                store: self.url.to_owned(),
                request: "asking".to_owned(),
                why: "the endpoint is down".to_owned(),
            }),
            trouble => Ok(trouble),
        }
    }

    async fn hang_and_dawdle(&self) -> Trouble {
        let mut trouble = self.trouble.subscribe();
        let over = trouble.wait_for(|trouble| *trouble != Trouble::Hangs);
        let Ok(trouble) = tokio::time::timeout(DEADLINE, over).await else {
            return Trouble::Hangs;
        };
        let trouble = trouble.map_or(Trouble::None, |trouble| *trouble);
        if let Trouble::Slow(delay) | Trouble::UnreachableAfter(delay) = trouble {
            tokio::time::sleep(delay).await;
        }
        trouble
    }

    fn mangle(&self, offset: u64, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        let flipped = self.flip_at.and_then(|at| at.checked_sub(offset));
        if let Some(byte) = flipped.and_then(|at| bytes.get_mut(at as usize)) {
            *byte ^= 1;
        }
        if self.cut_short {
            bytes.pop();
        }
        bytes.into()
    }
}

#[async_trait]
impl Store for Double {
    fn url(&self) -> &str {
        self.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        if self.upstream {
            return Ok(Answer::Wait);
        }
        match self.fate(Object::Directory, digest)? {
            true => self.inner().directory_now(digest),
            false => Ok(Answer::Absent),
        }
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        if self.upstream {
            return Ok(Answer::Wait);
        }
        match self.fate(Object::Blob, digest)? {
            true if !*self.gate.borrow() => Ok(Answer::Wait),
            true => self.inner().read_now(digest, size, offset, buffer),
            false => Ok(Answer::Absent),
        }
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.inner().will_need(blobs);
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        self.inner().forget(digest, size, offset, length);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        match self.upstream {
            true => Ok(Answer::Wait),
            false => self.inner().root_now(name),
        }
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.inner().backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        if self.before().await? == Trouble::SendsCorruptBytes {
            return Err(self.another(Object::Directory, digest));
        }
        if let Some(other) = &self.swap_directories {
            return Ok(Some(other.clone()));
        }
        match self.fate(Object::Directory, digest)? {
            true => self.inner().directory(digest).await,
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
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read.lock().push(*digest);
        match self.before().await? {
            Trouble::SendsCorruptBytes => return Err(self.another(Object::Blob, digest)),
            Trouble::Truncates => {
                let (expected, actual) = (size, size - 1);
                let shorter = Damage::WrongSize { expected, actual };
                return Err(self.damaged(Object::Blob, digest, shorter));
            }
            _ => {}
        }
        if !self.fate(Object::Blob, digest)? {
            return Ok(None);
        }
        self.at_gate.send_modify(|waiting| *waiting += 1);
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        self.at_gate.send_modify(|waiting| *waiting -= 1);
        let read = self.inner().read(digest, size, offset, length).await?;
        Ok(read.map(|bytes| {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.mangle(offset, bytes)
        }))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.before().await?;
        self.inner().root(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        if self.unlisted {
            return Err(Error::Refused {
                store: self.url.to_owned(),
                what: "listing the roots".to_owned(),
                why: "it has no list".to_owned(),
            });
        }
        self.before().await?;
        self.inner().roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.before().await?;
        self.inner().path_info(name).await
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        self.inner().incomplete_root(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.before().await?;
        self.inner().has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.before().await?;
        self.inner().has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.before().await?;
        self.inner().blob_size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        self.before().await?;
        self.inner().chunks(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.before().await?;
        self.inner().group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.inner().usage()
    }

    fn embedded(&self) -> Vec<LocalStore> {
        self.inner().embedded()
    }

    fn health(&self) -> Health {
        self.inner().health()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner().roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        if self.silent {
            std::thread::sleep(timeout);
            return Ok(seen);
        }
        self.inner().wait_for_roots(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.inner().keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.inner().ingest()
    }
}
