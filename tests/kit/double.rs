//! A store that stands in for another: it forwards every question, unless it is told to lie, to
//! lose things, to be slow, to hang or to fail.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, GroupTable, Root};
use castore_fs::nix::PathInfo;
use castore_fs::store::{
    Answer, BackingFile, Damage, Error, Health, Ingest, MemoryStore, Object, Store, Usage,
};
use tokio::sync::watch;

/// What becomes of a question for one object.
#[allow(dead_code)] // no test needs all of it
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
    pub inner: MemoryStore,
    pub url: &'static str,
    /// Nothing is at hand: every `…_now` says [`Answer::Wait`].
    pub far: bool,
    pub fates: HashMap<Digest, Fate>,
    /// Flips a bit in every part of a blob that holds this offset.
    pub flip_at: Option<u64>,
    /// Gives another Directory than the one asked for.
    pub swap_directories: Option<Directory>,
    /// Gives a byte less than it was asked for.
    pub truncate: AtomicBool,
    /// Every answer is an error of the store's own.
    pub fail: AtomicBool,
    /// Every answer is that nobody is there.
    pub unreachable: AtomicBool,
    /// No answer ever comes.
    pub hang: AtomicBool,
    /// Nobody who waits is told that root nodes have changed.
    pub silent: AtomicBool,
    /// Milliseconds that every answer takes.
    pub delay: AtomicU64,
    /// Questions for Directories and blobs, by either way.
    pub asked: AtomicU64,
    /// Reads of blobs that had to be waited for, and their bytes.
    pub reads: AtomicU64,
    pub bytes: AtomicU64,
    /// Which blobs, in order.
    pub read: std::sync::Mutex<Vec<Digest>>,
    /// Questions that wait for their answer.
    pub waiting: AtomicU64,
    /// Whether reads of blobs go through, and how many stand before it.
    pub gate: watch::Sender<bool>,
    pub at_gate: watch::Sender<usize>,
}

impl Default for Double {
    /// Empty, and far away.
    fn default() -> Self {
        Self::far("double:", MemoryStore::new())
    }
}

#[allow(dead_code)] // no test needs all of it
impl Double {
    /// Has at hand what `inner` has.
    pub fn near(url: &'static str, inner: MemoryStore) -> Self {
        Self {
            inner,
            url,
            far: false,
            fates: HashMap::new(),
            flip_at: None,
            swap_directories: None,
            truncate: AtomicBool::new(false),
            fail: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
            hang: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            read: std::sync::Mutex::default(),
            waiting: AtomicU64::new(0),
            gate: watch::Sender::new(true),
            at_gate: watch::Sender::new(0),
        }
    }

    /// Has nothing at hand.
    pub fn far(url: &'static str, inner: MemoryStore) -> Self {
        let far = true;
        Self {
            far,
            ..Self::near(url, inner)
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

    /// Directories and blobs that were asked for.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn set(&self, knob: &AtomicBool, on: bool) {
        knob.store(on, Ordering::Relaxed);
    }

    /// Reads of blobs wait from now on.
    pub fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Those that wait go on.
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

    fn ask(&self, object: Object, digest: &Digest) -> Result<bool, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let store = self.url.to_owned();
        match self.fates.get(digest) {
            None => Ok(true),
            Some(Fate::Missing) => Ok(false),
            Some(Fate::Damaged) => Err(Error::Damaged {
                store,
                object,
                digest: *digest,
                damage: Box::new(Damage::WrongBytes { offset: 0 }),
            }),
            Some(Fate::TimesOut) => Err(Error::Timeout {
                store,
                after: Duration::from_secs(1),
            }),
            Some(Fate::Panics) => panic!("a bug, for the sake of the test"),
        }
    }

    async fn trouble(&self) -> Result<(), Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        while self.hang.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.fail.load(Ordering::Relaxed) {
            return Err(Error::Format {
                store: self.url.to_owned(),
                why: "the disk is on fire".to_owned(),
            });
        }
        if self.unreachable.load(Ordering::Relaxed) {
            return Err(Error::Remote {
                store: self.url.to_owned(),
                request: "asking".to_owned(),
                why: "nobody is there".to_owned(),
            });
        }
        Ok(())
    }

    fn mangle(&self, offset: u64, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        let flipped = self.flip_at.and_then(|at| at.checked_sub(offset));
        if let Some(byte) = flipped.and_then(|at| bytes.get_mut(at as usize)) {
            *byte ^= 1;
        }
        if self.truncate.load(Ordering::Relaxed) {
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
        if self.far {
            return Ok(Answer::Wait);
        }
        match self.ask(Object::Directory, digest)? {
            true => self.inner.directory_now(digest),
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
        if self.far {
            return Ok(Answer::Wait);
        }
        match self.ask(Object::Blob, digest)? {
            true if !*self.gate.borrow() => Ok(Answer::Wait),
            true => self.inner.read_now(digest, size, offset, buffer),
            false => Ok(Answer::Absent),
        }
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.inner.will_need(blobs);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        match self.far {
            true => Ok(Answer::Wait),
            false => self.inner.root_now(name),
        }
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.inner.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.trouble().await?;
        if let Some(other) = &self.swap_directories {
            return Ok(Some(other.clone()));
        }
        match self.ask(Object::Directory, digest)? {
            true => self.inner.directory(digest).await,
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
        self.read.lock().unwrap().push(*digest);
        self.trouble().await?;
        if !self.ask(Object::Blob, digest)? {
            return Ok(None);
        }
        self.at_gate.send_modify(|waiting| *waiting += 1);
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        self.at_gate.send_modify(|waiting| *waiting -= 1);
        let read = self.inner.read(digest, size, offset, length).await?;
        Ok(read.map(|bytes| {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.mangle(offset, bytes)
        }))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.trouble().await?;
        self.inner.root(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.trouble().await?;
        self.inner.roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.trouble().await?;
        self.inner.path_info(name).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.trouble().await?;
        self.inner.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.trouble().await?;
        self.inner.blob_size(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.trouble().await?;
        self.inner.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.inner.usage()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        if self.silent.load(Ordering::Relaxed) {
            std::thread::sleep(timeout);
            return Ok(seen);
        }
        self.inner.wait_for_roots(seen, timeout)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.inner.ingest()
    }
}
