//! From an offset in an image to the blob whose bytes are there.

use super::DirectorySource;
use super::format::BLOCK;
use super::layout::ImageLayout;
use crate::castore::{Digest, NodeRef};

/// What is in an image from some offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageExtent {
    /// So many bytes of metadata: see [`ImageLayout::read_metadata`].
    Metadata(u64),
    /// Bytes of a blob.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its size in bytes, as its node states.
        size: u64,
        /// The offset in the blob, in bytes.
        offset: u64,
        /// How many bytes there are up to its end.
        length: u64,
    },
    /// So many zeros.
    Zeros(u64),
}

impl ImageExtent {
    /// Bytes of the extent.
    pub fn length(&self) -> u64 {
        match self {
            ImageExtent::Metadata(length)
            | ImageExtent::Zeros(length)
            | ImageExtent::Blob { length, .. } => *length,
        }
    }

    /// Its first `most` bytes.
    pub fn first(self, most: u64) -> Self {
        match self {
            ImageExtent::Metadata(length) => ImageExtent::Metadata(length.min(most)),
            ImageExtent::Zeros(length) => ImageExtent::Zeros(length.min(most)),
            ImageExtent::Blob {
                digest,
                size,
                offset,
                length,
            } => ImageExtent::Blob {
                digest,
                size,
                offset,
                length: length.min(most),
            },
        }
    }
}

impl ImageLayout {
    /// The extent at `offset`; nothing at the image's end.
    pub fn extent_at<S: DirectorySource>(
        &self,
        offset: u64,
        source: &S,
    ) -> Result<Option<ImageExtent>, S::Error> {
        if offset >= self.size() {
            return Ok(None);
        }
        let Some(in_data) = offset.checked_sub(self.metadata_size()) else {
            return Ok(Some(ImageExtent::Metadata(self.metadata_size() - offset)));
        };
        let data_end = u64::from(self.data_blocks) * BLOCK;
        if in_data >= data_end {
            return Ok(Some(ImageExtent::Zeros(self.size() - offset)));
        }
        let after = self.extent_after((in_data / BLOCK) as u32);
        let first_block = |extent: u32| u64::from(self.blocks[extent as usize]);
        // The first extent starts at block 0.
        let entry = self.extents[after - 1];
        let in_blob = in_data - first_block(entry) * BLOCK;
        let end = match self.extents.get(after) {
            Some(next) => first_block(*next) * BLOCK,
            None => data_end,
        };
        Ok(Some(match self.entry_blob(entry, source)? {
            Some((digest, size)) if in_blob < size => ImageExtent::Blob {
                digest,
                size,
                offset: in_blob,
                length: size - in_blob,
            },
            _ => ImageExtent::Zeros(end - in_data),
        }))
    }

    /// The extent after the one that block `block` of the file data is in.
    pub(super) fn extent_after(&self, block: u32) -> usize {
        let starts = |extent: &u32| self.blocks[*extent as usize] <= block;
        self.extents.partition_point(starts)
    }

    /// The distinct Directory that has this entry, all their entries counted, and where in it.
    pub(super) fn directory_of(&self, entry: u32) -> (u32, usize) {
        let all = &self.counted.distinct;
        let distinct = all.partition_point(|one| one.entries <= entry) - 1;
        (distinct as u32, (entry - all[distinct].entries) as usize)
    }

    /// The blob of the file that is this entry, all distinct Directories' entries counted.
    fn entry_blob<S: DirectorySource>(
        &self,
        entry: u32,
        source: &S,
    ) -> Result<Option<(Digest, u64)>, S::Error> {
        let (distinct, index) = self.directory_of(entry);
        let directory = self.directory(distinct, source)?;
        let node = directory.get(index).map(|entry| entry.node);
        Ok(match node {
            Some(NodeRef::File { digest, size, .. }) => Some((digest, size)),
            _ => None,
        })
    }
}
