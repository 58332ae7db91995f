//! The answers of a cache: from the local store, from recently fetched objects, or from the
//! upstream.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;

use super::fetch::looking_up;
use super::roots::RootMemory;
use super::{Cache, cached_extent_size};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::{self, PathInfo};
use crate::store::{Answer, BackingFile, Error, Health, Ingest, Store, StoreUsage, extents};

/// The longest delay until a waiting caller notices a change of the local store's own roots.
const LATE: Duration = Duration::from_secs(1);

#[async_trait]
impl Store for Cache {
    fn url(&self) -> &str {
        &self.0.inner.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        let inner = &self.0.inner;
        if *digest == Digest::empty_blob() {
            return Ok(Answer::Found(Directory::empty()));
        }
        if let Some(directory) = inner.cached_directory(digest) {
            inner.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Answer::Found(directory));
        }
        // The upstream may have it in memory. Its errors are ignored here: the async call gets them again.
        match inner.upstream.directory_now(digest) {
            Ok(Answer::Found(directory)) if directory.digest() == *digest => {
                inner.misses.fetch_add(1, Ordering::Relaxed);
                inner.keep_directory(digest, &directory);
                Ok(Answer::Found(directory))
            }
            Ok(Answer::Absent) => Ok(Answer::Absent),
            _ => Ok(Answer::Wait),
        }
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        let inner = &self.0.inner;
        check_claim(&inner.url, digest, size)?;
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(Answer::Found(0));
        }
        match inner.read_cached(digest, size, offset, &mut buffer[..length])? {
            true => {
                inner.hits.fetch_add(1, Ordering::Relaxed);
                Ok(Answer::Found(length))
            }
            // What was announced to the upstream may be in its memory.
            false => {
                match inner.read_upstream_memory(digest, size, offset, &mut buffer[..length]) {
                    true => Ok(Answer::Found(length)),
                    false => Ok(Answer::Wait),
                }
            }
        }
    }

    /// The upstream fetches what is not cached into its own memory; a read stores it in the cache.
    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.0.inner.announce(blobs);
    }

    /// What memory has is on its way to the local store.
    fn forget(&self, _: &Digest, _: u64, _: u64, _: u64) {}

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        let inner = &self.0.inner;
        if let Ok(Answer::Found(root)) = inner.local_store.root_now(name) {
            return Ok(Answer::Found(root));
        }
        // Nix relies on what was reported, whatever the upstream has by that name now.
        if nix::output_hash(name).is_some()
            && let Some(root) = inner.local_store.reported_root(name)?
        {
            return Ok(Answer::Found(root));
        }
        let roots = &inner.writer.roots;
        match roots.recall(name, inner.upstream_version()) {
            RootMemory::Fresh(known) => return Ok(known.into()),
            RootMemory::Old(root) if inner.circuit_breaker.is_open() => {
                return Ok(Answer::Found(root));
            }
            RootMemory::Old(_) | RootMemory::Nothing => {}
        }
        match inner.upstream.root_now(name) {
            Ok(Answer::Found(root)) => {
                roots.note(name, Some(&root), true);
                Ok(Answer::Found(root))
            }
            Ok(Answer::Absent) => {
                roots.note(name, None, true);
                Ok(Answer::Absent)
            }
            _ => Ok(Answer::Wait),
        }
    }

    /// Only blobs that are complete in the local store have one.
    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        let inner = &self.0.inner;
        if inner.writer.is_spoiled(digest) {
            return Ok(None);
        }
        match inner.local_store.backing_file(digest, size) {
            Ok(file) => {
                if file.is_some() {
                    inner.writer.access_times.touch(digest);
                }
                Ok(file)
            }
            Err(error) => inner.excuse(digest, size, error).map(|()| None),
        }
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        match self.directory_now(digest)? {
            Answer::Found(directory) => Ok(Some(directory)),
            Answer::Absent => Ok(None),
            Answer::Wait => self.0.inner.directory(digest).await,
        }
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let inner = &self.0.inner;
        check_claim(&inner.url, digest, size)?;
        let end = size.min(offset.saturating_add(length as u64));
        if offset >= end {
            return Ok(Some(Bytes::new()));
        }
        let extent = cached_extent_size(size);
        let parts = (offset / extent..end.div_ceil(extent)).map(|index| async move {
            let from = offset.max(index * extent);
            let to = end.min((index + 1) * extent);
            let mut buffer = vec![0; (to - from) as usize];
            if inner.read_cached(digest, size, from, &mut buffer)? {
                inner.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(Bytes::from(buffer)));
            }
            let found = inner.extent(digest, size, index).await?;
            let (from, to) = (
                (from - index * extent) as usize,
                (to - index * extent) as usize,
            );
            Ok::<_, Error>(found.map(|bytes| bytes.slice(from..to)))
        });
        let parts = try_join_all(parts).await?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        if let [only] = &parts[..] {
            return Ok(Some(only.clone()));
        }
        let mut all = BytesMut::with_capacity((end - offset) as usize);
        parts.iter().for_each(|part| all.extend_from_slice(part));
        Ok(Some(all.freeze()))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let inner = &self.0.inner;
        match self.root_now(name)? {
            Answer::Found(root) => return Ok(Some(root)),
            Answer::Absent => return Ok(None),
            Answer::Wait => {}
        }
        let looked = inner.look_up(name).await;
        match looked {
            Err(error) => match inner.writer.roots.recall(name, inner.upstream_version()) {
                RootMemory::Old(root) | RootMemory::Fresh(Some(root)) => Ok(Some(root)),
                _ => Err(error),
            },
            found => found,
        }
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let inner = &self.0.inner;
        let own = inner.local_store.roots().await?;
        let reported = inner.local_store.valid_paths(b"")?.into_iter();
        let reported: Vec<Root> = reported.filter_map(|valid| valid.root).collect();
        let listed = inner
            .ask(|| "listing the roots".to_owned(), inner.upstream.roots())
            .await;
        let mut roots = match listed {
            Ok(listed) => {
                inner.writer.roots.note_all(&listed);
                listed
            }
            Err(error) => {
                let known = inner.writer.roots.all();
                let unlisted = matches!(error, Error::Unlisted { .. });
                if unlisted || known.is_empty() && own.is_empty() && reported.is_empty() {
                    return Err(error);
                }
                known
            }
        };
        prefer(&mut roots, reported);
        prefer(&mut roots, own);
        Ok(roots)
    }

    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        let inner = &self.0.inner;
        let own = inner.local_store.roots().await?;
        let asked = inner
            .ask(
                || "listing the roots".to_owned(),
                inner.upstream.complete_roots(),
            )
            .await;
        let mut roots = asked?;
        inner.writer.roots.note_all(&roots);
        prefer(&mut roots, own);
        Ok(roots)
    }

    /// While the upstream is down, a cached root whose path info was never fetched has none.
    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let inner = &self.0.inner;
        if let Some(info) = inner.local_store.path_info(name).await? {
            return Ok(Some(info));
        }
        // A path info that is stored with every lookup is not requested again.
        let kept = inner
            .keep_path_infos
            .then(|| inner.writer.roots.path_info(name));
        if let Some(Some(info)) = kept {
            return Ok(Some(info));
        }
        match inner
            .ask(|| looking_up(name), inner.upstream.path_info(name))
            .await
        {
            Ok(Some(info)) => {
                inner.writer.roots.note_path_info(name, &info);
                Ok(Some(info))
            }
            Ok(None) => Ok(None),
            Err(error) => match inner.writer.roots.path_info(name) {
                Some(info) => Ok(Some(info)),
                None if inner.writer.roots.remembers(name) => Ok(None),
                None => Err(error),
            },
        }
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        self.0.inner.upstream.incomplete_root(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.0.inner.upstream.has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let inner = &self.0.inner;
        if inner.local_store.has_blob(digest).await? {
            return Ok(true);
        }

        inner
            .ask(
                || format!("asking for blob {digest}"),
                inner.upstream.has_blob(digest),
            )
            .await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let inner = &self.0.inner;
        if let Some(size) = inner.local_store.blob_size(digest).await? {
            return Ok(Some(size));
        }
        if let Some((size, _)) = inner.local_store.parts().about(digest) {
            return Ok(Some(size));
        }

        inner
            .ask(
                || format!("asking for blob {digest}"),
                inner.upstream.blob_size(digest),
            )
            .await
    }

    /// Chunks of blobs in the local store are cut from there.
    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        let inner = &self.0.inner;
        if inner.local_store.has_blob(digest).await? {
            return inner.local_store.chunks(digest).await;
        }

        inner
            .ask(
                || format!("asking for the chunks of blob {digest}"),
                inner.upstream.chunks(digest),
            )
            .await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let inner = &self.0.inner;
        if let Ok(Some(table)) = inner.local_store.group_table(digest, size).await {
            return Ok(Some(table));
        }
        if let Some((known, table)) = inner.local_store.parts().about(digest)
            && known == size
        {
            return Ok(Some(table));
        }

        inner
            .ask(
                || format!("reading blob {digest}"),
                inner.upstream.group_table(digest, size),
            )
            .await
    }

    /// The contents of the local store.
    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.0.inner.local_store.usage()
    }

    /// The local store, and those of the upstream.
    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        let mut stores = vec![self.0.inner.local_store.clone()];
        stores.extend(self.0.inner.upstream.embedded());
        stores
    }

    /// None: the upstream reports its own health, and [`status`](Cache::status) has the cache's.
    fn health(&self) -> Health {
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        let inner = &self.0.inner;
        // Each of the three numbers only grows, so their sum changes when one of them does.
        let own = inner.local_store.roots_version()?;
        let noticed = inner.writer.roots.version();
        Ok(own
            .wrapping_add(noticed)
            .wrapping_add(inner.upstream_version()))
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        let inner = &self.0.inner;
        let deadline = Instant::now() + timeout;
        loop {
            let version = self.roots_version()?;
            let remaining = deadline.saturating_duration_since(Instant::now());
            if version != seen || remaining.is_zero() {
                return Ok(version);
            }
            let (slice, begun) = (remaining.min(LATE), Instant::now());
            let upstream = inner.upstream_version.load(Ordering::Relaxed);
            if inner.upstream.wait_for_roots(upstream, slice).is_err() {
                std::thread::sleep(slice.saturating_sub(begun.elapsed()));
            }
        }
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.0.inner.upstream.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.0.inner.upstream.ingest()
    }
}

/// Adds the local store's own roots to the upstream's; of two with one name the local store's stays.
fn prefer(roots: &mut Vec<Root>, preferred: Vec<Root>) {
    roots.splice(0..0, preferred);
    roots.sort_by(|a, b| a.name.cmp(&b.name));
    roots.dedup_by(|later, first| later.name == first.name);
}

/// Checks that the size is 0 for the empty blob, and for no other.
fn check_claim(store: &str, digest: &Digest, size: u64) -> Result<(), Error> {
    extents::check_claim(digest, size).map_err(|failure| failure.of(store, "reading"))
}
