//! `nix-cache-info`: a binary cache's own settings.

use crate::nix::STORE_DIR;

/// The longest `nix-cache-info` that is read, in bytes.
pub(super) const MAX_INFO_BYTES: usize = 64 << 10;

/// The relevant settings of `nix-cache-info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheInfo {
    /// Smaller is asked first. A cache without one comes first, as in Nix.
    pub(super) priority: u32,
}

impl CacheInfo {
    /// Reads `Key: value` lines; unknown keys are ignored. Fails for a cache of another store
    /// directory.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut info = Self::default();
        let text = String::from_utf8_lossy(text);
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            match (key.trim(), value.trim()) {
                ("StoreDir", directory) if directory != STORE_DIR => {
                    return Err(format!(
                        "it is for Nix stores in {}, not in {STORE_DIR}",
                        directory.escape_debug()
                    ));
                }
                ("Priority", value) => {
                    info.priority = value
                        .parse()
                        .map_err(|_| "its Priority is not a number".to_owned())?;
                }
                _ => {}
            }
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_directory_and_the_priority_count() {
        let info = CacheInfo::parse(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n");
        assert_eq!(info, Ok(CacheInfo { priority: 40 }));
        assert_eq!(CacheInfo::parse(b""), Ok(CacheInfo { priority: 0 }));
        assert!(CacheInfo::parse(b"StoreDir: /gnu/store\n").is_err());
        assert!(CacheInfo::parse(b"Priority: first\n").is_err());
    }
}
