//! The status of a cache.

/// State and counters of a cache. Counts are of this process, since the cache was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheStatus {
    /// Bytes that the local store takes on its disk.
    pub size: u64,
    /// Bytes that it may take, if that is bounded.
    pub limit: Option<u64>,
    /// Directories and parts of blobs that were answered from the local store.
    pub hits: u64,
    /// Directories and parts of blobs that were requested from the upstream.
    pub misses: u64,
    /// Objects (blobs, parts of blobs, Directories) that were evicted.
    pub evictions: u64,
    /// Objects that were not kept, because the disk was too slow, full or failing.
    pub not_stored: u64,
    /// Objects of the local store that were damaged, and fetched again.
    pub repairs: u64,
    /// Why nothing is being kept at the moment.
    pub backoff: Option<String>,
    /// Why the upstream is considered unreachable, as long as it is.
    pub upstream_down: Option<String>,
    /// The names of the roots that are pinned.
    #[serde(default)]
    pub pins: Vec<String>,
}
