//! Why a tree has no image.

use thiserror::Error;

/// Names that an image may have, without its root: 16 million, which take about 1.2 GB of metadata.
pub const MOST_NAMES: u64 = 16 << 20;

/// Why a tree has no image.
#[derive(Debug, Error)]
pub enum ImageError<E> {
    /// A Directory cannot be read.
    #[error(transparent)]
    Source(E),
    /// More names than [`MOST_NAMES`].
    #[error(
        "the tree has {0} names or more, and an image at most {MOST_NAMES}: mount it without an image"
    )]
    TooManyNames(u64),
    /// More blocks than 32 bits can number.
    #[error(
        "the tree's files and metadata take more than 2^32 blocks of 4 KiB, the most an image can have: \
         mount it without an image"
    )]
    TooManyBlocks,
}
