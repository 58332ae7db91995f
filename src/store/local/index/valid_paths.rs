//! Store paths that were reported to Nix as valid.
//!
//! Nix copies into its own database what it gets of a path, and from then on takes the path for valid
//! whatever happens here. So a path that is in this table stays: its root is not removed
//! ([`IndexChange::check_not_reported`]) and becomes no other tree ([`IndexChange::check_reported_as`]), and what is known of it is never evicted with its contents. Everything
//! that a path of the table refers to is in the table as well.

use std::collections::{BTreeSet, HashSet};

use redb::{ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::super::journal::JournalChange;
use super::database::guarded;
use super::root_records::encode;
use super::{IndexChange, Snapshot};
use crate::castore::{Printable, Root};
use crate::clock::unix_seconds;
use crate::nix::{NarinfoFile, PathInfo, StorePath};
use crate::store::Error;

/// The address of the NAR of a path that is a root: it has none.
const NO_URL: &str = "-";
/// Names in the command that a refusal to forget a path suggests: with more, those that refer to them are not
/// looked for, and the command fails in the same way.
const MOST_SUGGESTED: usize = 20;

/// A name, and its value in the table.
type NamedValue = (Vec<u8>, Vec<u8>);

/// A path's base name to [`ValidPath::encode`].
pub(super) const VALID_PATHS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("valid_paths");

/// A path that was reported as valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidPath {
    /// When it was first reported, in seconds since 1970.
    pub since: u64,
    /// What is known of it. The address of its NAR may be an old one.
    pub info: NarinfoFile,
    /// Its contents, if they were known by then.
    pub root: Option<Root>,
}

impl ValidPath {
    /// A path that is reported now.
    pub fn new(info: NarinfoFile, root: Option<Root>) -> Self {
        Self {
            since: unix_seconds(),
            info,
            root,
        }
    }

    /// The path that `root` is, reported now, if `info` has all that Nix has to know of it.
    pub fn of_root(mut info: PathInfo, root: Root) -> Option<Self> {
        info.entry = Some((&root).into());
        let info = NarinfoFile::of_path_info(&info, NO_URL.to_owned())?;
        info.knows_references().then(|| Self::new(info, Some(root)))
    }

    fn encode(&self) -> Vec<u8> {
        let entry = self.root.as_ref().map(encode).unwrap_or_default();
        let mut bytes = self.since.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&entry);
        bytes.extend_from_slice(self.info.to_text().as_bytes());
        bytes
    }
}

impl Snapshot {
    /// The path `name`, if it was reported as valid.
    pub(in crate::store::local) fn valid_path(
        &self,
        name: &[u8],
    ) -> Result<Option<ValidPath>, Error> {
        let found = guarded(&self.dir, || match self.txn.open_table(VALID_PATHS) {
            Ok(table) => Ok(table.get(name)?.map(|found| found.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        let decoded = found.map(|value| self.decode_valid(name, &value));
        decoded.transpose()
    }

    /// The root that the path `name` was reported with; nothing if its contents were not known by then.
    pub(in crate::store::local) fn reported_root(
        &self,
        name: &[u8],
    ) -> Result<Option<Root>, Error> {
        let found = guarded(&self.dir, || match self.txn.open_table(VALID_PATHS) {
            Ok(table) => {
                let found = table.get(name)?;
                Ok(found.map(|found| split(found.value()).map(|(_, entry, _)| entry.to_vec())))
            }
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        match found {
            None => Ok(None),
            Some(None) => Err(self.damaged_path(name)),
            Some(Some(entry)) if entry.is_empty() => Ok(None),
            Some(Some(entry)) => self.decode_root(name, &entry).map(Some),
        }
    }

    /// The paths that were reported as valid: all, or those whose name begins with `start`.
    pub(in crate::store::local) fn valid_paths(
        &self,
        start: &[u8],
    ) -> Result<Vec<ValidPath>, Error> {
        let values = self.valid_path_values(start)?;
        let decoded = values
            .iter()
            .map(|(name, value)| self.decode_valid(name, value));
        decoded.collect()
    }

    /// The names of all paths that were reported as valid.
    pub(in crate::store::local) fn valid_path_names(&self) -> Result<Vec<Vec<u8>>, Error> {
        guarded(&self.dir, || {
            let table = match self.txn.open_table(VALID_PATHS) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let names = table.iter()?.map(|found| Ok(found?.0.value().to_vec()));
            names.collect()
        })
    }

    /// All entries, for a journal.
    pub(super) fn valid_paths_entered(&self) -> Result<Vec<JournalChange>, Error> {
        let values = self.valid_path_values(b"")?.into_iter();
        Ok(values
            .map(|(name, value)| JournalChange::ValidPath(name, Some(value)))
            .collect())
    }

    /// Names that begin with `start`, and their values.
    fn valid_path_values(&self, start: &[u8]) -> Result<Vec<NamedValue>, Error> {
        guarded(&self.dir, || {
            let table = match self.txn.open_table(VALID_PATHS) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut values = Vec::new();
            for found in table.range(start..)? {
                let (name, value) = found?;
                if !name.value().starts_with(start) {
                    break;
                }
                values.push((name.value().to_vec(), value.value().to_vec()));
            }
            Ok(values)
        })
    }

    fn decode_valid(&self, name: &[u8], value: &[u8]) -> Result<ValidPath, Error> {
        let parts = parts(value).ok_or_else(|| self.damaged_path(name))?;
        let root = match parts.entry {
            [] => None,
            entry => Some(self.decode_root(name, entry)?),
        };
        Ok(ValidPath {
            since: parts.since,
            info: parts.info,
            root,
        })
    }

    fn damaged_path(&self, name: &[u8]) -> Error {
        let why = format!("its valid path \"{}\" makes no sense", Printable(name));
        super::database::damaged(&self.dir, why)
    }
}

impl IndexChange<'_> {
    /// Enters `paths` and `of_roots`, which are about to be reported; those that are there stay as they are.
    ///
    /// Enters nothing and returns false if a root is not what `of_roots` has of it, or if a path would refer to
    /// one that is not entered.
    pub(in crate::store::local) fn add_valid_paths(
        &mut self,
        paths: &[ValidPath],
        of_roots: &[ValidPath],
    ) -> Result<bool, Error> {
        for path in of_roots {
            let found = self.root(path.info.path.to_string().as_bytes())?;
            let found = found.and_then(|(root, info)| ValidPath::of_root(info?, root));
            if !found.is_some_and(|found| found.info == path.info && found.root == path.root) {
                return Ok(false);
            }
        }
        let new = || paths.iter().chain(of_roots);
        let names: HashSet<&StorePath> = new().map(|path| &path.info.path).collect();
        let references = new().flat_map(|path| &path.info.references);
        let others: HashSet<&StorePath> = references.filter(|path| !names.contains(path)).collect();
        let entered = self.run(|txn| {
            let mut entered = Vec::new();
            let mut table = txn.open_table(VALID_PATHS)?;
            for other in others {
                if table.get(other.to_string().as_bytes())?.is_none() {
                    return Ok(None);
                }
            }
            for path in new() {
                let name = path.info.path.to_string().into_bytes();
                if table.get(&name[..])?.is_none() {
                    let value = path.encode();
                    table.insert(&name[..], &value[..])?;
                    entered.push(JournalChange::ValidPath(name, Some(value)));
                }
            }
            Ok(Some(entered))
        })?;
        let is_entered = entered.is_some();
        self.entered.extend(entered.into_iter().flatten());
        Ok(is_entered)
    }

    /// Forgets that paths were reported; fails if another reported path refers to one of them.
    pub(in crate::store::local) fn forget_valid_paths(
        &mut self,
        names: &[&[u8]],
    ) -> Result<(), Error> {
        self.check_not_referred_to(names)?;
        let entered = self.run(|txn| {
            let mut entered = Vec::new();
            let mut table = txn.open_table(VALID_PATHS)?;
            for name in names {
                if table.remove(name)?.is_some() {
                    entered.push(JournalChange::ValidPath(name.to_vec(), None));
                }
            }
            Ok(entered)
        })?;
        self.entered.extend(entered);
        Ok(())
    }

    /// Fails if a reported path that is not among `names` refers to one that is.
    fn check_not_referred_to(&mut self, names: &[&[u8]]) -> Result<(), Error> {
        let mut together: BTreeSet<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
        let mut first = None;
        // What refers to them, then what refers to that, until the suggested command is complete or too long.
        while together.len() <= MOST_SUGGESTED.max(names.len()) {
            let referrers = self.run(|txn| referrers(txn, &together))?;
            let Some(found) = referrers.first() else {
                break;
            };
            first.get_or_insert_with(|| found.clone());
            together.extend(referrers.into_iter().map(|found| found.name));
        }
        let Some(ReferringPath { name, reference }) = first else {
            return Ok(());
        };
        let suggested = together.iter().map(|name| Printable(name).to_string());
        let suggested: Vec<String> = suggested.collect();
        let (referrer, name) = (Printable(&name), Printable(&reference));
        Err(Error::Refused {
            store: self.index.dir.url().to_owned(),
            what: format!("forgetting that \"{name}\" was reported as valid"),
            why: format!(
                "\"{referrer}\", which was reported too, refers to it: delete that in the Nix store first, then \
                 remove them together with `castore-fs rm --reported {}`",
                suggested.join(" ")
            ),
        })
    }

    /// What the table has of `name`.
    fn reported(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        // A name that is no store path's never was reported: most stores have no such table.
        if StorePath::from_base_name(name).is_err() {
            return Ok(None);
        }
        self.run(|txn| {
            let opened = txn.open_table(VALID_PATHS)?;
            Ok(opened.get(name)?.map(|value| value.value().to_vec()))
        })
    }

    /// Fails if `root`, which is to be added or replaced, is another tree than the one that was reported as
    /// valid: neither the same node, nor one of the same NAR by what `info` knows of it.
    pub(super) fn check_reported_as(
        &mut self,
        root: &Root,
        info: Option<&PathInfo>,
    ) -> Result<(), Error> {
        let Some(value) = self.reported(&root.name)? else {
            return Ok(());
        };
        let same = parts(&value).is_some_and(|reported| {
            let nar = info.and_then(|info| info.narinfo.as_ref());
            let same_nar = nar.is_some_and(|nar| nar.nar_sha256[..] == reported.info.nar.sha256);
            match reported.entry {
                b"" => same_nar,
                entry => same_nar || entry == encode(root),
            }
        });
        if same {
            return Ok(());
        }
        let name = Printable(&root.name);
        Err(Error::Refused {
            store: self.index.dir.url().to_owned(),
            what: format!("adding or replacing the root \"{name}\""),
            why: "a listener with the protocol nix-daemon has reported a path of that name with another NAR as \
                  valid, and Nix relies on that; once no Nix store uses it any more, `castore-fs rm --reported` \
                  removes it"
                .to_owned(),
        })
    }

    /// Fails if the root `name`, which is to be removed, was reported as valid.
    pub(in crate::store::local) fn check_not_reported(&mut self, name: &[u8]) -> Result<(), Error> {
        if self.reported(name)?.is_none() {
            return Ok(());
        }
        let name = Printable(name);
        Err(Error::Refused {
            store: self.index.dir.url().to_owned(),
            what: format!("removing the root \"{name}\""),
            why: "a listener with the protocol nix-daemon has reported it as valid, and Nix relies on that; \
                  once no Nix store uses it any more, `castore-fs rm --reported` removes it"
                .to_owned(),
        })
    }
}

/// What a value of the table has.
struct ValueParts<'a> {
    since: u64,
    /// The root as [`encode`] makes it; empty if it was not known.
    entry: &'a [u8],
    info: NarinfoFile,
}

/// Takes apart what [`ValidPath::encode`] makes.
fn parts(value: &[u8]) -> Option<ValueParts<'_>> {
    let (since, entry, text) = split(value)?;
    Some(ValueParts {
        since,
        entry,
        info: NarinfoFile::parse(text).ok()?,
    })
}

/// The time, the root and the narinfo in a value.
fn split(value: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (since, rest) = value.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (entry, text) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((u64::from_le_bytes(*since), entry, text))
}

/// A path that refers to another.
#[derive(Clone)]
struct ReferringPath {
    name: Vec<u8>,
    reference: Vec<u8>,
}

/// The reported paths beside `names` that refer to one of them.
fn referrers(
    txn: &WriteTransaction,
    names: &BTreeSet<Vec<u8>>,
) -> Result<Vec<ReferringPath>, redb::Error> {
    let mut referrers = Vec::new();
    for found in txn.open_table(VALID_PATHS)?.iter()? {
        let (name, value) = found?;
        if names.contains(name.value()) {
            continue;
        }
        // An entry that makes no sense is damage, which reading it reports.
        let references = parts(value.value()).map(|parts| parts.info.references);
        let references = references.into_iter().flatten();
        let mut references = references.map(|path| path.to_string().into_bytes());
        if let Some(reference) = references.find(|reference| names.contains(reference)) {
            referrers.push(ReferringPath {
                name: name.value().to_vec(),
                reference,
            });
        }
    }
    Ok(referrers)
}

/// All entries, for the journal.
pub(super) fn all(txn: &WriteTransaction) -> Result<Vec<JournalChange>, redb::Error> {
    let mut all = Vec::new();
    for found in txn.open_table(VALID_PATHS)?.iter()? {
        let (name, value) = found?;
        all.push(JournalChange::ValidPath(
            name.value().to_vec(),
            Some(value.value().to_vec()),
        ));
    }
    Ok(all)
}
