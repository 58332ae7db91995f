//! Objects that are written or read on a condition.

use bytes::Bytes;
use object_store::{ObjectMeta, ObjectStoreExt, PutMode, PutPayload, PutResult, UpdateVersion};

use super::super::bucket_time::BucketTime;
use super::Bucket;
use crate::store::endpoint_calls::in_time;
use crate::store::failure::{CallFailure, FailureKind, found};

/// A version of an object.
#[derive(Clone, Debug)]
pub(in crate::store::object) struct ObjectVersion {
    pub(in crate::store::object) e_tag: Option<String>,
    version: Option<String>,
    pub(in crate::store::object) modified: BucketTime,
}

impl ObjectVersion {
    pub(super) fn of(object: &ObjectMeta) -> Self {
        Self {
            e_tag: object.e_tag.clone(),
            version: object.version.clone(),
            modified: object.last_modified.into(),
        }
    }
}

/// An object that may be known already.
#[derive(Debug)]
pub(in crate::store::object) enum ReadVersion {
    Absent,
    /// It is the version that was known.
    Unchanged,
    Read(Bytes, ObjectVersion),
}

impl Bucket {
    /// The version of the object at `path`, if there is one.
    pub(in crate::store::object) async fn version(
        &self,
        path: &str,
    ) -> Result<Option<ObjectVersion>, CallFailure> {
        let at = self.at(path)?;
        let head = self.call(|| in_time(self.deadline, self.store.head(&at)));
        Ok(found(head.await)?.map(|object| ObjectVersion::of(&object)))
    }

    /// The object at `path` of at most `limit` bytes, unless its ETag is the `known` one.
    pub(in crate::store::object) async fn get_unless(
        &self,
        path: &str,
        limit: u64,
        known: Option<&str>,
    ) -> Result<ReadVersion, CallFailure> {
        match self.get_version(path, limit, known).await {
            Ok((bytes, version)) => Ok(ReadVersion::Read(bytes, version)),
            Err(failure) if failure.is(FailureKind::NotFound) => Ok(ReadVersion::Absent),
            Err(failure) if known.is_some() && failure.is(FailureKind::Exists) => {
                Ok(ReadVersion::Unchanged)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Puts an object where there is none; returns whether there was none. A service without conditional
    /// writes is asked first, and may then lose one of two that come at once.
    pub(in crate::store::object) async fn create(
        &self,
        path: &str,
        bytes: Bytes,
    ) -> Result<bool, CallFailure> {
        let at = self.at(path)?;
        let created = self.call(|| {
            let payload = PutPayload::from_bytes(bytes.clone());
            let create = self.store.put_opts(&at, payload, PutMode::Create.into());
            in_time(self.deadline, async {
                match create.await {
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(Some(false)),
                    outcome => put_if_supported(outcome),
                }
            })
        });
        match created.await? {
            Some(created) => Ok(created),
            None if self.has(path).await? => Ok(false),
            None => self.put(path, bytes).await.map(|()| true),
        }
    }

    /// Puts an object in the place of this version of it; returns whether it was there. A service
    /// without conditional writes puts it in any case.
    pub(in crate::store::object) async fn replace(
        &self,
        path: &str,
        bytes: Bytes,
        version: &ObjectVersion,
    ) -> Result<bool, CallFailure> {
        let at = self.at(path)?;
        let replaced = self.call(|| {
            let version = UpdateVersion {
                e_tag: version.e_tag.clone(),
                version: version.version.clone(),
            };
            let payload = PutPayload::from_bytes(bytes.clone());
            let mode = PutMode::Update(version).into();
            let update = self.store.put_opts(&at, payload, mode);
            in_time(self.deadline, async {
                use object_store::Error::{NotFound, Precondition};
                match update.await {
                    Err(Precondition { .. } | NotFound { .. }) => Ok(Some(false)),
                    outcome => put_if_supported(outcome),
                }
            })
        });
        match replaced.await? {
            Some(replaced) => Ok(replaced),
            None => self.put(path, bytes).await.map(|()| true),
        }
    }
}

/// Whether an object was put; nothing if the service has no conditional writes.
fn put_if_supported(
    outcome: object_store::Result<PutResult>,
) -> object_store::Result<Option<bool>> {
    use object_store::Error::{NotImplemented, NotSupported};
    match outcome {
        Ok(_) => Ok(Some(true)),
        Err(NotImplemented { .. } | NotSupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
