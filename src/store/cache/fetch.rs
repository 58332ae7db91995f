//! Fetching an object: from the local store, from memory, or from the upstream.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::writer::Write;
use super::{Inner, REFRESHED, Shared, WHOLE, unit_size};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::store::{Answer, Damage, Error, Object, Store};

impl Inner {
    /// Reads a blob from what is cached: fills `buffer`, or reports that something is missing.
    pub(super) fn at_hand(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, Error> {
        match self.near.read_now(digest, size, offset, buffer) {
            Ok(Answer::Found(length)) if length == buffer.len() => {
                self.writer.touched.touch(digest);
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) => self.excuse(digest, size, error)?,
        }
        let parts = self.near.parts().read(digest, size, offset, buffer);
        let read = parts.map_err(|damage| Error::Damaged {
            store: self.near.url().to_owned(),
            object: Object::Blob,
            digest: *digest,
            damage: Box::new(damage),
        })?;
        if read {
            self.writer.touched.touch(digest);
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
        let unit = unit_size(size);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let key = (*digest, size, at / unit);
            let Some(bytes) = self.recent.lock().blobs.get(&key) else {
                return false;
            };
            let Some(part) = bytes.get((at % unit) as usize..) else {
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
            && let Ok(Some(actual)) = self.near.indexed_size(digest)
            && actual != size
        {
            return Err(error);
        }
        self.writer.note_spoiled(digest, &error);
        Ok(())
    }

    pub(super) fn directory_at_hand(&self, digest: &Digest) -> Option<Directory> {
        match self.near.directory_now(digest) {
            Ok(Answer::Found(directory)) => {
                self.writer.touched.touch(digest);
                return Some(directory);
            }
            Ok(_) => {}
            Err(error) => self.writer.note_spoiled(digest, &error),
        }
        self.recent.lock().directories.get(digest)
    }

    /// Part `index` of a blob: from memory, or from the upstream, with one fetch for all readers.
    pub(super) async fn unit(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        index: u64,
    ) -> Result<Option<Bytes>, Error> {
        let key = (*digest, size, index);
        if let Some(bytes) = self.recent.lock().blobs.get(&key) {
            return Ok(Some(bytes));
        }
        let landed = self.fetching.join(key, &self.runtime, || {
            let (inner, digest) = (self.clone(), *digest);
            async move { inner.fetch_unit(digest, size, index).await }
        });
        self.landed(landed.await)
    }

    pub(super) fn landed<T>(&self, landed: Option<Shared<T>>) -> Result<Option<T>, Error> {
        match landed {
            Some(landed) => landed.map_err(|error| error.again()),
            None => Err(Error::Remote {
                store: self.url.clone(),
                request: "the fetch".to_owned(),
                why: "it was interrupted".to_owned(),
            }),
        }
    }

    pub(super) async fn fetch_unit(
        self: Arc<Self>,
        digest: Digest,
        size: u64,
        index: u64,
    ) -> Shared<Bytes> {
        // It may have arrived between the check and the start of the fetch.
        if let Some(bytes) = self.recent.lock().blobs.get(&(digest, size, index)) {
            return Ok(Some(bytes));
        }
        let unit = unit_size(size);
        let start = index * unit;
        let length = unit.min(size.saturating_sub(start));
        self.misses.fetch_add(1, Ordering::Relaxed);
        let far = self.far.clone();
        let asked = async move { far.read(&digest, size, start, length as usize).await };
        let Some(bytes) = self.ask(asked).await? else {
            return Ok(None);
        };
        let whole = length == size;
        let damage = match bytes.len() as u64 == length {
            false => Some(Damage::WrongSize {
                expected: length,
                actual: bytes.len() as u64,
            }),
            // The local store holds only what was hashed here, whatever its source.
            true if whole && Digest::of(&bytes) != digest => Some(Damage::WrongBytes { offset: 0 }),
            true => None,
        };
        if let Some(damage) = damage {
            return Err(Arc::new(Error::Damaged {
                store: self.far.url().to_owned(),
                object: Object::Blob,
                digest,
                damage: Box::new(damage),
            }));
        }
        let key = (digest, size, index);
        self.recent
            .lock()
            .blobs
            .insert(key, bytes.clone(), bytes.len());
        self.writer.touched.touch(&digest);
        if size <= WHOLE {
            self.writer.push(Write::Blob(digest, bytes.clone()));
        } else {
            // The table may take another request, for which no reader waits.
            let (inner, bytes) = (self.clone(), bytes.clone());
            let expected = self.writer.expect();
            self.runtime.spawn(async move {
                let _expected = expected;
                if let Some(table) = inner.table(digest, size).await {
                    inner.writer.push(Write::Part {
                        digest,
                        size,
                        segment: unit,
                        index,
                        bytes,
                        table,
                    });
                }
            });
        }
        Ok(Some(bytes))
    }

    /// Calls the upstream, unless the breaker is open.
    pub(super) async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Arc<Error>> {
        self.reach.check()?;
        let answer = question.await;
        self.reach.note(&answer);
        Ok(answer?)
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
        let landed = self.tabling.join(key, &self.runtime, || {
            let inner = self.clone();
            async move {
                let here = inner.near.parts().about(&digest);
                let table = match here.filter(|(known, _)| *known == size) {
                    Some((_, table)) => table,
                    None => {
                        let table = inner.far.group_table(&digest, size).await.ok()??;
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
        landed.await.flatten()
    }

    pub(super) fn forget_recent(&self, digest: &Digest, size: u64) {
        let mut recent = self.recent.lock();
        for index in 0..size.div_ceil(unit_size(size)) {
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
        self.writer.touched.touch(digest);
        self.writer.push(Write::Directory(directory.clone()));
    }

    pub(super) async fn directory(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<Directory>, Error> {
        if let Some(directory) = self.directory_at_hand(digest) {
            return Ok(Some(directory));
        }
        let landed = self.asking.join(*digest, &self.runtime, || {
            let (inner, digest) = (self.clone(), *digest);
            async move { inner.fetch_directory(digest).await }
        });
        self.landed(landed.await)
    }

    pub(super) async fn fetch_directory(self: Arc<Self>, digest: Digest) -> Shared<Directory> {
        if let Some(directory) = self.recent.lock().directories.get(&digest) {
            return Ok(Some(directory));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let far = self.far.clone();
        let asked = async move { far.directory(&digest).await };
        let Some(directory) = self.ask(asked).await? else {
            return Ok(None);
        };
        if directory.digest() != digest {
            return Err(Arc::new(Error::Damaged {
                store: self.far.url().to_owned(),
                object: Object::Directory,
                digest,
                damage: Box::new(Damage::WrongBytes { offset: 0 }),
            }));
        }
        self.keep_directory(&digest, &directory);
        Ok(Some(directory))
    }

    pub(super) fn far_version(&self) -> u64 {
        if let Ok(version) = self.far.roots_version() {
            self.far_version.store(version, Ordering::Relaxed);
        }
        self.far_version.load(Ordering::Relaxed)
    }

    /// The root `name`, as the upstream has it now.
    pub(super) async fn look_up(self: &Arc<Self>, name: &[u8]) -> Result<Option<Root>, Error> {
        let name = Bytes::copy_from_slice(name);
        let landed = self.looking.join(name.clone(), &self.runtime, || {
            let inner = self.clone();
            async move {
                let (far, asked) = (inner.far.clone(), name.clone());
                let question = async move { far.root(&asked).await };
                let found = inner.ask(question).await?;
                let found = found.filter(|root| root.name.as_bytes() == &name[..]);
                inner.writer.roots.note(&name, found.as_ref(), true);
                if inner.keep_path_infos && found.is_some() {
                    let (far, asked) = (inner.far.clone(), name.clone());
                    let question = async move { far.path_info(&asked).await };
                    if let Ok(Some(info)) = inner.ask(question).await {
                        inner.writer.roots.note_path_info(&name, &info);
                    }
                }
                Ok(found)
            }
        });
        self.landed(landed.await)
    }

    /// Refreshes the roots whose answers were too old, so that mounts that hold them are notified
    /// of a change.
    pub(super) fn refresh(self: &Arc<Self>) {
        if self.reach.is_resting() {
            return;
        }
        for name in self.writer.roots.served_old().into_iter().take(REFRESHED) {
            let inner = self.clone();
            self.runtime.spawn(async move {
                if inner.look_up(&name).await.is_err() {
                    inner.writer.roots.still_old(&name);
                }
            });
        }
    }
}
