//! From an offset in an image to the blob whose bytes are there.

use super::DirectorySource;
use super::format::BLOCK;
use super::layout::ImageLayout;
use crate::castore::{Digest, NodeRef};

/// What is in an image from some offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePiece {
    /// So many bytes of metadata: see [`ImageLayout::read_metadata`].
    Metadata(u64),
    /// Bytes of a blob.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its size in bytes, as its node says.
        size: u64,
        /// Where in the blob, in bytes.
        offset: u64,
        /// How many bytes there are up to its end.
        length: u64,
    },
    /// So many zeros.
    Zeros(u64),
}

impl ImagePiece {
    /// Bytes of the piece.
    pub fn length(&self) -> u64 {
        match self {
            ImagePiece::Metadata(length)
            | ImagePiece::Zeros(length)
            | ImagePiece::Blob { length, .. } => *length,
        }
    }
}

impl ImageLayout {
    /// What is at `offset`; nothing at the image's end.
    pub fn piece_at<S: DirectorySource>(
        &self,
        offset: u64,
        source: &S,
    ) -> Result<Option<ImagePiece>, S::Error> {
        if offset >= self.size() {
            return Ok(None);
        }
        let Some(in_data) = offset.checked_sub(self.metadata_size()) else {
            return Ok(Some(ImagePiece::Metadata(self.metadata_size() - offset)));
        };
        let data_end = u64::from(self.data_blocks) * BLOCK;
        if in_data >= data_end {
            return Ok(Some(ImagePiece::Zeros(self.size() - offset)));
        }
        let first_block = |extent: &u32| self.blocks[*extent as usize];
        let block = (in_data / BLOCK) as u32;
        let after = self
            .extents
            .partition_point(|extent| first_block(extent) <= block);
        // The first extent starts at block 0.
        let entry = self.extents[after - 1];
        let start = u64::from(first_block(&entry)) * BLOCK;
        let end = match self.extents.get(after) {
            Some(next) => u64::from(first_block(next)) * BLOCK,
            None => data_end,
        };
        let in_blob = in_data - start;
        Ok(Some(match self.entry_blob(entry, source)? {
            Some((digest, size)) if in_blob < size => ImagePiece::Blob {
                digest,
                size,
                offset: in_blob,
                length: size - in_blob,
            },
            _ => ImagePiece::Zeros(end - in_data),
        }))
    }

    /// The blob of the file that is this entry, all distinct Directories' entries counted.
    fn entry_blob<S: DirectorySource>(
        &self,
        entry: u32,
        source: &S,
    ) -> Result<Option<(Digest, u64)>, S::Error> {
        let all = &self.counted.distinct;
        let distinct = all.partition_point(|one| one.entries <= entry) - 1;
        let index = entry - all[distinct].entries;
        let directory = self.directory(distinct as u32, source)?;
        let node = directory.get(index as usize).map(|entry| entry.node);
        Ok(match node {
            Some(NodeRef::File { digest, size, .. }) => Some((digest, size)),
            _ => None,
        })
    }
}
