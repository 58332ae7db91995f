//! The async and the bulk methods of a store that can always answer in place: they call the
//! in-place ones.

use bytes::Bytes;

use super::{Answer, Error, Ingest, Store};
use crate::castore::{Digest, Directory, Root};

/// [`Store::directory`] of such a store.
pub(super) fn directory(store: &impl Store, digest: &Digest) -> Result<Option<Directory>, Error> {
    Ok(settled(store, store.directory_now(digest)?))
}

/// [`Store::read`] of such a store.
pub(super) fn read(
    store: &impl Store,
    digest: &Digest,
    size: u64,
    offset: u64,
    length: usize,
) -> Result<Option<Bytes>, Error> {
    let mut buffer = vec![0; length.min(size.saturating_sub(offset) as usize)];
    let answer = store.read_now(digest, size, offset, &mut buffer)?;
    Ok(settled(store, answer).map(|length| {
        buffer.truncate(length);
        buffer.into()
    }))
}

/// [`Store::root`] of such a store.
pub(super) fn root(store: &impl Store, name: &[u8]) -> Result<Option<Root>, Error> {
    Ok(settled(store, store.root_now(name)?))
}

/// [`Ingest::missing_blobs`] of an addition to such a store.
pub(super) fn missing_blobs(
    addition: &impl Ingest,
    digests: &[Digest],
) -> Result<Vec<usize>, Error> {
    let mut missing = Vec::new();
    for (index, digest) in digests.iter().enumerate() {
        if !addition.has_blob(digest)? {
            missing.push(index);
        }
    }
    Ok(missing)
}

fn settled<T>(store: &impl Store, answer: Answer<T>) -> Option<T> {
    match answer {
        Answer::Found(found) => Some(found),
        Answer::Absent => None,
        Answer::Wait => unreachable!(
            "{} can always answer in place, and returned Wait",
            store.url()
        ),
    }
}
