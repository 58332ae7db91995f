//! Fetching an object: from the local store, from memory, or from the upstream.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::FutureExt;

use super::writer::Write;
use super::{CacheInner, REFRESHED, SharedFetch, WHOLE, cached_extent_size};
use crate::castore::{Digest, Directory, GroupTable, Printable, Root};
use crate::store::{Answer, Damage, Error, Object, Store};

/// The request for the root `name`, in errors.
pub(super) fn looking_up(name: &[u8]) -> String {
    format!("looking up root \"{}\"", Printable(name))
}

impl CacheInner {
    /// Reads a blob from what is cached: fills `buffer`, or reports that something is missing.
    pub(super) fn read_cached(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, Error> {
        match self.local_store.read_now(digest, size, offset, buffer) {
            Ok(Answer::Found(length)) if length == buffer.len() => {
                self.writer.access_times.touch(digest);
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) => self.excuse(digest, size, error)?,
        }
        let parts = self.local_store.parts().read(digest, size, offset, buffer);
        let read = parts.map_err(|damage| Error::Damaged {
            store: self.local_store.url().to_owned(),
            object: Object::Blob,
            digest: *digest,
            damage: Box::new(damage),
        })?;
        if read {
            self.writer.access_times.touch(digest);
            return Ok(true);
        }
        Ok(self.in_memory(digest, size, offset, buffer))
    }

    pub(super) fn in_memory(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> bool {
        let extent = cached_extent_size(size);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let key = (*digest, size, at / extent);
            let Some(bytes) = self.recent.lock().blobs.get(&key) else {
                return false;
            };
            let Some(part) = bytes.get((at % extent) as usize..) else {
                return false;
            };
            let length = part.len().min(buffer.len() - done);
            if length == 0 {
                return false;
            }
            buffer[done..done + length].copy_from_slice(&part[..length]);
            done += length;
        }
        true
    }

    /// Whether the upstream can help where the local store failed: always, unless the node that was
    /// read by states a size that the blob does not have.
    pub(super) fn excuse(&self, digest: &Digest, size: u64, error: Error) -> Result<(), Error> {
        if let Error::Damaged { .. } = &error
            && let Ok(Some(actual)) = self.local_store.indexed_size(digest)
            && actual != size
        {
            return Err(error);
        }
        self.writer.note_spoiled(digest, &error);
        Ok(())
    }

    pub(super) fn cached_directory(&self, digest: &Digest) -> Option<Directory> {
        match self.local_store.directory_now(digest) {
            Ok(Answer::Found(directory)) => {
                self.writer.access_times.touch(digest);
                return Some(directory);
            }
            Ok(_) => {}
            Err(error) => self.writer.note_spoiled(digest, &error),
        }
        self.recent.lock().directories.get(digest)
    }

    /// Part `index` of a blob: from memory, or from the upstream, with one fetch for all readers.
    pub(super) async fn extent(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        index: u64,
    ) -> Result<Option<Bytes>, Error> {
        let key = (*digest, size, index);
        if let Some(bytes) = self.recent.lock().blobs.get(&key) {
            return Ok(Some(bytes));
        }
        let received = self.fetching.join(key, &self.runtime, || {
            let (inner, digest) = (self.clone(), *digest);
            async move { inner.fetch_extent(digest, size, index).await }
        });
        self.received(received.await)
    }

    pub(super) fn received<T>(&self, received: Option<SharedFetch<T>>) -> Result<Option<T>, Error> {
        match received {
            Some(received) => received,
            None => Err(Error::Remote {
                store: self.url.clone(),
                request: "the fetch".to_owned(),
                why: "it was interrupted".to_owned(),
            }),
        }
    }

    pub(super) async fn fetch_extent(
        self: Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> SharedFetch<Bytes> {
        // It may have arrived between the check and the start of the fetch.
        if let Some(bytes) = self.recent.lock().blobs.get(&(digest, size, index)) {
            return Ok(Some(bytes));
        }
        let extent = cached_extent_size(size);
        let start = index * extent;
        let length = extent.min(size.saturating_sub(start));
        self.misses.fetch_add(1, Ordering::Relaxed);
        let upstream = self.upstream.clone();
        let asked = async move { upstream.read(&digest, size, start, length as usize).await };
        let request = || format!("reading blob {digest}");
        let Some(bytes) = self.ask(request, asked).await? else {
            return Ok(None);
        };
        let whole = length == size;
        let damage = match bytes.len() as u64 == length {
            false => Some(Damage::WrongSize {
                expected: length,
                actual: bytes.len() as u64,
            }),
            // The local store holds only what this process hashed, whatever its source.
            true if whole && Digest::of(&bytes) != digest => Some(Damage::WrongBytes { offset: 0 }),
            true => None,
        };
        if let Some(damage) = damage {
            return Err(Error::Damaged {
                store: self.upstream.url().to_owned(),
                object: Object::Blob,
                digest,
                damage: Box::new(damage),
            });
        }
        self.keep_extent(digest, size, index, &bytes);
        Ok(Some(bytes))
    }

    /// Takes what the upstream has in memory of a part of a blob, and fills `buffer`; false if
    /// something is missing, or is not what it should be: a fetch gets the reason.
    pub(super) fn read_upstream_memory(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> bool {
        let extent = cached_extent_size(size);
        let last = (offset + buffer.len() as u64 - 1) / extent;
        for index in offset / extent..=last {
            if self.recent.lock().blobs.contains(&(*digest, size, index)) {
                continue;
            }
            let start = index * extent;
            let length = extent.min(size - start);
            // So much is allocated before it is known to be there.
            if length > WHOLE {
                return false;
            }
            let mut bytes = vec![0; length as usize];
            let read = self.upstream.read_now(digest, size, start, &mut bytes);
            if !matches!(read, Ok(Answer::Found(read)) if read == bytes.len())
                || (length == size && Digest::of(&bytes) != *digest)
            {
                return false;
            }
            self.misses.fetch_add(1, Ordering::Relaxed);
            self.keep_extent(*digest, size, index, &bytes.into());
        }
        self.in_memory(digest, size, offset, buffer)
    }

    /// Announces to the upstream what is not cached.
    pub(super) fn announce(&self, blobs: &[(Digest, u64)]) {
        let is_cached = |digest: &Digest| {
            let indexed = self.local_store.indexed_size(digest);
            matches!(indexed, Ok(Some(_))) || self.local_store.parts().about(digest).is_some()
        };
        let blobs = blobs.iter().filter(|(digest, _)| !is_cached(digest));
        let blobs: Vec<_> = blobs.copied().collect();
        if !blobs.is_empty() {
            self.upstream.will_need(&blobs);
        }
    }

    /// Keeps a part that the upstream returned.
    fn keep_extent(self: &Arc<Self>, digest: Digest, size: u64, index: u64, bytes: &Bytes) {
        let key = (digest, size, index);
        let mut recent = self.recent.lock();
        recent.blobs.insert(key, bytes.clone(), bytes.len());
        drop(recent);
        let (start, length) = (index * cached_extent_size(size), bytes.len() as u64);
        self.upstream.forget(&digest, size, start, length);
        self.writer.access_times.touch(&digest);
        if size <= WHOLE {
            return self.writer.push(Write::Blob(digest, bytes.clone()));
        }
        // The table may take another request, for which no reader waits.
        let Some(expected) = self.writer.expect(bytes.len()) else {
            return;
        };
        let (inner, bytes) = (self.clone(), bytes.clone());
        self.runtime.spawn(
            async move {
                if let Some(table) = inner.table(digest, size).await {
                    expected.arrived(Write::Part {
                        digest,
                        size,
                        extent: cached_extent_size(size),
                        index,
                        bytes,
                        table,
                    });
                }
            }
            .boxed(),
        );
    }

    /// Forgets what the local store has now.
    pub(super) fn written(&self, writes: &[Write]) {
        let mut recent = self.recent.lock();
        for write in writes {
            match write {
                Write::Blob(digest, bytes) => {
                    recent.blobs.remove(&(*digest, bytes.len() as u64, 0));
                }
                Write::Part {
                    digest,
                    size,
                    index,
                    ..
                } => recent.blobs.remove(&(*digest, *size, *index)),
                Write::Directory(_) => {}
            }
        }
    }

    /// Calls the upstream with `question`, which is for `request`, unless the breaker is open.
    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce() -> String,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.circuit_breaker.check(request)?;
        let answer = question.await;
        self.circuit_breaker.note(&answer);
        answer
    }

    /// The table of a large blob, checked against its digest.
    pub(super) async fn table(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Option<Arc<GroupTable>> {
        let key = (digest, size);
        if let Some(table) = self.recent.lock().tables.get(&key) {
            return Some(table);
        }
        let received = self.tabling.join(key, &self.runtime, || {
            let inner = self.clone();
            async move {
                let partial = inner.local_store.parts().about(&digest);
                let table = match partial.filter(|(known, _)| *known == size) {
                    Some((_, table)) => table,
                    None => {
                        let table = inner.upstream.group_table(&digest, size).await.ok()??;
                        // The digest binds the table; no trust is needed.
                        GroupTable::decode(table.as_bytes(), &digest, size).ok()?
                    }
                };
                let (table, weight) = (Arc::new(table), GroupTable::byte_len(size) as usize);
                let mut recent = inner.recent.lock();
                recent.tables.insert(key, table.clone(), weight);
                Some(table)
            }
        });
        received.await.flatten()
    }

    pub(super) fn forget_recent(&self, digest: &Digest, size: u64) {
        let mut recent = self.recent.lock();
        for index in 0..size.div_ceil(cached_extent_size(size)) {
            recent.blobs.remove(&(*digest, size, index));
        }
    }

    /// Stores a Directory that the upstream returned.
    pub(super) fn keep_directory(&self, digest: &Digest, directory: &Directory) {
        let weight = directory.as_bytes().len() + 64;
        let mut recent = self.recent.lock();
        recent
            .directories
            .insert(*digest, directory.clone(), weight);
        drop(recent);
        self.writer.access_times.touch(digest);
        self.writer.push(Write::Directory(directory.clone()));
    }

    pub(super) async fn directory(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<Directory>, Error> {
        if let Some(directory) = self.cached_directory(digest) {
            return Ok(Some(directory));
        }
        let received = self.asking.join(*digest, &self.runtime, || {
            let (inner, digest) = (self.clone(), *digest);
            async move { inner.fetch_directory(digest).await }
        });
        self.received(received.await)
    }

    pub(super) async fn fetch_directory(self: Arc<Self>, digest: Digest) -> SharedFetch<Directory> {
        if let Some(directory) = self.recent.lock().directories.get(&digest) {
            return Ok(Some(directory));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let upstream = self.upstream.clone();
        let asked = async move { upstream.directory(&digest).await };
        let request = || format!("reading directory {digest}");
        let Some(directory) = self.ask(request, asked).await? else {
            return Ok(None);
        };
        if directory.digest() != digest {
            return Err(Error::Damaged {
                store: self.upstream.url().to_owned(),
                object: Object::Directory,
                digest,
                damage: Box::new(Damage::WrongBytes { offset: 0 }),
            });
        }
        self.keep_directory(&digest, &directory);
        Ok(Some(directory))
    }

    pub(super) fn upstream_version(&self) -> u64 {
        if let Ok(version) = self.upstream.roots_version() {
            self.upstream_version.store(version, Ordering::Relaxed);
        }
        self.upstream_version.load(Ordering::Relaxed)
    }

    /// The root `name`, as the upstream has it now.
    pub(super) async fn look_up(self: &Arc<Self>, name: &[u8]) -> Result<Option<Root>, Error> {
        let name = Bytes::copy_from_slice(name);
        let received = self.looking.join(name.clone(), &self.runtime, || {
            let inner = self.clone();
            async move {
                let (upstream, asked) = (inner.upstream.clone(), name.clone());
                let question = async move { upstream.root(&asked).await };
                let found = inner.ask(|| looking_up(&name), question).await?;
                let found = found.filter(|root| root.name.as_bytes() == &name[..]);
                inner.writer.roots.note(&name, found.as_ref(), true);
                if inner.keep_path_infos && found.is_some() {
                    let (upstream, asked) = (inner.upstream.clone(), name.clone());
                    let question = async move { upstream.path_info(&asked).await };
                    if let Ok(Some(info)) = inner.ask(|| looking_up(&name), question).await {
                        inner.writer.roots.note_path_info(&name, &info);
                    }
                }
                Ok(found)
            }
        });
        self.received(received.await)
    }

    /// Refreshes the roots whose answers were too old, so that mounts that hold them are notified
    /// of a change.
    pub(super) fn refresh(self: &Arc<Self>) {
        if self.circuit_breaker.is_open() {
            return;
        }
        for name in self.writer.roots.served_old().into_iter().take(REFRESHED) {
            let inner = self.clone();
            self.runtime.spawn(
                async move {
                    if inner.look_up(&name).await.is_err() {
                        inner.writer.roots.still_old(&name);
                    }
                }
                .boxed(),
            );
        }
    }
}
