//! A store far away that fails, hangs, dawdles, lies or truncates when it is told to.
//!
//! As every store it verifies what it hands out, so that a lie comes out as the error it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, DirectoryError, GroupTable, Name, Node, Root};
use castore_fs::nix::PathInfo;
use castore_fs::store::{
    Answer, BackingFile, Damage, Error, Health, Ingest, MemoryStore, Object, Store, Usage,
};
use parking_lot::Mutex;

/// How long the double waits before it gives up by itself.
pub const DEADLINE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Trouble {
    #[default]
    None,
    /// Every question is an error.
    Fails,
    /// No answer until the deadline.
    Hangs,
    /// Answers come after this long.
    Slow(Duration),
    /// Other bytes than those of the digest.
    Lies,
    /// Fewer bytes than the blob has.
    Truncates,
}

#[derive(Debug)]
pub struct Double {
    pub inner: MemoryStore,
    name: String,
    trouble: Mutex<Trouble>,
    /// Whether what it has is at hand.
    pub near: bool,
    asked: AtomicU64,
}

impl Double {
    pub fn new(name: &str) -> Arc<Self> {
        Self::with(name, &MemoryStore::new())
    }

    /// With what `inner` holds.
    pub fn with(name: &str, inner: &MemoryStore) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            name: name.to_owned(),
            trouble: Mutex::default(),
            near: false,
            asked: AtomicU64::new(0),
        })
    }

    pub fn trouble(&self, trouble: Trouble) {
        *self.trouble.lock() = trouble;
    }

    /// Questions since this was last called.
    pub fn asked(&self) -> u64 {
        self.asked.swap(0, Ordering::Relaxed)
    }

    async fn before(&self) -> Result<Trouble, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let trouble = *self.trouble.lock();
        let store = self.name.clone();
        match trouble {
            Trouble::Fails => Err(Error::Remote {
                store,
                request: "asking".to_owned(),
                why: "the disk is on fire".to_owned(),
            }),
            Trouble::Hangs => {
                tokio::time::sleep(DEADLINE).await;
                let after = DEADLINE;
                Err(Error::Timeout { store, after })
            }
            Trouble::Slow(delay) => {
                tokio::time::sleep(delay).await;
                Ok(trouble)
            }
            _ => Ok(trouble),
        }
    }

    fn damaged(&self, object: Object, digest: &Digest, damage: Damage) -> Error {
        Error::Damaged {
            store: self.name.clone(),
            object,
            digest: *digest,
            damage: Box::new(damage),
        }
    }
}

#[async_trait]
impl Store for Double {
    fn url(&self) -> &str {
        &self.name
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        match self.near {
            true => self.inner.directory_now(digest),
            false => Ok(Answer::Wait),
        }
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        match self.near {
            true => self.inner.read_now(digest, size, offset, buffer),
            false => Ok(Answer::Wait),
        }
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.inner.will_need(blobs);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        match self.near {
            true => self.inner.root_now(name),
            false => Ok(Answer::Wait),
        }
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.inner.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        if self.before().await? == Trouble::Lies {
            let (expected, actual) = (*digest, Digest::of(b"a lie"));
            let wrong = DirectoryError::WrongDigest { expected, actual };
            return Err(self.damaged(Object::Directory, digest, wrong.into()));
        }
        self.inner.directory(digest).await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let damage = match self.before().await? {
            Trouble::Lies => Damage::WrongBytes { offset: 0 },
            Trouble::Truncates => Damage::WrongSize {
                expected: size,
                actual: size - 1,
            },
            _ => return self.inner.read(digest, size, offset, length).await,
        };
        Err(self.damaged(Object::Blob, digest, damage))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.before().await?;
        self.inner.root(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.before().await?;
        self.inner.roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.before().await?;
        self.inner.path_info(name).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.before().await?;
        self.inner.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.before().await?;
        self.inner.blob_size(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.before().await?;
        self.inner.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        Ok(None)
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.inner.wait_for_roots(seen, timeout)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.inner.ingest()
    }
}

/// Adds a root node `name`: a directory with one file, which says `contents`. Gives the directory.
pub fn put(store: &MemoryStore, name: &str, contents: &str) -> Directory {
    let file = Node::File {
        digest: Digest::of(contents.as_bytes()),
        size: contents.len() as u64,
        executable: false,
    };
    let directory = Directory::from_entries(vec![(Name::new(b"file").unwrap(), file)]).unwrap();
    let ingest = store.ingest().unwrap();
    let digest = Digest::of(contents.as_bytes());
    ingest.put_blobs(&[(digest, contents.as_bytes())]).unwrap();
    ingest.put_directory(&directory).unwrap();
    let root = Root {
        name: Name::new(name.as_bytes()).unwrap(),
        node: directory.node(),
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    directory
}
