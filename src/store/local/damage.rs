//! Damage that reads find is put on the index's quarantine list, so that an addition replaces the
//! object.
//!
//! A read must not wait for that. Its finding is kept in memory, and a thread writes it a moment
//! later; an addition of this process, and the end of the store, write it at once. If the index is
//! not writable, the list stays in memory.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::index::CommitError;
use super::location::ObjectLocation;
use super::{LocalInner, LocalStore};
use crate::castore::Digest;
use crate::store::{Error, Object};

/// How long the first finding waits for more.
const LINGER: Duration = Duration::from_millis(50);
/// Findings that wait to be written, at most; others are found again.
const MOST: usize = 100_000;
/// Bytes of a blob that are read at once.
const BUFFER_BYTES: u64 = 1 << 20;

/// Findings that are not on the list yet.
#[derive(Debug, Default)]
pub(super) struct FoundDamage(Mutex<PendingDamage>);

#[derive(Debug, Default)]
struct PendingDamage {
    objects: HashSet<(Object, Digest)>,
    /// A thread is about to write them.
    writer: bool,
}

impl FoundDamage {
    /// Whether the object was found damaged and is not on the list yet: there may be no room for it.
    pub(super) fn has(&self, object: Object, digest: &Digest) -> bool {
        self.0.lock().objects.contains(&(object, *digest))
    }
}

/// Whether an error means that the object's bytes on the disk are wrong, or cannot be read.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Damaged { .. } => true,
        // A sector that cannot be read.
        Error::Io { source, .. } => source.raw_os_error() == Some(libc::EIO),
        _ => false,
    }
}

impl LocalInner {
    /// Notes an object that could not be read, if `done` is an error that means damage.
    pub(super) fn note_damage<T>(
        self: &Arc<Self>,
        object: Object,
        digest: &Digest,
        done: Result<T, Error>,
    ) -> Result<T, Error> {
        let Err(error) = &done else { return done };
        if !is_damage(error) {
            return done;
        }
        let snapshot = self.index.snapshot();
        if snapshot.is_quarantined(object, digest).unwrap_or(true) {
            return done;
        }
        let mut waiting = self.found.0.lock();
        if waiting.objects.len() < MOST
            && waiting.objects.insert((object, *digest))
            && !waiting.writer
        {
            let store = Arc::downgrade(self);
            let thread = std::thread::Builder::new().name("quarantine".to_owned());
            let started = thread.spawn(move || write_soon(&store));
            waiting.writer = started.is_ok();
        }
        done
    }

    /// Puts the findings on the list.
    pub(super) fn write_found_damage(&self) {
        let found: Vec<_> = {
            let mut waiting = self.found.0.lock();
            waiting.writer = false;
            waiting.objects.iter().copied().collect()
        };
        if found.is_empty() {
            return;
        }
        if let Err(error) = self.quarantine(&found) {
            tracing::debug!(%error, "cannot note which objects are damaged");
            return;
        }
        let mut waiting = self.found.0.lock();
        for object in &found {
            waiting.objects.remove(object);
        }
    }

    fn quarantine(&self, found: &[(Object, Digest)]) -> Result<(), Error> {
        let snapshot = self.index.fresh()?;
        let mut damaged = Vec::new();
        for (object, digest) in found {
            let at = match object {
                Object::Blob => snapshot.blob(digest)?,
                Object::Directory => snapshot.directory(digest)?,
            };
            // It may have been removed since.
            if at.is_some() && !snapshot.is_quarantined(*object, digest)? {
                damaged.push((*object, *digest));
            }
        }
        if damaged.is_empty() {
            return Ok(());
        }
        let mut change = self.index.change()?;
        change.quarantine(&damaged)?;
        change.commit().map_err(CommitError::into_error)
    }
}

impl LocalStore {
    /// Reads the objects on the quarantine list again, and removes the sound ones; returns how many
    /// are still on it.
    pub fn release_sound(&self) -> Result<u64, Error> {
        let store = &self.0;
        store.write_found_damage();
        let snapshot = store.index.fresh()?;
        let mut sound = Vec::new();
        let mut remaining = 0;
        for (object, digest) in snapshot.quarantined()? {
            let is_sound = match object {
                Object::Directory => match snapshot.directory(&digest)? {
                    Some(at) => store.files.directory(&digest, at).is_ok(),
                    None => true,
                },
                Object::Blob => match snapshot.blob(&digest)? {
                    Some(at) => store.is_sound(&digest, at),
                    None => true,
                },
            };
            match is_sound {
                true => sound.push((object, digest)),
                false => remaining += 1,
            }
        }
        if !sound.is_empty() {
            let mut change = store.index.change()?;
            change.release(&sound)?;
            change.commit().map_err(CommitError::into_error)?;
        }
        Ok(remaining)
    }
}

impl LocalInner {
    /// Whether all of a blob can be read.
    fn is_sound(&self, digest: &Digest, at: ObjectLocation) -> bool {
        let mut buffer = vec![0; at.len.min(BUFFER_BYTES) as usize];
        let mut offset = 0;
        while offset < at.len {
            match self.files.read(digest, at, offset, &mut buffer) {
                Ok(read) if read > 0 => offset += read as u64,
                _ => return false,
            }
        }
        true
    }
}

fn write_soon(store: &Weak<LocalInner>) {
    std::thread::sleep(LINGER);
    if let Some(store) = store.upgrade() {
        store.write_found_damage();
    }
}

/// The thread that is about to write holds the store too, so the end of the store itself may come later.
impl Drop for LocalStore {
    fn drop(&mut self) {
        const THIS_AND_THE_WRITER: usize = 2;
        if Arc::strong_count(&self.0) <= THIS_AND_THE_WRITER {
            self.0.write_found_damage();
        }
    }
}

impl Drop for LocalInner {
    fn drop(&mut self) {
        self.write_found_damage();
    }
}
