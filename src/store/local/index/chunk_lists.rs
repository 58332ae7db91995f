//! The chunk lists of large blobs, for peers that read by the chunk.
//!
//! A chunk's digest is the BLAKE3 of its bytes as a blob of its own. A list is stored once it was
//! computed, and removed with its blob.

use std::collections::HashSet;

use redb::{ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::database::{damaged, guarded};
use super::{IndexChange, Snapshot};
use crate::castore::Digest;
use crate::store::Error;

/// Blob's digest to its chunks, in order: each a digest and a length (u64).
pub(super) const CHUNK_LISTS: TableDefinition<&[u8; Digest::LEN], &[u8]> =
    TableDefinition::new("chunk_lists");
/// Chunk's digest to the digest of a blob that has it, the offset there (u64) and the length (u64).
pub(super) const CHUNKS: TableDefinition<&[u8; Digest::LEN], &[u8; PLACE]> =
    TableDefinition::new("chunks");

const PLACE: usize = Digest::LEN + 8 + 8;
const CHUNK: usize = Digest::LEN + 8;

/// A chunk of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// The BLAKE3 of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub len: u64,
}

/// Where a chunk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// A blob of the store.
    pub blob: Digest,
    /// Where in it they start.
    pub offset: u64,
    /// How many there are.
    pub len: u64,
}

impl ChunkPlace {
    fn encode(&self) -> [u8; PLACE] {
        let mut bytes = [0; PLACE];
        bytes[..Digest::LEN].copy_from_slice(self.blob.as_bytes());
        bytes[Digest::LEN..Digest::LEN + 8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[Digest::LEN + 8..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; PLACE]) -> Option<Self> {
        let (blob, rest) = bytes.split_first_chunk::<{ Digest::LEN }>()?;
        let (offset, rest) = rest.split_first_chunk()?;
        Some(Self {
            blob: Digest::from(*blob),
            offset: u64::from_le_bytes(*offset),
            len: u64::from_le_bytes(*rest.first_chunk()?),
        })
    }
}

fn encode(chunks: &[StoredChunk]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * CHUNK);
    for chunk in chunks {
        bytes.extend_from_slice(chunk.digest.as_bytes());
        bytes.extend_from_slice(&chunk.len.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<StoredChunk>> {
    let chunks = bytes.chunks(CHUNK).map(|chunk| {
        let (digest, len) = chunk.split_first_chunk::<{ Digest::LEN }>()?;
        Some(StoredChunk {
            digest: Digest::from(*digest),
            len: u64::from_le_bytes(<[u8; 8]>::try_from(len).ok()?),
        })
    });
    chunks.collect()
}

/// Removes the lists of removed blobs. A chunk that another blob has too is found there from now
/// on.
pub(super) fn remove(txn: &WriteTransaction, blobs: &[Digest]) -> Result<(), redb::Error> {
    let mut lists = txn.open_table(CHUNK_LISTS)?;
    let mut places = txn.open_table(CHUNKS)?;
    let mut orphans = HashSet::new();
    for blob in blobs {
        let list = lists.remove(blob.as_bytes())?;
        let list = list.and_then(|list| decode(list.value()));
        for chunk in list.unwrap_or_default() {
            let place = places.get(chunk.digest.as_bytes())?;
            let place = place.and_then(|place| ChunkPlace::decode(place.value()));
            if place.is_some_and(|place| place.blob == *blob) {
                places.remove(chunk.digest.as_bytes())?;
                orphans.insert(chunk.digest);
            }
        }
    }
    if orphans.is_empty() {
        return Ok(());
    }
    for found in lists.iter()? {
        let (blob, list) = found?;
        let mut offset = 0;
        for chunk in decode(list.value()).unwrap_or_default() {
            if orphans.remove(&chunk.digest) {
                let place = ChunkPlace {
                    blob: Digest::from(*blob.value()),
                    offset,
                    len: chunk.len,
                };
                places.insert(chunk.digest.as_bytes(), &place.encode())?;
            }
            offset += chunk.len;
        }
    }
    Ok(())
}

impl Snapshot {
    /// The chunks of a blob, in order, if there is a list.
    pub(in crate::store::local) fn chunk_list(
        &self,
        blob: &Digest,
    ) -> Result<Option<Vec<StoredChunk>>, Error> {
        let found = guarded(&self.dir, || match self.txn.open_table(CHUNK_LISTS) {
            Ok(table) => Ok(table.get(blob.as_bytes())?.map(|list| decode(list.value()))),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        let senseless = || {
            let why = format!("its list of the chunks of {blob} makes no sense");
            damaged(&self.dir, why)
        };
        found.map(|list| list.ok_or_else(senseless)).transpose()
    }

    /// Where a chunk's bytes are, if it is in a list.
    pub(in crate::store::local) fn chunk(
        &self,
        chunk: &Digest,
    ) -> Result<Option<ChunkPlace>, Error> {
        guarded(&self.dir, || match self.txn.open_table(CHUNKS) {
            Ok(table) => {
                let place = table.get(chunk.as_bytes())?;
                Ok(place.and_then(|place| ChunkPlace::decode(place.value())))
            }
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }
}

impl IndexChange<'_> {
    /// Stores the chunks of a blob.
    pub(in crate::store::local) fn set_chunk_list(
        &mut self,
        blob: &Digest,
        chunks: &[StoredChunk],
    ) -> Result<(), Error> {
        self.run(|txn| {
            let mut lists = txn.open_table(CHUNK_LISTS)?;
            lists.insert(blob.as_bytes(), &encode(chunks)[..])?;
            let mut places = txn.open_table(CHUNKS)?;
            let mut offset = 0;
            for chunk in chunks {
                // Any blob that has it will do; the first stays.
                if places.get(chunk.digest.as_bytes())?.is_none() {
                    let place = ChunkPlace {
                        blob: *blob,
                        offset,
                        len: chunk.len,
                    };
                    places.insert(chunk.digest.as_bytes(), &place.encode())?;
                }
                offset += chunk.len;
            }
            Ok(())
        })
    }
}
