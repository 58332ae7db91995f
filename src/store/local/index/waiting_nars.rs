//! NARs that were uploaded and that no path names yet.
//!
//! A client sends a NAR and, perhaps hours later, what it is the NAR of. What is in it stays meanwhile,
//! for a day after it came or was last asked for.

use std::time::Duration;

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableError, WriteTransaction};

use super::database::guarded;
use super::root_records::encode;
use super::{IndexChange, Snapshot};
use crate::castore::{Name, Node, Root};
use crate::clock::unix_seconds;
use crate::nix::NarHash;
use crate::store::Error;

/// SHA-256 of the file that was uploaded to [`WaitingNar::encode`].
const WAITING_NARS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("waiting_nars");

/// How long a NAR waits.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// NARs that wait at once, at most.
const MOST: u64 = 65_536;
/// Bytes before the `Entry`: time, bytes of the file, bytes of the NAR, its SHA-256.
const HEAD: usize = 8 + 8 + 8 + 32;
/// The name in an `Entry`, which has to have one.
const UNNAMED: &[u8] = b"-";

/// A NAR that waits for what it is the NAR of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingNar {
    /// Bytes of the file that was uploaded, compressed or not.
    pub file_size: u64,
    /// The NAR in it.
    pub nar: NarHash,
    /// The tree that it is of.
    pub node: Node,
}

impl WaitingNar {
    fn encode(&self, time: u64) -> Vec<u8> {
        let name = Name::new(UNNAMED).expect("a dash is a name");
        let node = self.node.clone();
        let mut bytes = Vec::with_capacity(HEAD + 64);
        bytes.extend_from_slice(&time.to_le_bytes());
        bytes.extend_from_slice(&self.file_size.to_le_bytes());
        bytes.extend_from_slice(&self.nar.size.to_le_bytes());
        bytes.extend_from_slice(&self.nar.sha256);
        bytes.extend_from_slice(&encode(&Root { name, node }));
        bytes
    }
}

/// When a NAR came or was last asked for, in seconds since 1970.
fn time(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|time| u64::from_le_bytes(*time))
}

/// Whether a NAR need not be kept any longer. A clock that was set back keeps it.
fn is_over(value: &[u8], now: u64) -> bool {
    time(value).is_none_or(|time| time.saturating_add(PATIENCE.as_secs()) < now)
}

impl Snapshot {
    /// The NAR that came as a file with this SHA-256, if it still waits.
    pub(in crate::store::local) fn waiting_nar(
        &self,
        file: &[u8; 32],
    ) -> Result<Option<WaitingNar>, Error> {
        let found = guarded(&self.dir, || match self.txn.open_table(WAITING_NARS) {
            Ok(table) => Ok(table.get(file)?.map(|found| found.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        let found = found.filter(|value| !is_over(value, unix_seconds()));
        Ok(found.and_then(|value| self.decode_waiting(&value)))
    }

    /// The trees of all that wait.
    pub(in crate::store::local) fn waiting_nodes(&self) -> Result<Vec<Node>, Error> {
        let now = unix_seconds();
        let values = guarded(&self.dir, || {
            let table = match self.txn.open_table(WAITING_NARS) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut values = Vec::new();
            for found in table.iter()? {
                let (_, value) = found?;
                if !is_over(value.value(), now) {
                    values.push(value.value().to_vec());
                }
            }
            Ok(values)
        })?;
        let decoded = values.iter().filter_map(|value| self.decode_waiting(value));
        Ok(decoded.map(|waiting| waiting.node).collect())
    }

    /// What makes no sense is as good as nothing: its client sends it again.
    fn decode_waiting(&self, value: &[u8]) -> Option<WaitingNar> {
        let (_, rest) = value.split_first_chunk::<8>()?;
        let (file_size, rest) = rest.split_first_chunk()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (sha256, entry) = rest.split_first_chunk()?;
        Some(WaitingNar {
            file_size: u64::from_le_bytes(*file_size),
            nar: NarHash {
                size: u64::from_le_bytes(*size),
                sha256: *sha256,
            },
            node: self.decode_root(UNNAMED, entry).ok()?.node,
        })
    }
}

impl IndexChange<'_> {
    /// Has a NAR wait that came as a file with the SHA-256 `file`. False if too many do.
    pub(in crate::store::local) fn put_waiting_nar(
        &mut self,
        file: &[u8; 32],
        waiting: &WaitingNar,
    ) -> Result<bool, Error> {
        let now = unix_seconds();
        self.run(|txn| put(txn, file, &waiting.encode(now), now, MOST))
    }

    /// Forgets those that have waited for too long.
    pub(in crate::store::local) fn forget_waiting_nars(&mut self) -> Result<(), Error> {
        self.run(|txn| {
            let now = unix_seconds();
            let mut table = txn.open_table(WAITING_NARS)?;
            table.retain(|_, value| !is_over(value, now))?;
            Ok(())
        })
    }
}

/// Puts the `value` of `file`, unless `most` others wait. False if they do.
fn put(
    txn: &WriteTransaction,
    file: &[u8; 32],
    value: &[u8],
    now: u64,
    most: u64,
) -> Result<bool, redb::Error> {
    let mut table = txn.open_table(WAITING_NARS)?;
    if table.len()? >= most && table.get(file)?.is_none() {
        table.retain(|_, value| !is_over(value, now))?;
        if table.len()? >= most {
            return Ok(false);
        }
    }
    table.insert(file, value)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_nars_wait_at_once_and_one_that_waited_too_long_makes_room() {
        let memory = redb::backends::InMemoryBackend::new();
        let database = redb::Database::builder().create_with_backend(memory);
        let txn = database.unwrap().begin_write().unwrap();
        let value = |time: u64| time.to_le_bytes();
        let put = |number: u8, time| put(&txn, &[number; 32], &value(time), time, 3).unwrap();
        assert!(put(1, 10) && put(2, 500) && put(3, 500));
        assert!(!put(4, 500), "a fourth");
        assert!(put(3, 600), "one that waits already");
        let later = 11 + PATIENCE.as_secs();
        assert!(put(4, later), "the first waits no more");
        assert!(!put(5, later));
        assert_eq!(MOST, 65_536);
    }

    #[test]
    fn a_nar_waits_for_a_day() {
        let waiting = WaitingNar {
            file_size: 1,
            nar: NarHash {
                size: 2,
                sha256: [3; 32],
            },
            node: Node::Symlink {
                target: crate::castore::SymlinkTarget::new(b"t").unwrap(),
            },
        };
        let value = waiting.encode(1_000_000);
        let day = 24 * 60 * 60;
        assert!(!is_over(&value, 1_000_000 + day));
        assert!(is_over(&value, 1_000_001 + day));
        assert!(!is_over(&value, 0));
        assert!(is_over(b"", 0));
    }
}
