//! The tables of a snix store, in redb's file formats: 3, which redb writes since its version 3, and 2,
//! which the versions before wrote.
//!
//! Directories by their digests, and PathInfo messages by the hashes in the names of their paths. A file
//! has either; the names of the tables are the peers'.

use std::fmt;
use std::fs::File;

use super::backend::RedbBackend;

/// Bytes of the file that stay in memory.
const CACHE: usize = 64 << 20;

const DIRECTORIES: &str = "directory";
const PATH_INFOS: &str = "pathinfo";

/// A database that is open.
pub(super) enum OpenDatabase {
    /// Of file format 3.
    Current(redb::Database),
    /// Of file format 2.
    Older(redb2::Database),
}

/// An error of any version of redb.
pub(super) type RedbFailure = Box<dyn std::error::Error + Send + Sync>;

/// What both versions have under the same names.
macro_rules! table {
    ($redb:ident, $key:ty, $name:expr, $database:expr, |$table:ident| $with:expr) => {{
        let definition = $redb::TableDefinition::<$key, Vec<u8>>::new($name);
        let transaction = $database.begin_read()?;
        match transaction.open_table(definition) {
            Ok($table) => $with,
            Err($redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }};
}

/// The same of a table of either database.
macro_rules! with_table {
    ($tables:expr, $key:ty, $name:expr, |$table:ident| $with:expr) => {
        match $tables {
            OpenDatabase::Current(database) => {
                #[allow(unused_imports, reason = "one question needs less than another")]
                use redb::{ReadableDatabase, ReadableTable};
                table!(redb, $key, $name, database, |$table| $with)
            }
            OpenDatabase::Older(database) => {
                #[allow(unused_imports, reason = "one question needs less than another")]
                use redb2::ReadableTable;
                table!(redb2, $key, $name, database, |$table| $with)
            }
        }
    };
}

impl OpenDatabase {
    /// Opens the database in `file`, which stays as it is.
    pub(super) fn open(file: &File) -> Result<Self, RedbFailure> {
        let backend = || RedbBackend::new(file.try_clone()?);
        let mut builder = redb::Database::builder();
        builder.set_cache_size(CACHE);
        match builder.create_with_backend(backend()?) {
            Ok(database) => Ok(Self::Current(database)),
            Err(redb::DatabaseError::UpgradeRequired(_)) => {
                let mut builder = redb2::Database::builder();
                builder.set_cache_size(CACHE);
                Ok(Self::Older(builder.create_with_backend(backend()?)?))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has a table of a snix store.
    pub(super) fn is_of_a_store(&self) -> Result<bool, RedbFailure> {
        let directories: Result<Option<()>, RedbFailure> =
            with_table!(self, [u8; 32], DIRECTORIES, |_table| Ok(Some(())));
        Ok(directories?.is_some() || self.has_path_infos()?)
    }

    fn has_path_infos(&self) -> Result<bool, RedbFailure> {
        let path_infos: Result<Option<()>, RedbFailure> =
            with_table!(self, [u8; 20], PATH_INFOS, |_table| Ok(Some(())));
        Ok(path_infos?.is_some())
    }

    /// The encoded Directory `digest`.
    pub(super) fn directory(&self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>, RedbFailure> {
        with_table!(self, [u8; 32], DIRECTORIES, |table| {
            Ok(table.get(*digest)?.map(|found| found.value()))
        })
    }

    /// The encoded PathInfo of the path whose name begins with `hash`.
    pub(super) fn path_info(&self, hash: &[u8; 20]) -> Result<Option<Vec<u8>>, RedbFailure> {
        with_table!(self, [u8; 20], PATH_INFOS, |table| {
            Ok(table.get(*hash)?.map(|found| found.value()))
        })
    }

    /// Gives every encoded PathInfo to `take`.
    pub(super) fn each_path_info(
        &self,
        mut take: impl FnMut(Vec<u8>) -> Result<(), RedbFailure>,
    ) -> Result<(), RedbFailure> {
        let all: Result<Option<()>, RedbFailure> =
            with_table!(self, [u8; 20], PATH_INFOS, |table| {
                for entry in table.iter()? {
                    take(entry?.1.value())?;
                }
                Ok(Some(()))
            });
        all.map(drop)
    }
}

impl fmt::Debug for OpenDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenDatabase::Current(_) => "redb, file format 3",
            OpenDatabase::Older(_) => "redb, file format 2",
        })
    }
}
