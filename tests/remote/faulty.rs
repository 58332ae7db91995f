//! A store that lies, hangs or fails, in front of one that does not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, GroupTable, Root};
use castore_fs::nix::PathInfo;
use castore_fs::store::{Answer, Error, Ingest, MemoryStore, Store, Usage};

#[derive(Debug, Default)]
pub struct Faulty {
    pub inner: MemoryStore,
    /// Flips a bit in every part of a blob that holds this offset.
    pub flip_at: Option<u64>,
    /// Gives another Directory than the one asked for.
    pub swap_directories: Option<Directory>,
    pub hang: AtomicBool,
    pub fail: AtomicBool,
    pub reads: AtomicU64,
    /// Calls that hang at the moment.
    pub waiting: AtomicU64,
}

impl Faulty {
    async fn trouble(&self) -> Result<(), Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        while self.hang.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.fail.load(Ordering::Relaxed) {
            return Err(Error::Format {
                store: "faulty".to_owned(),
                why: "the disk is on fire".to_owned(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Faulty {
    fn url(&self) -> &str {
        "faulty"
    }

    fn directory_now(&self, _: &Digest) -> Result<Answer<Directory>, Error> {
        Ok(Answer::Wait)
    }

    fn read_now(&self, _: &Digest, _: u64, _: u64, _: &mut [u8]) -> Result<Answer<usize>, Error> {
        Ok(Answer::Wait)
    }

    fn root_now(&self, _: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(Answer::Wait)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.trouble().await?;
        if let Some(other) = &self.swap_directories {
            return Ok(Some(other.clone()));
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
        self.trouble().await?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        let read = self.inner.read(digest, size, offset, length).await?;
        Ok(read.map(|bytes| {
            let mut bytes = bytes.to_vec();
            if let Some(at) = self.flip_at
                && let Some(byte) = at
                    .checked_sub(offset)
                    .and_then(|at| bytes.get_mut(at as usize))
            {
                *byte ^= 1;
            }
            bytes.into()
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
