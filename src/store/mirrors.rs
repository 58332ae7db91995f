//! Mirrors: several stores with the same content.
//!
//! **Hedged requests.** A request goes to the best member. If no answer comes within the time in
//! which that member gives 19 of 20 answers, it goes to the next as well (a *hedge*), and the first
//! answer counts. Hedges are bounded ([`budget`]): a tenth of the requests, and one a second. After
//! an error the next member is asked at once, which is not a hedge.
//!
//! **Circuit breaker.** A member that misses a deadline, that fails three times in a row, or that
//! loses five hedges in a row gets no more requests; requests that wait for it at that moment move
//! on as well, so that one hanging member costs no reader two deadlines. After a pause, which
//! doubles from a second to half a minute with a random part, a request is sent to it beside the
//! one that is asked (a *probe*): no reader waits for it. An answer closes the breaker. A member
//! that is merely slow is still asked when the others cannot answer.
//!
//! **"Not found" must be unanimous.** An object does not exist only if every member answers so; if
//! any failed, or its breaker is open, the answer is [`Error::Undecided`]: that member may have it.
//! If one member lags behind, the others are asked for what it lacks.
//!
//! **Corrupt responses.** Every member verifies what it returns, so a wrong byte appears here as
//! [`Error::Damaged`], and is never returned. A member is marked when its fault is certain: the
//! bytes of a Directory do not match its digest, or another member then returned the blob correctly
//! for the same request. (A blob that matches no member's copy has a wrong size in the Directory
//! that names it, which is no member's fault.) For ten minutes, then for twice that and so on, a
//! marked member is asked only when no other can answer, and its "not found" does not count.
//!
//! **Lists come from one member.** [`roots`](Store::roots) is the list of the first that answers:
//! the members are equal, and a union would need an answer of each. **Mirrors are read-only**: a
//! member with an addition would no longer equal the others. Write to one, and copy to the others.

mod budget;
mod member;
mod round;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use self::budget::HedgeBudget;
use self::member::{MemberChange, MemberStanding, MirrorMember, RequestKind};
use self::round::{MemberRequest, RequestRound};
use super::root_versions::RootVersions;
use super::{Answer, BackingFile, Error, Health, Ingest, Store, StoreUsage};
use crate::castore::{Digest, Directory, GroupTable, Printable, Root};
use crate::nix::PathInfo;

/// Which member is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberOrder {
    /// The members in their order: the first as long as it is healthy.
    #[default]
    Listed,
    /// The one with the fastest answers.
    Fastest,
    /// All at once, the first answer counts: the load of all for the speed of the fastest.
    Racing,
}

/// Several stores with the same content. Clones share everything.
#[derive(Clone, Debug)]
pub struct Mirrors(Arc<MirrorsInner>);

#[derive(Debug)]
struct MirrorsInner {
    url: String,
    members: Vec<MirrorMember>,
    order: MemberOrder,
    budget: HedgeBudget,
    versions: RootVersions,
    /// How often a member came back: its list of roots may have changed.
    returns: AtomicU64,
    /// Changes when a breaker opens.
    openings: watch::Sender<u64>,
}

impl Mirrors {
    /// The `members`, by name, with the same content. `url` names the whole in logs and errors.
    ///
    /// Requests that wait do so on the caller's runtime, which must have timers enabled.
    pub fn new(url: String, members: Vec<(String, Arc<dyn Store>)>, order: MemberOrder) -> Self {
        Self(Arc::new(MirrorsInner {
            url,
            order,
            budget: HedgeBudget::new(),
            versions: RootVersions::new(members.len()),
            returns: AtomicU64::new(0),
            openings: watch::Sender::new(0),
            members: members
                .into_iter()
                .map(|(name, store)| MirrorMember::new(name, store))
                .collect(),
        }))
    }

    fn stores(&self) -> impl Iterator<Item = &Arc<dyn Store>> {
        self.0.members.iter().map(|member| &member.store)
    }

    /// The first answer that a member has in place. Any other outcome (no member has it, a member
    /// failed) needs the async call.
    fn first_local<T>(
        &self,
        mut question: impl FnMut(&dyn Store) -> Result<Answer<T>, Error>,
    ) -> Answer<T> {
        for store in self.stores() {
            if let Ok(Answer::Found(found)) = question(store.as_ref()) {
                return Answer::Found(found);
            }
        }
        Answer::Wait
    }

    /// Sends `question` to the members until one has an answer. `request` describes it.
    async fn ask<T: Send + 'static>(
        &self,
        kind: RequestKind,
        request: impl Fn() -> String + Send + Sync,
        question: impl Fn(Arc<dyn Store>) -> MemberRequest<T> + Send + Sync,
    ) -> Result<Option<T>, Error> {
        let openings = self.0.openings.subscribe();
        let round = RequestRound::begin(&self.0, kind, &question);
        round.run(openings, request).await
    }

    /// As [`ask`](Self::ask), for requests that every member has an answer to.
    async fn ask_any<T: Send + 'static>(
        &self,
        kind: RequestKind,
        request: impl Fn() -> String + Send + Sync,
        question: impl Fn(Arc<dyn Store>) -> MemberRequest<T> + Send + Sync,
    ) -> Result<T, Error> {
        let answer = self.ask(kind, &request, question).await?;
        answer.ok_or_else(|| Error::Remote {
            store: self.0.url.clone(),
            request: request(),
            why: "there are no members".to_owned(),
        })
    }
}

impl MirrorsInner {
    /// Members by state, best first: healthy ones, slow ones, those with an open breaker, those
    /// with corrupt responses.
    fn standings(&self, kind: RequestKind, now: Instant) -> [Vec<usize>; 4] {
        let mut standings = [const { Vec::new() }; 4];
        for (index, member) in self.members.iter().enumerate() {
            let place = match member.standing(now) {
                MemberStanding::Healthy => 0,
                MemberStanding::Slow => 1,
                MemberStanding::Out => 2,
                MemberStanding::Corrupt => 3,
            };
            standings[place].push(index);
        }
        if self.order == MemberOrder::Fastest {
            // A member without answers has no median and comes first: otherwise it would never be
            // measured.
            standings[0].sort_by_cached_key(|&index| self.members[index].median(kind));
        }
        standings
    }

    fn answered(&self, index: usize, kind: RequestKind, began: Instant) {
        let member = &self.members[index];
        let now = Instant::now();
        if member.answered(kind, now - began, now) == MemberChange::Closed {
            self.returns.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                STORE = self.url,
                MEMBER = member.name,
                "a mirror is healthy again"
            );
        }
    }

    fn failed(&self, index: usize, began: Instant, error: &Error) {
        let member = &self.members[index];
        if member::is_proof(error) {
            self.sent_corrupt(index, error);
        }
        let change = member.failed(error, began, Instant::now());
        if change == MemberChange::Opened {
            tracing::warn!(
                STORE = self.url, MEMBER = member.name, %error,
                "a mirror failed and gets no requests for a while"
            );
            self.openings.send_modify(|count| *count += 1);
        }
    }

    fn overtaken(&self, index: usize) {
        let member = &self.members[index];
        if member.overtaken(Instant::now()) == MemberChange::Opened {
            tracing::warn!(
                STORE = self.url,
                MEMBER = member.name,
                "a mirror is slower than the others and gets no requests for a while"
            );
            self.openings.send_modify(|count| *count += 1);
        }
    }

    fn sent_corrupt(&self, index: usize, error: &Error) {
        let member = &self.members[index];
        let mark = member.sent_corrupt(Instant::now());
        tracing::error!(
            STORE = self.url, MEMBER = member.name, %error,
            "a mirror sent wrong bytes, which were discarded; it is avoided for {mark:?}"
        );
        self.openings.send_modify(|count| *count += 1);
    }
}

/// The description of a request in errors.
fn of(action: &str, what: impl fmt::Display) -> String {
    format!("{action} {what}")
}

#[async_trait]
impl Store for Mirrors {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        Ok(self.first_local(|store| store.directory_now(digest)))
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        Ok(self.first_local(|store| store.read_now(digest, size, offset, buffer)))
    }

    /// Announces them to the member that will be asked first.
    fn will_need(&self, blobs: &[(Digest, u64)]) {
        let standings = self.0.standings(RequestKind::Bulk, Instant::now());
        if let Some(best) = standings.iter().flatten().next() {
            self.0.members[*best].store.will_need(blobs);
        }
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        for member in &self.0.members {
            member.store.forget(digest, size, offset, length);
        }
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.first_local(|store| store.root_now(name)))
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        // No backing file or an error: fall back to reading.
        let mut files = self.stores().map(|store| store.backing_file(digest, size));
        Ok(files.find_map(|file| file.ok().flatten()))
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        let asked = *digest;
        let question = move |store: Arc<dyn Store>| -> MemberRequest<Directory> {
            Box::pin(async move { store.directory(&asked).await })
        };
        self.ask(
            RequestKind::Small,
            || of("reading directory", asked),
            question,
        )
        .await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let asked = *digest;
        let question = move |store: Arc<dyn Store>| -> MemberRequest<Bytes> {
            Box::pin(async move { store.read(&asked, size, offset, length).await })
        };
        self.ask(RequestKind::Bulk, || of("reading blob", asked), question)
            .await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let asked = Bytes::copy_from_slice(name);
        let question = move |store: Arc<dyn Store>| -> MemberRequest<Root> {
            let asked = asked.clone();
            Box::pin(async move { store.root(&asked).await })
        };
        let request = || of("looking up root", Printable(name));
        self.ask(RequestKind::Small, request, question).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let question = |store: Arc<dyn Store>| -> MemberRequest<Vec<Root>> {
            Box::pin(async move { store.roots().await.map(Some) })
        };
        self.ask_any(RequestKind::Bulk, || of("listing", "the roots"), question)
            .await
    }

    /// Of every member, since there is no such name only when all report that.
    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        let lists = try_join_all(self.stores().map(|store| store.complete_roots())).await?;
        let mut all = lists.concat();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.dedup_by(|later, first| later.name == first.name);
        Ok(all)
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let asked = Bytes::copy_from_slice(name);
        let question = move |store: Arc<dyn Store>| -> MemberRequest<PathInfo> {
            let asked = asked.clone();
            Box::pin(async move { store.path_info(&asked).await })
        };
        let request = || of("asking about", Printable(name));
        self.ask(RequestKind::Small, request, question).await
    }

    async fn incomplete_root(&self, _: &[u8]) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        Ok(None)
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.directory(digest).await?.is_some())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let asked = *digest;
        let question = move |store: Arc<dyn Store>| -> MemberRequest<()> {
            Box::pin(async move { Ok(store.has_blob(&asked).await?.then_some(())) })
        };
        let found = self.ask(
            RequestKind::Small,
            || of("asking for blob", asked),
            question,
        );
        Ok(found.await?.is_some())
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let asked = *digest;
        let question = move |store: Arc<dyn Store>| -> MemberRequest<u64> {
            Box::pin(async move { store.blob_size(&asked).await })
        };
        self.ask(
            RequestKind::Small,
            || of("asking for blob", asked),
            question,
        )
        .await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        let asked = *digest;
        let question = move |store: Arc<dyn Store>| -> MemberRequest<Vec<(Digest, u64)>> {
            Box::pin(async move { store.chunks(&asked).await })
        };
        self.ask(
            RequestKind::Small,
            || of("asking for the chunks of blob", asked),
            question,
        )
        .await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let asked = *digest;
        let question = move |store: Arc<dyn Store>| -> MemberRequest<GroupTable> {
            Box::pin(async move { store.group_table(&asked, size).await })
        };
        self.ask(RequestKind::Bulk, || of("reading blob", asked), question)
            .await
    }

    /// The content of one of them: they have the same.
    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        let mut usages = self.stores().map(|store| store.usage());
        Ok(usages.find_map(|usage| usage.ok().flatten()))
    }

    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        self.stores().flat_map(|store| store.embedded()).collect()
    }

    fn health(&self) -> Health {
        let now = Instant::now();
        let members = self.0.members.iter();
        Health {
            endpoint: None,
            members: members.map(|member| member.health(now)).collect(),
        }
    }

    fn roots_version(&self) -> Result<u64, Error> {
        let returns = self.0.returns.load(Ordering::Relaxed);
        Ok(self.0.versions.now(self.stores()).wrapping_add(returns))
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        let stores: Vec<&Arc<dyn Store>> = self.stores().collect();
        let now = || {
            let returns = self.0.returns.load(Ordering::Relaxed);
            self.0.versions.now(self.stores()).wrapping_add(returns)
        };
        Ok(self.0.versions.wait(&stores, seen, timeout, now))
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.stores()
            .for_each(|store| store.keep_listings_fresh(max_age));
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        let names: Vec<&str> = self.0.members.iter().map(|m| m.name.as_str()).collect();
        Err(Error::ReadOnly {
            store: self.0.url.clone(),
            why: format!(
                "a mirrors store is read-only; write to one of {}, and copy to the others",
                names.join(", ")
            ),
        })
    }
}
