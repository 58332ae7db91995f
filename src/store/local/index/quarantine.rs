//! Objects that a read or a verification found damaged.
//!
//! A quarantined object counts as missing: an addition that brings it stores it again, and takes it off the
//! list. A read still tries the stored copy, and verifies it as always.

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition};
use redb::{TableError, WriteTransaction};

use super::database::guarded;
use super::{IndexChange, Snapshot};
use crate::castore::Digest;
use crate::clock::unix_seconds;
use crate::store::{Error, Object};

/// An object's kind (0 blob, 1 Directory) and digest, to when it was found damaged, in seconds since
/// 1970.
pub(super) const QUARANTINE: TableDefinition<(u8, &[u8; Digest::LEN]), u64> =
    TableDefinition::new("quarantine");

pub(super) type Quarantine = ReadOnlyTable<(u8, &'static [u8; Digest::LEN]), u64>;

fn kind(object: Object) -> u8 {
    match object {
        Object::Blob => 0,
        Object::Directory => 1,
    }
}

/// The table, unless it is absent or empty.
pub(super) fn open(txn: &ReadTransaction) -> Result<Option<Quarantine>, redb::Error> {
    match txn.open_table(QUARANTINE) {
        Ok(table) if table.is_empty()? => Ok(None),
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes objects off the list that were stored again, or removed from the index.
pub(super) fn release<'a>(
    txn: &WriteTransaction,
    object: Object,
    digests: impl Iterator<Item = &'a Digest>,
) -> Result<(), redb::Error> {
    let mut table = txn.open_table(QUARANTINE)?;
    if table.is_empty()? {
        return Ok(());
    }
    for digest in digests {
        table.remove((kind(object), digest.as_bytes()))?;
    }
    Ok(())
}

impl Snapshot {
    /// Whether any object is known to be damaged.
    pub(in crate::store::local) fn has_quarantine(&self) -> bool {
        self.quarantine.is_some()
    }

    /// Whether this object is known to be damaged.
    pub(in crate::store::local) fn is_quarantined(
        &self,
        object: Object,
        digest: &Digest,
    ) -> Result<bool, Error> {
        let Some(table) = &self.quarantine else {
            return Ok(false);
        };
        guarded(&self.dir, || {
            Ok(table.get((kind(object), digest.as_bytes()))?.is_some())
        })
    }

    /// The objects that are known to be damaged.
    pub(in crate::store::local) fn quarantined(&self) -> Result<Vec<(Object, Digest)>, Error> {
        let Some(table) = &self.quarantine else {
            return Ok(Vec::new());
        };
        guarded(&self.dir, || {
            let mut all = Vec::new();
            for found in table.iter()? {
                let (key, _) = found?;
                let (kind, digest) = key.value();
                let object = match kind {
                    0 => Object::Blob,
                    _ => Object::Directory,
                };
                all.push((object, Digest::from(*digest)));
            }
            Ok(all)
        })
    }
}

impl IndexChange<'_> {
    /// Puts objects of the index on the list.
    pub(in crate::store::local) fn quarantine(
        &mut self,
        damaged: &[(Object, Digest)],
    ) -> Result<(), Error> {
        self.run(|txn| {
            let mut table = txn.open_table(QUARANTINE)?;
            for (object, digest) in damaged {
                table.insert((kind(*object), digest.as_bytes()), unix_seconds())?;
            }
            Ok(())
        })
    }

    /// Takes objects off the list that a later verification found intact.
    pub(in crate::store::local) fn release(
        &mut self,
        sound: &[(Object, Digest)],
    ) -> Result<(), Error> {
        self.run(|txn| {
            for (object, digest) in sound {
                release(txn, *object, std::iter::once(digest))?;
            }
            Ok(())
        })
    }
}
