//! Repairing a store: its file `format`, its index, its journal.
//!
//! **Problem.** The index is the only file that is overwritten in place, and without it no object
//! is found.
//!
//! **Mechanism.** A lost index is rebuilt: objects from the headers of their records in packs, each
//! of them verified, and roots, PathInfos, pins and valid paths from the journal (or from the old index, if that
//! can still be read and is not older).
//!
//! **Invariant.** Nothing is overwritten: what is replaced is renamed. A repair that dies can be
//! repeated.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::scan::scan;
use super::LocalStore;
use super::dir::newer;
use super::dir::{StoreDirectory, keep_aside};
use super::format::{self, FormatFile};
use super::index::{self, CommitError, Index, IndexContents};
use super::journal::{self, JournalChange};
use super::location::{ObjectLocation, StorageKind};
use super::pack;
use crate::castore::{BlobHasher, Digest};
use crate::store::{Error, Ingest};

/// How long a repair waits for running additions.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes read at once of a file that is hashed.
const BUFFER: usize = 1 << 20;

/// The result of [`LocalStore::repair`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairOutcome {
    /// The file `format` was missing or damaged, and was written.
    pub format: bool,
    /// The index was rebuilt.
    pub index: Option<RebuiltIndex>,
}

/// A rebuilt index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebuiltIndex {
    /// What was wrong with the old one.
    pub why: String,
    /// Where the old one is now, if there was one.
    pub aside: Option<PathBuf>,
    /// Blobs found.
    pub blobs: u64,
    /// Directories found.
    pub directories: u64,
    /// Roots found, including those that wait for their content.
    pub roots: u64,
    /// Pins of a cache.
    pub pins: u64,
    /// Unreadable places in packs and in the journal: their objects are lost, unless they are
    /// fetched again.
    pub damaged: u64,
    /// There was neither a journal nor a readable index, so the names of the roots are lost.
    pub names_lost: bool,
}

/// Names of roots and pins.
#[derive(Debug, Default)]
struct ScannedNames {
    roots: BTreeMap<Vec<u8>, JournalChange>,
    pins: BTreeSet<Vec<u8>>,
    valid_paths: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl ScannedNames {
    fn enter(&mut self, entered: JournalChange) {
        match entered {
            JournalChange::Root { ref root, .. } => {
                self.roots.insert(root.name.to_vec(), entered);
            }
            JournalChange::Removed(name) => {
                self.roots.remove(&name);
            }
            JournalChange::Pin(name, true) => {
                self.pins.insert(name);
            }
            JournalChange::Pin(name, false) => {
                self.pins.remove(&name);
            }
            JournalChange::ValidPath(name, Some(value)) => {
                self.valid_paths.insert(name, value);
            }
            JournalChange::ValidPath(name, None) => {
                self.valid_paths.remove(&name);
            }
        }
    }

    fn all(&self) -> Vec<JournalChange> {
        let pins = self
            .pins
            .iter()
            .map(|name| JournalChange::Pin(name.clone(), true));
        let valid = self.valid_paths.iter();
        let valid = valid.map(|(name, value)| {
            let value = Some(value.clone());
            JournalChange::ValidPath(name.clone(), value)
        });
        self.roots
            .values()
            .cloned()
            .chain(pins)
            .chain(valid)
            .collect()
    }
}

impl LocalStore {
    /// Repairs the store in the directory `path`, which may be one that cannot be opened: writes
    /// the file `format` if that is missing or damaged, and makes a new index if the old one is
    /// missing, cannot be read or written, or is older than the journal. Then opens the store.
    ///
    /// Fails if there is no store, if a newer version made it, and with [`Error::Refused`] while
    /// additions run.
    pub fn repair(path: &Path) -> Result<(Self, RepairOutcome), Error> {
        let dir = Arc::new(StoreDirectory::new(path));
        let found = FormatFile::read(&dir)?;
        if let FormatFile::Newer(version) = found {
            return Err(newer(&dir, version));
        }
        // Beside a `format` that is missing or older, as after a partial restore.
        if let Some(version) = index::newer_version(&dir) {
            return Err(newer(&dir, version));
        }
        if !format::holds_data(path) {
            return Self::open(path).map(|store| (store, RepairOutcome::default()));
        }
        let lock = dir.lock()?;
        dir.put_aside_strangers()?;
        let found = FormatFile::read(&dir)?;
        dir.make_dirs()?;
        let alone = dir.be_alone(PATIENCE)?;
        let alone = alone.ok_or_else(|| Error::Refused {
            store: dir.url().to_owned(),
            what: "the repair".to_owned(),
            why: "additions are under way: try again when they have ended".to_owned(),
        })?;
        let mut repaired = RepairOutcome::default();
        if !matches!(found, FormatFile::Known { .. }) {
            dir.write_format(false)?;
            repaired.format = true;
        }
        if let Some(why) = what_is_wrong(&dir)? {
            repaired.index = Some(rebuild(&dir, why)?);
        }
        drop((alone, lock));
        let store = Self::open(path)?;
        if repaired.index.is_some() {
            store.register_strays()?;
            store.find_whole_trees()?;
        }
        Ok((store, repaired))
    }

    /// The problems of the index: whether all of it can be read, and, if this process may write,
    /// whether it can be written to. Each problem is a sentence for the user.
    pub fn check_index(&self) -> Result<Vec<String>, Error> {
        let index = &self.0.index;
        let mut problems = Vec::new();
        if let Err(error) = read_all(index) {
            problems.push(error.to_string());
        }
        match self.0.dir.check_writable() {
            Err(Error::ReadOnly { .. }) => {}
            Err(error @ Error::Format { .. }) => problems.push(error.to_string()),
            Err(error) => return Err(error),
            Ok(()) => {
                if let Err(error) = write_nothing(index) {
                    problems.push(format!("it can be read, but not written to: {error}"));
                }
            }
        }
        Ok(problems)
    }

    /// Takes over large files without a record: their group tables were lost.
    fn register_strays(&self) -> Result<(), Error> {
        let dir = &self.0.dir;
        let ingest = self.addition()?;
        for (digest, path) in large_files(dir)? {
            if self.0.index.snapshot().blob(&digest)?.is_some() {
                continue;
            }
            let (actual, table, len) = hash(&path).map_err(dir.io("read", &path))?;
            if actual == digest {
                ingest.take_over(&path, &digest, table, len)?;
            }
        }
        Box::new(ingest).commit().map(drop)
    }

    /// Determines which trees are complete.
    fn find_whole_trees(&self) -> Result<(), Error> {
        let ingest = self.addition()?;
        let snapshot = self.0.index.fresh()?;
        let staged = super::LocalStaged::default();
        let mut closure = super::ClosureCheck::new(&self.0, &snapshot, &staged);
        for record in snapshot.root_records()? {
            if !record.incomplete && closure.check(&record.root)?.is_ok() {
                ingest.put_root(&record.root, record.path_info.as_ref())?;
            }
        }
        Box::new(ingest).commit().map(drop)
    }
}

/// Why the index has to be rebuilt; nothing if it is sound.
fn what_is_wrong(dir: &Arc<StoreDirectory>) -> Result<Option<String>, Error> {
    let checked = || -> Result<(), Error> {
        let index = Index::open(dir.clone())?;
        read_all(&index)?;
        write_nothing(&index)
    };
    if matches!(dir.index().try_exists(), Ok(false)) {
        return Ok(Some("it is missing".to_owned()));
    }
    match checked() {
        Ok(()) => Ok(None),
        Err(error @ (Error::Index { .. } | Error::Format { .. } | Error::Damaged { .. })) => {
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Reads every entry.
fn read_all(index: &Index) -> Result<(), Error> {
    let snapshot = index.fresh()?;
    snapshot.each_blob(|_, _| {})?;
    snapshot.each_directory(|_, _| {})?;
    snapshot.root_records()?;
    snapshot.cached_roots()?;
    snapshot.quarantined()?;
    snapshot.packs().map(drop)
}

/// Commits an empty change; a journal that is not the index's is written by that.
fn write_nothing(index: &Index) -> Result<(), Error> {
    let change = index.change()?;
    change.commit().map_err(CommitError::into_error)
}

/// Builds a new index.
fn rebuild(dir: &Arc<StoreDirectory>, why: String) -> Result<RebuiltIndex, Error> {
    let mut rebuilt = RebuiltIndex {
        why,
        ..RebuiltIndex::default()
    };
    let (names, generation) = names(dir, &mut rebuilt)?;
    let mut contents = IndexContents::default();
    for id in pack::list(dir)? {
        let path = dir.pack(id);
        let scanned = scan(id, &path).map_err(dir.io("read", &path))?;
        rebuilt.damaged += scanned.damaged;
        if scanned.end > 0 {
            contents.packs.push((id, scanned.kind(), scanned.end));
        }
        contents.blobs.extend(scanned.blobs);
        contents.directories.extend(scanned.directories);
    }
    // A large blob is its file; the record only shows that there was one.
    contents.blobs.retain(|(digest, at)| {
        at.kind != StorageKind::Large
            || fs::metadata(dir.blob(digest)).is_ok_and(|found| found.len() == at.len)
    });
    only_last(&mut contents.blobs);
    only_last(&mut contents.directories);
    rebuilt.blobs = contents.blobs.len() as u64;
    rebuilt.directories = contents.directories.len() as u64;
    rebuilt.roots = names.roots.len() as u64;
    rebuilt.pins = names.pins.len() as u64;
    contents.names = names.all();
    if rebuilt.damaged > 0 {
        keep_aside(dir, &dir.journal(), true)?;
    }
    let mut records = Vec::new();
    let entered = contents.names.iter();
    entered.for_each(|entered| entered.encode(&mut records));
    contents.journal = journal::replace(dir, generation + 1, &records)?;
    let old = dir.index();
    rebuilt.aside = keep_aside(dir, &old, false)?;
    dir.install_index(|path| index::create_with(dir, path, &contents))?;
    Index::announce(dir)?;
    Ok(rebuilt)
}

/// The names of roots, pins and valid paths, and the generation of the journal.
fn names(
    dir: &Arc<StoreDirectory>,
    rebuilt: &mut RebuiltIndex,
) -> Result<(ScannedNames, u64), Error> {
    let mut names = ScannedNames::default();
    let journal = journal::read(dir)?;
    let generation = journal.as_ref().map_or(0, |journal| journal.generation);
    let from_index = Index::open(dir.clone()).and_then(|index| {
        let snapshot = index.fresh()?;
        let position = snapshot.journal()?;
        let (relation, _) = journal::relate(dir, position)?;
        Ok((snapshot.entered()?, position.generation, relation))
    });
    match from_index {
        Ok((entered, of_index, relation)) if relation != journal::JournalRelation::Ahead => {
            entered.into_iter().for_each(|entered| names.enter(entered));
            return Ok((names, generation.max(of_index)));
        }
        _ => {}
    }
    match journal {
        Some(journal) => {
            rebuilt.damaged += journal.damaged;
            let entered = journal.entered.into_iter();
            entered.for_each(|entered| names.enter(entered));
        }
        None => rebuilt.names_lost = true,
    }
    Ok((names, generation))
}

/// Of several entries for a digest, keeps the last one.
fn only_last(entries: &mut Vec<(Digest, ObjectLocation)>) {
    entries.sort_by_key(|(digest, at)| (*digest, std::cmp::Reverse((at.pack, at.offset))));
    entries.dedup_by_key(|(digest, _)| *digest);
}

/// The files of large blobs, by the digests in their names.
fn large_files(dir: &StoreDirectory) -> Result<Vec<(Digest, PathBuf)>, Error> {
    let blobs = dir.blobs();
    let mut files = Vec::new();
    for start in fs::read_dir(&blobs).map_err(dir.io("list", &blobs))? {
        let start = start.map_err(dir.io("list", &blobs))?;
        let path = start.path();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotADirectory => continue,
            Err(error) => return Err(dir.io("list", &path)(error)),
        };
        for file in entries {
            let file = file.map_err(dir.io("list", &path))?;
            let (first, rest) = (start.file_name(), file.file_name());
            let digest = first.to_str().zip(rest.to_str());
            let digest = digest.map(|(first, rest)| format!("{first}{rest}").parse());
            if let Some(Ok(digest)) = digest {
                files.push((digest, file.path()));
            }
        }
    }
    Ok(files)
}

fn hash(path: &Path) -> std::io::Result<(Digest, crate::castore::GroupTable, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = BlobHasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut len = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        len += read as u64;
    }
    let (digest, table) = hasher.finish();
    Ok((digest, table, len))
}
