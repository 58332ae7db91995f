//! Three stores as one, each for its kind of object: `blobs=URL&directories=URL&path-infos=URL`, as a
//! snix store keeps them in three places. Read only.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Answer, BackingFile, Error, Health, Ingest, LocalStore, Store, StoreUsage};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// What names each of the three, in their order.
const KEYS: [&str; 3] = ["blobs", "directories", "path-infos"];

/// Blobs, Directories and root nodes out of a store each. Clones share everything.
#[derive(Clone, Debug)]
pub struct CombinedStore(Arc<CombinedParts>);

#[derive(Debug)]
struct CombinedParts {
    url: String,
    blobs: Arc<dyn Store>,
    directories: Arc<dyn Store>,
    path_infos: Arc<dyn Store>,
}

/// The addresses in `url` with what they are for, if it combines any: as they stand there, and nothing of
/// it has to be encoded. An `&` ends an address only where one of the three keys follows.
pub(crate) fn addresses(url: &str) -> Option<Vec<(&'static str, &str)>> {
    let key_of = |text: &str| {
        let is_at = |key: &&&str| {
            text.strip_prefix(**key)
                .is_some_and(|rest| rest.starts_with('='))
        };
        KEYS.iter().find(is_at).copied()
    };
    key_of(url)?;
    let ends = url.match_indices('&').map(|(at, _)| at);
    let mut starts: Vec<usize> = ends
        .filter(|at| key_of(&url[at + 1..]).is_some())
        .map(|at| at + 1)
        .collect();
    starts.insert(0, 0);
    let ends = starts[1..].iter().map(|start| start - 1).chain([url.len()]);
    let parts = starts.iter().zip(ends).filter_map(|(start, end)| {
        let part = &url[*start..end];
        let key = key_of(part)?;
        Some((key, &part[key.len() + 1..]))
    });
    Some(parts.collect())
}

/// The addresses of the blobs, Directories and path infos in `url`, if it combines any; reports what is
/// wrong with them otherwise.
pub(crate) fn three(url: &str) -> Option<Result<[&str; 3], String>> {
    let addresses = addresses(url)?;
    let one = |key: &str| {
        let mut of_key = addresses.iter().filter(|(found, _)| *found == key);
        match (of_key.next(), of_key.next()) {
            (Some((_, address)), None) if !address.is_empty() => Ok(*address),
            (Some(_), Some(_)) => Err(format!("it has {key}= twice")),
            _ => Err(format!(
                "it does not have {key}=URL; there have to be blobs=URL&directories=URL&path-infos=URL"
            )),
        }
    };
    Some(
        KEYS.iter()
            .map(|key| one(key))
            .collect::<Result<Vec<_>, _>>()
            .map(|found| [found[0], found[1], found[2]]),
    )
}

impl CombinedStore {
    /// The stores `blobs`, `directories` and `path_infos` as the one that `url` names.
    pub fn new(url: String, [blobs, directories, path_infos]: [Arc<dyn Store>; 3]) -> Self {
        Self(Arc::new(CombinedParts {
            url,
            blobs,
            directories,
            path_infos,
        }))
    }

    fn parts(&self) -> [&Arc<dyn Store>; 3] {
        [&self.0.blobs, &self.0.directories, &self.0.path_infos]
    }
}

#[async_trait]
impl Store for CombinedStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        self.0.directories.directory_now(digest)
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.0.blobs.read_now(digest, size, offset, buffer)
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.0.blobs.will_need(blobs);
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        self.0.blobs.forget(digest, size, offset, length);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        self.0.path_infos.root_now(name)
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.0.blobs.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.0.directories.directory(digest).await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.0.blobs.read(digest, size, offset, length).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.0.path_infos.root(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.0.path_infos.roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.0.path_infos.path_info(name).await
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        self.0.path_infos.incomplete_root(name).await
    }

    /// Of the blobs nothing is known.
    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.directory(digest).await?.is_some())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.0.blobs.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.0.blobs.blob_size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        self.0.blobs.chunks(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.0.blobs.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        Ok(None)
    }

    fn embedded(&self) -> Vec<LocalStore> {
        let parts = self.parts().into_iter();
        parts.flat_map(|part| part.embedded()).collect()
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.0.path_infos.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.0.path_infos.wait_for_roots(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.0.path_infos.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Err(Error::ReadOnly {
            store: self.0.url.clone(),
            why:
                "it is made of three addresses, and only read; copy it into a local: store to add \
                  to it"
                    .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_own_parameters() {
        let bucket = "objectstore+s3://b/p?region=x&endpoint=http://h:1";
        let url = format!("directories=redb:/d&blobs={bucket}&path-infos=grpc+http://h:1?cache=1");
        let expected = [bucket, "redb:/d", "grpc+http://h:1?cache=1"];
        assert_eq!(three(&url), Some(Ok(expected)));
        assert_eq!(three("grpc+http://h?blobs=x"), None);
        assert_eq!(three("redb:/blobs=x"), None);
        let wrong = |url: &str| three(url).unwrap().unwrap_err();
        assert!(wrong("blobs=memory:").contains("directories=URL"));
        assert!(wrong("blobs=a:&directories=&path-infos=b:").contains("directories=URL"));
        assert!(wrong("blobs=a:&blobs=b:&directories=c:&path-infos=d:").contains("twice"));
    }
}
