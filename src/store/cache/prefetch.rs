//! Fetching ahead what is below a root.

use std::sync::atomic::AtomicU64;

/// How far a prefetch is. Others may look while it runs.
#[derive(Debug, Default)]
pub struct Prefetch {
    /// Directories that are in the near store now.
    pub directories: AtomicU64,
    /// Blobs that are in the near store now.
    pub blobs: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Bytes of all blobs that were found below the roots so far.
    pub total_bytes: AtomicU64,
}
