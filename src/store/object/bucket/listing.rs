//! Listings of a bucket, and deleting what they have.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::super::bucket_time::BucketTime;
use super::Bucket;
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::pace::AnswerPace;
use crate::store::root_list::ListingMemory;

/// Bytes that an object takes in a listing beside its path, at least.
const LISTED: u64 = 100;
/// Objects in one listing, at most: 67,000 pages of S3.
const MOST_LISTED: u64 = 64 << 20;
/// Objects that are deleted with one request, at most, where the service can: the limit of S3.
const DELETED_AT_ONCE: usize = 1000;
/// Bytes of progress that a deleted object counts as.
const DELETED: u64 = 64 << 10;

/// An object in a listing.
#[derive(Debug)]
pub(in crate::store::object) struct ListedObject {
    /// Below the base of the bucket.
    pub(in crate::store::object) path: String,
    /// Bytes, as the listing states.
    pub(in crate::store::object) size: u64,
    pub(in crate::store::object) modified: BucketTime,
}

impl Bucket {
    /// The paths of all objects below `path`, and their memory; nothing if those are more than `most`.
    pub(in crate::store::object) async fn list(
        &self,
        path: &str,
        most: usize,
    ) -> Result<Option<(Vec<String>, ListingMemory)>, CallFailure> {
        let at = self.at(path)?;
        let list = || async {
            let listed = self.store.list(Some(&at)).map_ok(|object| {
                let path = object.location.to_string();
                path.strip_prefix(&self.base).unwrap_or(&path).to_owned()
            });
            // A long listing takes many requests: it may take as long as paths arrive.
            let mut listed = std::pin::pin!(listed);
            let mut pace = AnswerPace::new(self.deadline);
            let (mut paths, mut seen) = (Vec::new(), HashSet::new());
            let hasher = RandomState::new();
            let (mut memory, mut bytes) = (ListingMemory::default(), 0);
            loop {
                let next = pace.wait(listed.next(), |path| match path {
                    Some(Ok(path)) => LISTED + path.len() as u64,
                    Some(Err(_)) | None => u64::MAX / 2,
                });
                let Some(path) = next.await?.transpose()? else {
                    return Ok(Some((paths, memory)));
                };
                if paths.len() >= most {
                    return Ok(None);
                }
                // A page that refers to itself is a listing without end.
                if !seen.insert(hasher.hash_one(&path)) {
                    let why = format!("the listing of {at} has {path} twice");
                    return Err(CallFailure::Failed(FailureKind::Corrupt, why));
                }
                bytes += LISTED as usize + path.len();
                memory.reserve(bytes).await?;
                paths.push(path);
            }
        };
        self.call(list).await
    }

    /// Passes every object below `path` to `take`. Each attempt begins again with the value of `start`.
    pub(in crate::store::object) async fn fold_listing<T>(
        &self,
        path: &str,
        start: impl Fn() -> T,
        take: impl Fn(&mut T, ListedObject) -> Result<(), CallFailure>,
    ) -> Result<T, CallFailure> {
        let at = self.at(path)?;
        let fold = || async {
            let mut listed = self.store.list(Some(&at));
            let mut pace = AnswerPace::new(self.deadline);
            let (mut folded, mut count) = (start(), 0_u64);
            // One earlier path, replaced at each power of two: a listing that repeats itself comes to it
            // again (Brent's algorithm).
            let mut earlier = None;
            loop {
                let next = pace.wait(listed.next(), |object| match object {
                    Some(Ok(object)) => LISTED + object.location.as_ref().len() as u64,
                    Some(Err(_)) | None => u64::MAX / 2,
                });
                let Some(object) = next.await?.transpose()? else {
                    return Ok(folded);
                };
                let full = object.location.to_string();
                if earlier.as_ref() == Some(&full) {
                    let why = format!("the listing of {at} has {full} twice");
                    return Err(CallFailure::Failed(FailureKind::Corrupt, why));
                }
                count += 1;
                if count > MOST_LISTED {
                    let why = format!("there are more than {MOST_LISTED} objects below {at}");
                    return Err(CallFailure::Failed(FailureKind::Exhausted, why));
                }
                let listed = ListedObject {
                    path: full.strip_prefix(&self.base).unwrap_or(&full).to_owned(),
                    size: object.size,
                    modified: object.last_modified.into(),
                };
                if count.is_power_of_two() {
                    earlier = Some(full);
                }
                take(&mut folded, listed)?;
            }
        };
        self.call(fold).await
    }

    /// Removes the objects at `paths`; one that does not exist is no failure. After a failure, some of them may
    /// be removed.
    pub(in crate::store::object) async fn delete_all(
        &self,
        paths: &[String],
    ) -> Result<(), CallFailure> {
        for paths in paths.chunks(DELETED_AT_ONCE) {
            let at: Result<Vec<_>, _> = paths.iter().map(|path| self.at(path)).collect();
            let at = at?;
            let delete = || async {
                let locations = stream::iter(at.clone()).map(Ok).boxed();
                let mut deleted = self.store.delete_stream(locations);
                let mut pace = AnswerPace::new(self.deadline);
                while let Some(deleted) = pace.wait(deleted.next(), |_| DELETED).await? {
                    match deleted {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            };
            self.call(delete).await?;
        }
        Ok(())
    }

    /// The time by the bucket's clock: the date of its latest answer, or this machine's time for a
    /// bucket on it. Nothing if the service reports none.
    pub(in crate::store::object) fn now(&self) -> Option<BucketTime> {
        match &self.clock {
            Some(clock) => clock.latest(),
            None => Some(DateTime::<Utc>::from(SystemTime::now()).into()),
        }
    }
}
