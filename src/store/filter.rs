//! A store that shows some of the roots of another.
//!
//! The name decides: [`RootPattern`]s with `*`, `?`, `[…]` and `{…,…}`, matched against the name's
//! bytes, and a set of names. Blobs and Directories have no name and are not filtered: a filter
//! selects what is shown, and does not prevent reading by digest.
//!
//! Additions go to the filtered store; a root that the filter would hide is refused.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use globset::{GlobBuilder, GlobMatcher};
use parking_lot::Mutex;

use super::root_change::RootCondition;
use super::{
    AddedTotals, Answer, BackingFile, BlobWriter, Error, Health, Ingest, Store, StoreUsage,
};
use crate::castore::{Digest, Directory, GroupTable, Name, Root};
use crate::nix::PathInfo;

/// A pattern of root names.
#[derive(Clone)]
pub struct RootPattern(GlobMatcher);

impl RootPattern {
    /// Reads `text`; returns what is wrong with it otherwise.
    pub fn parse(text: &str) -> Result<Self, String> {
        let glob = GlobBuilder::new(text)
            .empty_alternates(true)
            .build()
            .map_err(|error| error.kind().to_string())?;
        Ok(Self(glob.compile_matcher()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }

    fn takes(&self, name: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        // The crate splits paths at slashes, which names do not have.
        self.0.is_match(std::ffi::OsStr::from_bytes(name))
    }
}

impl fmt::Debug for RootPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl PartialEq for RootPattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RootPattern {}

/// The roots of a store with matching names. Clones share everything.
#[derive(Clone, Debug)]
pub struct FilteredStore {
    url: String,
    inner: Arc<dyn Store>,
    patterns: Arc<[RootPattern]>,
    names: Option<Arc<ListedNames>>,
}

/// The names in a file, one a line; the name of a path is its last component, so that the
/// `store-paths` of nixpkgs' `closureInfo` can be used. The file is read again when it has changed,
/// and lists nothing while it cannot be read.
#[derive(Debug)]
struct ListedNames {
    file: PathBuf,
    read: Mutex<ReadNames>,
}

#[derive(Debug, Default)]
struct ReadNames {
    /// The state of the file when it was read: inode, size in bytes, time of the last change.
    version: Option<(u64, u64, SystemTime)>,
    names: HashSet<Name>,
}

/// The names in `file`, one a line: the last component of a path.
pub fn names_in(file: &Path) -> io::Result<Vec<Name>> {
    let text = std::fs::read(file)?;
    let lines = text.split(|&byte| byte == b'\n');
    let names = lines.filter_map(|line| {
        let name = line.rsplit(|&byte| byte == b'/').next()?;
        Name::new(name).ok()
    });
    Ok(names.collect())
}

impl ListedNames {
    fn has(&self, name: &[u8]) -> bool {
        let Ok(name) = Name::new(name) else {
            return false;
        };
        let version = std::fs::metadata(&self.file).and_then(|found| {
            let changed = found.modified()?;
            Ok((found.ino(), found.len(), changed))
        });
        let version = version.ok();
        let mut read = self.read.lock();
        if read.version != version {
            let names = names_in(&self.file).unwrap_or_else(|error| {
                tracing::warn!("cannot read the names in {}: {error}", self.file.display());
                Vec::new()
            });
            *read = ReadNames {
                version,
                names: names.into_iter().collect(),
            };
        }
        read.names.contains(&name)
    }
}

impl FilteredStore {
    /// The roots of `inner` whose names match one of `patterns`. `url` names the store in logs and
    /// errors.
    pub fn new(url: String, inner: Arc<dyn Store>, patterns: Vec<RootPattern>) -> Self {
        Self {
            url,
            inner,
            patterns: patterns.into(),
            names: None,
        }
    }

    /// The roots of `inner` whose names are in `file`: one a line, the last component of a path.
    /// The file is read again when it has changed; without it there are no roots.
    pub fn of_listed(inner: Arc<dyn Store>, file: &Path) -> Self {
        let names = ListedNames {
            file: file.to_owned(),
            read: Mutex::default(),
        };
        Self {
            url: inner.url().to_owned(),
            inner,
            patterns: Arc::default(),
            names: Some(Arc::new(names)),
        }
    }

    fn takes(&self, name: &[u8]) -> bool {
        self.names.as_ref().is_some_and(|names| names.has(name))
            || self.patterns.iter().any(|pattern| pattern.takes(name))
    }
}

#[async_trait]
impl Store for FilteredStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        self.inner.directory_now(digest)
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.inner.read_now(digest, size, offset, buffer)
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.inner.will_need(blobs);
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        self.inner.forget(digest, size, offset, length);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        match self.takes(name) {
            true => self.inner.root_now(name),
            false => Ok(Answer::Absent),
        }
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.inner.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.inner.directory(digest).await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.inner.read(digest, size, offset, length).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        match self.takes(name) {
            true => self.inner.root(name).await,
            false => Ok(None),
        }
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let mut roots = self.inner.roots().await?;
        roots.retain(|root| self.takes(&root.name));
        Ok(roots)
    }

    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        let mut roots = self.inner.complete_roots().await?;
        roots.retain(|root| self.takes(&root.name));
        Ok(roots)
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        match self.takes(name) {
            true => self.inner.path_info(name).await,
            false => Ok(None),
        }
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        match self.takes(name) {
            true => self.inner.incomplete_root(name).await,
            false => Ok(None),
        }
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.inner.blob_size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        self.inner.chunks(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.inner.group_table(digest, size).await
    }

    /// The contents of the whole store: which trees a blob belongs to is not known.
    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.inner.usage()
    }

    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        self.inner.embedded()
    }

    fn health(&self) -> Health {
        // The filtered store reports its own health.
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.inner.wait_for_roots(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.inner.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Ok(Box::new(FilteredIngest {
            inner: self.inner.ingest()?,
            filter: self.clone(),
        }))
    }
}

/// An addition to a filtered store.
struct FilteredIngest {
    inner: Box<dyn Ingest>,
    filter: FilteredStore,
}

impl FilteredIngest {
    fn check(&self, name: &Name) -> Result<(), Error> {
        if self.filter.takes(name) {
            return Ok(());
        }
        let patterns = self.filter.patterns.iter().map(RootPattern::as_str);
        let names = self.filter.names.as_ref();
        let names = names.map(|names| format!("the names in {}", names.file.display()));
        let all: Vec<_> = patterns.map(str::to_owned).chain(names).collect();
        Err(Error::Refused {
            store: self.filter.url.clone(),
            what: format!("root {name}"),
            why: format!("its name does not match this filter: {}", all.join(", ")),
        })
    }
}

impl Ingest for FilteredIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.has_blob(digest)
    }

    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        self.inner.missing_blobs(digests)
    }

    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        self.inner.put_blobs(blobs)
    }

    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        self.inner.blob_writer()
    }

    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        self.inner.put_directory(directory)
    }

    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        self.check(name)?;
        self.inner.remove_root(name)
    }

    fn check_root_name(&self, name: &Name) -> Result<(), Error> {
        self.check(name)?;
        self.inner.check_root_name(name)
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.check(&root.name)?;
        self.inner.put_root(root, path_info)
    }

    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.check(&root.name)?;
        self.inner.add_root(root, path_info)
    }

    fn put_incomplete_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.check(&root.name)?;
        self.inner.put_incomplete_root(root, path_info)
    }

    fn only_if(&self, condition: RootCondition) {
        self.inner.only_if(condition);
    }

    fn release(&self) {
        self.inner.release();
    }

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        self.inner.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn names_come_from_a_file_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store-paths");
        let filter = FilteredStore::of_listed(Arc::new(MemoryStore::new()), &file);
        assert!(!filter.takes(b"000-a"), "there is no file");
        std::fs::write(&file, "/nix/store/000-a\n\n001-b\n").unwrap();
        assert!(filter.takes(b"000-a") && filter.takes(b"001-b"));
        assert!(!filter.takes(b"002-c") && !filter.takes(b"") && !filter.takes(b"nix"));
        std::fs::write(&file, "/nix/store/000-a\n/nix/store/002-c\n").unwrap();
        assert!(filter.takes(b"000-a") && filter.takes(b"002-c") && !filter.takes(b"001-b"));
        std::fs::remove_file(&file).unwrap();
        assert!(!filter.takes(b"000-a"));
    }

    #[test]
    fn patterns_are_about_bytes() {
        let check = |pattern: &str, taken: &[&[u8]], not: &[&[u8]]| {
            let pattern = RootPattern::parse(pattern).unwrap();
            for name in taken {
                assert!(pattern.takes(name), "{pattern:?} {}", name.escape_ascii());
            }
            for name in not {
                assert!(!pattern.takes(name), "{pattern:?} {}", name.escape_ascii());
            }
        };
        check("app-*", &[b"app-1", b"app-"], &[b"app", b"an-app-1"]);
        check("?", &[b"a", b"\xff"], &[b"", b"ab"]);
        check("[a-c]*", &[b"bottle", b"c\xff\n"], &[b"dog", b"B"]);
        check(
            "*-{doc,man}",
            &[b"gcc-doc", b"gcc-man"],
            &[b"gcc", b"gcc-doc-1"],
        );
        check("*", &[b".hidden", b"\xfe\xff"], &[]);
        check("a.b", &[b"a.b"], &[b"acb"]);
        for wrong in ["[a", "{a"] {
            assert!(RootPattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
