//! Store paths that were reported to Nix as valid.
//!
//! Nix copies into its own database what it learns of a path, and from then on takes the path for valid
//! whatever happens here. So a path that is in this table stays: its root is not removed or replaced
//! ([`Change::check_not_reported`]), and what is known of it is never evicted with its contents. Everything
//! that a path of the table refers to is in the table as well.

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableError};

use super::database::guarded;
use super::removal::{encode, now};
use super::{Change, Snapshot};
use crate::castore::{Printable, Root};
use crate::nix::{NarinfoFile, StorePath};
use crate::store::Error;

/// A path's base name to [`ValidPath::encode`].
const VALID_PATHS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("valid_paths");

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
            since: now(),
            info,
            root,
        }
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
        let found = guarded(&self.folder, || match self.txn.open_table(VALID_PATHS) {
            Ok(table) => Ok(table.get(name)?.map(|found| found.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        let decoded = found.map(|value| self.decode_valid(name, &value));
        decoded.transpose()
    }

    /// The paths that were reported as valid: all, or those whose name begins with `start`.
    pub(in crate::store::local) fn valid_paths(
        &self,
        start: &[u8],
    ) -> Result<Vec<ValidPath>, Error> {
        let values = guarded(&self.folder, || {
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
        })?;
        let decoded = values
            .iter()
            .map(|(name, value)| self.decode_valid(name, value));
        decoded.collect()
    }

    /// How many paths were reported as valid.
    pub(in crate::store::local) fn valid_path_count(&self) -> Result<u64, Error> {
        guarded(&self.folder, || match self.txn.open_table(VALID_PATHS) {
            Ok(table) => Ok(table.len()?),
            Err(TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(error.into()),
        })
    }

    fn decode_valid(&self, name: &[u8], value: &[u8]) -> Result<ValidPath, Error> {
        let parts = || {
            let (since, rest) = value.split_first_chunk()?;
            let (length, rest) = rest.split_first_chunk()?;
            let (entry, text) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            let info = NarinfoFile::parse(text).ok()?;
            Some((u64::from_le_bytes(*since), entry, info))
        };
        let (since, entry, info) = parts().ok_or_else(|| {
            let name = Printable(name);
            super::database::damaged(
                &self.folder,
                format!("its valid path \"{name}\" makes no sense"),
            )
        })?;
        let root = match entry {
            [] => None,
            entry => Some(self.decode_root(name, entry)?),
        };
        Ok(ValidPath { since, info, root })
    }
}

impl Change<'_> {
    /// Enters paths that are about to be reported; those that are there stay as they are.
    pub(in crate::store::local) fn add_valid_paths(
        &mut self,
        paths: &[ValidPath],
    ) -> Result<(), Error> {
        self.run(|txn| {
            let mut table = txn.open_table(VALID_PATHS)?;
            for path in paths {
                let name = path.info.path.to_string();
                if table.get(name.as_bytes())?.is_none() {
                    table.insert(name.as_bytes(), &path.encode()[..])?;
                }
            }
            Ok(())
        })
    }

    /// Forgets that paths were reported.
    pub(in crate::store::local) fn forget_valid_paths(
        &mut self,
        names: &[&[u8]],
    ) -> Result<(), Error> {
        self.run(|txn| {
            let mut table = txn.open_table(VALID_PATHS)?;
            for name in names {
                table.remove(name)?;
            }
            Ok(())
        })
    }

    /// Fails if the root `name`, which is to be removed or replaced, was reported as valid.
    pub(super) fn check_not_reported(&mut self, name: &[u8]) -> Result<(), Error> {
        // A name that is no store path's never was: most stores have no such table.
        if StorePath::from_base_name(name).is_err() {
            return Ok(());
        }
        let reported = self.run(|txn| {
            let opened = txn.open_table(VALID_PATHS)?;
            Ok(opened.get(name)?.is_some())
        })?;
        if !reported {
            return Ok(());
        }
        let name = Printable(name);
        Err(Error::Refused {
            store: self.index.folder.url().to_owned(),
            what: format!("removing or replacing the root \"{name}\""),
            why: "a listener with the protocol nix-daemon has reported it as valid, and Nix relies on that; \
                  once no Nix store uses it any more, `castore-fs rm --reported` removes it"
                .to_owned(),
        })
    }
}
