//! Several stores as one.
//!
//! **A root comes from the first member that has its name**, in the order of the members. All
//! members are asked at once, and a failure of one makes the answer an error if that member could
//! have come first. So the meaning of a name never depends on which member is unreachable. Lists
//! are the exception: for a member that fails, its last list counts, because a mount would
//! otherwise lose all names for one member's failure.
//!
//! **Content comes from any member.** Blobs and Directories match their digest, whichever member
//! has them. The member that led to a digest is remembered ([`MemberHints`]) and asked first, then the
//! others in order. An object does not exist only if every member answers so.
//!
//! **A join is read-only**, since an addition has no obvious member. Write to a member.

mod hints;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;

use self::hints::MemberHints;
use super::root_versions::RootVersions;
use super::{Answer, BackingFile, Error, Health, Ingest, Store, StoreUsage};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// Several stores as one. Clones share everything.
#[derive(Clone, Debug)]
pub struct JoinedStore(Arc<JoinInner>);

#[derive(Debug)]
struct JoinInner {
    url: String,
    members: Vec<JoinMember>,
    hints: MemberHints,
    versions: RootVersions,
}

#[derive(Debug)]
struct JoinMember {
    name: String,
    store: Arc<dyn Store>,
    /// Its last list of roots.
    listed: Mutex<Option<Vec<Root>>>,
}

impl JoinedStore {
    /// The `members`, by name; of roots of the same name the first's is shown. `url` names the
    /// whole in logs and errors.
    pub fn new(url: String, members: Vec<(String, Arc<dyn Store>)>) -> Self {
        Self(Arc::new(JoinInner {
            url,
            hints: MemberHints::default(),
            versions: RootVersions::new(members.len()),
            members: members
                .into_iter()
                .map(|(name, store)| JoinMember {
                    name,
                    store,
                    listed: Mutex::default(),
                })
                .collect(),
        }))
    }

    fn stores(&self) -> impl Iterator<Item = &Arc<dyn Store>> {
        self.0.members.iter().map(|member| &member.store)
    }

    /// The members, first the one that led to `digest`.
    fn order(&self, digest: &Digest) -> impl Iterator<Item = (usize, &Arc<dyn Store>)> {
        let hinted = self.0.hints.get(digest);
        let first = hinted.and_then(|index| Some((index, &self.0.members.get(index)?.store)));
        let others = self.stores().enumerate();
        let others = others.filter(move |(index, _)| Some(*index) != hinted);
        first.into_iter().chain(others)
    }

    /// The content of `digest` that is available in place.
    fn content_now<T>(
        &self,
        digest: &Digest,
        mut question: impl FnMut(&dyn Store) -> Result<Answer<T>, Error>,
    ) -> Answer<T> {
        let mut all_lack_it = true;
        for (place, (index, store)) in self.order(digest).enumerate() {
            match question(store.as_ref()) {
                Ok(Answer::Found(found)) => {
                    if place > 0 {
                        self.0.hints.put(digest, index);
                    }
                    return Answer::Found(found);
                }
                Ok(Answer::Absent) => {}
                // The async call returns the error.
                Ok(Answer::Wait) | Err(_) => all_lack_it = false,
            }
        }
        match all_lack_it {
            true => Answer::Absent,
            false => Answer::Wait,
        }
    }

    /// The content of `digest`, and which member has it.
    async fn content<'a, T, F>(
        &'a self,
        digest: &Digest,
        question: impl Fn(&'a dyn Store) -> F + Send + Sync,
    ) -> Result<Option<(usize, T)>, Error>
    where
        F: Future<Output = Result<Option<T>, Error>> + Send,
    {
        let mut failure = None;
        let order: Vec<_> = self.order(digest).collect();
        for (index, store) in order {
            match question(store.as_ref()).await {
                Ok(Some(found)) => {
                    self.0.hints.put(digest, index);
                    return Ok(Some((index, found)));
                }
                Ok(None) => {}
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            None => Ok(None),
            Some(error) => Err(self.undecided(error, || format!("looking for {digest}"))),
        }
    }

    /// One member's failure: the others may be healthy, and may have other objects.
    fn undecided(&self, error: Error, request: impl FnOnce() -> String) -> Error {
        match error {
            Error::Timeout { .. } | Error::Remote { .. } | Error::Io { .. } => Error::Undecided {
                store: self.0.url.clone(),
                request: request(),
                late: error.deadline().is_some(),
                why: error.to_string(),
            },
            error => error,
        }
    }

    /// The answer of the first member that has one about a root.
    async fn of_root<'a, T, F>(
        &'a self,
        question: impl Fn(&'a dyn Store) -> F + Send + Sync,
    ) -> Result<Option<(usize, T)>, Error>
    where
        F: Future<Output = Result<Option<T>, Error>> + Send,
    {
        let questions: Vec<F> = self
            .stores()
            .map(|store| question(store.as_ref()))
            .collect();
        let mut answers = stream::iter(questions).buffered(self.0.members.len().max(1));
        let mut index = 0;
        while let Some(answer) = answers.next().await {
            let request = || "looking up a root".to_owned();
            if let Some(found) = answer.map_err(|error| self.undecided(error, request))? {
                return Ok(Some((index, found)));
            }
            index += 1;
        }
        Ok(None)
    }

    /// The roots of a member; its last list if it fails.
    async fn list(&self, member: &JoinMember) -> Result<Vec<Root>, Error> {
        match member.store.roots().await {
            Ok(roots) => {
                *member.listed.lock() = Some(roots.clone());
                Ok(roots)
            }
            Err(error) => {
                let listed = member.listed.lock().clone();
                let listed = listed.ok_or(error)?;
                tracing::warn!(
                    STORE = self.0.url,
                    MEMBER = member.name,
                    "a member cannot list its roots; its last list is shown"
                );
                Ok(listed)
            }
        }
    }

    fn lead(&self, root: &Root, index: usize) {
        if let Some(digest) = root.node.borrow().digest() {
            self.0.hints.put(&digest, index);
        }
    }
}

/// The roots of all members, in the members' order; of the same name the first member's.
async fn one_list<F>(lists: Vec<F>) -> Result<Vec<Root>, Error>
where
    F: Future<Output = Result<Vec<Root>, Error>>,
{
    let members = lists.len().max(1);
    let mut lists = stream::iter(lists).buffered(members);
    let mut all: Vec<Root> = Vec::new();
    while let Some(listed) = lists.next().await {
        all.extend(listed?);
    }
    // Stable: of the same name the first member's comes first, and stays.
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.dedup_by(|later, first| later.name == first.name);
    Ok(all)
}

#[async_trait]
impl Store for JoinedStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        Ok(self.content_now(digest, |store| store.directory_now(digest)))
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        Ok(self.content_now(digest, |store| store.read_now(digest, size, offset, buffer)))
    }

    /// Announces each blob to the member that led to it; for the others it is not known which
    /// member has them.
    fn will_need(&self, blobs: &[(Digest, u64)]) {
        for (index, store) in self.stores().enumerate() {
            let hints = &self.0.hints;
            let led = |(digest, _): &&(Digest, u64)| hints.get(digest) == Some(index);
            let its: Vec<_> = blobs.iter().filter(led).copied().collect();
            if !its.is_empty() {
                store.will_need(&its);
            }
        }
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        for store in self.stores() {
            store.forget(digest, size, offset, length);
        }
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        for (index, store) in self.stores().enumerate() {
            match store.root_now(name)? {
                Answer::Found(root) => {
                    self.lead(&root, index);
                    return Ok(Answer::Found(root));
                }
                Answer::Absent => {}
                Answer::Wait => return Ok(Answer::Wait),
            }
        }
        Ok(Answer::Absent)
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        for (_, store) in self.order(digest) {
            // No backing file or an error: fall back to reading.
            if let Ok(Some(file)) = store.backing_file(digest, size) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        let found = self
            .content(digest, |store| store.directory(digest))
            .await?;
        Ok(found.map(|(index, directory)| {
            for entry in directory.iter() {
                if let Some(digest) = entry.node.digest() {
                    self.0.hints.put(&digest, index);
                }
            }
            directory
        }))
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let found = self.content(digest, |store| store.read(digest, size, offset, length));
        Ok(found.await?.map(|(_, bytes)| bytes))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let found = self.of_root(|store| store.root(name)).await?;
        Ok(found.map(|(index, root)| {
            self.lead(&root, index);
            root
        }))
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let lists = self.0.members.iter().map(|member| self.list(member));
        let lists: Vec<_> = lists.collect();
        one_list(lists).await
    }

    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        let lists = (self.0.members.iter()).map(|member| member.store.complete_roots());
        one_list(lists.collect()).await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        // Of the member whose root it is, although another may know more.
        let found = self.of_root(|store| {
            Box::pin(async move {
                match store.root(name).await? {
                    Some(_) => Ok(Some(store.path_info(name).await?)),
                    None => Ok(None),
                }
            })
        });
        Ok(found.await?.and_then(|(_, path_info)| path_info))
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        for store in self.stores() {
            if let Some(found) = store.incomplete_root(name).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.directory(digest).await?.is_some())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let found = self.content(digest, |store| {
            Box::pin(async move { Ok(store.has_blob(digest).await?.then_some(())) })
        });
        Ok(found.await?.is_some())
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let found = self.content(digest, |store| store.blob_size(digest));
        Ok(found.await?.map(|(_, size)| size))
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        let found = self.content(digest, |store| store.chunks(digest));
        Ok(found.await?.map(|(_, list)| list))
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let found = self.content(digest, |store| store.group_table(digest, size));
        Ok(found.await?.map(|(_, table)| table))
    }

    /// The sum of their contents; what several hold counts as often. Nothing if one does not know.
    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        let mut sum = StoreUsage::default();
        for store in self.stores() {
            let Some(usage) = store.usage()? else {
                return Ok(None);
            };
            sum.blobs += usage.blobs;
            sum.blob_bytes += usage.blob_bytes;
            sum.directories += usage.directories;
        }
        Ok(Some(sum))
    }

    /// Nothing of its own: the members have names, and report for themselves.
    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        self.stores().flat_map(|store| store.embedded()).collect()
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        Ok(self.0.versions.now(self.stores()))
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        let stores: Vec<&Arc<dyn Store>> = self.stores().collect();
        let now = || self.0.versions.now(self.stores());
        Ok(self.0.versions.wait(&stores, seen, timeout, now))
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.stores()
            .for_each(|store| store.keep_listings_fresh(max_age));
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        let members = self.0.members.iter();
        let names: Vec<&str> = members.map(|member| member.name.as_str()).collect();
        Err(Error::ReadOnly {
            store: self.0.url.clone(),
            why: format!(
                "a join store is read-only; write to one of {}",
                names.join(", ")
            ),
        })
    }
}
