//! A survey of a bucket: what the roots reach, and which other objects there are.
//!
//! **An object stays if an object that refers to it stays**, whether a root reaches that or not: an
//! addition that finds a closure or a blob relies on what is below. So closures are listed first, then
//! blobs, then chunks, and what is below each that stays is marked before the next kind is listed.
//!
//! **Memory** is bounded by [`MOST_MARKS`] marks of each kind, of 8 bytes: hashes with a random key. Two that are equal
//! by accident keep an object that could go, and the next collection has another key. What is walked is
//! known by whole digests.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use super::super::ObjectStoreCalls;
use super::super::bucket::ListedObject;
use super::super::bucket_time::BucketTime;
use super::super::directories::DirectoryVisitor;
use super::candidates::MOST_CANDIDATES;
use super::{BucketObjects, ObjectKind};
use crate::castore::{Digest, Directory, Name, Node, NodeRef};
use crate::store::chunked::ChunkSource;
use crate::store::failure::{CallFailure, FailureKind};

/// Marks in one set, at most: a table of 150 MiB. Four sets have room for 3 TiB of chunks, and as many
/// that are spared.
const MOST_MARKS: usize = 14 << 20;
/// Objects of one kind whose content has to be read, at most.
const MOST_READ: usize = 4 << 20;
/// Closures, and lists of chunks, that are read at once. A list has 32 MiB at most.
const CLOSURES_AT_ONCE: usize = 8;
const LISTS_AT_ONCE: usize = 8;

/// The outcome.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// What no root reaches and nothing protects, by kind.
    pub(super) unprotected: [Vec<Digest>; 3],
    /// The same, counted.
    pub(super) unprotected_count: BucketObjects,
    /// What no root reaches and stays.
    pub(super) spared: BucketObjects,
    /// When the latest of these was written.
    pub(super) latest: BucketTime,
    /// How many could not be noted, since others took all places.
    pub(super) omitted: u64,
}

/// Surveys a bucket; `protects` decides about an object, written at a time, that no root reaches: whether
/// it stays, with all below.
pub(super) async fn survey(
    store: &ObjectStoreCalls,
    protects: impl Fn(ObjectKind, Digest, BucketTime) -> bool,
) -> Result<Survey, CallFailure> {
    let marks = Arc::new(Marks::default());
    // The empty blob belongs to every tree, for other programs.
    marks.reached.blob(Digest::empty_blob())?;
    let mut tops = HashMap::new();
    for root in store.roots.list().await? {
        match root.node {
            Node::Symlink { .. } => {}
            Node::File { digest, .. } => marks.reached.blob(digest)?,
            Node::Directory { digest, .. } => drop(tops.entry(digest).or_insert(root.name)),
        }
    }
    let all: Vec<_> = tops
        .iter()
        .map(|(digest, name)| (*digest, name.clone()))
        .collect();
    let walks = all
        .into_iter()
        .map(|(digest, name)| walk_root(store, &marks, digest, name));
    let walks = stream::iter(walks).buffer_unordered(CLOSURES_AT_ONCE);
    walks.try_collect::<()>().await?;

    let mut survey = Survey::default();
    let closures = listed(
        store,
        ObjectKind::Closure,
        &survey,
        |digest, modified| match tops.contains_key(&digest) || digest == Digest::empty_blob() {
            true => Standing::Reached,
            false if protects(ObjectKind::Closure, digest, modified) => Standing::Spared,
            false => Standing::Unprotected,
        },
    )
    .await?;
    let walks = closures
        .spared_content
        .iter()
        .copied()
        .map(|digest| walk_spared(store, &marks, digest));
    let walks = stream::iter(walks).buffer_unordered(CLOSURES_AT_ONCE);
    walks.try_collect::<()>().await?;
    closures.add_to(&mut survey, ObjectKind::Closure);

    let blobs = listed(store, ObjectKind::Blob, &survey, |digest, modified| match (
        marks.reached.has_blob(&digest),
        marks.spared.has_blob(&digest),
    ) {
        (true, _) => Standing::Reached,
        (false, true) => Standing::Spared,
        _ if protects(ObjectKind::Blob, digest, modified) => Standing::Spared,
        _ => Standing::Unprotected,
    })
    .await?;
    for digest in &blobs.spared_content {
        marks.spared.blob(*digest)?;
    }
    for (is_reached, lists) in [(true, &blobs.reached_lists), (false, &blobs.spared_lists)] {
        let reads = lists
            .iter()
            .copied()
            .map(|digest| read_list(store, &marks, digest, is_reached));
        let reads = stream::iter(reads).buffer_unordered(LISTS_AT_ONCE);
        reads.try_collect::<()>().await?;
    }
    blobs.add_to(&mut survey, ObjectKind::Blob);

    let chunks = listed(
        store,
        ObjectKind::Chunk,
        &survey,
        |digest, modified| match (
            marks.reached.has_chunk(&digest),
            marks.spared.has_chunk(&digest),
        ) {
            (true, _) => Standing::Reached,
            (false, true) => Standing::Spared,
            _ if protects(ObjectKind::Chunk, digest, modified) => Standing::Spared,
            _ => Standing::Unprotected,
        },
    )
    .await?;
    chunks.add_to(&mut survey, ObjectKind::Chunk);
    Ok(survey)
}

/// What becomes of a listed object.
enum Standing {
    Reached,
    Spared,
    Unprotected,
}

/// The objects of a kind.
#[derive(Default)]
struct ListedKind {
    /// Blobs that a root reaches and that have lists of chunks.
    reached_lists: Vec<Digest>,
    /// What stays although no root reaches it: closures, or blobs; and those of the blobs that have lists of
    /// chunks.
    spared_content: Vec<Digest>,
    spared_lists: Vec<Digest>,
    unprotected: Vec<Digest>,
    unprotected_bytes: u64,
    spared: u64,
    spared_bytes: u64,
    latest: BucketTime,
    omitted: u64,
}

impl ListedKind {
    fn add_to(self, survey: &mut Survey, kind: ObjectKind) {
        let unprotected = self.unprotected.len() as u64;
        survey
            .unprotected_count
            .add(kind, unprotected, self.unprotected_bytes);
        survey.spared.add(kind, self.spared, self.spared_bytes);
        survey.latest = survey.latest.max(self.latest);
        survey.omitted += self.omitted;
        survey.unprotected[kind as usize] = self.unprotected;
    }
}

/// Lists the objects of `kind`. Objects whose path is not one of ours are left alone.
async fn listed(
    store: &ObjectStoreCalls,
    kind: ObjectKind,
    survey: &Survey,
    standing: impl Fn(Digest, BucketTime) -> Standing,
) -> Result<ListedKind, CallFailure> {
    let bucket = &store.bucket;
    let noted: usize = survey.unprotected.iter().map(Vec::len).sum();
    let take = |listed: &mut ListedKind, object: ListedObject| {
        let Some(digest) = digest_at(&object.path) else {
            return Ok(());
        };
        if object.path != bucket.path(kind.dir(), &digest) {
            return Ok(());
        }
        let mut standing = standing(digest, object.modified);
        if matches!(standing, Standing::Unprotected)
            && noted + listed.unprotected.len() >= MOST_CANDIDATES
        {
            // It stays this time, with all below.
            listed.omitted += 1;
            standing = Standing::Spared;
        }
        match standing {
            Standing::Reached if kind == ObjectKind::Blob && object.size > 0 => {
                bounded_push(&mut listed.reached_lists, digest)?;
            }
            Standing::Reached => {}
            Standing::Spared => {
                listed.spared += 1;
                listed.spared_bytes += object.size;
                listed.latest = listed.latest.max(object.modified);
                if kind != ObjectKind::Chunk {
                    bounded_push(&mut listed.spared_content, digest)?;
                }
                if kind == ObjectKind::Blob && object.size > 0 {
                    bounded_push(&mut listed.spared_lists, digest)?;
                }
            }
            Standing::Unprotected => {
                listed.unprotected.push(digest);
                listed.unprotected_bytes += object.size;
            }
        }
        Ok(())
    };
    bucket
        .fold_listing(kind.dir(), ListedKind::default, take)
        .await
}

fn digest_at(path: &str) -> Option<Digest> {
    path.rsplit('/').next()?.parse().ok()
}

fn bounded_push(all: &mut Vec<Digest>, digest: Digest) -> Result<(), CallFailure> {
    match all.len() < MOST_READ {
        true => {
            all.push(digest);
            Ok(())
        }
        false => Err(too_many("objects with others below them", MOST_READ)),
    }
}

fn too_many(what: &str, most: usize) -> CallFailure {
    let why = format!("the bucket has more than {most} {what}; nothing more was deleted");
    CallFailure::Failed(FailureKind::Exhausted, why)
}

/// Marks everything below a root.
async fn walk_root(
    store: &ObjectStoreCalls,
    marks: &Arc<Marks>,
    digest: Digest,
    name: Name,
) -> Result<(), CallFailure> {
    if digest == Digest::empty_blob() {
        return Ok(());
    }
    let of_root = |why: String| {
        let why = format!(
            "root \"{name}\": {why}. Nothing more was deleted: what is below it is not known. `castore-fs verify` shows \
             what is damaged; import or copy it again, or remove that root"
        );
        CallFailure::Failed(FailureKind::Conflict, why)
    };
    match store.directories.visit(digest, &marks.visitor(true)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(of_root(format!("directory {digest} is missing"))),
        Err(CallFailure::Damaged(object, digest, damage)) => {
            Err(of_root(format!("{object} {digest} is damaged: {damage}")))
        }
        Err(CallFailure::Failed(FailureKind::Corrupt, why)) => Err(of_root(why)),
        Err(CallFailure::Failed(code, why)) => Err(CallFailure::Failed(
            code,
            format!("root \"{name}\": {why}; nothing more was deleted"),
        )),
        Err(failure) => Err(failure),
    }
}

/// Marks everything below a closure that no root reaches and that stays. What is damaged serves no reader.
async fn walk_spared(
    store: &ObjectStoreCalls,
    marks: &Arc<Marks>,
    digest: Digest,
) -> Result<(), CallFailure> {
    match store.directories.visit(digest, &marks.visitor(false)).await {
        Err(CallFailure::Damaged(..) | CallFailure::Failed(FailureKind::Corrupt, _)) => {
            tracing::warn!("{}: closure {digest} is damaged", store.bucket.url);
            Ok(())
        }
        visited => visited.map(drop),
    }
}

/// Marks the chunks of a blob.
async fn read_list(
    store: &ObjectStoreCalls,
    marks: &Marks,
    digest: Digest,
    is_reached: bool,
) -> Result<(), CallFailure> {
    let list = match store.bucket.stat(&digest).await {
        // It may have been removed meanwhile.
        Ok(list) => list.unwrap_or_default(),
        Err(CallFailure::Failed(FailureKind::Corrupt, why)) if !is_reached => {
            tracing::warn!("{}: {why}", store.bucket.url);
            return Ok(());
        }
        Err(CallFailure::Failed(FailureKind::Corrupt, why)) => {
            let why = format!(
                "blob {digest}, which a root reaches, is damaged: {why}. Nothing more was deleted; `castore-fs verify` \
                 shows where it is"
            );
            return Err(CallFailure::Failed(FailureKind::Conflict, why));
        }
        Err(failure) => return Err(failure),
    };
    let marks = marks.of(is_reached);
    for chunk in list.chunks {
        // Another length is damage of the blob, for its readers.
        if let Ok(digest) = Digest::try_from(&chunk.digest[..]) {
            marks.chunk(digest)?;
        }
    }
    Ok(())
}

/// What stays: what roots reach, and what is below other objects that stay.
#[derive(Default)]
struct Marks {
    reached: MarkSet,
    spared: MarkSet,
}

impl Marks {
    fn of(&self, is_reached: bool) -> &MarkSet {
        match is_reached {
            true => &self.reached,
            false => &self.spared,
        }
    }

    /// Marks the blobs of each Directory.
    fn visitor(self: &Arc<Self>, is_reached: bool) -> DirectoryVisitor {
        let marks = self.clone();
        Arc::new(move |directory: &Directory| {
            directory.iter().try_for_each(|entry| match entry.node {
                NodeRef::File { digest, .. } => marks.of(is_reached).blob(digest),
                _ => Ok(()),
            })
        })
    }
}

/// Marked blobs and chunks, by their hashes.
#[derive(Default)]
struct MarkSet {
    hasher: RandomState,
    blobs: Mutex<HashSet<u64>>,
    chunks: Mutex<HashSet<u64>>,
}

impl MarkSet {
    fn blob(&self, digest: Digest) -> Result<(), CallFailure> {
        self.mark(&self.blobs, digest)
    }

    fn chunk(&self, digest: Digest) -> Result<(), CallFailure> {
        self.mark(&self.chunks, digest)
    }

    fn mark(&self, marks: &Mutex<HashSet<u64>>, digest: Digest) -> Result<(), CallFailure> {
        let mut marks = marks.lock();
        marks.insert(self.hasher.hash_one(digest));
        match marks.len() <= MOST_MARKS {
            true => Ok(()),
            false => Err(too_many("blobs or chunks in use", MOST_MARKS)),
        }
    }

    fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.lock().contains(&self.hasher.hash_one(digest))
    }

    /// A blob of one chunk has that chunk's digest.
    fn has_chunk(&self, digest: &Digest) -> bool {
        self.has_blob(digest) || self.chunks.lock().contains(&self.hasher.hash_one(digest))
    }
}
