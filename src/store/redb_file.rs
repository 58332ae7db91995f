//! `redb:/PATH`: a file in which a snix store keeps its Directories or its path infos.
//!
//! It is read to migrate, and never written ([`backend`]). A peer opens such a file alone, under an
//! exclusive flock(2); a shared one is held here for as long as the store is open, so that what is read
//! does not change meanwhile.

mod backend;
mod tables;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;

use self::tables::{OpenDatabase, RedbFailure};
use super::local_url::local_path;
use super::root_list::RootList;
use super::shown_url::has_parameters;
use super::{
    Answer, BackingFile, Damage, Error, Health, Ingest, Object, Store, StoreUsage, in_place,
};
use super::{LocalStore, extents};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::{self, PathInfo};

/// A file of a snix store. Clones share everything.
#[derive(Clone, Debug)]
pub struct RedbFile(Arc<RedbInner>);

#[derive(Debug)]
struct RedbInner {
    url: String,
    tables: OpenDatabase,
    /// Holds the lock.
    _file: File,
}

impl RedbFile {
    /// Opens the store at `url`, `redb:/PATH` or `redb:///PATH`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let path = Self::path(url).map_err(|why| Error::Url {
            url: url.to_owned(),
            why,
        })?;
        let failed = |action| {
            move |source| Error::Io {
                store: url.to_owned(),
                action,
                path: path.to_owned(),
                source: Arc::new(source),
            }
        };
        let format = |why: String| Error::Format {
            store: url.to_owned(),
            why,
        };
        let file = File::open(path).map_err(failed("open"))?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format(format!(
                    "{} is in use: stop the peer first (the snix-store daemon, or whichever program \
                     has the file open)",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
        if file.metadata().map_err(failed("look at"))?.len() == 0 {
            return Err(format(format!("{} is empty", path.display())));
        }
        let unreadable = |source: RedbFailure| Error::Index {
            store: url.to_owned(),
            path: path.to_owned(),
            source: Arc::from(source),
        };
        let tables = OpenDatabase::open(&file).map_err(unreadable)?;
        if !tables.is_of_a_store().map_err(unreadable)? {
            return Err(format(format!(
                "{} has neither the directories nor the path infos of a snix store",
                path.display()
            )));
        }
        Ok(Self(Arc::new(RedbInner {
            url: url.to_owned(),
            tables,
            _file: file,
        })))
    }

    /// The file that `url` names, or what is wrong with the URL.
    pub(crate) fn path(url: &str) -> Result<&Path, String> {
        let rest = url
            .strip_prefix("redb:")
            .ok_or("it does not start with redb:")?;
        if has_parameters(rest) {
            return Err("redb: takes no parameters".to_owned());
        }
        let path = local_path(rest).filter(|path| path.starts_with('/') && !path.contains('\0'));
        let path = path.ok_or("the absolute path of a file has to follow redb:")?;
        Ok(Path::new(path))
    }

    fn failed(&self, source: RedbFailure) -> Error {
        Error::Index {
            store: self.0.url.clone(),
            path: Self::path(&self.0.url).unwrap_or(Path::new("")).to_owned(),
            source: Arc::from(source),
        }
    }

    /// The root in an encoded PathInfo, and that.
    fn known(&self, encoded: &[u8]) -> Result<(Root, PathInfo), RedbFailure> {
        let info = PathInfo::decode(encoded)?;
        let root = Root::try_from(info.entry.clone().unwrap_or_default())?;
        Ok((root, info))
    }

    /// The root `name`, and what is known of it.
    fn find(&self, name: &[u8]) -> Result<Option<(Root, PathInfo)>, Error> {
        let Some(hash) = nix::output_hash(name) else {
            return Ok(None);
        };
        let found = self.0.tables.path_info(&hash);
        let found = found.and_then(|found| found.map(|found| self.known(&found)).transpose());
        let found = found.map_err(|source| self.failed(source))?;
        Ok(found.filter(|(root, _)| root.name.as_bytes() == name))
    }
}

#[async_trait]
impl Store for RedbFile {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(Answer::Found(Directory::empty()));
        }
        let found = self.0.tables.directory(digest.as_bytes());
        let Some(found) = found.map_err(|source| self.failed(source))? else {
            return Ok(Answer::Absent);
        };
        let directory = Directory::decode_verified(&found[..], digest);
        let directory = directory.map_err(|error| Error::Damaged {
            store: self.0.url.clone(),
            object: Object::Directory,
            digest: *digest,
            damage: Box::new(Damage::Directory(error)),
        })?;
        Ok(Answer::Found(directory))
    }

    /// Blobs are elsewhere.
    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        _: u64,
        _: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        extents::check_claim(digest, size).map_err(|failure| failure.of(&self.0.url, "reading"))?;
        Ok(match size {
            0 => Answer::Found(0),
            _ => Answer::Absent,
        })
    }

    /// Everything is local, so in place.
    fn will_need(&self, _: &[(Digest, u64)]) {}

    fn forget(&self, _: &Digest, _: u64, _: u64, _: u64) {}

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.find(name)?.map(|(root, _)| root).into())
    }

    fn backing_file(&self, _: &Digest, _: u64) -> Result<Option<BackingFile>, Error> {
        Ok(None)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        in_place::directory(self, digest)
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        _: usize,
    ) -> Result<Option<Bytes>, Error> {
        let answer = self.read_now(digest, size, offset, &mut [])?;
        Ok(matches!(answer, Answer::Found(_)).then(Bytes::new))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        in_place::root(self, name)
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let mut roots = RootList::default();
        let mut too_many = None;
        let listed = self.0.tables.each_path_info(|encoded| {
            let (root, _) = self.known(&encoded)?;
            roots.push(root).map_err(|failure| {
                too_many = Some(failure);
                "too many".into()
            })
        });
        if let Some(failure) = too_many {
            return Err(failure.of(&self.0.url, "listing the roots"));
        }
        listed.map_err(|source| self.failed(source))?;
        let mut roots = Vec::from(roots);
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(roots)
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        Ok(self.find(name)?.map(|(_, info)| info))
    }

    async fn incomplete_root(&self, _: &[u8]) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        Ok(None)
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.directory(digest).await?.is_some())
    }

    async fn has_blob(&self, _: &Digest) -> Result<bool, Error> {
        Ok(false)
    }

    async fn blob_size(&self, _: &Digest) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    async fn chunks(&self, _: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        Ok(None)
    }

    async fn group_table(&self, _: &Digest, _: u64) -> Result<Option<GroupTable>, Error> {
        Ok(None)
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        Ok(None)
    }

    fn embedded(&self) -> Vec<LocalStore> {
        Vec::new()
    }

    fn health(&self) -> Health {
        Health::default()
    }

    /// The lock keeps it as it is.
    fn roots_version(&self) -> Result<u64, Error> {
        Ok(0)
    }

    fn wait_for_roots(&self, _: u64, timeout: Duration) -> Result<u64, Error> {
        std::thread::sleep(timeout);
        Ok(0)
    }

    fn keep_listings_fresh(&self, _: Duration) {}

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Err(Error::ReadOnly {
            store: self.0.url.clone(),
            why: "a peer's file is only read; copy it into a local: store to add to it".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Name, Node};
    use crate::nix::{NarHash, StorePath};

    const NAME: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";

    fn directory() -> Directory {
        let node = Node::File {
            digest: Digest::of(b"x"),
            size: 1,
            executable: false,
        };
        Directory::from_entries(vec![(Name::new(b"file").unwrap(), node)]).unwrap()
    }

    fn path_info() -> PathInfo {
        let path = StorePath::from_base_name(NAME.as_bytes()).unwrap();
        let nar = NarHash {
            size: 100,
            sha256: [7; 32],
        };
        PathInfo::content_addressed(&path.root(directory().node()), &nar)
    }

    /// Files with a table each, as the peers of a generation make them.
    macro_rules! write {
        ($redb:ident, $dir:expr) => {{
            let database = |name: &str| $redb::Database::create($dir.join(name)).unwrap();
            let table = $redb::TableDefinition::<[u8; 32], Vec<u8>>::new("directory");
            let directories = database("directories");
            let transaction = directories.begin_write().unwrap();
            let (directory, info) = (directory(), path_info());
            let digest = directory.digest();
            let (key, value) = (digest.as_bytes(), directory.as_bytes().to_vec());
            transaction
                .open_table(table)
                .unwrap()
                .insert(key, value)
                .unwrap();
            transaction.commit().unwrap();
            let table = $redb::TableDefinition::<[u8; 20], Vec<u8>>::new("pathinfo");
            let path_infos = database("path-infos");
            let transaction = path_infos.begin_write().unwrap();
            let hash = nix::output_hash(NAME.as_bytes()).unwrap();
            let value = info.encode_to_vec();
            transaction
                .open_table(table)
                .unwrap()
                .insert(hash, value)
                .unwrap();
            transaction.commit().unwrap();
            (directories, path_infos)
        }};
    }

    fn open(path: &Path) -> Result<RedbFile, Error> {
        RedbFile::open(&format!("redb:{}", path.display()))
    }

    /// Checks the files in `dir`, which stay as they are.
    fn check(dir: &Path) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let read = |name| std::fs::read(dir.join(name)).unwrap();
        let before = (read("directories"), read("path-infos"));
        let directories = open(&dir.join("directories")).unwrap();
        let directory = directory();
        let found = directories.directory_now(&directory.digest()).unwrap();
        assert_eq!(found, Answer::Found(directory.clone()));
        let absent = Digest::of(b"absent");
        assert_eq!(directories.directory_now(&absent).unwrap(), Answer::Absent);
        assert!(runtime.block_on(directories.roots()).unwrap().is_empty());
        let path_infos = open(&dir.join("path-infos")).unwrap();
        let roots = runtime.block_on(path_infos.roots()).unwrap();
        assert_eq!(roots.len(), 1);
        assert_eq!(roots[0].node, directory.node());
        assert_eq!(
            path_infos.root_now(NAME.as_bytes()).unwrap(),
            Some(roots[0].clone()).into()
        );
        let other = NAME.replace("tree", "other");
        assert_eq!(
            path_infos.root_now(other.as_bytes()).unwrap(),
            Answer::Absent
        );
        let known = runtime.block_on(path_infos.path_info(NAME.as_bytes()));
        assert_eq!(known.unwrap(), Some(path_info()));
        // Two may read, and the peer waits for both.
        open(&dir.join("path-infos")).unwrap();
        assert!(redb3::Database::open(dir.join("path-infos")).is_err());
        drop((directories, path_infos));
        assert!((read("directories"), read("path-infos")) == before);
    }

    #[test]
    fn files_of_both_formats_are_read_and_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (current, older) = (dir.path().join("3"), dir.path().join("2"));
        std::fs::create_dir(&current).unwrap();
        std::fs::create_dir(&older).unwrap();
        drop(write!(redb3, current));
        drop(write!(redb2, older));
        for dir in [current, older] {
            check(&dir);
        }
    }

    #[test]
    fn a_file_that_was_not_closed_is_repaired_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let copies = tempfile::tempdir().unwrap();
        let names = ["directories", "path-infos"];
        let copy = |dir: &Path| {
            for name in names {
                std::fs::copy(dir.join(name), copies.path().join(name)).unwrap();
            }
            check(copies.path());
        };
        let (current, older) = (dir.path().join("3"), dir.path().join("2"));
        std::fs::create_dir(&current).unwrap();
        std::fs::create_dir(&older).unwrap();
        let _open = write!(redb3, current);
        copy(&current);
        let _open = write!(redb2, older);
        copy(&older);
    }

    #[test]
    fn errors_about_what_cannot_be_opened_have_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let reported = |path: &Path| open(path).unwrap_err().to_string();
        let peers = write!(redb3, dir.path());
        let reported_of = reported(&dir.path().join("directories"));
        assert!(reported_of.contains("stop the peer first"), "{reported_of}");
        drop(peers);
        let path = dir.path().join("other");
        assert!(reported(&path).contains("cannot open"));
        std::fs::write(&path, "").unwrap();
        assert!(reported(&path).contains("is empty"));
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        assert!(reported(&path).contains("the index"));
        std::fs::remove_file(&path).unwrap();
        drop(redb3::Database::create(&path).unwrap());
        assert!(reported(&path).contains("neither"), "{}", reported(&path));
        let relative = RedbFile::open("redb:file").unwrap_err().to_string();
        assert!(relative.contains("absolute path"), "{relative}");
    }
}
