//! A store of which only some root nodes are seen.
//!
//! What decides is the name: [`Pattern`]s with `*`, `?`, `[…]` and `{…,…}`, matched against the
//! name's bytes. Blobs and Directories have no name and pass: this chooses what is shown, and keeps
//! nobody from reading by digest.
//!
//! What is added through a filter goes to the store behind it; a root node that could not be seen
//! afterwards is refused.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use globset::{GlobBuilder, GlobMatcher};

use super::{Added, Answer, BackingFile, BlobWriter, Error, Health, Ingest, Store, Usage};
use crate::castore::{Digest, Directory, GroupTable, Name, Root};
use crate::nix::PathInfo;

/// A pattern of root names.
#[derive(Clone)]
pub struct Pattern(GlobMatcher);

impl Pattern {
    /// Reads `text`; says what is wrong with it otherwise.
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
        // The crate splits paths at slashes, of which a name has none.
        self.0.is_match(std::ffi::OsStr::from_bytes(name))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

/// The root nodes of a store that have the right names. Clones share everything.
#[derive(Clone, Debug)]
pub struct Filter {
    url: String,
    inner: Arc<dyn Store>,
    patterns: Arc<[Pattern]>,
}

impl Filter {
    /// Of `inner`, the root nodes whose names one of `patterns` takes. `url` is what logs and errors
    /// call it.
    pub fn new(url: String, inner: Arc<dyn Store>, patterns: Vec<Pattern>) -> Self {
        Self {
            url,
            inner,
            patterns: patterns.into(),
        }
    }

    fn takes(&self, name: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| pattern.takes(name))
    }
}

#[async_trait]
impl Store for Filter {
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

    /// What the whole store holds: whose trees a blob is part of is not known.
    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.inner.usage()
    }

    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        self.inner.embedded()
    }

    fn health(&self) -> Health {
        // The store behind it speaks for itself.
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.inner.wait_for_roots(seen, timeout)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Ok(Box::new(FilteredIngest {
            inner: self.inner.ingest()?,
            filter: self.clone(),
        }))
    }
}

/// An addition to the store behind a filter.
struct FilteredIngest {
    inner: Box<dyn Ingest>,
    filter: Filter,
}

impl FilteredIngest {
    fn check(&self, name: &Name) -> Result<(), Error> {
        if self.filter.takes(name) {
            return Ok(());
        }
        let patterns = self.filter.patterns.iter().map(Pattern::as_str);
        Err(Error::Refused {
            store: self.filter.url.clone(),
            what: format!("root {name}"),
            why: format!(
                "its name is none that is seen here: {}",
                patterns.collect::<Vec<_>>().join(", ")
            ),
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

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.check(&root.name)?;
        self.inner.put_root(root, path_info)
    }

    fn put_incomplete_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.check(&root.name)?;
        self.inner.put_incomplete_root(root, path_info)
    }

    fn release(&self) {
        self.inner.release();
    }

    fn commit(self: Box<Self>) -> Result<Added, Error> {
        self.inner.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_about_bytes() {
        let check = |pattern: &str, taken: &[&[u8]], not: &[&[u8]]| {
            let pattern = Pattern::parse(pattern).unwrap();
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
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
