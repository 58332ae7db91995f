//! The list of candidates: what the next collection deletes, unless it is reached by then.
//!
//! `castore-fs/gc/candidates`, byte by byte; numbers are big-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `castore-fs gc 1` and a newline |
//! | 16 | a random id, another one whenever the object is written |
//! | 8 | when the collection that wrote it began: milliseconds since 1970, by the bucket's clock |
//! | 8 | bytes of all candidates, as they are stored |
//! | 3 × 8 | how many closures, blobs and chunks follow |
//! | 32 each | their digests, each kind in ascending order |
//! | 32 | the BLAKE3 hash of everything before |
//!
//! If an object is on the list, so is every object that refers to it and existed then.

use bytes::{BufMut, Bytes, BytesMut};

use super::super::bucket::Bucket;
use super::super::bucket_time::BucketTime;
use super::ObjectKind;
use crate::castore::Digest;
use crate::store::failure::{CallFailure, FailureKind};

/// Its path.
pub(in crate::store::object) const LIST: &str = "castore-fs/gc/candidates";
/// Candidates on one list, at most: 32 MiB of digests, which each addition reads.
pub(super) const MOST_CANDIDATES: usize = 1 << 20;
const MAGIC: &[u8; 16] = b"castore-fs gc 1\n";
const HEADER: usize = 16 + 16 + 8 + 8 + 3 * 8;
/// Its largest size in bytes.
pub(in crate::store::object) const MAX_LIST: u64 =
    (HEADER + MOST_CANDIDATES * Digest::LEN + blake3::OUT_LEN) as u64;

/// The id of a list, and that of the holder of a lock.
pub(in crate::store::object) type RandomId = [u8; 16];

/// An id that no other has.
pub(super) fn random_id() -> RandomId {
    fastrand::u128(..).to_be_bytes()
}

/// A list of candidates.
#[derive(Clone, Debug)]
pub(in crate::store::object) struct CandidateList {
    pub(in crate::store::object) id: RandomId,
    /// When the collection that wrote it began.
    pub(super) time: BucketTime,
    /// Bytes of all candidates.
    pub(super) bytes: u64,
    /// Digests of each kind, in ascending order.
    digests: [Bytes; 3],
}

impl CandidateList {
    /// A list of these digests of each kind, which were found by the collection that began at `time`.
    pub(super) fn new(time: BucketTime, bytes: u64, digests: [Vec<Digest>; 3]) -> Self {
        let digests = digests.map(|mut digests| {
            digests.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            digests.dedup();
            let mut all = BytesMut::with_capacity(digests.len() * Digest::LEN);
            digests
                .iter()
                .for_each(|digest| all.put_slice(digest.as_bytes()));
            all.freeze()
        });
        Self {
            id: random_id(),
            time,
            bytes,
            digests,
        }
    }

    /// The same list under another id.
    pub(super) fn renewed(&self) -> Self {
        Self {
            id: random_id(),
            ..self.clone()
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let digests: usize = self.digests.iter().map(Bytes::len).sum();
        let mut bytes = BytesMut::with_capacity(HEADER + digests + blake3::OUT_LEN);
        bytes.put_slice(MAGIC);
        bytes.put_slice(&self.id);
        bytes.put_u64(self.time.0);
        bytes.put_u64(self.bytes);
        for digests in &self.digests {
            bytes.put_u64((digests.len() / Digest::LEN) as u64);
        }
        for digests in &self.digests {
            bytes.put_slice(digests);
        }
        let hash = blake3::hash(&bytes);
        bytes.put_slice(hash.as_bytes());
        bytes.freeze()
    }

    /// Parses the object; returns what is wrong with it otherwise.
    fn parse(bytes: &Bytes) -> Result<Self, &'static str> {
        const DAMAGED: &str = "it is damaged";
        let magic = bytes.first_chunk::<16>().ok_or(DAMAGED)?;
        if magic != MAGIC {
            return Err("it was written by another version of castore-fs, or is damaged");
        }
        let content = bytes.len().checked_sub(blake3::OUT_LEN).ok_or(DAMAGED)?;
        let (content, hash) = (bytes.slice(..content), bytes.slice(content..));
        if content.len() < HEADER || blake3::hash(&content).as_bytes()[..] != hash[..] {
            return Err(DAMAGED);
        }
        let number = |at: usize| {
            let bytes = content.get(at..).and_then(<[u8]>::first_chunk);
            bytes.copied().map(u64::from_be_bytes).ok_or(DAMAGED)
        };
        let id = content.get(16..).and_then(<[u8]>::first_chunk);
        let mut at = HEADER;
        let mut digests = [const { Bytes::new() }; 3];
        for (index, digests) in digests.iter_mut().enumerate() {
            let count = usize::try_from(number(48 + 8 * index)?).map_err(|_| DAMAGED)?;
            let end = count
                .checked_mul(Digest::LEN)
                .and_then(|len| at.checked_add(len));
            let end = end.filter(|end| *end <= content.len()).ok_or(DAMAGED)?;
            *digests = content.slice(at..end);
            at = end;
        }
        if at != content.len() {
            return Err(DAMAGED);
        }
        Ok(Self {
            id: *id.ok_or(DAMAGED)?,
            time: BucketTime(number(32)?),
            bytes: number(40)?,
            digests,
        })
    }

    /// As [`parse`](Self::parse), with what to do.
    pub(in crate::store::object) fn decode(bytes: &Bytes) -> Result<Self, CallFailure> {
        Self::parse(bytes).map_err(|why| {
            let why = format!(
                "the list of candidates for garbage collection, {LIST}, cannot be read: {why}. Use the newest \
                 castore-fs; or, while no program writes to the bucket, delete that object"
            );
            CallFailure::Failed(FailureKind::Refused, why)
        })
    }

    /// The list in a bucket, if there is one.
    pub(super) async fn read(bucket: &Bucket) -> Result<Option<Self>, CallFailure> {
        let bytes = bucket.get(LIST, MAX_LIST).await?;
        bytes.as_ref().map(Self::decode).transpose()
    }

    pub(super) async fn write(&self, bucket: &Bucket) -> Result<(), CallFailure> {
        bucket.put(LIST, self.encode()).await
    }

    /// How many there are of `kind`.
    pub(super) fn count(&self, kind: ObjectKind) -> u64 {
        (self.digests[kind as usize].len() / Digest::LEN) as u64
    }

    pub(in crate::store::object) fn is_empty(&self) -> bool {
        self.digests.iter().all(Bytes::is_empty)
    }

    pub(in crate::store::object) fn has(&self, kind: ObjectKind, digest: &Digest) -> bool {
        let digests = self.digests[kind as usize].as_chunks::<{ Digest::LEN }>().0;
        digests.binary_search(digest.as_bytes()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(of: std::ops::Range<u32>) -> Vec<Digest> {
        of.map(|number| Digest::of(&number.to_be_bytes())).collect()
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let lists = [digests(0..1), digests(0..300), Vec::new()];
        let list = CandidateList::new(BucketTime(7), 9, lists.clone());
        let read = CandidateList::decode(&list.encode()).unwrap();
        assert_eq!((read.id, read.time, read.bytes), (list.id, list.time, 9));
        assert_eq!(read.count(ObjectKind::Blob), 300);
        assert!(
            lists[1]
                .iter()
                .all(|digest| read.has(ObjectKind::Blob, digest))
        );
        assert!(!read.has(ObjectKind::Chunk, &lists[0][0]));
        assert!(!read.has(ObjectKind::Blob, &Digest::of(b"another")));
        assert!(!read.is_empty());
        assert_ne!(list.renewed().id, list.id);
    }

    #[test]
    fn a_list_with_any_other_byte_or_length_is_refused() {
        let list = CandidateList::new(BucketTime(7), 9, [digests(0..2), digests(2..4), Vec::new()]);
        let bytes = list.encode();
        for at in 0..bytes.len() {
            let mut other = bytes.to_vec();
            other[at] ^= 1;
            assert!(CandidateList::decode(&other.into()).is_err(), "{at}");
            assert!(CandidateList::decode(&bytes.slice(..at)).is_err(), "{at}");
        }
    }
}
