//! Prefetching the extents of a profile before they are read.
//!
//! In the profile's order and by windows: the paths of some hundred files are looked up, a level of
//! directories at a time, and then their extents are read through the store, which caches them like
//! other reads. Extents that are cached already are left out. While one window is read the next one
//! is announced to the store ([`Store::will_need`]), so that the connection does not fall idle.
//!
//! **Readers go first.** While a request waits for the store, a window is small: at most
//! [`FIRST_WINDOW`] bytes, and as many that were announced, are in front of another reader on the
//! connection. While no request waits, windows double.
//!
//! A store that does not answer is asked again every [`RETRY`], as it may be the network of a
//! machine that is just starting; after [`GIVES_UP`] without an answer the prefetch ends.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use super::super::{CastoreFs, errno};
use super::AccessRecorder;
use super::access_log::{blob_key, key};
use super::count::WarmUpCounters;
use crate::castore::{Digest, Directory, Node, NodeRef};
use crate::profile::{EXTENT, FoundProfile, Profile, ProfileKey};
use crate::quantity::count;
use crate::store::{Answer, Error, Store};

/// Bytes of a window while requests wait, and at most: 50 ms and half a second of 20 MB/s.
const FIRST_WINDOW: u64 = 1 << 20;
const MAX_WINDOW: u64 = 8 << 20;
/// Bytes that are prefetched for one root, at most.
const MOST_AHEAD: u64 = 4 << 30;
/// How long to wait before a store that did not answer is asked again, and for how long it is
/// asked.
const RETRY: Duration = Duration::from_secs(2);
const GIVES_UP: Duration = Duration::from_secs(600);
/// Extents in a window, at most.
const MOST_EXTENTS: usize = 512;
/// Extents read at once.
const READS: usize = 64;
/// Runs of extents whose files are looked up together.
const LOOKED_UP: usize = 512;
/// Directories fetched at once.
const DIRECTORIES: usize = 32;

/// An extent of a blob.
#[derive(Clone, Copy, Debug)]
struct PendingExtent {
    digest: Digest,
    size: u64,
    offset: u64,
    length: u64,
}

/// A profile that is being prefetched.
pub(super) struct ProfilePrefetch {
    /// The key that it is prefetched for, the profile, and whether the profile has just this key.
    profile_key: ProfileKey,
    profile: Profile,
    own: bool,
    node: Node,
    /// The next run to look up.
    next: usize,
    /// Extents that were looked up, in order.
    extents: VecDeque<PendingExtent>,
    window: u64,
    /// Bytes that may still be fetched.
    remaining: u64,
    began: Instant,
    /// Extents that were fetched, and their bytes.
    fetched: u64,
    bytes: u64,
    /// Files that do not exist below the root.
    absent: u64,
    /// Why it is paused, and since when.
    failed: Option<(Error, Instant)>,
}

impl ProfilePrefetch {
    /// For the root `node` with the profile key `profile_key`; at most `most` bytes.
    pub(super) fn new(
        found: FoundProfile,
        profile_key: &ProfileKey,
        node: Node,
        most: u64,
    ) -> Self {
        Self {
            profile_key: profile_key.clone(),
            profile: found.profile,
            own: found.own,
            node,
            next: 0,
            extents: VecDeque::new(),
            window: FIRST_WINDOW,
            remaining: most.min(MOST_AHEAD),
            began: Instant::now(),
            fetched: 0,
            bytes: 0,
            absent: 0,
            failed: None,
        }
    }

    fn is_done(&self) -> bool {
        let all = self.next >= self.profile.runs().len() && self.extents.is_empty();
        all || self.remaining == 0 || self.failed.is_some() && self.began.elapsed() >= GIVES_UP
    }

    /// Whether it is time to continue.
    pub(super) fn is_due(&self) -> bool {
        let failed = self.failed.as_ref();
        failed.is_none_or(|(_, since)| since.elapsed() >= RETRY)
    }

    /// Records an error of the store. Only a store that does not answer pauses the prefetch:
    /// readers get all other errors.
    fn note(&mut self, error: Error) {
        if errno::endpoint(&error).is_some() {
            self.failed = Some((error, Instant::now()));
        }
    }

    /// Logs and counts the end of the prefetch.
    fn report(&self, counters: &WarmUpCounters) {
        counters.fetches.add(1);
        counters
            .fetch_micros
            .add(self.began.elapsed().as_micros() as u64);
        if self.failed.is_some() {
            counters.failed_fetches.add(1);
        }
        let like = match self.own {
            true => String::new(),
            false => format!(", by the profile of \"{}\"", self.profile.profile_key()),
        };
        let (name, milliseconds) = (&self.profile_key, self.began.elapsed().as_millis() as u64);
        let Self {
            fetched,
            bytes,
            absent,
            ..
        } = self;
        let extents = count(*fetched, "extent", "extents");
        match &self.failed {
            None if *fetched == 0 => {
                tracing::debug!(absent, "warm-up \"{name}\": already cached{like}");
            }
            None => tracing::info!(
                milliseconds,
                absent,
                "warm-up \"{name}\": fetched {extents} ({bytes} bytes){like}"
            ),
            Some((error, _)) => tracing::warn!(
                %error,
                "warm-up \"{name}\" stopped after {extents}{like}"
            ),
        }
    }

    /// Looks up the next files.
    async fn look_up(&mut self, store: &dyn Store) {
        let runs = self.profile.runs().iter().skip(self.next).take(LOOKED_UP);
        let runs: Vec<_> = runs.copied().collect();
        let path = |file: u32| {
            self.profile
                .files()
                .get(file as usize)
                .map(|file| &*file.path)
        };
        let paths: Vec<&[u8]> = runs
            .iter()
            .map(|run| path(run.file).unwrap_or_default())
            .collect();
        let found = match look_up(store, &self.node, &paths).await {
            Ok(found) => found,
            Err(error) => return self.note(error),
        };
        self.next += runs.len();
        for (run, found) in runs.into_iter().zip(found) {
            let Some((digest, size)) = found else {
                self.absent += 1;
                continue;
            };
            // A file of another version may be shorter.
            let end = u64::from(run.first + run.count) * EXTENT;
            let mut offset = u64::from(run.first) * EXTENT;
            while offset < end.min(size) {
                self.extents.push_back(PendingExtent {
                    digest,
                    size,
                    offset,
                    length: EXTENT.min(size - offset),
                });
                offset += EXTENT;
            }
        }
    }

    /// Takes the next extents that are not cached: a window of them.
    fn next_window(&mut self, store: &dyn Store) -> Vec<PendingExtent> {
        let mut window = Vec::new();
        let mut bytes = 0;
        while window.len() < MOST_EXTENTS
            && bytes < self.window
            && let Some(extent) = self.extents.pop_front()
        {
            if extent.is_wanting(store) {
                bytes += extent.length;
                window.push(extent);
            }
        }
        window
    }

    /// Announces `window`, and what comes after it, to `store`.
    fn announce(&self, window: &[PendingExtent], store: &dyn Store) {
        let mut bytes = 0;
        let next = self.extents.iter().take(MOST_EXTENTS).take_while(|extent| {
            bytes += extent.length;
            bytes <= self.window
        });
        // For a large file the store would fetch the beginning.
        let whole = window
            .iter()
            .chain(next)
            .filter(|extent| extent.offset == 0);
        let blobs: Vec<_> = whole.map(|extent| (extent.digest, extent.size)).collect();
        store.will_need(&blobs);
    }
}

impl PendingExtent {
    /// The key by which accesses to it are noted.
    fn key(&self) -> u64 {
        // The extent numbers in a profile are that small.
        key(blob_key(&self.digest), (self.offset / EXTENT) as u32)
    }

    /// Whether some of it has to be waited for. An extent that cannot be fetched at all is left to
    /// its readers, which get the error.
    fn is_wanting(&self, store: &dyn Store) -> bool {
        let last = self.offset + self.length - 1;
        [self.offset, last].into_iter().any(|at| {
            let read = store.read_now(&self.digest, self.size, at, &mut [0]);
            matches!(read, Ok(Answer::Wait))
        })
    }
}

impl CastoreFs {
    /// Fetches the next window of `ahead`, and returns it if there is more to do.
    pub(super) async fn go_ahead(
        &self,
        access_recorder: &AccessRecorder,
        mut ahead: ProfilePrefetch,
    ) -> Option<ProfilePrefetch> {
        let store = self.store.as_ref();
        ahead.failed = None;
        while ahead.extents.len() < MOST_EXTENTS
            && ahead.next < ahead.profile.runs().len()
            && ahead.failed.is_none()
        {
            ahead.look_up(store).await;
        }
        let window = ahead.next_window(store);
        ahead.announce(&window, store);
        let reads = window.iter().map(|extent| async move {
            let length = extent.length as usize;
            let read = store.read(&extent.digest, extent.size, extent.offset, length);
            let read = read.await;
            read.map(|read| (extent, read.map_or(0, |bytes| bytes.len() as u64)))
        });
        let mut reads = stream::iter(reads).buffer_unordered(READS);
        while let Some(read) = reads.next().await {
            match read {
                // It does not exist; its reader gets the error.
                Ok((_, 0)) => {}
                Ok((extent, length)) => {
                    ahead.fetched += 1;
                    ahead.bytes += length;
                    // An access so far was a miss.
                    self.take_notes(access_recorder);
                    access_recorder.fetched(extent.key(), length);
                    ahead.remaining = ahead.remaining.saturating_sub(length);
                }
                Err(error) => ahead.note(error),
            }
        }
        drop(reads);
        if ahead.failed.is_some() {
            // The fetched bytes are cached.
            for extent in window.into_iter().rev() {
                ahead.extents.push_front(extent);
            }
        }
        ahead.window = next_window_size(ahead.window, self.waiting.count());
        if ahead.is_done() {
            ahead.report(access_recorder.counters());
            return None;
        }
        Some(ahead)
    }
}

/// Bytes of the window after one of `size`, while `waiting` requests wait.
fn next_window_size(size: u64, waiting: usize) -> u64 {
    match waiting {
        0 => (size * 2).min(MAX_WINDOW),
        _ => FIRST_WINDOW,
    }
}

/// A directory that has to be fetched for some of the paths, sorted; of which so many bytes lead to it.
struct DirectoryFetch {
    digest: Digest,
    paths: Range<usize>,
    skip: usize,
}

/// The files at `paths` below `node`: digest and size of each that exists, a level of directories
/// at a time.
async fn look_up(
    store: &dyn Store,
    node: &Node,
    paths: &[&[u8]],
) -> Result<Vec<Option<(Digest, u64)>>, Error> {
    let mut found = vec![None; paths.len()];
    let mount_root = match node {
        Node::Directory { digest, .. } => *digest,
        Node::File { digest, size, .. } => {
            for (found, path) in found.iter_mut().zip(paths) {
                *found = path.is_empty().then_some((*digest, *size));
            }
            return Ok(found);
        }
        Node::Symlink { .. } => return Ok(found),
    };
    let mut order: Vec<usize> = (0..paths.len()).collect();
    order.sort_by_key(|&at| paths[at]);
    let sorted: Vec<&[u8]> = order.iter().map(|&at| paths[at]).collect();
    let mut level = vec![DirectoryFetch {
        digest: mount_root,
        paths: 0..sorted.len(),
        skip: 0,
    }];
    while !level.is_empty() {
        let fetches = std::mem::take(&mut level)
            .into_iter()
            .map(|step| async move {
                let directory = directory(store, &step.digest).await;
                directory.map(|directory| Some((directory?, step)))
            });
        let mut fetches = stream::iter(fetches).buffer_unordered(DIRECTORIES);
        while let Some(fetched) = fetches.next().await {
            let Some((directory, step)) = fetched? else {
                continue;
            };
            let mut at = step.paths.start;
            while at < step.paths.end {
                let rest = &sorted[at][step.skip..];
                let end = rest.iter().position(|byte| *byte == b'/');
                let name = &rest[..end.unwrap_or(rest.len())];
                // Sorted, all paths through one directory stand together.
                let skip = step.skip + name.len() + 1;
                let leads_on =
                    |path: &&&[u8]| end.is_some() && path.get(..skip) == sorted[at].get(..skip);
                let together = sorted[at..step.paths.end]
                    .iter()
                    .take_while(leads_on)
                    .count();
                let following = at + together.max(1);
                match (directory.lookup(name), end) {
                    (Some(NodeRef::File { digest, size, .. }), None) => {
                        found[order[at]] = Some((digest, size));
                    }
                    (Some(NodeRef::Directory { digest, .. }), Some(_)) => {
                        level.push(DirectoryFetch {
                            digest,
                            paths: at..following,
                            skip,
                        })
                    }
                    _ => {}
                }
                at = following;
            }
        }
    }
    Ok(found)
}

/// The Directory `digest`, if the store has it; an error if the store does not answer.
async fn directory(store: &dyn Store, digest: &Digest) -> Result<Option<Directory>, Error> {
    let found = match store.directory_now(digest) {
        Ok(Answer::Found(directory)) => return Ok(Some(directory)),
        Ok(Answer::Wait) => store.directory(digest).await,
        Ok(Answer::Absent) => Ok(None),
        Err(error) => Err(error),
    };
    match found {
        Err(error) if errno::endpoint(&error).is_none() => Ok(None),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Name, Root};
    use crate::store::MemoryStore;

    #[test]
    fn windows_are_small_while_requests_wait() {
        let mut size = FIRST_WINDOW;
        for _ in 0..10 {
            size = next_window_size(size, 0);
        }
        assert_eq!(size, MAX_WINDOW);
        assert_eq!(next_window_size(size, 1), FIRST_WINDOW);
        assert_eq!(next_window_size(FIRST_WINDOW, 3), FIRST_WINDOW);
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn file(content: &str) -> Node {
        Node::File {
            digest: Digest::of(content.as_bytes()),
            size: content.len() as u64,
            executable: false,
        }
    }

    /// A tree that has its own files `a/x`, `a-b/x` and `a/c/x`, and what looks like them.
    fn stored() -> (MemoryStore, Node) {
        let store = MemoryStore::new();
        let ingest = store.ingest().unwrap();
        let put = |entries: Vec<(&str, Node)>| {
            let entries = entries.into_iter();
            let entries = entries.map(|(text, node)| (name(text), node)).collect();
            let directory = Directory::from_entries(entries).unwrap();
            ingest.put_directory(&directory).unwrap();
            directory.node()
        };
        let deep = put(vec![("x", file("a/c/x"))]);
        let a = put(vec![("c", deep), ("x", file("a/x"))]);
        let other = put(vec![("x", file("a-b/x"))]);
        let mount_root = put(vec![("a", a), ("a-b", other), ("x", file("x"))]);
        let root = Root {
            name: name("tree"),
            node: mount_root.clone(),
        };
        ingest.put_root(&root, None).unwrap();
        ingest.commit().unwrap();
        (store, mount_root)
    }

    #[tokio::test]
    async fn files_are_found_by_their_paths_and_nothing_else_is() {
        let (store, mount_root) = stored();
        let paths = [
            "x", "a/x", "a", "a-b/x", "a/c/x", "a/c", "x/x", "", "a/x", "b", "a/c/y", "a/c/x/y",
            "a/",
        ];
        let paths: Vec<&[u8]> = paths.iter().map(|path| path.as_bytes()).collect();
        let found = look_up(&store, &mount_root, &paths).await.unwrap();
        for (path, found) in paths.iter().zip(found) {
            let text = std::str::from_utf8(path).unwrap();
            let there = ["x", "a/x", "a-b/x", "a/c/x"].contains(&text);
            let expected = there.then(|| (Digest::of(path), path.len() as u64));
            assert_eq!(found, expected, "{text}");
        }
        let found = look_up(&store, &file("alone"), &[b"", b"x"]).await.unwrap();
        assert_eq!(found, [Some((Digest::of(b"alone"), 5)), None]);
    }
}
