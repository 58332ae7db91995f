//! What a cache says of itself, for whoever watches it.

/// How a cache fares. Counts are of this process, since the cache was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheStatus {
    /// Bytes that the near store takes on its disk.
    pub size: u64,
    /// Bytes that it may take, if that is bounded.
    pub limit: Option<u64>,
    /// Directories and parts of blobs that were answered from the near store.
    pub hits: u64,
    /// Those that the far store had to be asked for.
    pub misses: u64,
    /// Objects (blobs, parts of blobs, Directories) that had to make room for others.
    pub evictions: u64,
    /// Objects that were not kept, because the disk was too slow, full or failing.
    pub not_kept: u64,
    /// Objects of the near store that were damaged, and fetched anew.
    pub repairs: u64,
    /// Why nothing is being kept at the moment.
    pub degraded: Option<String>,
    /// Why the far store was last found out of reach, as long as that holds.
    pub far_down: Option<String>,
}
